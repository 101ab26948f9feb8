"""One layer's forward step and backward step for callers with blocked arrays of their own."""

import numpy as np

from fastae.kernels.compiler import kernel
from fastae.kernels.gemm import ROW_MULTIPLE, backward, forward, gradient
from fastae.kernels.layout import ACTIVATIONS, aligned_zeros, blocks, lanes
from fastae.kernels.optimizer import transpose_squares
from fastae.kernels.partition import round_up
from fastae.kernels.rows import add_lines, zero_lines
from fastae.kernels.simd import call_at
from fastae.kernels.target import LINE


@kernel
def _layer_forward(at, h, a, W, b, one, activation, rows, fan_in, fan_out):  # type: ignore[no-untyped-def]
    arguments = (
        np.int64(h.ctypes.data),
        np.int64(a.ctypes.data),
        np.int64(W.ctypes.data),
        np.int64(b.ctypes.data),
        np.int64(one.ctypes.data),
        activation,
        1,
        round_up(rows, ROW_MULTIPLE),
        h.shape[1],
        fan_in,
        fan_out,
    )
    call_at(at, arguments)


@kernel
def _layer_backward(
    gradient_at, backward_at, dW, db, a, WT, delta, W, sums, activation, rows, fan_in, fan_out, accumulate
):  # type: ignore[no-untyped-def]
    height = delta.shape[1]
    squares = WT.shape[0] * delta.shape[0]
    transpose_squares(W, WT.ctypes.data, W.ctypes.data, fan_in, fan_out, 0, squares)
    if accumulate == 0:
        zero_lines(db, (np.int64(db.ctypes.data), delta.shape[0]))
    for j in range(delta.shape[0]):
        for i in range(rows):
            line = np.int64(delta.ctypes.data) + (j * height + i) * LINE
            add_lines(db, (np.int64(db.ctypes.data) + j * LINE, line, 1, 1))
    a_at, delta_at = np.int64(a.ctypes.data), np.int64(delta.ctypes.data)
    weights = np.int64(dW.ctypes.data), a_at, delta_at, accumulate
    call_at(gradient_at, (*weights, rows, height, fan_in, fan_out))
    below = a_at, delta_at, np.int64(WT.ctypes.data), np.int64(sums.ctypes.data), activation
    call_at(backward_at, (*below, round_up(rows, ROW_MULTIPLE), height, fan_in, fan_out))


def _check_layer(outputs, inputs, shapes, activation, rows):  # type: ignore[no-untyped-def]
    """The activation's code and the row count, after checking that the kernels may run on these arrays."""
    arrays = {**outputs, **inputs}
    dtype = next(iter(arrays.values())).dtype
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
            raise TypeError(
                f"{name} must be a float32 or float64 array, got {getattr(array, 'dtype', array)!r}"
            )
        if array.dtype != dtype:
            raise TypeError(f"{name} is {array.dtype}, but {next(iter(arrays))} is {dtype}")
        if array.shape != shapes[name]:
            raise ValueError(f"{name} has shape {array.shape}, but {shapes[name]} is needed")
        if not array.flags.c_contiguous or array.ctypes.data % LINE:
            raise ValueError(f"{name} must be C-contiguous and start on a cache line ({LINE} bytes)")
        if name in outputs and not array.flags.writeable:
            raise ValueError(f"{name} is read-only")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be among {', '.join(ACTIVATIONS)}, got {activation!r}")
    height = shapes["a"][1]
    if height % ROW_MULTIPLE:
        raise ValueError(f"a is {height} rows high, but a multiple of {ROW_MULTIPLE} is needed")
    if rows is not None and not 1 <= rows <= height:
        raise ValueError(f"rows must be within 1 .. {height}, got {rows}")
    return ACTIVATIONS.index(activation), height if rows is None else rows


def layer_forward(h, a, W, b, *, activation, fan_in, fan_out, rows=None):  # type: ignore[no-untyped-def]
    """Write h = g(a W + b), in place: one layer's forward step on blocked arrays (``kernels/layout.py``).

    With 16 lanes in float32 and 8 in float64, and ceil(.) rounding up to whole blocks of lanes:

    Parameters
    ----------
    h : ndarray of shape (ceil(fan_out) / lanes, height, lanes)
        Written; padding lanes become zero. The height is a multiple of ``layer.ROW_MULTIPLE``.
    a : ndarray of shape (ceil(fan_in) / lanes, height, lanes)
        The layer's input.
    W : ndarray of shape (ceil(fan_out) / lanes, ceil(fan_in), lanes), zero in its padding
    b : ndarray of shape (ceil(fan_out),), zero in its padding
    activation : "sigmoid", "tanh", "relu" or "identity"
    fan_in, fan_out : int
        Columns of a and of h in use.
    rows : int, optional
        Rows in use; rows below them may be written. All by default.

    Raises
    ------
    TypeError, ValueError
        An array of another dtype, shape or alignment, named; nothing is written then.
    """
    width, height = lanes(h.dtype), h.shape[1]
    into, out = blocks(fan_in, h.dtype), blocks(fan_out, h.dtype)
    shapes = {
        "h": (out, height, width),
        "a": (into, height, width),
        "W": (out, into * width, width),
        "b": (out * width,),
    }
    code, rows = _check_layer({"h": h}, {"a": a, "W": W, "b": b}, shapes, activation, rows)
    one = aligned_zeros(out * width, h.dtype)
    one[:fan_out] = 1
    _layer_forward(forward.address(h.dtype), h, a, W, b, one, code, rows, fan_in, fan_out)


def layer_backward(dW, db, a, WT, delta, W, *, activation, fan_in, fan_out, rows=None, accumulate=False):  # type: ignore[no-untyped-def]
    """One layer's backward step on blocked arrays, in place: from delta = dS/dz of this layer to that of the one below.

        dW = a' delta      db = sum over rows of delta      a = (delta W') * g'(a)

    The last is the elementwise product of the chain rule: g is the activation that made `a`, and g' is had from it.

    Parameters
    ----------
    dW, db : ndarrays of the shapes of W and b in ``layer_forward``
        Written, or with `accumulate` added to.
    a : ndarray of shape (ceil(fan_in) / lanes, height, lanes)
        The layer's input, an activation; becomes the delta of the layer below.
    WT : ndarray of shape (ceil(fan_in) / lanes, ceil(fan_out), lanes)
        Written with W'.
    delta : ndarray of shape (ceil(fan_out) / lanes, height, lanes), zero in its padding lanes
    W : as for ``layer_forward``
    activation : "sigmoid", "tanh", "relu" or "identity"
        Of the layer below.
    fan_in, fan_out, rows
        As for ``layer_forward``; exactly `rows` rows count in dW and db.

    Raises
    ------
    TypeError, ValueError
        As ``layer_forward``.
    """
    width, height = lanes(dW.dtype), delta.shape[1]
    into, out = blocks(fan_in, dW.dtype), blocks(fan_out, dW.dtype)
    weights = (out, into * width, width)
    shapes = {
        "dW": weights,
        "db": (out * width,),
        "a": (into, height, width),
        "WT": (into, out * width, width),
        "delta": (out, height, width),
        "W": weights,
    }
    outputs = {"dW": dW, "db": db, "a": a, "WT": WT}
    code, rows = _check_layer(outputs, {"delta": delta, "W": W}, shapes, activation, rows)
    sums = aligned_zeros(into * width, dW.dtype)
    places = gradient.address(dW.dtype), backward.address(dW.dtype)
    sizes = code, rows, fan_in, fan_out, int(accumulate)
    _layer_backward(*places, dW, db, a, WT, delta, W, sums, *sizes)
