"""Rows of any dtype, order and stride, by index, shifted and scaled: as if converted and gathered first."""

import os

import numpy as np
import pytest
from engines import assert_matches_reference, autoencoder, bits, problem
from guard import guarded

import fastae


def sources(X):
    """The same values under other dtypes, orders and strides, by name."""
    m, n = X.shape
    every_other = np.zeros((2 * m, 3 * n), X.dtype)
    every_other[::2, ::3] = X
    read_only = X.copy()
    read_only.flags.writeable = False
    packed = np.zeros(m, np.dtype([("flag", "i1"), ("x", X.dtype, n)]))
    packed["x"] = X
    return {
        "C order": X.copy(),
        "Fortran order": np.asfortranarray(X),
        "strided": every_other[::2, ::3],
        "row strided": np.repeat(X, 2, axis=0)[::2],
        "negative row stride": X[::-1].copy()[::-1],
        "negative strides": X[::-1, ::-1].copy()[::-1, ::-1],
        "read only": read_only,
        "unaligned": packed["x"],
        "list": X.tolist(),
    }


@pytest.mark.parametrize("engine_dtype", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
def test_any_dtype_order_and_strides_equal_the_converted_array(dtype, engine_dtype):
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        values = rng.normal(size=(150, 19)).astype(dtype)
        values[0, :4] = 0, -0.0, 6e-8, 3.0  # 6e-8: subnormal in float16
    else:
        info = np.iinfo(dtype) if dtype != "?" else np.iinfo("u1")
        low, high = (info.min, info.max) if dtype != "?" else (0, 1)
        values = rng.integers(low, high, (150, 19), endpoint=True, dtype=info.dtype).astype(dtype)
    network = fastae.Network.autoencoder(19, 5)
    engine = fastae.Engine(network, 1, engine_dtype)
    parameters, _ = problem(network, 1, engine_dtype)
    wanted = bits(engine.loss_and_gradient(parameters, values.astype(engine_dtype)))
    for name, X in sources(values).items():
        before = np.array(X, copy=True)
        assert bits(engine.loss_and_gradient(parameters, X)) == wanted, name
        np.testing.assert_array_equal(np.asarray(X), before, err_msg=name)


def test_one_column_and_one_row_of_any_stride():
    network = fastae.Network.autoencoder(1, 2)
    engine = fastae.Engine(network, 1)
    parameters, _ = problem(network, 1)
    wide = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
    for X in (wide[:, 1:2], wide[:, ::-1][:, :1], wide[:1, :1], wide[::-3, 2:]):
        wanted = engine.loss_and_gradient(parameters, X.copy())
        assert bits(engine.loss_and_gradient(parameters, X)) == bits(wanted)


def test_broadcast_rows_and_columns():
    engine, parameters, X = autoencoder(19, 5, 64)
    for broadcast in (np.broadcast_to(X[:1], X.shape), np.broadcast_to(X[:, :1], X.shape)):
        wanted = engine.loss_and_gradient(parameters, broadcast.copy())
        assert bits(engine.loss_and_gradient(parameters, broadcast)) == bits(wanted)


def test_memory_map_read_only(tmp_path):
    engine, parameters, X = autoencoder(19, 5, 1000)
    np.save(tmp_path / "x.npy", X.astype("f8"))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    wanted = engine.loss_and_gradient(parameters, X.astype("f8"))
    assert bits(engine.loss_and_gradient(parameters, mapped)) == bits(wanted)
    np.testing.assert_array_equal(engine.reconstruct(parameters, mapped), engine.reconstruct(parameters, X))


@pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "u8"])
@pytest.mark.parametrize("n", [1, 7, 16, 19, 33])
def test_nothing_before_the_first_or_beyond_the_last_element_is_read(n, dtype, end):
    network = fastae.Network.autoencoder(n, 3)
    parameters, _ = problem(network, 1)
    rng = np.random.default_rng(0)
    X = rng.integers(0, 99, (37, n)).astype(dtype)
    index, weight = np.arange(37)[::-1], rng.random(37)
    options = {"index": index, "sample_weight": weight, "shift": rng.random(n), "scale": rng.random(n)}
    protected = {name: guarded(np.ascontiguousarray(value), end) for name, value in options.items()}
    for n_threads in (1, 2):
        engine = fastae.Engine(network, n_threads)
        wanted = engine.loss_and_gradient(parameters, X, **options)
        assert bits(engine.loss_and_gradient(parameters, guarded(X, end), **protected)) == bits(wanted)
        plain = engine.loss_and_gradient(parameters, X)
        assert bits(engine.loss_and_gradient(parameters, guarded(X, end))) == bits(plain)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16"])
def test_row_index_equals_the_gathered_rows(dtype):
    engine, parameters, X = autoencoder(m=3000)
    index = np.random.default_rng(0).integers(0, 3000, 1777).astype(dtype)  # with repetitions
    wanted = bits(engine.loss_and_gradient(parameters, X[index]))
    assert bits(engine.loss_and_gradient(parameters, X, index=index)) == wanted
    assert bits(engine.loss_and_gradient(parameters, X, index=index[::-1][::-1])) == wanted
    for method in (engine.reconstruct, engine.encode):
        np.testing.assert_array_equal(method(parameters, X, index=index), method(parameters, X[index]))


def test_an_order_for_each_epoch_may_have_any_memory_order():
    engine, parameters, X = autoencoder(m=300)
    orders = np.stack([np.random.default_rng(epoch).permutation(300) for epoch in range(3)])
    gradient, losses = parameters.copy(), []
    for index in (orders, np.asfortranarray(orders), orders[::-1].copy()[::-1]):
        found = engine.run_steps(
            parameters, X, index=index, gradient=gradient, batch_size=100, rates=np.zeros(9)
        )
        losses.append(found.tobytes())
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", ["f4", "f8", "i2"])
def test_shift_and_scale_are_computed_in_float64_and_rounded_once(source, dtype):
    engine, parameters, X = autoencoder(m=900, dtype=dtype)
    X = (50 * X + 1000).astype(source)
    rng = np.random.default_rng(0)
    shift, scale = 1000 + rng.normal(size=30), rng.uniform(0.005, 0.05, 30)
    for options in ({"shift": shift, "scale": scale}, {"shift": shift}, {"scale": scale / 1000}):
        seen = (X - options.get("shift", np.zeros(30))) * options.get("scale", np.ones(30))
        wanted = engine.loss_and_gradient(parameters, seen.astype(dtype))
        assert bits(engine.loss_and_gradient(parameters, X, **options)) == bits(wanted)
        np.testing.assert_array_equal(
            engine.encode(parameters, X, **options), engine.encode(parameters, seen.astype(dtype))
        )
        assert_matches_reference(engine, parameters, X, seen.astype(dtype), **options)


@pytest.mark.parametrize("source", ["f2", "f4"])
def test_subnormal_values_are_scaled_not_flushed(source):
    engine, parameters, X = autoencoder(m=90, dtype="float64")
    least = np.float64(np.finfo(source).smallest_subnormal)
    X = (np.round(X * 50) * least).astype(source)
    scale = np.full(30, 0.02 / least)
    wanted = engine.loss_and_gradient(parameters, X.astype("f8") * scale)
    assert bits(engine.loss_and_gradient(parameters, X, scale=scale)) == bits(wanted)
