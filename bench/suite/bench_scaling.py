"""How the time of a step scales with rows, features, units and threads, and that its memory does not grow with rows."""

import tracemalloc
from functools import partial

import pytest

import fastae
from fastae.bench.cases import CASES, Case
from fastae.bench.probe import Probe
from fastae.bench.rounds import Contender, recorded
from fastae.engine.thread_pool import available_cpus

pytestmark = pytest.mark.benchmark(group="scaling")

SWEEPS = {
    "rows": [Case(64, 32, 1 << power) for power in range(11, 19)],
    "features": [Case(n, max(2, n // 4), (1 << 21) // n) for n in (8, 16, 32, 64, 128, 256, 512, 1024)],
    "units": [Case(128, k, 16_384) for k in (4, 8, 16, 32, 64, 128, 256)],
}


def contender(case, threads):
    engine = fastae.Engine(case.network, threads, case.dtype)
    return Contender(partial(_steps, engine, case.parameters, case.X), threads)


def _steps(engine, params, X, times):
    for _ in range(times):
        engine.loss_and_gradient(params, X)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sizes(benchmark, sweep):
    """Every size on all CPUs: GF/s, share of the FMA peak, ns per row."""
    threads = available_cpus()
    contenders = {case.id: contender(case, threads) for case in SWEEPS[sweep]}
    probe = Probe(threads)
    contenders["peak"] = Contender(probe, threads)
    timings = recorded(benchmark, contenders)
    if timings:
        rates = {case: case.flops / timings[case.id].median / 1e9 for case in SWEEPS[sweep]}
        benchmark.extra_info["scaling"] = {
            case.id: {
                "ms": timings[case.id].median * 1e3,
                "ns a row": timings[case.id].median / case.m * 1e9,
                "GF/s": rate,
                "share of FMA peak": rate / probe.median,
            }
            for case, rate in rates.items()
        }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_threads(benchmark, case):
    """One thread, powers of two, and all CPUs."""
    counts = sorted({1, 2, 4, 8, 16, 32, 64, available_cpus()})
    counts = [count for count in counts if count <= available_cpus()]
    timings = recorded(benchmark, {count: contender(case, count) for count in counts})
    if timings:
        benchmark.extra_info["scaling"] = {
            f"{count} threads": {
                "ms": timing.median * 1e3,
                "MFLOP": case.flops / 1e6,
                "speed of one": timings[1].median / timing.median,
            }
            for count, timing in timings.items()
        }


def test_memory_stays_flat(benchmark):
    """A new engine and its step allocate the same memory for 16 times as many rows."""
    small, large = Case(64, 32, 1 << 15), Case(64, 32, 1 << 19)
    peaks = {}
    for case in (small, large):
        params, X = case.parameters, case.X
        tracemalloc.start()
        fastae.Engine(case.network).loss_and_gradient(params, X)
        peaks[case.id] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    benchmark.pedantic(
        contender(large, available_cpus()).run, args=(1,), rounds=5 if benchmark.enabled else 1
    )
    benchmark.extra_info["scaling"] = {name: {"allocated MB": peak / 1e6} for name, peak in peaks.items()}
    assert peaks[large.id] < 1.01 * peaks[small.id] + 50_000
