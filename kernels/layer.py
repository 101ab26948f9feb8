"""One layer's forward step and backward step on a tile of rows, in place; register tile after register tile.

A tile's matrices are `height` rows high in memory, of which `rows` are in use, rounded up to whole register tiles
(``row_multiple`` divides `height`); `fan_in` and `fan_out` are columns in use. Sizes count elements, addresses and
strides bytes. The first four functions take addresses; ``layer_forward`` and ``layer_backward`` below are the same two
steps for callers with blocked arrays.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from numba import carray

from fastae.kernels import gemm
from fastae.kernels.activations import times_derivative
from fastae.kernels.compiler import ByAddress, callee, inlined, kernel
from fastae.kernels.layout import ACTIVATIONS, aligned_zeros, blocks, lanes
from fastae.kernels.optimizer import transpose_squares
from fastae.kernels.partition import in_blocks, round_up
from fastae.kernels.rows import add_lines, zero_lines
from fastae.kernels.simd import Words, call_at, vector_kernel
from fastae.kernels.target import LINE, TARGET

WIDEST = TARGET.widest
ROWS_1, ROWS_2, ROWS_3 = (gemm.rows_of(blocks) for blocks in (1, 2, 3))
GRADIENT_ROWS_1, GRADIENT_ROWS_2, GRADIENT_ROWS_3 = (gemm.gradient_rows(blocks, 16) for blocks in (1, 2, 3))
ROW_MULTIPLE = int(np.lcm.reduce([ROWS_1, ROWS_2, ROWS_3]))  # of a tile's height

# A target narrower than 3 blocks never reaches the wider ones: they stand in as the widest there is.
_1, _2, _3 = (min(blocks, WIDEST) for blocks in (1, 2, 3))
_forward_1, _forward_2, _forward_3 = (gemm.forward_tile(gemm.rows_of(n), n) for n in (_1, _2, _3))
_residual_1, _residual_2, _residual_3 = (gemm.residual_tile(gemm.rows_of(n), n) for n in (_1, _2, _3))
_backward_1, _backward_2, _backward_3 = (gemm.backward_tile(gemm.rows_of(n), n) for n in (_1, _2, _3))
_gradient_1, _gradient_2, _gradient_3 = (gemm.gradient_tile(n) for n in (_1, _2, _3))


def row_multiple(widths: Iterable[int], dtype: npt.DTypeLike) -> int:
    """Rows that are computed at a time in layers that put out `widths` columns; it divides ROW_MULTIPLE."""
    # Register tiles are 1 block wide only where a layer is.
    narrow = any(blocks(columns, dtype) == 1 for columns in widths)
    return int(np.lcm.reduce([ROWS_1, ROWS_2, ROWS_3] if narrow else [ROWS_2, ROWS_3]))


@inlined
def width(left):  # type: ignore[no-untyped-def]
    """Blocks that the next register tiles span, of `left`: 3 at a time, but 2 and 2 for the last 4."""
    if WIDEST == 1 or left == 1:
        return 1
    return 3 if left >= 3 and left != 4 else 2


@ByAddress
def forward(out, a, w, bias, one, activation, wide, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h = g(a w + bias); `wide` means something in bfloat16.py."""
    like = carray(out, (1,))
    h, depth, lanes = np.int64(like.ctypes.data), fan_in, LINE // like.itemsize
    blocks, tile, column = in_blocks(fan_out, lanes), height * LINE, round_up(fan_in, lanes) * LINE
    j = 0
    while j < blocks:
        n = width(blocks - j)
        b, e, o, c = w + j * column, bias + j * LINE, one + j * LINE, h + j * tile
        if n == 3:
            for i in range(0, rows, ROWS_3):
                _forward_3(like, (c + i * LINE, tile, a + i * LINE, tile, b, column, depth, e, activation, o))
        elif n == 2:
            for i in range(0, rows, ROWS_2):
                _forward_2(like, (c + i * LINE, tile, a + i * LINE, tile, b, column, depth, e, activation, o))
        else:
            for i in range(0, rows, ROWS_1):
                _forward_1(like, (c + i * LINE, tile, a + i * LINE, tile, b, column, depth, e, activation, o))
        j += n


@ByAddress
def residual(out, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """delta = weight (a w + bias - x), 0 where x is NaN; its column sums and the loss's lanes are added up."""
    like = carray(out, (1,))
    delta, depth, size = np.int64(like.ctypes.data), fan_in, like.itemsize
    lanes = LINE // size
    blocks, tile, column = in_blocks(fan_out, lanes), height * LINE, round_up(fan_in, lanes) * LINE
    j = 0
    while j < blocks:
        n = width(blocks - j)
        b, e, s, c, t = w + j * column, bias + j * LINE, sums + j * LINE, delta + j * tile, x + j * tile
        if n == 3:
            for i in range(0, rows, ROWS_3):
                k = i * LINE
                _residual_3(
                    like,
                    (c + k, tile, a + k, tile, b, column, depth, e, t + k, tile, weight + i * size, s, loss),
                )
        elif n == 2:
            for i in range(0, rows, ROWS_2):
                k = i * LINE
                _residual_2(
                    like,
                    (c + k, tile, a + k, tile, b, column, depth, e, t + k, tile, weight + i * size, s, loss),
                )
        else:
            for i in range(0, rows, ROWS_1):
                k = i * LINE
                _residual_1(
                    like,
                    (c + k, tile, a + k, tile, b, column, depth, e, t + k, tile, weight + i * size, s, loss),
                )
        j += n


@ByAddress
def backward(out, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h becomes (delta wt) * g'(h), the delta of the layer below; its column sums, the bias gradient, are added up."""
    like = carray(out, (1,))
    h, depth, lanes = np.int64(like.ctypes.data), fan_out, LINE // like.itemsize
    blocks, tile, column = in_blocks(fan_in, lanes), height * LINE, round_up(fan_out, lanes) * LINE
    j = 0
    while j < blocks:
        n = width(blocks - j)
        b, s, c = wt + j * column, sums + j * LINE, h + j * tile
        if n == 3:
            for i in range(0, rows, ROWS_3):
                _backward_3(
                    like, (c + i * LINE, tile, delta + i * LINE, tile, b, column, depth, activation, s)
                )
        elif n == 2:
            for i in range(0, rows, ROWS_2):
                _backward_2(
                    like, (c + i * LINE, tile, delta + i * LINE, tile, b, column, depth, activation, s)
                )
        else:
            for i in range(0, rows, ROWS_1):
                _backward_1(
                    like, (c + i * LINE, tile, delta + i * LINE, tile, b, column, depth, activation, s)
                )
        j += n


@ByAddress
def gradient(out, a, delta, accumulate, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """dw (+)= a' delta over exactly `rows` rows."""
    like = carray(out, (1,))
    dw, size = np.int64(like.ctypes.data), like.itemsize
    lanes = LINE // size
    blocks, tile, column = in_blocks(fan_out, lanes), height * LINE, round_up(fan_in, lanes) * LINE
    rows_1, rows_2, rows_3 = (
        min(GRADIENT_ROWS_1, lanes),
        min(GRADIENT_ROWS_2, lanes),
        min(GRADIENT_ROWS_3, lanes),
    )
    j = 0
    while j < blocks:
        n = width(blocks - j)
        c, d = dw + j * column, delta + j * tile
        if n == 3:
            for f in range(0, fan_in, rows_3):
                part = a + f // lanes * tile + f % lanes * size
                _gradient_3(like, (c + f * LINE, column, part, d, tile, rows, accumulate))
        elif n == 2:
            for f in range(0, fan_in, rows_2):
                part = a + f // lanes * tile + f % lanes * size
                _gradient_2(like, (c + f * LINE, column, part, d, tile, rows, accumulate))
        else:
            for f in range(0, fan_in, rows_1):
                part = a + f // lanes * tile + f % lanes * size
                _gradient_1(like, (c + f * LINE, column, part, d, tile, rows, accumulate))
        j += n


def _write_output_delta(words: Words, code, h, x, weight, sums, loss, rows):  # type: ignore[no-untyped-def]
    """h becomes weight (h - x) * g'(h) on one block of columns, 0 where x is NaN: the last layer where not linear."""
    for activation in range(len(ACTIVATIONS)):
        with words.when(code, "==", activation):

            def row(h, x, weight, total, column_sum, activation=activation):  # type: ignore[no-untyped-def]
                line, target, w = words.load(h), words.load(x), words.broadcast(weight)
                difference = words.missing_as_zero(words.sub(line, target), target)
                weighted = words.mul(w, difference)
                delta = times_derivative(words, activation, weighted, line)
                words.store(delta, h)
                return [
                    words.offset(h, LINE),
                    words.offset(x, LINE),
                    words.offset(weight, words.itemsize),
                    words.fma(weighted, difference, total),
                    words.add(column_sum, delta),
                ]

            *_, total, column_sum = words.loop(rows, [h, x, weight, words.load(loss), words.load(sums)], row)
            words.store(total, loss)
            words.store(column_sum, sums)


_output_delta = vector_kernel(_write_output_delta)


@callee
def output_delta(like, h, x, weight, sums, loss, activation, rows, height, blocks):  # type: ignore[no-untyped-def]
    """h becomes weight (h - x) * g'(h), the delta of a last layer that is not linear; sums and loss are added up."""
    for j in range(blocks):
        k = j * height * LINE
        _output_delta(like, (activation, h + k, x + k, weight, sums + j * LINE, loss, rows))


def _write_pull(words: Words, out, h, weight, slope, rows):  # type: ignore[no-untyped-def]
    """out = weight slope h (1 - h) on one block of columns: a sigmoid's delta of a cost that has `slope` by its h."""
    line = words.load_doubles(slope)

    def row(out, h, weight):  # type: ignore[no-untyped-def]
        value = words.load(h)
        derivative = words.fma(words.negative(value), value, value)
        words.store(words.mul(words.mul(words.broadcast(weight), line), derivative), out)
        return [words.offset(out, LINE), words.offset(h, LINE), words.offset(weight, words.itemsize)]

    words.loop(rows, [out, h, weight], row)


def _write_add_pull(words: Words, delta, pull, sums, rows):  # type: ignore[no-untyped-def]
    """delta += pull on one block of columns; its column sums are added up."""

    def row(delta, pull, column_sum):  # type: ignore[no-untyped-def]
        line = words.load(pull)
        words.store(words.add(words.load(delta), line), delta)
        return [words.offset(delta, LINE), words.offset(pull, LINE), words.add(column_sum, line)]

    *_, column_sum = words.loop(rows, [delta, pull, words.load(sums)], row)
    words.store(column_sum, sums)


_pull = vector_kernel(_write_pull)
_add_pull = vector_kernel(_write_add_pull)


@callee
def pull(like, out, h, weight, slope, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = weight slope h (1 - h), the delta of a cost of the mean code; `slope` holds a float64 a column."""
    for j in range(blocks):
        k = j * height * LINE
        _pull(like, (out + k, h + k, weight, slope + j * (LINE // like.itemsize) * 8, rows))


@callee
def add_pull(like, delta, out, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """delta += what ``pull`` put out, and its column sums."""
    for j in range(blocks):
        k = j * height * LINE
        _add_pull(like, (delta + k, out + k, sums + j * LINE, rows))


# -- the same steps for callers with blocked arrays of their own ------------------------------------------------------


def addresses(dtype: npt.DTypeLike) -> tuple[list[int], list[int]]:
    """Where the kernels lie, as a job names them (job.py): from FORWARD_AT on, and from PREPARE_AT on."""
    products = [made.address(dtype) for made in (forward, residual, backward, gradient)]
    return products, [0, 0, 0, 0, 0]


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
    height, padded_in, padded_out = delta.shape[1], W.shape[1], WT.shape[1]
    squares = WT.shape[0] * delta.shape[0]
    transpose_squares(W.reshape(-1), WT.reshape(-1), padded_in, padded_out, 0, squares)
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

    A block has 16 lanes in float32 and 8 in float64; ceil(.) rounds up to whole blocks.

    Parameters
    ----------
    h : ndarray of shape (ceil(fan_out) / lanes, height, lanes)
        Written; padding lanes become zero. The height is a multiple of ``layer.ROW_MULTIPLE``.
    a : ndarray of shape (ceil(fan_in) / lanes, height, lanes)
        The layer's input.
    W : ndarray of shape (ceil(fan_out) / lanes, ceil(fan_in), lanes)
        Weights, zero in their padding.
    b : ndarray of shape (ceil(fan_out),)
        Biases, zero in their padding.
    activation : "sigmoid", "tanh", "relu" or "identity"
        The layer's activation g.
    fan_in : int
        Number of columns of `a` in use.
    fan_out : int
        Number of columns of `h` in use.
    rows : int, optional
        Number of rows in use; rows below them may be written. Default: all.

    Raises
    ------
    TypeError, ValueError
        An array has another dtype, shape or alignment. The message names it, and nothing is written.
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

    The last is the elementwise product of the chain rule: g is the activation that made `a`, and g' is computed from
    it.

    Parameters
    ----------
    dW : ndarray of the shape of `W`
        Weight gradient: written, or with `accumulate` added to.
    db : ndarray of shape (ceil(fan_out),)
        Bias gradient: written, or with `accumulate` added to.
    a : ndarray of shape (ceil(fan_in) / lanes, height, lanes)
        The layer's input, an activation; becomes the delta of the layer below.
    WT : ndarray of shape (ceil(fan_in) / lanes, ceil(fan_out), lanes)
        Written with W'.
    delta : ndarray of shape (ceil(fan_out) / lanes, height, lanes)
        The layer's delta, zero in its padding lanes.
    W : ndarray of shape (ceil(fan_out) / lanes, ceil(fan_in), lanes)
        Weights, zero in their padding.
    activation : "sigmoid", "tanh", "relu" or "identity"
        Activation of the layer below.
    fan_in : int
        Number of columns of `a` in use.
    fan_out : int
        Number of columns of `delta` in use.
    rows : int, optional
        Number of rows in use; exactly these count in `dW` and `db`. Default: all.
    accumulate : bool, default False
        Add to `dW` and `db` instead of overwriting them.

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
