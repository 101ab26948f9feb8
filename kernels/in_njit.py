"""The public kernels for the user's own ``@njit`` functions: the same names, compiled into the caller. Imports Numba.

    @numba.njit
    def softplus(x, out):
        fastae.kernels.exp(x, out)
        ...

Numba learns of them when a public kernel is first loaded and Numba is there, or when it first compiles a function: it
calls the entry point ``numba_extensions`` of the package. So ``import fastae`` does not import Numba. Nothing here
computes: the code is that of activations.py and dense_layer.py, without a call in between, so that Numba can keep the
caller in its own cache. What an argument's type tells is checked when the caller is compiled, all else when it runs.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable

from fastae.kernels import activations, dense_layer, in_place
from fastae.kernels.activations import _exp_words as exp_words
from fastae.kernels.activations import _sigmoid_with_derivative_words as sigmoid_with_derivative_words
from fastae.kernels.activations import overlap_of_one, overlap_of_two
from fastae.kernels.dense_layer import _sum_rows as sum_rows
from fastae.kernels.gemm import ROW_MULTIPLE
from fastae.kernels.gemm import _backward as backward_words
from fastae.kernels.gemm import _forward as forward_words
from fastae.kernels.gemm import _gradient as gradient_words
from fastae.kernels.layout import ACTIVATIONS, LINE
from fastae.kernels.rounding import round_up
from fastae.kernels.transpose import transpose_squares

FLOATS = types.float32, types.float64


def _check_arrays(outputs: int, **arrays: Any) -> None:
    """Raise an error that names the argument unless all are arrays of one dtype, of which the first are written."""
    (first_name, first), *_ = arrays.items()
    for number, (name, array) in enumerate(arrays.items()):
        if not isinstance(array, types.Array) or array.dtype not in FLOATS:
            raise TypingError(f"{name} must be a float32 or float64 array, got {array}")
        if array.layout != "C" or not array.aligned:
            raise TypingError(f"{name} must be C-contiguous and aligned to its items, got {array}")
        if array.dtype != first.dtype:
            raise TypingError(f"{name} is {array.dtype}, but {first_name} is {first.dtype}")
        if number < outputs and not array.mutable:
            raise TypingError(f"{name} is read-only")


def _check_kinds(kind: Any, what: str, **values: Any) -> None:
    for name, value in values.items():
        value = value.literal_type if isinstance(value, types.Literal) else value
        if not isinstance(value, kind) or isinstance(value, types.Boolean) != (kind is types.Boolean):
            raise TypingError(f"{name} must be {what}, got {value}")


# -- elementwise ------------------------------------------------------------------------------------------------------


@overload(activations.exp, target="cpu")
def _exp(x, out):  # type: ignore[no-untyped-def]
    _check_arrays(1, out=out, x=x)
    if out.ndim != x.ndim:
        raise TypingError(f"out has {out.ndim} dimensions, but x has {x.ndim}")

    def run(x, out):  # type: ignore[no-untyped-def]
        if out.shape != x.shape:
            raise ValueError("out has another shape than x")
        x_at, out_at = np.int64(x.ctypes.data), np.int64(out.ctypes.data)
        if overlap_of_one(x_at, out_at, x.size * x.itemsize) != 0:
            raise ValueError("x and out overlap")
        exp_words(x, (out_at, x_at, np.int64(x.size)))

    return run


@overload(activations.sigmoid_with_derivative, target="cpu")
def _sigmoid_with_derivative(z, h, dh):  # type: ignore[no-untyped-def]
    _check_arrays(2, h=h, dh=dh, z=z)
    for name, array in (("h", h), ("dh", dh)):
        if array.ndim != z.ndim:
            raise TypingError(f"{name} has {array.ndim} dimensions, but z has {z.ndim}")

    def run(z, h, dh):  # type: ignore[no-untyped-def]
        if h.shape != z.shape:
            raise ValueError("h has another shape than z")
        if dh.shape != z.shape:
            raise ValueError("dh has another shape than z")
        z_at, h_at, dh_at = np.int64(z.ctypes.data), np.int64(h.ctypes.data), np.int64(dh.ctypes.data)
        wrong = overlap_of_two(z_at, h_at, dh_at, z.size * z.itemsize)
        if wrong == 1:
            raise ValueError("h and dh overlap")
        if wrong == 2:
            raise ValueError("z and h overlap")
        if wrong == 3:
            raise ValueError("z and dh overlap")
        sigmoid_with_derivative_words(z, (h_at, dh_at, z_at, np.int64(z.size)))

    return run


# -- one layer --------------------------------------------------------------------------------------------------------


@register_jitable
def _activation_id(name):  # type: ignore[no-untyped-def]
    for number, known in enumerate(ACTIVATIONS):
        if name == known:
            return number
    raise ValueError("activation must be among sigmoid, tanh, relu, identity")


@register_jitable
def _lanes(array):  # type: ignore[no-untyped-def]
    return LINE // array.itemsize


@register_jitable
def _blocks(columns, array):  # type: ignore[no-untyped-def]
    return (columns + LINE // array.itemsize - 1) // (LINE // array.itemsize)


@register_jitable
def _rows_of(a, rows, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """The rows in use, once all sizes are checked."""
    if fan_in < 1:
        raise ValueError("fan_in must be at least 1")
    if fan_out < 1:
        raise ValueError("fan_out must be at least 1")
    height = a.shape[1]
    if height % ROW_MULTIPLE != 0 or height == 0:
        raise ValueError(_HEIGHT)
    count = height if rows is None else rows
    if count < 1 or count > height:
        raise ValueError("rows must be at least 1, and at most the height of a")
    return count


_HEIGHT = f"the height of a must be a multiple of {ROW_MULTIPLE}"


def _shaped(name: str) -> Any:
    """A check that the array of this name is (blocks, height, lanes) and starts on a cache line: its address."""
    shape, start = f"{name} has another shape than its sizes need", f"{name} must start on a cache line"

    @register_jitable
    def check(array, blocks, height):  # type: ignore[no-untyped-def]
        if array.shape != (blocks, height, LINE // array.itemsize):
            raise ValueError(shape)
        if np.int64(array.ctypes.data) % LINE != 0:
            raise ValueError(start)
        return np.int64(array.ctypes.data)

    return check


def _flat(name: str) -> Any:
    """The same for (blocks * lanes,)."""
    shape, start = f"{name} has another shape than its sizes need", f"{name} must start on a cache line"

    @register_jitable
    def check(array, blocks):  # type: ignore[no-untyped-def]
        if array.size != blocks * (LINE // array.itemsize):
            raise ValueError(shape)
        if np.int64(array.ctypes.data) % LINE != 0:
            raise ValueError(start)
        return np.int64(array.ctypes.data)

    return check


def _apart(first: str, second: str) -> Any:
    """A check that the arrays of these names do not overlap."""
    message = f"{first} and {second} overlap"

    @register_jitable
    def check(x, y):  # type: ignore[no-untyped-def]
        x_at, y_at = np.int64(x.ctypes.data), np.int64(y.ctypes.data)
        if x_at < y_at + y.size * y.itemsize and y_at < x_at + x.size * x.itemsize:
            raise ValueError(message)

    return check


_a, _h, _W, _dW, _WT, _delta = map(_shaped, ("a", "h", "W", "dW", "WT", "delta"))
_b, _db = map(_flat, ("b", "db"))
_h_a, _h_W, _h_b = (_apart("h", other) for other in ("a", "W", "b"))
_dW_db, _dW_a, _dW_WT, _dW_delta, _dW_W = (_apart("dW", other) for other in ("db", "a", "WT", "delta", "W"))
_db_a, _db_WT, _db_delta, _db_W = (_apart("db", other) for other in ("a", "WT", "delta", "W"))
_a_WT, _a_delta, _a_W = (_apart("a", other) for other in ("WT", "delta", "W"))
_WT_delta, _WT_W = (_apart("WT", other) for other in ("delta", "W"))


@register_jitable
def _lines(blocks, like):  # type: ignore[no-untyped-def]
    """An array of zeros that holds `blocks` lines from a cache line on, and the place of the first."""
    array = np.zeros((blocks + 1) * (LINE // like.itemsize), like.dtype)
    return array, -np.int64(array.ctypes.data) % LINE // like.itemsize


def _check_sizes(fan_in: Any, fan_out: Any, rows: Any) -> None:
    _check_kinds(types.Integer, "an integer", fan_in=fan_in, fan_out=fan_out)
    if not isinstance(rows, (types.Omitted, types.NoneType)) and rows is not None:
        _check_kinds(types.Integer, "an integer", rows=rows)


def _check_dimensions(**arrays: Any) -> None:
    for name, array in arrays.items():
        wanted = 1 if name in ("b", "db") else 3
        if array.ndim != wanted:
            raise TypingError(f"{name} has {array.ndim} dimensions, but {wanted} are needed")


@overload(dense_layer.layer_forward, target="cpu")
def _layer_forward(h, a, W, b, activation, fan_in, fan_out, rows=None):  # type: ignore[no-untyped-def]
    _check_arrays(1, h=h, a=a, W=W, b=b)
    _check_dimensions(h=h, a=a, W=W, b=b)
    _check_kinds(types.UnicodeType, "a string", activation=activation)
    _check_sizes(fan_in, fan_out, rows)

    def run(h, a, W, b, activation, fan_in, fan_out, rows=None):  # type: ignore[no-untyped-def]
        count, number = _rows_of(a, rows, fan_in, fan_out), _activation_id(activation)
        height, into, out = a.shape[1], _blocks(fan_in, a), _blocks(fan_out, a)
        a_at, h_at, b_at = _a(a, into, height), _h(h, out, height), _b(b, out)
        w_at = _W(W, out, into * _lanes(a))
        _h_a(h, a)
        _h_W(h, W)
        _h_b(h, b)
        ones, first = _lines(out, a)
        ones[first : first + fan_out] = 1
        one_at, computed = ones.ctypes.data + first * a.itemsize, round_up(count, ROW_MULTIPLE)
        numbers = h_at, a_at, w_at, b_at, np.int64(one_at), np.int64(number), np.int64(1)
        # `ones` as the array that tells the dtype, so that it lives as long as the call
        sizes = np.int64(computed), np.int64(height), np.int64(fan_in), np.int64(fan_out)
        forward_words(ones, numbers + sizes)

    return run


@register_jitable
def _gradient(dW, db, a, delta, rows, fan_in, fan_out, accumulate):  # type: ignore[no-untyped-def]
    height, add = a.shape[1], np.int64(accumulate)
    db_at, delta_at = np.int64(db.ctypes.data), np.int64(delta.ctypes.data)
    for j in range(delta.shape[0]):
        sum_rows(db, (db_at + j * LINE, delta_at + j * height * LINE, np.int64(rows), add))
    places = np.int64(dW.ctypes.data), np.int64(a.ctypes.data), delta_at
    sizes = add, np.int64(rows), np.int64(height), np.int64(dW.shape[1]), np.int64(fan_in), np.int64(fan_out)
    gradient_words(dW, places + sizes)


@overload(dense_layer.layer_gradient, target="cpu")
def _layer_gradient(dW, db, a, delta, fan_in, fan_out, rows=None, accumulate=False):  # type: ignore[no-untyped-def]
    _check_arrays(2, dW=dW, db=db, a=a, delta=delta)
    _check_dimensions(dW=dW, db=db, a=a, delta=delta)
    _check_sizes(fan_in, fan_out, rows)
    _check_accumulate(accumulate)

    def run(dW, db, a, delta, fan_in, fan_out, rows=None, accumulate=False):  # type: ignore[no-untyped-def]
        count = _rows_of(a, rows, fan_in, fan_out)
        height, into, out = a.shape[1], _blocks(fan_in, a), _blocks(fan_out, a)
        _a(a, into, height)
        _delta(delta, out, height)
        _dW(dW, out, into * _lanes(a))
        _db(db, out)
        _dW_db(dW, db)
        _dW_a(dW, a)
        _dW_delta(dW, delta)
        _db_a(db, a)
        _db_delta(db, delta)
        _gradient(dW, db, a, delta, count, fan_in, fan_out, accumulate)

    return run


def _check_accumulate(accumulate: Any) -> None:
    if accumulate is not False and not isinstance(accumulate, types.Omitted):
        _check_kinds(types.Boolean, "True or False", accumulate=accumulate)


@overload(dense_layer.layer_backward, target="cpu")
def _layer_backward(  # type: ignore[no-untyped-def]
    dW, db, a, WT, delta, W, activation, fan_in, fan_out, rows=None, accumulate=False
):
    _check_arrays(4, dW=dW, db=db, a=a, WT=WT, delta=delta, W=W)
    _check_dimensions(dW=dW, db=db, a=a, WT=WT, delta=delta, W=W)
    _check_kinds(types.UnicodeType, "a string", activation=activation)
    _check_sizes(fan_in, fan_out, rows)
    _check_accumulate(accumulate)

    def run(dW, db, a, WT, delta, W, activation, fan_in, fan_out, rows=None, accumulate=False):  # type: ignore[no-untyped-def]
        count, number = _rows_of(a, rows, fan_in, fan_out), _activation_id(activation)
        height, into, out, lanes = a.shape[1], _blocks(fan_in, a), _blocks(fan_out, a), _lanes(a)
        a_at, delta_at = _a(a, into, height), _delta(delta, out, height)
        w_at, wt_at = _W(W, out, into * lanes), _WT(WT, into, out * lanes)
        _dW(dW, out, into * lanes)
        _db(db, out)
        _dW_db(dW, db)
        _dW_a(dW, a)
        _dW_WT(dW, WT)
        _dW_delta(dW, delta)
        _dW_W(dW, W)
        _db_a(db, a)
        _db_WT(db, WT)
        _db_delta(db, delta)
        _db_W(db, W)
        _a_WT(a, WT)
        _a_delta(a, delta)
        _a_W(a, W)
        _WT_delta(WT, delta)
        _WT_W(WT, W)
        _gradient(dW, db, a, delta, count, fan_in, fan_out, accumulate)
        inputs, outputs = np.int64(fan_in), np.int64(fan_out)
        transpose_squares(W, wt_at, w_at, inputs, outputs, 0, into * out)
        sums, first = _lines(into, a)
        sums_at, computed = np.int64(sums.ctypes.data + first * a.itemsize), round_up(count, ROW_MULTIPLE)
        sizes = np.int64(number), np.int64(computed), np.int64(height), inputs, outputs
        backward_words(sums, (a_at, a_at, delta_at, wt_at, sums_at) + sizes)

    return run


in_place.settle()
