"""The public layer functions and their buffers: against NumPy in float64, at guard pages; errors; no allocations."""

import ast
import inspect
import itertools
import os
import threading
import tracemalloc

import numpy as np
import pytest
from guard import guarded
from hypothesis import given
from hypothesis import strategies as st
from layers import TOLERANCE, blocked, close, draw, vector

import fastae
from fastae import kernels, reference
from fastae.kernels import dense_layer, layout

posix = pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
HEIGHT = 2 * dense_layer.ROW_MULTIPLE


def padding(array, columns):
    """What lies in the padding lanes of a blocked array."""
    return array.transpose(1, 0, 2).reshape(array.shape[1], -1)[:, columns:]


# Fan-outs that make register tiles of 1, 2 and 3 blocks and a last block of any width; fan-ins around whole blocks
SIZES = [
    (1, 1),
    (3, 7),
    (7, 16),
    (8, 8),
    (15, 17),
    (16, 24),
    (17, 33),
    (30, 48),
    (33, 50),
    (64, 65),
    (70, 100),
]


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("activation", layout.ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_forward_is_numpys(dtype, activation, end):
    g, _ = reference.ACTIVATIONS[activation]
    for fan_in, fan_out in SIZES:
        a, W, b, _ = draw(fan_in, fan_out, HEIGHT, dtype)
        h = blocked(np.zeros((HEIGHT, fan_out), dtype), HEIGHT, end)
        h[...] = np.nan
        arrays = blocked(a, HEIGHT, end), blocked(W, end=end), vector(b)
        kernels.layer_forward(h, *arrays, activation=activation, fan_in=fan_in, fan_out=fan_out)
        wanted = g(a.astype("f8") @ W.astype("f8") + b)
        close(layout.unpack(h, wanted.shape), wanted, dtype, fan_in, (fan_in, fan_out))
        assert not padding(h, fan_out).any(), "padding is not zero"


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("activation", layout.ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_backward_is_numpys(dtype, activation, end):
    _, derivative = reference.ACTIVATIONS[activation]
    for fan_in, fan_out in SIZES:
        a, W, b, delta = draw(fan_in, fan_out, HEIGHT, dtype, activation)
        da, dW = blocked(a, HEIGHT, end), blocked(np.full_like(W, np.nan), end=end)
        db, WT = vector(np.full_like(b, np.nan)), blocked(np.full_like(W.T, np.nan), end=end)
        kernels.layer_backward(
            dW, db, da, WT, blocked(delta, HEIGHT, end), blocked(W, end=end),
            activation=activation, fan_in=fan_in, fan_out=fan_out,
        )  # fmt: skip
        exact_a, exact_delta = a.astype("f8"), delta.astype("f8")
        where = (fan_in, fan_out)
        close(layout.unpack(dW, W.shape), exact_a.T @ exact_delta, dtype, HEIGHT, where)
        close(db[:fan_out], exact_delta.sum(axis=0), dtype, HEIGHT, where)
        wanted = (exact_delta @ W.T.astype("f8")) * derivative(exact_a)
        close(layout.unpack(da, a.shape), wanted, dtype, fan_out, where)
        assert np.array_equal(layout.unpack(WT, W.T.shape), W.T)
        assert not padding(da, fan_in).any()
        assert not padding(dW, fan_out).any()


@pytest.mark.parametrize("rows", range(1, HEIGHT + 1))
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_exactly_the_rows_in_use_count_in_a_gradient(dtype, rows):
    fan_in, fan_out = 19, 37
    a, W, b, delta = draw(fan_in, fan_out, HEIGHT, dtype)
    delta[rows:] = 1e6  # must not be seen
    da, dW, db = blocked(a, HEIGHT), blocked(W), vector(b)
    before_W, before_b = layout.unpack(dW, W.shape), db[:fan_out].copy()
    kernels.layer_backward(
        dW, db, da, blocked(W.T.copy()), blocked(delta, HEIGHT), blocked(W),
        activation="sigmoid", fan_in=fan_in, fan_out=fan_out, rows=rows, accumulate=True,
    )  # fmt: skip
    close(layout.unpack(dW, W.shape) - before_W, a[:rows].T @ delta[:rows], dtype, rows, rows)
    close(db[:fan_out] - before_b, delta[:rows].sum(axis=0), dtype, rows, rows)


@pytest.mark.parametrize("depth", [*range(1, 36), 64, 100])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_depth(dtype, depth):
    a, W, b, _ = draw(depth, 20, HEIGHT, dtype)
    h = blocked(np.zeros((HEIGHT, 20), dtype), HEIGHT)
    kernels.layer_forward(
        h, blocked(a, HEIGHT), blocked(W), vector(b), activation="identity", fan_in=depth, fan_out=20
    )
    close(layout.unpack(h, (HEIGHT, 20)), a.astype("f8") @ W + b, dtype, depth, depth)


def test_a_broken_kernel_would_be_seen():
    a, W, b, _ = draw(33, 50, HEIGHT, "float32")
    h = blocked(np.zeros((HEIGHT, 50), "f4"), HEIGHT)
    broken = W.copy()
    broken[32, 49] *= 1.001  # one weight off by a thousandth
    kernels.layer_forward(
        h, blocked(a, HEIGHT), blocked(broken), vector(b), activation="identity", fan_in=33, fan_out=50
    )
    with pytest.raises(AssertionError):
        close(layout.unpack(h, (HEIGHT, 50)), a.astype("f8") @ W + b, "float32", 33, "")


@pytest.mark.parametrize("activation", layout.ACTIVATIONS)
def test_backward_matches_finite_differences(activation):
    """Of S = sum(c * (g(z) W + b)) by z, W and b, whose delta is c."""
    fan_in, fan_out = 9, 5
    a, W, b, c = draw(fan_in, fan_out, HEIGHT, "float64", activation)
    g, _ = reference.ACTIVATIONS[activation]
    z = np.random.default_rng(5).normal(size=(HEIGHT, fan_in))
    z[np.abs(z) < 0.01] = 0.5  # away from the kink of a relu
    a = g(z)
    da, dW, db = blocked(a, HEIGHT), blocked(W), vector(b)
    kernels.layer_backward(
        dW, db, da, blocked(W.T.copy()), blocked(c, HEIGHT), blocked(W),
        activation=activation, fan_in=fan_in, fan_out=fan_out,
    )  # fmt: skip

    def slope(array, i, j=None):
        place = (i,) if j is None else (i, j)
        values, step = [], 1e-5
        for sign in (1, -1):
            array[place] += sign * step
            values.append(np.sum(c * (g(z) @ W + b)))
            array[place] -= sign * step
        return (values[0] - values[1]) / (2 * step)

    gradients = layout.unpack(da, z.shape), layout.unpack(dW, W.shape)
    for i, j in [(0, 0), (3, 4), (HEIGHT - 1, 8)]:
        assert gradients[0][i, j] == pytest.approx(slope(z, i, j), rel=1e-6, abs=1e-8)
    for i, j in [(0, 0), (8, 4), (5, 2)]:
        assert gradients[1][i, j] == pytest.approx(slope(W, i, j), rel=1e-6)
    for i in range(fan_out):
        assert db[i] == pytest.approx(slope(b, i), rel=1e-6)


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradient_is_numpys_and_leaves_the_input_as_it_is(dtype, end):
    for (fan_in, fan_out), rows in itertools.product(SIZES, (1, HEIGHT - 1, HEIGHT)):
        a, W, b, delta = draw(fan_in, fan_out, HEIGHT, dtype)
        delta[rows:] = np.nan  # must not be seen
        dW, db = blocked(np.full_like(W, np.nan), end=end), vector(np.full_like(b, np.nan), end)
        x = blocked(a, HEIGHT, end)
        x.setflags(write=False)
        for accumulate in (False, True):
            kernels.layer_gradient(
                dW, db, x, blocked(delta, HEIGHT, end),
                fan_in=fan_in, fan_out=fan_out, rows=rows, accumulate=accumulate,
            )  # fmt: skip
            times = 2 if accumulate else 1
            exact = delta[:rows].astype("f8")
            wanted = times * (a[:rows].T.astype("f8") @ exact)
            close(layout.unpack(dW, W.shape), wanted, dtype, rows, (fan_in, fan_out, rows))
            close(db[:fan_out], times * exact.sum(axis=0), dtype, rows, (fan_in, fan_out, rows))
        assert np.array_equal(layout.unpack(x, a.shape), a)
        assert not padding(dW, fan_out).any()
        assert not dW[:, fan_in:].any()
        assert not db[fan_out:].any()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_whole_networks_gradient_is_that_of_the_reference(dtype):
    n, k, m = 37, 5, HEIGHT + 3
    network = fastae.Network.autoencoder(n, k)
    dense = {name: array.astype(dtype) for name, array in fastae.Parameters.random(network, 1, "f8").items()}
    x_dense = np.random.default_rng(2).random((m, n)).astype(dtype)
    p, d = {}, {}
    for name, array in dense.items():
        for arrays in (p, d):
            empty = kernels.empty_weights if array.ndim == 2 else kernels.empty_bias
            arrays[name] = empty(*array.shape, dtype)
        kernels.pack(array, p[name])
    WT = {name: kernels.empty_weights(*dense[name].T.shape, dtype) for name in ("W2", "W3")}
    x, h2, xhat = (kernels.empty_rows(m, n, dtype) for _ in range(3))
    h1 = kernels.empty_rows(m, k, dtype)
    kernels.pack(x_dense, x)
    kernels.layer_forward(h1, x, p["W1"], p["b1"], activation="sigmoid", fan_in=n, fan_out=k, rows=m)
    kernels.layer_forward(h2, h1, p["W2"], p["b2"], activation="sigmoid", fan_in=k, fan_out=n, rows=m)
    kernels.layer_forward(xhat, h2, p["W3"], p["b3"], activation="identity", fan_in=n, fan_out=n, rows=m)
    forward = {
        "h1": kernels.unpack(h1, (m, k)),
        "h2": kernels.unpack(h2, (m, n)),
        "xhat": kernels.unpack(xhat, (m, n)),
    }
    np.subtract(xhat, x, out=xhat)
    xhat /= m
    kernels.layer_backward(
        d["W3"], d["b3"], h2, WT["W3"], xhat, p["W3"], activation="sigmoid", fan_in=n, fan_out=n, rows=m
    )
    kernels.layer_backward(
        d["W2"], d["b2"], h1, WT["W2"], h2, p["W2"], activation="sigmoid", fan_in=k, fan_out=n, rows=m
    )
    kernels.layer_gradient(d["W1"], d["b1"], x, h1, fan_in=n, fan_out=k, rows=m)

    exact = {name: array.astype("f8") for name, array in dense.items()}
    wanted = reference.forward(x_dense.astype("f8"), exact)
    for name, array in forward.items():
        close(array, wanted[name], dtype, n, name)
    wanted = reference.backward(x_dense.astype("f8"), exact)
    close(kernels.unpack(h2, (m, n)), wanted["dz2"], dtype, 1, "dz2")
    close(kernels.unpack(h1, (m, k)), wanted["dz1"], dtype, 1, "dz1")
    for name, array in dense.items():
        close(kernels.unpack(d[name], array.shape), wanted[f"d{name}"], dtype, 1, name)


# -- buffers ----------------------------------------------------------------------------------------------------------

COUNTS = st.integers(1, 70)
REAL = st.sampled_from(["float32", "float64"])


@given(COUNTS, COUNTS, REAL)
def test_buffers_are_zero_and_aligned_and_what_the_kernels_ask_for(fan_in, fan_out, dtype):
    h, a = kernels.empty_rows(HEIGHT - 1, fan_out, dtype), kernels.empty_rows(HEIGHT - 1, fan_in, dtype)
    W, b = kernels.empty_weights(fan_in, fan_out, dtype), kernels.empty_bias(fan_out, dtype)
    for buffer in (h, a, W, b):
        assert buffer.dtype == dtype
        assert buffer.ctypes.data % 64 == 0
        assert not buffer.any()
    assert h.shape[1] == HEIGHT
    kernels.layer_forward(h, a, W, b, activation="sigmoid", fan_in=fan_in, fan_out=fan_out)
    assert (kernels.unpack(h, (HEIGHT - 1, fan_out)) == 0.5).all()


@given(COUNTS, COUNTS, REAL)
def test_there_and_back_and_zeros_around(rows, columns, dtype):
    dense = np.random.default_rng(rows).normal(size=(rows, columns)).astype(dtype)
    for buffer in (kernels.empty_rows(rows, columns, dtype), kernels.empty_weights(rows, columns, dtype)):
        buffer[...] = np.nan
        kernels.pack(dense, buffer)
        assert np.array_equal(kernels.unpack(buffer, dense.shape), dense)
        assert not padding(buffer, columns).any()
        assert not buffer[:, rows:].any()
        i, j, lanes = rows - 1, columns - 1, buffer.shape[2]
        assert buffer[j // lanes, i, j % lanes] == dense[i, j]
    bias = kernels.empty_bias(columns, dtype)
    bias[...] = np.nan
    kernels.pack(dense[0], bias)
    assert np.array_equal(kernels.unpack(bias, (columns,)), dense[0])
    assert not bias[columns:].any()
    assert not np.may_share_memory(kernels.unpack(bias, (columns,)), bias)


@posix
@pytest.mark.parametrize("end", [True, False])
def test_packing_and_unpacking_stay_within_the_buffer(end):
    for rows, columns in [(1, 1), (HEIGHT, 16), (HEIGHT - 1, 33)]:
        buffer = guarded(kernels.empty_rows(rows, columns), end)
        dense = guarded(np.ones((rows, columns), "f4"), end)
        kernels.pack(dense, buffer)
        assert np.array_equal(kernels.unpack(buffer, (rows, columns)), dense)


def test_pack_converts_real_numbers():
    buffer = kernels.empty_rows(2, 2, "float32")
    for dense in (
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], "i8"),
        np.array([[1, 2], [3, 4]], "f8", order="F"),
    ):
        kernels.pack(dense, buffer)
        assert np.array_equal(kernels.unpack(buffer, (2, 2)), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("function", "names"),
    [
        ("empty_rows", ["rows", "columns"]),
        ("empty_weights", ["fan_in", "fan_out"]),
        ("empty_bias", ["columns"]),
    ],
)
def test_wrong_sizes_of_buffers_are_named(function, names):
    for name in names:
        for value, error, message in [
            (3.0, TypeError, "must be an integer, got 3.0"),
            (np.float64(3), TypeError, "must be an integer"),
            ("3", TypeError, "must be an integer, got '3'"),
            (None, TypeError, "must be an integer, got None"),
            (True, TypeError, "must be an integer, got True"),
            (0, ValueError, "must be at least 1, got 0"),
            (-4, ValueError, "must be at least 1, got -4"),
        ]:
            with pytest.raises(error, match=f"^{name} {message}"):
                getattr(kernels, function)(**{**dict.fromkeys(names, 3), name: value})
        assert getattr(kernels, function)(**dict.fromkeys(names, np.int32(3))).any() == 0
    for dtype in ("int32", "float16", "bfloat16", None, ">f4", "nothing"):
        with pytest.raises(ValueError, match="dtype must be float32 or float64"):
            getattr(kernels, function)(**dict.fromkeys(names, 3), dtype=dtype)


@pytest.mark.parametrize(
    ("dense", "change", "error", "message"),
    [
        (np.ones((2, 33)), None, ValueError, r"dense has shape \(2, 33\), which does not fit out"),
        (np.ones((2, 16)), None, ValueError, r"dense has shape \(2, 16\)"),
        (np.ones((HEIGHT + 1, 20)), None, ValueError, "dense has shape"),
        (np.ones(20), None, ValueError, r"dense has shape \(20,\)"),
        (np.ones((2, 20), complex), None, TypeError, "dense has dtype complex128"),
        ([["1"] * 20], None, TypeError, "dense has dtype <U1"),
        (
            np.ones((2, 20)),
            lambda out: out.astype("i4"),
            TypeError,
            "out must be a float32 or float64 array, got int32",
        ),
        (
            np.ones((2, 20)),
            lambda out: out.tolist(),
            TypeError,
            "out must be a float32 or float64 array, got list",
        ),
        (np.ones((2, 20)), lambda out: out[:, :, :8], ValueError, "out has shape .* is needed"),
        (np.ones((2, 20)), lambda out: out[0], ValueError, "out has shape .* is needed"),
        (np.ones((2, 0)), lambda out: out[:0], ValueError, "out has shape .* is needed"),
        (np.ones((2, 20)), lambda out: np.broadcast_to(out, out.shape), ValueError, "out is read-only"),
    ],
)
def test_pack_refuses_what_does_not_fit(dense, change, error, message):
    out = kernels.empty_rows(HEIGHT, 20)
    with pytest.raises(error, match=message):
        kernels.pack(dense, change(out) if change else out)
    assert not out.any()


def test_pack_refuses_an_array_over_its_own_buffer():
    out = kernels.empty_rows(HEIGHT, 20)
    with pytest.raises(ValueError, match="dense and out overlap"):
        kernels.pack(out.reshape(-1)[: 2 * 20].reshape(2, 20), out)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((2, 33), ValueError, r"shape is \(2, 33\), which does not fit blocked"),
        ((HEIGHT + 1, 20), ValueError, "does not fit"),
        ((20,), ValueError, r"shape is \(20,\)"),
        ((2, 20.0), TypeError, r"shape\[1\] must be an integer, got 20.0"),
        ((-1, 20), ValueError, r"shape\[0\] must be at least 1, got -1"),
        (20, TypeError, "shape must be a tuple"),
    ],
)
def test_unpack_refuses_shapes_that_the_buffer_does_not_hold(shape, error, message):
    with pytest.raises(error, match=message):
        kernels.unpack(kernels.empty_rows(HEIGHT, 20), shape)


# -- what is refused --------------------------------------------------------------------------------------------------


def arguments_of(function, fan_in=20, fan_out=20):
    """Arguments with which it runs, and the names of its outputs."""
    rows = {"a": fan_in, "h": fan_out, "delta": fan_out}
    arguments = {}
    for name in inspect.signature(getattr(kernels, function)).parameters:
        if name in ("W", "dW"):
            arguments[name] = kernels.empty_weights(fan_in, fan_out)
        elif name == "WT":
            arguments[name] = kernels.empty_weights(fan_out, fan_in)
        elif name in ("b", "db"):
            arguments[name] = kernels.empty_bias(fan_out)
        elif name in rows:
            arguments[name] = kernels.empty_rows(HEIGHT, rows[name])
    arguments |= {"fan_in": fan_in, "fan_out": fan_out}
    if function != "layer_gradient":
        arguments["activation"] = "sigmoid"
    return arguments, OUTPUTS[function]


OUTPUTS = {"layer_forward": ["h"], "layer_gradient": ["dW", "db"], "layer_backward": ["dW", "db", "a", "WT"]}
every_function = pytest.mark.parametrize("function", OUTPUTS)


def refused(function, arguments, error, message):
    before = {name: value.copy() for name, value in arguments.items() if isinstance(value, np.ndarray)}
    with pytest.raises(error, match=message):
        getattr(kernels, function)(**arguments)
    for name, array in before.items():
        assert np.array_equal(arguments[name], array), f"{name} was written"


@every_function
def test_sizes_must_be_integers_of_1_or_more(function):
    for name in ("fan_in", "fan_out", "rows"):
        for value in (3.0, np.float32(3), "3", True):
            arguments, _ = arguments_of(function)
            refused(function, arguments | {name: value}, TypeError, f"^{name} must be an integer, got ")
        for value in (0, -3):
            arguments, _ = arguments_of(function)
            refused(function, arguments | {name: value}, ValueError, f"^{name} must be .*, got {value}")
    arguments, _ = arguments_of(function)
    getattr(kernels, function)(**arguments | {"fan_in": np.int64(20), "rows": np.uint8(3)})


@every_function
def test_outputs_that_are_read_only_are_refused(function):
    for name in OUTPUTS[function]:
        arguments, _ = arguments_of(function)
        arguments[name].setflags(write=False)
        refused(function, arguments, ValueError, f"^{name} is read-only")


@every_function
def test_inputs_may_be_read_only(function):
    arguments, outputs = arguments_of(function)
    for name, value in arguments.items():
        if isinstance(value, np.ndarray) and name not in outputs:
            value.setflags(write=False)
    getattr(kernels, function)(**arguments)


@every_function
def test_outputs_that_overlap_anything_are_refused(function):
    arguments, outputs = arguments_of(function)
    names = [name for name, value in arguments.items() if isinstance(value, np.ndarray)]
    for first, second in itertools.combinations(names, 2):
        arguments, _ = arguments_of(function)
        one, other = arguments[first], arguments[second]
        # Both in one buffer: the second begins at the last line of the first.
        memory = layout.aligned_zeros(one.size + other.size, "f4")
        arguments[first] = memory[: one.size].reshape(one.shape)
        start = one.size - 16
        arguments[second] = memory[start : start + other.size].reshape(other.shape)
        if first in outputs or second in outputs:
            refused(function, arguments, ValueError, f"^{first} and {second} overlap")
        else:
            getattr(kernels, function)(**arguments)  # both are only read
        arguments[second] = memory[one.size :].reshape(other.shape)  # side by side
        getattr(kernels, function)(**arguments)


@every_function
def test_every_array_is_checked(function):
    arguments, _ = arguments_of(function)
    for name in [name for name, value in arguments.items() if isinstance(value, np.ndarray)]:
        array = arguments[name]
        apart = np.zeros((array.size + 1) * 2, "f4")
        off = apart[(1 if apart.ctypes.data % 64 == 0 else 0) :][: array.size].reshape(array.shape)
        for value, error, message in [
            (array.tolist(), TypeError, f"{name} must be a float32 or float64 array, got list"),
            (None, TypeError, f"{name} must be a float32 or float64 array, got NoneType"),
            (array.astype("i4"), TypeError, f"{name} must be a float32 or float64 array, got int32"),
            (array.astype("f8"), TypeError, "is float64, but|is float32, but"),
            (array[:1], ValueError, f"{name} has shape"),
            (array[None], ValueError, f"{name} has shape"),
            (off, ValueError, f"{name} must be C-contiguous and start on a cache line"),
            (apart[::2][: array.size].reshape(array.shape, copy=False), ValueError, f"{name} must be C-contiguous"),
        ]:  # fmt: skip
            refused(function, arguments | {name: value}, error, message)


@every_function
def test_a_height_that_is_no_multiple_is_refused(function):
    arguments, _ = arguments_of(function)
    for name in ("a", "h", "delta"):
        if name in arguments:
            arguments[name] = layout.aligned_zeros(2 * 7 * 16, "f4").reshape(2, 7, 16)
    if 7 % dense_layer.ROW_MULTIPLE:
        refused(function, arguments, ValueError, "a is 7 rows high, but a multiple of")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.update(a=x["a"].astype("f8")), TypeError, "a is float64, but h is float32"),
        (lambda x: x.update(a=x["a"].astype("i4")), TypeError, "a must be a float32 or float64 array"),
        (lambda x: x.update(W=x["W"][:, :16]), ValueError, "W has shape"),
        (lambda x: x.update(b=x["b"][:3]), ValueError, r"b has shape \(3,\)"),
        (lambda x: x["h"].setflags(write=False), ValueError, "h is read-only"),
        (lambda x: x.update(activation="gelu"), ValueError, "activation must be among sigmoid"),
        (lambda x: x.update(rows=0), ValueError, "rows must be within 1"),
        (lambda x: x.update(rows=HEIGHT + 1), ValueError, "rows must be within 1"),
        (lambda x: x.update(fan_in=100), ValueError, "a has shape"),
    ],
)
def test_wrong_arrays_are_named_and_nothing_is_written(change, error, message):
    a, W, b, _ = draw(20, 20, HEIGHT, "float32")
    arguments = {
        "h": blocked(np.zeros((HEIGHT, 20), "f4"), HEIGHT),
        "a": blocked(a, HEIGHT),
        "W": blocked(W),
        "b": vector(b),
        "activation": "sigmoid",
        "fan_in": 20,
        "fan_out": 20,
    }
    change(arguments)
    with pytest.raises(error, match=message):
        kernels.layer_forward(**arguments)
    assert not arguments["h"].any()


# -- what a call costs ------------------------------------------------------------------------------------------------


def allocated(call):
    """Bytes that Python and NumPy hold at most during a call, beyond what they held before it."""
    call()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(3):
            call()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return most - before


@every_function
def test_repeated_calls_allocate_no_arrays(function):
    """A line as wide as the layer would be 64 KiB; lists and numbers of the call are 2 KiB."""
    arguments, _ = arguments_of(function, 1 << 14, 16)
    wide, _ = arguments_of(function, 16, 1 << 14)
    for each in (arguments, wide):
        assert allocated(lambda each=each: getattr(kernels, function)(**each)) < 8192


def test_packing_allocates_no_arrays():
    x, dense = kernels.empty_rows(HEIGHT, 1 << 14), np.ones((HEIGHT, 1 << 14), "f4")
    assert allocated(lambda: kernels.pack(dense, x)) < 8192


def test_an_array_a_call_would_be_seen():
    def call():
        dense_layer._ones.cache_clear()
        kernels.layer_forward(**arguments)

    arguments, _ = arguments_of("layer_forward", 16, 1 << 14)
    assert allocated(call) > 1 << 16


def test_threads_with_outputs_of_their_own_do_not_disturb_each_other():
    """The kernels run without the GIL, so that a result kept in scratch of the module would be another thread's."""
    failures = []

    def work(seed):
        fan_in, fan_out = 40 + 170 * seed, 30
        a, W, b, delta = draw(fan_in, fan_out, HEIGHT, "float32")
        wanted = (delta.astype("f8") @ W.T) * a * (1 - a.astype("f8"))
        for _ in range(50):
            da, WT = kernels.empty_rows(HEIGHT, fan_in), kernels.empty_weights(fan_out, fan_in)
            kernels.pack(a, da)
            kernels.layer_backward(
                blocked(W), vector(b), da, WT, blocked(delta, HEIGHT), blocked(W),
                activation="sigmoid", fan_in=fan_in, fan_out=fan_out,
            )  # fmt: skip
            try:
                close(kernels.unpack(da, a.shape), wanted, "float32", fan_out, seed)
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_type_checkers_see_every_public_name():
    """What is imported for them in ``if TYPE_CHECKING`` is what ``__getattr__`` gives at run time."""
    seen = {
        name.asname: node.module
        for node in ast.walk(ast.parse(inspect.getsource(kernels)))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.asname and node.module != "fastae.kernels"  # a module of the package, not a public name
    }
    assert sorted(seen) == kernels.__all__
    for name, module in seen.items():
        assert getattr(kernels, name).__module__ == module
    assert set(kernels.__all__) <= set(dir(kernels))
