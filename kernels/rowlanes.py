"""Layers of few columns: the lanes of a line hold 16 rows (float64: 8) of one column, so none of them is padding.

The form of products for networks so narrow that a good part of the lanes would be padding in gemm.py. A tile's matrix
lies column by column here, each `height` rows high; weights and gradients lie as they do everywhere.

    forward    C = g(A B + bias)        A and C by columns: a line of A times one weight of B, in every lane
    backward   C = (A B) * g'(C)        the same, B being W'
    gradient   C (+)= A' B              products of lines, whose lanes are added up when a tile is through
"""

from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numba import carray

from fastae.kernels import gemm
from fastae.kernels.activations import activate, times_derivative
from fastae.kernels.compiler import ByAddress, callee
from fastae.kernels.gemm import Tile, flatten, outer_product, prepare_weights, unflatten
from fastae.kernels.layout import ACTIVATIONS
from fastae.kernels.optimizer import transpose
from fastae.kernels.partition import in_blocks, round_up, shard_rows
from fastae.kernels.products import Form, Widths
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import LINE, TARGET

# Register tiles, in lines: columns x lines of rows; a gradient's, columns of A x columns of B
COLUMNS = 2
LINES = gemm.rows_of(1) // COLUMNS
FROM = 4 if TARGET.widest > 1 else 1
TO = min(4, gemm.rows_of(1))

# Measured, on AVX-512 and on AVX2: where padding costs less than this, or there are more columns, gemm.py is faster.
GAIN, WIDEST = 1.12, 80
MANY = 16  # shards that threads share well enough, whatever their number
TWICE = 90 << 10  # bytes of a tile up to which two register tiles of rows at a time are a little better


def height(widths: Widths, dtype: npt.DTypeLike) -> int:
    """Rows of a tile."""
    rows = row_multiple(widths, dtype)
    return 2 * rows if 2 * rows * np.dtype(dtype).itemsize * sum(widths) <= TWICE else rows


def row_multiple(widths: Widths, dtype: npt.DTypeLike) -> int:
    """Rows that are computed at a time, whatever the widths."""
    return LINES * LINE // np.dtype(dtype).itemsize


@lru_cache(64)
def pays(widths: tuple[int, ...], batch: int, size: int, dtype: npt.DTypeLike) -> bool:
    """Whether steps on `batch` rows are faster here than in gemm.py; `size` is that of the flat buffers.

    Padding of columns is weighed against that of rows, which must make as many shards as in gemm.py, or many. What
    there are no kernels for here is not asked: a last layer that is not linear, and a cost of the mean code.
    """
    if max(widths) > WIDEST:
        return False
    lanes = LINE // np.dtype(dtype).itemsize
    useful = sum(a * b for a, b in pairwise(widths))
    padded = sum(a * -(-b // lanes) * lanes for a, b in pairwise(widths))
    each, usual = (
        int(shard_rows(batch, size, multiple))
        for multiple in (row_multiple(widths, dtype), gemm.row_multiple(widths, dtype))
    )
    shards = -(-batch // each)
    shared = shards == -(-batch // usual) or shards >= MANY
    return shared and useful * GAIN * shards * each <= padded * batch


def _product(words: Words, start: list[Value], a: Value, column: Value, b: Value, depth: Value) -> Tile:
    """[column][line of rows]: start + A B over `depth` columns of A; `column` bytes lie between two."""

    def add(a: Value, b: Value, *flat: Value) -> list[Value]:
        tile = outer_product(words, unflatten(flat, LINES), b, words.itemsize, a, LINE, words.fma)
        return [words.offset(a, column), words.offset(b, LINE), *flatten(tile)]

    _, _, *flat = words.loop(depth, [a, b, *flatten([[value] * LINES for value in start])], add)
    return unflatten(flat, LINES)


def _broadcasts(words: Words, address: Value) -> list[Value]:
    """An element for each column of a register tile."""
    return [words.broadcast(words.offset(address, j * words.itemsize)) for j in range(COLUMNS)]


def _write_forward(words, c, a, column, b, depth, bias, activation, one):  # type: ignore[no-untyped-def]
    tile = _product(words, _broadcasts(words, bias), a, column, b, depth)

    def finish(activation: int) -> None:
        for j, mask in enumerate(_broadcasts(words, one)):
            for s in range(LINES):
                words.store(
                    activate(words, activation, tile[j][s], mask), words.offset(c, (column, j), s * LINE)
                )

    words.cases(activation, [partial(finish, id_) for id_ in range(len(ACTIVATIONS))])


def _write_residual(words, c, a, column, b, depth, bias, x, weight, loss):  # type: ignore[no-untyped-def]
    tile = _product(words, _broadcasts(words, bias), a, column, b, depth)
    total = words.load(loss)
    for s in range(LINES):
        w = words.load(words.offset(weight, s * LINE))
        for j in range(COLUMNS):
            target = words.load(words.offset(x, (column, j), s * LINE))
            residual = words.missing_as_zero(words.sub(tile[j][s], target), target)
            delta = words.mul(w, residual)
            total = words.fma(delta, residual, total)
            words.store(delta, words.offset(c, (column, j), s * LINE))
    words.store(total, loss)


def _write_backward(words, c, a, column, b, depth, activation):  # type: ignore[no-untyped-def]
    tile = _product(words, [words.constant(0.0)] * COLUMNS, a, column, b, depth)

    def finish(activation: int) -> None:
        for j in range(COLUMNS):
            for s in range(LINES):
                place = words.offset(c, (column, j), s * LINE)
                words.store(times_derivative(words, activation, tile[j][s], words.load(place)), place)

    words.cases(activation, [partial(finish, id_) for id_ in range(len(ACTIVATIONS))])


def _write_gradient(words, c, a, b, column, lines, accumulate, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """FROM x TO elements of C, of which fan_in x fan_out are there: the columns beyond may hold anything."""

    def add(a: Value, b: Value, *flat: Value) -> list[Value]:
        tile = unflatten(flat, TO)
        deltas = [words.load(words.offset(b, (column, j))) for j in range(TO)]
        for i in range(FROM):
            line = words.load(words.offset(a, (column, i)))
            tile[i] = [words.fma(line, deltas[j], tile[i][j]) for j in range(TO)]
        return [words.offset(a, LINE), words.offset(b, LINE), *flatten(tile)]

    _, _, *flat = words.loop(lines, [a, b, *[words.constant(0.0)] * (FROM * TO)], add)
    sums = []
    for first in range(0, len(flat), words.lanes):
        total = words.lane_sums(flat[first : first + words.lanes])
        sums += [words.shuffle(total, total, list(range(k, k + TO))) for k in range(0, total.type.count, TO)]
    mask = words.first_lanes(fan_out, TO)
    for onto in (0, 1):
        with words.when(accumulate, "==", onto):
            for i, row in enumerate(sums):
                with words.when(fan_in, ">", i):
                    place = words.offset(c, i * LINE)
                    value = words.add(words.load_short(place, TO), row) if onto else row
                    words.store_first(value, place, mask)


def _write_column_sums(words, sums, a, column, lines, columns):  # type: ignore[no-untyped-def]
    """sums += the sum over rows of TO columns of A, of which `columns` are there."""

    def add(a: Value, *flat: Value) -> list[Value]:
        added = [words.add(words.load(words.offset(a, (column, j))), flat[j]) for j in range(TO)]
        return [words.offset(a, LINE), *added]

    _, *flat = words.loop(lines, [a, *[words.constant(0.0)] * TO], add)
    total = words.add(words.load_short(sums, TO), words.lane_sums(flat))
    words.store_first(total, sums, words.first_lanes(columns, TO))


_forward, _residual, _backward, _gradient, _column_sums = (
    vector_kernel(write)
    for write in (_write_forward, _write_residual, _write_backward, _write_gradient, _write_column_sums)
)


@callee
def _add_column_sums(like, sums, a, column, rows, columns):  # type: ignore[no-untyped-def]
    """The bias gradient: sums += the sum over rows of a."""
    size = like.itemsize
    for j in range(0, columns, TO):
        _column_sums(like, (sums + j * size, a + j * column, column, rows * size // LINE, columns - j))


# -- one layer on a tile of rows, the contract of products.py -----------------------------------------------------


@ByAddress
def forward(out, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h = g(a w + bias); `leaves` is 0: no network of this form has rows that leave it by forward."""
    like = carray(out, (1,))
    h, size = np.int64(like.ctypes.data), like.itemsize
    lanes, column = LINE // size, height * size
    block = round_up(fan_in, lanes) * LINE
    for i in range(0, rows, LINES * lanes):
        for j in range(0, fan_out, COLUMNS):
            c, e, o = h + j * column + i * size, bias + j * size, one + j * size
            b = w + j // lanes * block + j % lanes * size
            _forward(like, (c, a + i * size, column, b, fan_in, e, activation, o))


@ByAddress
def residual(out, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """delta = weight (a w + bias - x), 0 where x is NaN; its column sums and the loss's lanes are added up."""
    like = carray(out, (1,))
    delta, size = np.int64(like.ctypes.data), like.itemsize
    lanes, column = LINE // size, height * size
    block = round_up(fan_in, lanes) * LINE
    for i in range(0, rows, LINES * lanes):
        for j in range(0, fan_out, COLUMNS):
            k = j * column + i * size
            b = w + j // lanes * block + j % lanes * size
            rest = bias + j * size, x + k, weight + i * size, loss
            _residual(like, (delta + k, a + i * size, column, b, fan_in, *rest))
    _add_column_sums(like, sums, delta, column, rows, fan_out)


@ByAddress
def backward(out, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h becomes (delta wt) * g'(h); its column sums are added up."""
    like = carray(out, (1,))
    h, size = np.int64(like.ctypes.data), like.itemsize
    lanes, column = LINE // size, height * size
    block = round_up(fan_out, lanes) * LINE
    for i in range(0, rows, LINES * lanes):
        for j in range(0, fan_in, COLUMNS):
            b = wt + j // lanes * block + j % lanes * size
            _backward(like, (h + j * column + i * size, delta + i * size, column, b, fan_out, activation))
    _add_column_sums(like, sums, h, column, rows, fan_in)


@ByAddress
def gradient(out, a, delta, accumulate, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """dw (+)= a' delta over `rows` rows, and those below them in a line: their delta is zero."""
    like = carray(out, (1,))
    dw, size = np.int64(like.ctypes.data), like.itemsize
    lanes, column = LINE // size, height * size
    block, lines = round_up(fan_in, lanes) * LINE, in_blocks(rows, lanes)
    for j in range(0, fan_out, TO):
        c, d = dw + j // lanes * block + j % lanes * size, delta + j * column
        for i in range(0, fan_in, FROM):
            left = fan_in - i, fan_out - j
            _gradient(like, (c + i * LINE, a + i * column, d, column, lines, accumulate, *left))


@ByAddress
def turn(out, source, rows, height, blocks):  # type: ignore[no-untyped-def]
    """A tile of lines, as load_tile leaves it, to lie column by column: from_lines of the contract."""
    like = carray(out, (1,))
    target, size = np.int64(like.ctypes.data), like.itemsize
    lanes = LINE // size
    column = height * size
    for j in range(blocks):
        block = target + j * lanes * column, column, LINE, source + j * height * LINE
        transpose(like, (*block, rows // lanes))


ROW_LANES = Form(
    forward=forward,
    residual=residual,
    backward=backward,
    gradient=gradient,
    from_lines=turn,
    prepare_weights=prepare_weights,
    sparsity_delta=None,
    add_delta=None,
    target_in_form=True,
    row_multiple=row_multiple,
    height=height,
)
