"""A loss and gradient, an epoch of Adam, many networks at once: ours beside the peers, with the ceilings of the run."""

from typing import Any

import pytest

from fastae.bench import compare, peers
from fastae.bench.cases import CASES, DEEP, EPOCHS, MANY, SMALL, Case
from fastae.bench.rounds import ROUNDS
from fastae.engine import thread_pool

FLOAT64 = Case(784, 64, 4096, 0.8, "float64")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.id, marks=pytest.mark.benchmark(group=case.kind))
        for case in [*CASES, FLOAT64, *SMALL[::3], *DEEP, *EPOCHS, *MANY]
    ],
)
def test_beside_peers(benchmark, case):
    """Untimed, each form of each peer runs once and is checked."""
    names, _ = peers.available(case)
    threads, known = thread_pool.available_cpus(), peers.peers_of(case)
    ours: Any = compare.checked(known["fastae"], known["fastae"].forms[""], case, threads)
    if not benchmark.enabled:
        for name in ("fastae", *names):
            for make in known[name].forms.values():
                compare.checked(known[name], make, case, threads)
        benchmark.pedantic(ours.run, args=(1,))
        return
    comparison = compare.measure(case, names)
    benchmark.pedantic(ours.run, args=(1,), rounds=ROUNDS)
    benchmark.extra_info |= {
        "milliseconds": {name: timing.median * 1e3 for name, timing in comparison.timings.items()},
        "gflops": comparison.gflops(),
        "share_of_peak": comparison.share_of_peak(),
        "share_of_ceiling": comparison.share_of_ceiling(),
    }
    if case.target_ratio:
        benchmark.extra_info["target_ratio"] = case.target_ratio
    if not comparison.quotable:
        benchmark.extra_info["note"] = "DO NOT QUOTE: the cores were shared"
