"""One layer forward and backward on blocked arrays, against NumPy in float64, on buffers that end at a guard page."""

import os

import numpy as np
import pytest
from layers import TOLERANCE, blocked, close, draw, vector

from fastae import kernels, reference
from fastae.kernels import layer, layout

posix = pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
HEIGHT = 2 * layer.ROW_MULTIPLE


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

    found = layout.unpack(da, z.shape), layout.unpack(dW, W.shape)
    for i, j in [(0, 0), (3, 4), (HEIGHT - 1, 8)]:
        assert found[0][i, j] == pytest.approx(slope(z, i, j), rel=1e-6, abs=1e-8)
    for i, j in [(0, 0), (8, 4), (5, 2)]:
        assert found[1][i, j] == pytest.approx(slope(W, i, j), rel=1e-6)
    for i in range(fan_out):
        assert db[i] == pytest.approx(slope(b, i), rel=1e-6)


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
