"""How many threads a kind of step is fastest on, found by trying. Knows nothing of threads or networks.

What a second thread gains in a small step depends on how fast two CPUs exchange data, which the host of a virtual
machine may change at any moment. So steps are timed as they are taken, in *slices*: periods of work on one number of
threads. Most slices use the best number found so far. Every now and then a *trial* takes a few slices on half or twice
as many threads, and the better number becomes the best. Trials are so rare that they cost about 1% of the time. More
threads are better only if they gain something: a thread that waits for work keeps a CPU busy.

Threads may *starve*, that is, lack CPUs: other processes or a quota may take them. Then whoever waits for a thread
waits for its CPU, too, for longer than many small steps last. A trial is too short to see that, so small steps go on
with as many threads as had CPUs, and more are tried again later. CPU time alone does not tell: its clock is updated
only every few milliseconds, and if jobs are that short, threads may be asleep whenever it is. So small steps must have
become slower, too. All threads are best for *large* steps, unless they starve: only then are these tried on fewer.
"""

from collections import deque
from math import inf
from statistics import median

TRIAL_SECONDS = 0.0005  # the least that a slice of a trial should last
TRIAL_STEPS = 8  # steps that it should contain at least, because it may begin and end in the middle of one
TRIAL_SLICES = 3  # slices of a trial; their median counts, because threads may have to be woken in the first
LONG = 0.2  # seconds of a slice from which a trial needs only one
BEST_SLICES = 5  # slices on the best number that a trial is compared with
# More threads are better if a step takes less than GAIN of the time, and stay as long as it takes less than KEPT_GAIN.
# In between, whichever number is used stays.
GAIN = 0.9
KEPT_GAIN = 0.95
BUSY = 0.5  # seconds lost, for each second that a trial on more threads kept as many again busy in vain
RARITY = 100  # a trial that lost t seconds is followed by RARITY t seconds without one,
SLOWDOWN = 1.25  # unless steps become this many times slower: then the next trial begins at once
LEAST_WAIT = 0.002  # seconds before the first trial, and after one that found a better number
STARVED, STARVED_LARGE = 0.85, 0.75  # threads that got less than this share of their time starve,
STARVED_SECONDS = 0.1  # judged over so long: a period of a quota, and several ticks of any clock of CPU time
# Seconds until more threads are tried after small steps starved: at first, and at most. It doubles each time, until
# threads did not starve for STARVED_SECONDS.
STARVED_WAIT, STARVED_WAIT_MOST = 0.5, 8.0


class ThreadCount:
    """Chooses the number of threads for the next slice, from 1 to `most`, given how long steps took so far.

    If steps are `large`, fewer than `most` are tried only if threads starve.

    The caller runs a slice on ``threads`` threads that lasts about ``slice(longest)`` seconds, then calls ``record``.
    """

    def __init__(self, most: int, *, large: bool = False) -> None:
        self._choices = [most]  # numbers of threads, ascending: each about half the next
        while self._choices[0] > 1:
            self._choices.insert(0, (self._choices[0] + 1) // 2)
        self._best = self._current = len(self._choices) - 1  # indices of _choices; they differ during a trial
        self._direction = -1  # the next trial is of the choice at _best + _direction
        self._best_times: deque[float] = deque(maxlen=BEST_SLICES)  # seconds per step, slice by slice
        self._trial_times: list[float] = []  # the same, in this trial
        self._trial_steps = 0
        self._unfinished = 0.0  # seconds of slices in which no step was completed, since one was
        self._step_time = 0.0  # seconds per step in the last slice
        self._wait = LEAST_WAIT  # seconds until the next trial
        self._expected = inf  # seconds per step after the last trial or retreat
        self._large, self._starved = large, False  # whether threads starved over the last STARVED_SECONDS
        self._least_share = STARVED_LARGE if large else STARVED
        self._starved_wait = STARVED_WAIT
        self._retreated = False  # whether the last change was because they starved
        self._watch_anew()

    @property
    def threads(self) -> int:
        """The number of threads for the next slice."""
        return self._choices[self._current]

    def slice(self, longest: float) -> float:
        """Seconds that the next slice should last, `longest` at most."""
        seconds = max(TRIAL_SECONDS, TRIAL_STEPS * self._step_time)
        if self._current == self._best and len(self._best_times) == BEST_SLICES:
            seconds = max(seconds, self._wait)
        return min(longest, seconds)

    def record(self, seconds: float, steps: int, cpu_seconds: float) -> None:
        """Note that a slice on ``threads`` threads took `seconds`, and that `steps` steps were completed in it.

        `cpu_seconds` is the CPU time that all threads together used in it.
        """
        self._watch_cpus(seconds, steps, cpu_seconds)
        self._unfinished += seconds
        if steps < 1 or len(self._choices) == 1:
            return
        seconds, self._unfinished = self._unfinished, 0.0
        self._step_time = seconds / steps
        if self._starved and not self._large and self._best > 0:
            self._retreat()
            return
        if self._current != self._best:
            self._trial_times.append(self._step_time)
            self._trial_steps += steps
            if len(self._trial_times) == TRIAL_SLICES or seconds >= LONG:
                self._end_trial(median(self._trial_times), median(self._best_times))
            return
        self._best_times.append(self._step_time)
        if self._expected == inf and len(self._best_times) == BEST_SLICES:
            self._expected = median(self._best_times)
        self._wait -= seconds
        slower = min(self._best_times) > SLOWDOWN * self._expected and not self._retreated
        useful = not self._large or self._starved or self._best + 1 < len(self._choices)
        if useful and len(self._best_times) == BEST_SLICES and (self._wait <= 0 or slower):
            self._begin_trial()

    def _watch_cpus(self, seconds: float, steps: int, cpu_seconds: float) -> None:
        """Judge from a slice, with those before it, whether threads lack CPUs."""
        self._observed += seconds
        self._cpu_time += cpu_seconds
        self._thread_time += seconds * self.threads
        self._observed_steps += steps
        if self._observed >= STARVED_SECONDS:
            short = self._cpu_time < self._least_share * self._thread_time
            slow = self._observed > SLOWDOWN * self._expected * self._observed_steps
            self._starved = short and (slow or self._large)
            several = self._best > 0 and self._thread_time > 0.9 * self._observed * self._choices[self._best]
            if several and not short:
                self._starved_wait = STARVED_WAIT
            self._cpus = self._cpu_time / self._observed
            self._watch_anew()

    def _watch_anew(self) -> None:
        """Begin to add up seconds of slices, of CPUs and of threads, and steps."""
        self._observed = self._cpu_time = self._thread_time = 0.0
        self._observed_steps = 0

    def _begin_trial(self) -> None:
        """Try the next choice in the current direction, or in the other where there is none."""
        if not 0 <= self._best + self._direction < len(self._choices):
            self._direction = -self._direction
        self._current = self._best + self._direction
        if self._large and self._starved:  # as many as had a CPU: half of far too many may be no better
            fewer = [i for i in range(self._best) if self._choices[i] <= max(1, round(self._cpus))]
            self._current = fewer[-1] if fewer else self._current
        self._trial_times, self._trial_steps, self._retreated = [], 0, False

    def _retreat(self) -> None:
        """Go on with as many threads as had a CPU, and fewer than now; try more again after a while."""
        fewer = [i for i in range(self._best) if self._choices[i] <= max(1, round(self._cpus))]
        self._best = self._current = fewer[-1]
        self._best_times.clear()
        self._expected = inf
        self._starved, self._retreated, self._direction = False, True, 1
        self._wait, self._starved_wait = self._starved_wait, min(2 * self._starved_wait, STARVED_WAIT_MOST)

    def _end_trial(self, trial_time: float, best_time: float) -> None:
        """Keep the choice that was tried if it is better, else turn round and wait; times are seconds per step."""
        self._expected = min(trial_time, best_time)
        more = self._current > self._best
        if trial_time < GAIN * best_time if more else KEPT_GAIN * trial_time < best_time:
            self._best = self._current
            self._best_times.clear()
            self._wait = LEAST_WAIT
            self._watch_anew()
        else:
            self._current = self._best
            self._direction = -self._direction
            lost = max(trial_time - best_time, BUSY * trial_time if more else 0.0)
            self._wait = max(LEAST_WAIT, RARITY * self._trial_steps * lost)
