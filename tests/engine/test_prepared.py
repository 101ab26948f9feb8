"""Prepared calls: the bits of ``loss_and_gradient`` on the numbers of the moment; threads, forks, memory; `out`."""

import gc
import inspect
import multiprocessing
import os
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from engines import autoencoder, problem

import fastae
from fastae.engine.engine import OPTIONS

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
# Small steps, steps that threads share, steps that are cut by weights; with rows in lanes, and with column blocks
CASES = [(30, 8, 256), (30, 8, 5000), (30, 8, 1), (64, 33, 100), (300, 40, 2), (300, 40, 700)]


def same(call, engine, params, X, **options):
    loss = call()
    wanted, gradient = engine.loss_and_gradient(params, X, **options)
    assert loss == wanted
    assert type(loss) is float
    np.testing.assert_array_equal(call.gradient.flat, gradient.flat)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "k", "m"), CASES)
def test_each_call_computes_with_the_numbers_of_the_moment(n, k, m, dtype):
    engine, params, X = autoencoder(n, k, m, dtype)
    call = engine.prepare_loss_and_gradient(params, X)
    assert (call.params, call.X, call.engine) == (params, X, engine)
    rng = np.random.default_rng(0)
    for _ in range(3):
        same(call, engine, params, X)
        X[:] = rng.normal(size=X.shape)
        params.set_vector(params.to_vector() * 0.9)
        call.gradient.flat[:] = np.nan


@pytest.mark.parametrize("n", [30, 300])
def test_other_calls_of_the_engine_in_between_do_no_harm(n):
    """They may replace the memory that the prepared job points to."""
    engine, params, X = autoencoder(n, 8, 40)
    call = engine.prepare_loss_and_gradient(params, X)
    wanted, gradient = call(), call.gradient.flat.copy()
    many = np.random.default_rng(1).normal(size=(9000, n)).astype("f4")
    for other in (
        lambda: engine.loss_and_gradient(params, many),
        lambda: engine.reconstruct(params, many[:77]),
        lambda: engine.prepare_loss_and_gradient(params, many)(),
    ):
        other()
        gc.collect()
        assert call() == wanted
        np.testing.assert_array_equal(call.gradient.flat, gradient)


def test_memory_that_another_batch_replaces_is_not_used_any_more():
    """513 rows have twice as many bands as 512, in a slab of the same height."""
    engine, params, X = autoencoder(240, 60, 257, "float64")
    sizes = [3, 512, 513, 177, 2048, 1, 300, 4000]
    calls, wanted = [], []
    for rows in sizes:
        there = np.resize(X, (rows, 240))
        calls.append(engine.prepare_loss_and_gradient(params, there))
        wanted.append((calls[-1](), calls[-1].gradient.flat.copy()))
        gc.collect()
        for call, (loss, gradient) in zip(calls, wanted, strict=True):
            assert not call_differs(call, loss, gradient)
            assert call._job.band_sums == engine._runner._band_sums.ctypes.data
            assert call._job.kept == engine._runner.kept.ctypes.data
            assert call._job.deltas == engine._runner.deltas.ctypes.data


def test_every_option_of_loss_and_gradient_but_out_is_one():
    parameters = inspect.signature(fastae.Engine.loss_and_gradient).parameters
    assert parameters.keys() - {"self", "params", "X", "out"} == OPTIONS


def test_options_are_those_of_loss_and_gradient():
    engine, params, X = autoencoder(30, 8, 60)
    rng = np.random.default_rng(0)
    X[3, 4] = np.nan
    options = {
        "index": rng.integers(0, 60, 45),
        "shift": rng.normal(size=30),
        "scale": rng.uniform(0.5, 2, 30),
        "sample_weight": rng.uniform(0, 2, 60),
        "objective": fastae.Objective(
            alpha=0.01, missing=True, noise="mask", noise_level=0.3, sparsity_weight=0.1
        ),
        "seed": 7,
        "epoch": 2,
    }
    gradient = fastae.Parameters(params.network)
    call = engine.prepare_loss_and_gradient(params, X, gradient=gradient, **options)
    assert call.gradient is gradient
    kept = {
        name: np.copy(value) if isinstance(value, np.ndarray) else value for name, value in options.items()
    }
    for name in ("index", "shift", "scale", "sample_weight"):
        options[name][:] = 0  # they were copied
    same(call, engine, params, X, **kept)
    wanted, there = engine.loss_and_gradient(params, X, **kept | {"epoch": 5})
    assert call(5) == wanted
    assert call(epoch=np.int64(5)) == wanted
    assert call() == wanted
    np.testing.assert_array_equal(gradient.flat, there.flat)


def test_wrong_arguments_are_named_when_the_call_is_prepared():
    engine, params, X = autoencoder(30, 8, 10)
    other = fastae.Parameters(fastae.Network.autoencoder(30, 9))
    for arguments, options, error, message in (
        (
            (params, X.tolist()),
            {},
            TypeError,
            "X must be a NumPy array, to be read again in each call, got list",
        ),
        ((params, X[:, 1:]), {}, ValueError, "X has 29 features"),
        ((other, X), {}, ValueError, "params are of Network"),
        ((params, X), {"gradient": other}, ValueError, "gradient are of Network"),
        ((params, X), {"gradient": params}, ValueError, "gradient must not be params"),
        ((params, X), {"gradient": X}, TypeError, "gradient must be Parameters, got ndarray"),
        ((params, X), {"gradient": 3}, TypeError, "gradient must be Parameters, got int"),
        ((params, X), {"Y": X.tolist()}, TypeError, "Y must be a NumPy array, to be read again in each call"),
        ((params, X), {"index": [10]}, ValueError, "index must lie within"),
        ((params, X), {"rates": [1.0]}, TypeError, "prepare_loss_and_gradient has no option rates"),
        ((params, X), {"out": params}, TypeError, "prepare_loss_and_gradient has no option out"),
    ):
        with pytest.raises(error, match=message):
            engine.prepare_loss_and_gradient(*arguments, **options)
    call = engine.prepare_loss_and_gradient(params, X)
    with pytest.raises(TypeError, match="epoch must be an integer, got 'x'"):
        call("x")
    params.flat[params.padding] = 1
    before = call.gradient.flat.copy()
    with pytest.raises(ValueError, match=r"params.flat is not zero in its padding"):
        call()
    np.testing.assert_array_equal(call.gradient.flat, before)
    params.clear_padding()
    same(call, engine, params, X)


def test_it_keeps_alive_what_it_points_to():
    engine, params, X = autoencoder(30, 8, 256)
    index = np.arange(256)[::-1].copy()
    wanted, gradient = engine.loss_and_gradient(params, X, index=index, sample_weight=index + 1.0)
    call = engine.prepare_loss_and_gradient(params, X, index=index, sample_weight=index + 1.0)
    gone = weakref.ref(index)
    del engine, params, X, index
    gc.collect()
    assert gone() is None
    junk = [np.full(1 << 12, np.nan, "f4") for _ in range(200)]
    assert call() == wanted
    np.testing.assert_array_equal(call.gradient.flat, gradient.flat)
    whole = weakref.ref(call.engine)
    del call, junk
    gc.collect()
    assert whole() is None


@pytest.mark.parametrize("m", [1, 256])
def test_a_small_call_allocates_no_more_than_its_result(m):
    engine, params, X = autoencoder(30, 8, m)
    call = engine.prepare_loss_and_gradient(params, X)
    call()
    tracemalloc.start()
    try:
        call()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(100):
            call()
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100
    assert most - before < 1024  # floats and integers; arrays of the gradient's size have 8.5 kB


def test_threads_take_turns():
    engine, params, X = autoencoder(30, 8, 64)
    others = [problem(params.network, 64, seed=seed) for seed in range(4)]
    calls = [engine.prepare_loss_and_gradient(*other) for other in others]
    wanted = [(call(), call.gradient.flat.copy()) for call in calls]
    wrong = []

    def work(number):
        for _ in range(200):
            if call_differs(calls[number], *wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        engine.loss_and_gradient(params, X)
    for thread in threads:
        thread.join()
    assert not wrong


def call_differs(call, loss, gradient):
    return call() != loss or not np.array_equal(call.gradient.flat, gradient)


@forks
@pytest.mark.parametrize("m", [64, 5000])
def test_it_works_in_a_forked_child_also_while_another_thread_is_in_a_call(m):
    engine, params, X = autoencoder(30, 8, m)
    call = engine.prepare_loss_and_gradient(params, X)
    wanted, stop = call(), threading.Event()

    def keep_busy():
        while not stop.is_set():
            call()

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(3):
            queue = context.SimpleQueue()
            child = context.Process(target=lambda q=queue: q.put([call(), call()]))
            child.start()
            assert queue.get() == [wanted, wanted]
            child.join(30)
            assert child.exitcode == 0
    finally:
        stop.set()
        thread.join()
    assert call() == wanted


def test_a_call_from_within_a_call_of_the_engine_is_an_error():
    engine, params, X = autoencoder(30, 8, 20)
    call = engine.prepare_loss_and_gradient(params, X)
    with (
        engine._runner.turn.take(),
        pytest.raises(RuntimeError, match="this engine is computing in the same thread"),
    ):
        call()


# -- out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_written_to_out(dtype):
    engine, params, X = autoencoder(30, 8, 50, dtype)
    code = engine.encode(params, X)
    for name, rows, shape, kind in (
        ("reconstruct", X, (50, 30), dtype),
        ("encode", X, (50, 8), dtype),
        ("decode", code, (50, 30), dtype),
        ("errors", X, (50,), "float64"),
    ):
        method = getattr(engine, name)
        out = np.full(shape, np.nan, kind)
        assert method(params, rows, out=out) is out
        np.testing.assert_array_equal(out, method(params, rows))
        read_only = np.zeros(shape, kind)
        read_only.flags.writeable = False
        for wrong, error, message in (
            (np.zeros((*shape[:-1], shape[-1] + 1), kind), ValueError, "out has shape"),
            (np.zeros(shape, "f2"), TypeError, "out has dtype float16"),
            (np.zeros((*shape[:-1], 2 * shape[-1]), kind)[..., ::2], ValueError, "out must be C-contiguous"),
            (read_only, ValueError, "out is read-only"),
            (out.tolist(), TypeError, "out must be a NumPy array, got list"),
            (np.ma.array(out), TypeError, "out must be a NumPy array, got MaskedArray"),
        ):
            with pytest.raises(error, match=message):
                method(params, rows, out=wrong)
    with pytest.raises(ValueError, match="out and X overlap"):
        engine.reconstruct(params, X, out=X)
    both = np.zeros(1900, dtype)
    with pytest.raises(ValueError, match="out and code overlap"):
        engine.decode(params, both[:400].reshape(50, 8), out=both[399:1899].reshape(50, 30))
    chosen = engine.reconstruct(params, X, index=[3, 4], out=np.empty((2, 30), dtype))
    np.testing.assert_array_equal(chosen, engine.reconstruct(params, X[3:5]))


def test_the_gradient_is_written_to_out():
    engine, params, X = autoencoder(30, 8, 50)
    wanted, gradient = engine.loss_and_gradient(params, X)
    out = fastae.Parameters(params.network)
    out.flat[:] = np.nan
    loss, same = engine.loss_and_gradient(params, X, out=out)
    assert same is out
    assert loss == wanted
    np.testing.assert_array_equal(out.flat, gradient.flat)
    with pytest.raises(ValueError, match="out must not be params"):
        engine.loss_and_gradient(params, X, out=params)
    with pytest.raises(TypeError, match="out must be Parameters, got ndarray"):
        engine.loss_and_gradient(params, X, out=out.flat)
    inside = out.flat[:1500].reshape(50, 30)
    for X_, Y, name in (inside, None, "X"), (X, inside, "Y"):
        with pytest.raises(ValueError, match=f"{name} overlaps the parameters or the gradient"):
            engine.loss_and_gradient(params, X_, Y=Y, out=out)
    with pytest.raises(ValueError, match="out are float64, but the engine computes in float32"):
        engine.loss_and_gradient(params, X, out=fastae.Parameters(params.network, "float64"))
    out.flat.flags.writeable = False
    with pytest.raises(ValueError, match=r"out.flat is read-only"):
        engine.loss_and_gradient(params, X, out=out)
