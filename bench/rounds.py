"""Several functions timed in turn, A B A B, in one process: what makes their ratio fair on a noisy machine."""

import statistics
import time
from collections.abc import Callable
from typing import Any

TURN = 0.03  # seconds that a turn lasts at least, so that what the last one left in the caches does not count


def in_turn(
    benchmark: Any, functions: dict[str, Callable[[int], Any]], *, budget: float = 6.0, least: int = 15
) -> dict[str, float]:
    """Median seconds of one time of each, f(times); the first is also told to `benchmark`. Empty where it is disabled.

    At least `least` rounds, and more until `budget` seconds are spent.
    """
    (first, measured), *_ = functions.items()
    if not benchmark.enabled:
        benchmark.pedantic(measured, args=(1,), rounds=1)
        return {}
    times = {}
    for name, function in functions.items():
        function(1)
        start = time.perf_counter()
        function(1)
        times[name] = max(1, round(TURN / (time.perf_counter() - start)))
    spent: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    while len(spent[first]) < least or time.perf_counter() - start < budget:
        for name, function in functions.items():
            began = time.perf_counter()
            function(times[name])
            spent[name].append((time.perf_counter() - began) / times[name])
    benchmark.pedantic(measured, args=(1,), rounds=least)
    return {name: statistics.median(taken) for name, taken in spent.items()}
