"""One loss and gradient: ours beside the peers, with the ceilings of the same run."""

import pytest

from fastae.bench import compare
from fastae.bench.cases import CASES, Case
from fastae.bench.rounds import ROUNDS
from fastae.bench.step_peers import PEERS, installed
from fastae.engine import thread_pool

pytestmark = pytest.mark.benchmark(group="step")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_step(benchmark, case):
    names, _ = installed()
    if not benchmark.enabled:
        for peer in (compare.OURS, *(PEERS[name] for name in names)):
            ours = compare.checked(peer, case, thread_pool.available_cpus())
        benchmark.pedantic(ours.run, args=(1,))
        return
    record(benchmark, compare.measure(case, names))


def test_step_in_float64(benchmark):
    """Beside NumPy only: the other peers are set up for float32."""
    case = Case(784, 64, 4096, 0.8, "float64")
    if not benchmark.enabled:
        benchmark.pedantic(compare.checked(compare.OURS, case, thread_pool.available_cpus()).run, args=(1,))
        return
    record(benchmark, compare.measure(case, ["numpy"]))


def record(benchmark, comparison):
    """Add the comparison to the benchmark's own record."""
    ours = compare.checked(compare.OURS, comparison.case, thread_pool.available_cpus())
    benchmark.pedantic(ours.run, args=(1,), rounds=ROUNDS)
    benchmark.extra_info |= {
        "milliseconds": {name: timing.median * 1e3 for name, timing in comparison.timings.items()},
        "target_ratio": comparison.case.target_ratio,
        "gflops": comparison.gflops(),
        "share_of_peak": comparison.share_of_peak(),
        "share_of_ceiling": comparison.share_of_ceiling(),
        "target": comparison.case.target,
    }
