"""Single kernels on one thread beside NumPy: products as shares of the FMA peak, other kernels in ns per element."""

import ctypes

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fastae.bench.cases import Case
from fastae.bench.probe import Probe, against_peak
from fastae.bench.stages import Tile, load_times, repeats, source_of
from fastae.kernels import activations, job, optimizer
from fastae.kernels.compiler import jitted
from fastae.kernels.simd import flush_subnormals, record_at, restore_float_state

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


@jitted
def _sigmoid_times(times, z, h, dh):
    for _ in range(times):
        activations._sigmoid_with_derivative_words(z, (h.ctypes.data, dh.ctypes.data, z.ctypes.data, z.size))


@jitted
def _exp_times(times, x, out):
    for _ in range(times):
        activations._exp_words(x, (out.ctypes.data, x.ctypes.data, x.size))


@jitted
def _tanh_times(times, x, out):
    for _ in range(times):
        activations._tanh_words(x, (out.ctypes.data, x.ctypes.data, x.size))


def _sigmoid(z):
    h = 1 / (1 + np.exp(-z))
    return h, h * (1 - h)


ELEMENTWISE = {
    "sigmoid_with_derivative": (_sigmoid_times, _sigmoid, 2),
    "exp": (_exp_times, lambda x: (np.exp(x),), 1),
    "tanh": (_tanh_times, lambda x: (np.tanh(x),), 1),
}


@pytest.mark.parametrize("by", ["kernel", "numpy"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(benchmark, name, dtype, by):
    run, peer, outputs = ELEMENTWISE[name]
    size = 2048 if dtype == "f32" else 1024  # 8 kB per array, at most 24 kB in all: within L1
    z = np.random.default_rng(0).uniform(-8, 8, size).astype("f4" if dtype == "f32" else "f8")
    if by == "numpy":
        measure_numpy(benchmark, lambda: peer(z))
        return
    out = [np.empty_like(z) for _ in range(outputs)]
    run(1, z, *out)
    for result, wanted in zip(out, peer(z.astype("f8")), strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-6 if dtype == "f32" else 1e-13, atol=1e-7)
    measure(benchmark, lambda times: run(times, z, *out), elements=size)


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
