"""How many threads a kind of step is fastest on: found by trying. Knows nothing of threads or networks.

What a second thread is worth to a small step depends on how fast two CPUs hand each other data, which a virtual
machine's host may change at any moment. So steps are timed as they are taken, in slices: at the best number so far
and, every now and then, at half or twice as many. Trials are so rare that what they lose is a hundredth of the time.
"""

from collections import deque
from math import inf
from statistics import median

TRIAL = 0.0005  # seconds that a slice of a trial should last,
STEPS = 8  # and steps: it may begin and end in the midst of one
SLICES = 5  # at the best number that a trial is compared with
TRIES = 3  # slices of a trial, of which the median counts: in the first, threads may have to be woken
GAIN = 0.95  # a number of threads is better where a step takes this much of the time
RARITY = 100  # times what a trial lost, before the next one; but where steps have become
SLOWER = 1.25  # times slower since, that is at once
AT_FIRST = 0.002  # seconds before the first trial, and after one that found something better


class ThreadCount:
    """The number of threads to take next, from 1 to `most`, given how long steps took on others."""

    def __init__(self, most: int) -> None:
        self._numbers = [most]
        while self._numbers[0] > 1:
            self._numbers.insert(0, (self._numbers[0] + 1) // 2)
        self._best = self._trial = len(self._numbers) - 1
        self._way = -1  # to the number that is tried next
        self._recent: deque[float] = deque(maxlen=SLICES)
        self._tried: list[float] = []
        self._steps = 0
        self._seconds = 0.0  # since the last slice in which a step was completed,
        self._each = 0.0  # and those of a step in that one
        self._left, self._usual = AT_FIRST, inf  # until the next trial; a step at the last one

    @property
    def threads(self) -> int:
        """To be used for the next slice."""
        return self._numbers[self._trial]

    def slice(self, longest: float) -> float:
        """Seconds that the next slice should last, `longest` at most."""
        wanted = max(TRIAL, STEPS * self._each)
        if self._trial == self._best and len(self._recent) == SLICES:
            wanted = max(wanted, self._left)
        return min(longest, wanted)

    def record(self, seconds: float, steps: int) -> None:
        """A slice on ``threads`` threads took so long, and `steps` were completed in it."""
        self._seconds += seconds
        if steps < 1 or len(self._numbers) == 1:
            return
        seconds, self._seconds = self._seconds, 0.0
        self._each = seconds / steps
        if self._trial == self._best:
            self._recent.append(self._each)
            self._left -= seconds
            if len(self._recent) == SLICES and (self._left <= 0 or min(self._recent) > SLOWER * self._usual):
                self._begin_trial()
            return
        self._tried.append(self._each)
        self._steps += steps
        if len(self._tried) == TRIES:
            self._end_trial(median(self._tried), median(self._recent))

    def _begin_trial(self) -> None:
        """Half as many threads, or twice as many, in turn."""
        if not 0 <= self._best + self._way < len(self._numbers):
            self._way = -self._way
        self._trial = self._best + self._way
        self._tried, self._steps = [], 0

    def _end_trial(self, found: float, usual: float) -> None:
        self._usual = min(found, usual)
        if found < GAIN * usual:
            self._best = self._trial
            self._recent.clear()
            self._left = AT_FIRST
        else:
            self._trial = self._best
            self._way = -self._way
            self._left = max(AT_FIRST, RARITY * self._steps * (found - usual))
