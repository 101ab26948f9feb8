"""Time several contenders in turn, A B A B, in one process, so that ratios are fair on a noisy machine.

A thread pool keeps spinning after its work (OpenBLAS's for 26 ms, OpenMP's for milliseconds) and takes a core from the
next contender. Each turn therefore begins with a rest in which all pools fall asleep, and sets the contender's thread
count. The contender then runs untimed until its pool is awake and spread over the cores. Without this, torch took 2 to
10 times as long after NumPy's turn as by itself, and JAX 1.5 times; with it, each takes as long as by itself.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fastae.bench.pools import set_threads

REST = 0.04  # seconds of rest before a turn: longer than any pool spins
WARM = 0.1  # seconds of untimed work
TURN = 0.03  # seconds of timed work, at least
ROUNDS = 15
STEADY = 1.5  # largest ratio of p90 to p10 of times that may be quoted


class Contender(NamedTuple):
    """run(times) repeats the work to time, on `threads` threads."""

    run: Callable[[int], Any]
    threads: int


class Timing(NamedTuple):
    """Seconds per repetition: median, 10th and 90th percentile over `rounds` turns."""

    median: float
    p10: float
    p90: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        return cls(statistics.median(seconds), tenths[0], tenths[-1], len(seconds))

    def rates(self, work: float) -> "Timing":
        """The same as work per second."""
        return Timing(work / self.median, work / self.p90, work / self.p10, self.rounds)

    @property
    def counted(self) -> float:
        """What a peer counts with: the median or, where times vary too much, p10, which favours the peer."""
        return self.median if self.steady else self.p10

    @property
    def steady(self) -> bool:
        """Whether the times vary so little that their median may be quoted."""
        return self.p90 <= STEADY * self.p10


def in_turn(contenders: Mapping[Any, Contender], *, rounds: int = ROUNDS) -> dict[Any, Timing]:
    """The timing of each contender over `rounds` rounds."""
    times = {name: _times_a_turn(contender) for name, contender in contenders.items()}
    spent: dict[Any, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            spent[name].append(_turn(contender, times[name]) / times[name])
    return {name: Timing.of(taken) for name, taken in spent.items()}


def fastest(contenders: Iterable[Contender]) -> Contender:
    """The fastest contender, by the median of three rounds."""
    among = dict(enumerate(contenders))
    if len(among) == 1:
        return among[0]
    timings = in_turn(among, rounds=3)
    return among[min(timings, key=lambda i: timings[i].median)]


def recorded(benchmark: Any, contenders: Mapping[Any, Contender], **info: Any) -> dict[Any, Timing]:
    """``in_turn`` for pytest-benchmark, which also times the first contender by itself and records all medians.

    If benchmarks are disabled, the first contender runs once and the result is empty.
    """
    ours = next(iter(contenders.values()))
    if not benchmark.enabled:
        benchmark.pedantic(ours.run, args=(1,))
        return {}
    timings = in_turn(contenders)
    benchmark.pedantic(ours.run, args=(1,), rounds=ROUNDS)
    benchmark.extra_info |= info
    benchmark.extra_info["milliseconds"] = {name: timing.median * 1e3 for name, timing in timings.items()}
    return timings


def _times_a_turn(contender: Contender) -> int:
    return max(1, round(TURN / _turn(contender, 1)))


def _turn(contender: Contender, times: int) -> float:
    time.sleep(REST)
    set_threads(contender.threads)
    began = time.perf_counter()
    while time.perf_counter() - began < WARM:
        contender.run(1)
    began = time.perf_counter()
    contender.run(times)
    return time.perf_counter() - began
