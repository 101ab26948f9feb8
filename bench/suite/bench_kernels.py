"""Single kernels on one thread beside NumPy: products as shares of the FMA peak, other kernels in ns per element.

Those that users cannot call are repeated within one jitted call; public functions are called as users call them.
"""

import ctypes
from functools import partial
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import fastae
from fastae.bench.cases import Case
from fastae.bench.probe import Probe, against_peak
from fastae.bench.rounds import Contender, recorded
from fastae.bench.stages import Tile, load_times, repeats, source_of
from fastae.kernels import job, optimizer
from fastae.kernels.compiler import jitted
from fastae.kernels.intrinsics import flush_subnormals, record_at, restore_float_state

pytestmark = pytest.mark.benchmark(group="kernels")

# A tile of 48 rows at n=48, k=16 fits in L1 (27 kB with its weights), one of 192 rows at n=128, k=64 in L2 (0.5 MB).
TILES = {"L1": (Case(48, 16, 48, 0), 48), "L2": (Case(128, 64, 192, 0), 192)}
FORMS = {
    "forward-sigmoid": (lambda tile: tile.forward(1), lambda h, W, b: 1 / (1 + np.exp(-(h @ W + b)))),
    "residual": (lambda tile: tile.residual(), lambda h, W, b: h @ W + b - 1),
    "backward-sigmoid": (lambda tile: tile.backward(2), lambda h, W, b: (h @ W.T) * (h * (1 - h))),
    "gradient": (lambda tile: tile.weight_gradient(2), lambda h, W, b: h.T @ h),
}


def measure(benchmark, run, flops=0.0, elements=0):
    """Time run(times), with `times` chosen to last about 1 ms; figures are per repetition."""
    times = repeats(run) if benchmark.enabled else 1
    probe = Probe(1)
    against_peak(benchmark, lambda: run(times), flops * times, probe, rounds=51)
    benchmark.extra_info["times"] = times
    if benchmark.enabled and elements:
        benchmark.extra_info["ns_per_element"] = benchmark.stats.stats.median / times / elements * 1e9
    if not flops:
        for name in ("gflops", "share_of_peak"):
            benchmark.extra_info.pop(name, None)


def measure_numpy(benchmark, run):
    with threadpool_limits(1):
        benchmark.pedantic(run, rounds=51, warmup_rounds=3)


@pytest.mark.parametrize("by", ["kernel", "numpy"])
@pytest.mark.parametrize("size", TILES)
@pytest.mark.parametrize("form", FORMS)
def test_gemm(benchmark, form, size, by):
    case, height = TILES[size]
    make, peer = FORMS[form]
    if by == "numpy":
        layer = 2 if form == "forward-sigmoid" else 3
        W, b = case.dense[f"W{layer}"], case.dense[f"b{layer}"]
        h = np.random.default_rng(0).random((height, W.shape[0])).astype("f4")
        measure_numpy(benchmark, lambda: peer(h, W, b))
        return
    tile = Tile(case, height)
    tile.check()  # every form, against the reference
    stage = make(tile)
    measure(benchmark, stage.run, stage.flops)


def _sigmoid_in_place(z, h, dh):
    np.negative(z, out=h)
    np.exp(h, out=h)
    h += 1
    np.reciprocal(h, out=h)
    np.subtract(1, h, out=dh)
    dh *= h


ELEMENTWISE: dict[str, Any] = {
    "sigmoid_with_derivative": (fastae.kernels.sigmoid_with_derivative, _sigmoid_in_place, 2),
    "exp": (fastae.kernels.exp, lambda x, out: np.exp(x, out=out), 1),
}


@pytest.mark.parametrize("size", [2048, 1 << 18])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(benchmark, name, dtype, size):
    """Calls as a user makes them, one after another, beside NumPy written in place."""
    ours, numpy, outputs = ELEMENTWISE[name]
    z = np.random.default_rng(0).uniform(-8, 8, size).astype(dtype)
    exact = z.astype("f8")
    out, wanted = [np.empty_like(z) for _ in range(outputs)], [np.empty_like(exact) for _ in range(outputs)]
    ours(z, *out)
    numpy(exact, *wanted)
    for result, expected in zip(out, wanted, strict=True):
        np.testing.assert_allclose(result, expected, rtol=2e-6 if dtype == "f4" else 1e-12, atol=1e-7)
    calls = {"fastae": ours, "numpy": numpy}
    timings = recorded(
        benchmark, {by: Contender(partial(_calls, call, z, *out), 1) for by, call in calls.items()}
    )
    if timings:
        benchmark.extra_info["note"] = f"{timings['fastae'].median / size * 1e9:.3f} ns per element"


def _calls(call, z, *out_and_times):
    *out, times = out_and_times
    for _ in range(times):
        call(z, *out)


OPTIMIZERS = {
    "sgd": job.Job(optimizer=job.SGD, momentum=0.9),
    "nesterov": job.Job(optimizer=job.SGD, momentum=0.9, nesterov=1),
    "adam": job.Job(optimizer=job.ADAM, beta_1=0.9, beta_2=0.999, epsilon=1e-8),
}
RATE = 1e-3


@jitted
def _update_times(times, job_at, parameters, gradient, u, s):
    state = flush_subnormals()
    for step in range(times):
        optimizer.update(record_at(job_at, job.JOB), parameters, gradient, u, s, RATE, step)
    restore_float_state(state)


def _numpy_update(name, p, g, u, s):
    if name == "adam":
        u[:] = 0.9 * u + 0.1 * g
        s[:] = 0.999 * s + 0.001 * g * g
        p -= RATE * (u / 0.1) / (np.sqrt(s / 0.001) + 1e-8)
        return
    u[:] = 0.9 * u - RATE * g
    p += 0.9 * u - RATE * g if name == "nesterov" else u


@pytest.mark.parametrize("by", ["kernel", "numpy"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update(benchmark, name, by):
    size = 1 << 15  # 128 kB per array: in L2
    rng = np.random.default_rng(0)
    p, g = (rng.normal(size=size).astype("f4") for _ in range(2))
    u, s = np.zeros((2, size), "f4")
    if by == "numpy":
        measure_numpy(benchmark, lambda: _numpy_update(name, p, g, u, s))
        return
    job_at = ctypes.addressof(OPTIMIZERS[name])
    wanted = p.astype("f8")
    _numpy_update(name, wanted, g.astype("f8"), *np.zeros((2, size)))
    _update_times(1, job_at, p, g, u, s)
    np.testing.assert_allclose(p, wanted, rtol=1e-5, atol=1e-6)
    measure(benchmark, lambda times: _update_times(times, job_at, p, g, u, s), elements=size)


@pytest.mark.parametrize("by", ["kernel", "numpy"])
@pytest.mark.parametrize("source", ["f4-C", "f4-F", "f8-C", "u1-C"])
@pytest.mark.parametrize("n", [30, 128])
def test_load(benchmark, n, source, by):
    dtype, order = source.split("-")
    tile = Tile(Case(n, 8, 192, 0), 192)
    X = np.asarray(np.random.default_rng(0).integers(0, 99, (192, n)), dtype, order=order)
    if by == "numpy":
        out = np.empty((192, n), "f4")
        measure_numpy(benchmark, lambda: np.copyto(out, X, casting="unsafe"))
        return
    blocks, at, spare = -(-n // 16), tile.tiles.ctypes.data, tile.spare.ctypes.data

    def run(times):
        load_times(times, tile.like, at, 192, source_of(X), 192, 192, spare)

    run(1)
    loaded = tile.tiles[: blocks * 192 * 16].reshape(blocks, 192, 16).transpose(1, 0, 2).reshape(192, -1)
    np.testing.assert_array_equal(loaded[:, :n], X)
    assert not loaded[:, n:].any()
    measure(benchmark, run, elements=X.size)
