"""One layer's forward step and backward step on a tile of rows, in place; register tile after register tile.

A tile's matrices are `height` rows high in memory, of which `rows` are in use, rounded up to whole register tiles
(``row_multiple`` divides `height`). Sizes count elements, addresses and strides bytes. The `_tile` kernels take
addresses; ``layer_forward`` and ``layer_backward`` below are the same two steps for callers with blocked arrays.
"""

import numpy as np

from fastae.kernels import gemm
from fastae.kernels.compiler import kernel
from fastae.kernels.layout import ACTIVATIONS
from fastae.kernels.simd import Words, vector_kernel
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


@kernel
def _width(left):  # type: ignore[no-untyped-def]
    """Blocks that the next register tiles span, of `left`: 3 at a time, but 2 and 2 for the last 4."""
    if WIDEST == 1 or left == 1:
        return 1
    return 3 if left >= 3 and left != 4 else 2


@kernel
def forward(like, h, a, w, bias, one, activation, rows, height, depth, blocks, fan_in):  # type: ignore[no-untyped-def]
    """h = g(a w + bias): h (blocks, height, lanes), a (., height, lanes), w (blocks, fan_in, lanes), fan_in padded."""
    tile, column = height * LINE, fan_in * LINE
    j = 0
    while j < blocks:
        n = _width(blocks - j)
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


@kernel
def residual(like, delta, a, w, bias, x, weight, sums, loss, rows, height, depth, blocks, fan_in):  # type: ignore[no-untyped-def]
    """delta = weight (a w + bias - x), a linear last layer; its column sums and the loss's lanes are added up."""
    tile, column = height * LINE, fan_in * LINE
    size = like.itemsize
    j = 0
    while j < blocks:
        n = _width(blocks - j)
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


@kernel
def backward(like, h, delta, wt, sums, activation, rows, height, depth, blocks, fan_out):  # type: ignore[no-untyped-def]
    """h becomes (delta wt) * g'(h), the delta of the layer below; its column sums, the bias gradient, are added up."""
    tile, column = height * LINE, fan_out * LINE
    j = 0
    while j < blocks:
        n = _width(blocks - j)
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


@kernel
def gradient(like, dw, a, delta, accumulate, rows, height, columns, blocks, fan_in):  # type: ignore[no-untyped-def]
    """dw (+)= a' delta over exactly `rows` rows: a's first `columns` columns, dw (blocks, fan_in, lanes)."""
    tile, column, size = height * LINE, fan_in * LINE, like.itemsize
    lanes = LINE // size
    rows_1, rows_2, rows_3 = (
        min(GRADIENT_ROWS_1, lanes),
        min(GRADIENT_ROWS_2, lanes),
        min(GRADIENT_ROWS_3, lanes),
    )
    j = 0
    while j < blocks:
        n = _width(blocks - j)
        c, d = dw + j * column, delta + j * tile
        if n == 3:
            for f in range(0, columns, rows_3):
                part = a + f // lanes * tile + f % lanes * size
                _gradient_3(like, (c + f * LINE, column, part, d, tile, rows, accumulate))
        elif n == 2:
            for f in range(0, columns, rows_2):
                part = a + f // lanes * tile + f % lanes * size
                _gradient_2(like, (c + f * LINE, column, part, d, tile, rows, accumulate))
        else:
            for f in range(0, columns, rows_1):
                part = a + f // lanes * tile + f % lanes * size
                _gradient_1(like, (c + f * LINE, column, part, d, tile, rows, accumulate))
        j += n


def _write_output_delta(words: Words, code, h, x, weight, sums, loss, rows):  # type: ignore[no-untyped-def]
    """h becomes weight (h - x) * g'(h) on one block of columns: the last layer where it is not linear."""
    from fastae.kernels.activations import times_derivative

    for activation in range(len(ACTIVATIONS)):
        with words.when(code, "==", activation):

            def row(h, x, weight, total, column_sum, activation=activation):  # type: ignore[no-untyped-def]
                line, w = words.load(h), words.broadcast(weight)
                difference = words.sub(line, words.load(x))
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


@kernel
def output_delta(like, h, x, weight, sums, loss, activation, rows, height, blocks):  # type: ignore[no-untyped-def]
    """h becomes weight (h - x) * g'(h), the delta of a last layer that is not linear; sums and loss are added up."""
    for j in range(blocks):
        k = j * height * LINE
        _output_delta(like, (activation, h + k, x + k, weight, sums + j * LINE, loss, rows))
