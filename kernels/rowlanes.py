"""Products with rows in lanes, the form for narrow networks: a line holds 16 rows (float64: 8) of one column.

Not for wide networks: it exists because with few columns, most lanes in gemm.py would be padding. A stored matrix is
(columns, height) here, column by column; weights and their gradients keep the blocked layout (layout.py).

    forward    C = g(A B + bias)        a line of A times one weight of B, in every lane
    backward   C = (A B) * g'(H)        the same; B is W'
    gradient   C (+)= A' B              lines of A times lines of B; lanes are added up after the last row of the tile

In the names below, B is the second operand: W, W' or delta. The loops of a step (step.py) continue here:

    loop 6    register tiles of rows: LINES lines, then SHORT     C[i : i + r, :]          the four products
    loop 5    COLUMNS columns of C                                C[i : i + r, j : j + n]  the four products
    loop 7    columns of A; for a gradient, rows of A             C += A[:, p] B[p, :]     _product, _write_gradient
"""

from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.kernels import gemm
from fastae.kernels.activations import activate, times_derivative
from fastae.kernels.compiler import ByAddress, callee, carray
from fastae.kernels.cost import weighted_residual, weighted_square
from fastae.kernels.gemm import RegisterTile, flatten, prepare_weights, unflatten
from fastae.kernels.layout import ACTIVATIONS, LINE
from fastae.kernels.products import Form, Widths
from fastae.kernels.rounding import in_blocks, round_up
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.split import ROWS_OF_MANY, shard_rows
from fastae.kernels.target import TARGET
from fastae.kernels.transpose import transpose

# Register tiles: COLUMNS columns of LINES lines of rows; for a gradient, A_COLUMNS x B_COLUMNS lines, one per element.
# Most FMAs per load whose operands fit in registers: a line is 1 zmm, 2 ymm or 4 xmm/NEON registers (target.py).
COLUMNS = 2
LINES, A_COLUMNS, B_COLUMNS = {
    "avx512": (8, 4, 4),  # accumulators in 16 of 32 registers, 10 loads per 16 FMAs; 16 of 32, 8 per 16
    "avx2": (3, 2, 2),  # 12 of 16, 8 per 12; 8 of 16, 8 per 8
    "neon": (3, 2, 2),  # 24 of 32, 14 per 24; 16 of 32, 16 per 16
    "generic": (1, 1, 2),  # 8 of 16; 8 of 16
}[TARGET.isa]
# Columns of A in a gradient's second register tile, with which most numbers of columns need no padding: AVX-512 5 x 4
# lines, accumulators in 20 of 32; other CPUs have no such tile
A_COLUMNS_MORE = A_COLUMNS + 1 if TARGET.isa == "avx512" else A_COLUMNS
SUM_COLUMNS = min(4, gemm.rows_of(1))  # whose sums over rows are computed together
# Where LINES lines would be more than there are rows: AVX-512 5 instead of 8, which keep both FMA units busy, too
SHORT = (LINES + 2) // 2
_SHORT_INVERSE = pow(SHORT, -1, LINES)

# Measured on AVX-512 and AVX2: gemm.py is faster if padding slows it down by less than GAIN, or if a layer has more
# than COLUMNS_MOST columns.
GAIN, COLUMNS_MOST = 1.12, 80
MANY_SHARDS = 16  # any number of threads shares so many shards well
# More register tiles of rows are faster than one, up to so many bytes and lines: the lanes of a gradient are added up
# once per tile. Measured: AVX-512 a little from one to two, AVX2 1.1x (n = 30) and 1.15x (n = 10) from two to five.
SMALL_TILE, LINES_MOST = 90 << 10, 16
# Bytes of the tile of a shard of fewer than 512 rows at most. Twice as many rows are up to 3% slower, but a rounded row
# multiple for each of two tiles may compute many rows in vain.
TILE_MOST = 192 << 10


def height(widths: Widths, dtype: npt.DTypeLike) -> int:
    """Rows of a tile: as many register tiles as make a small one, at least one."""
    lines = min(SMALL_TILE // (LINE * sum(widths)), LINES_MOST)
    return max(lines // LINES, 1) * row_multiple(widths, dtype)


def row_multiple(widths: Widths, dtype: npt.DTypeLike) -> int:
    """Rows of a register tile, whatever the widths."""
    return LINES * LINE // np.dtype(dtype).itemsize


@lru_cache(256)
def tile_of_steps(
    widths: tuple[int, ...], batch: int, n_parameters: int, dtype: np.dtype[Any]
) -> tuple[int, int]:
    """The height and row multiple of tiles in steps on `batch` rows; flat buffers are (n_parameters,).

    A shard of fewer than 512 rows is as few tiles as fit, all of the least height that register tiles can fill.
    """
    lanes = LINE // dtype.itemsize
    rows = int(shard_rows(batch, n_parameters, lanes))
    if rows >= ROWS_OF_MANY:
        return height(widths, dtype), row_multiple(widths, dtype)
    lines = rows // lanes
    tiles = -(-lines * sum(widths) * LINE // TILE_MOST)
    each = -(-lines // tiles)
    while short_tiles(each) * SHORT > each:
        each += 1
    return each * lanes, each * lanes


def most_height(widths: Widths, dtype: npt.DTypeLike) -> int:
    """No tile of steps is higher. Rounding up to whole register tiles adds fewer than SHORT lines."""
    itemsize = np.dtype(dtype).itemsize
    lines = min(TILE_MOST // (sum(widths) * LINE), ROWS_OF_MANY * itemsize // LINE) + SHORT
    return max(height(widths, dtype), lines * LINE // itemsize)


@callee
def short_tiles(lines):  # type: ignore[no-untyped-def]
    """How many of the register tiles that fill `lines` lines have SHORT lines; the others have LINES.

    It is the least number for which the rest is a multiple of LINES. If that leaves no rest, but too few lines, no
    register tiles fill `lines` lines.
    """
    return lines * _SHORT_INVERSE % LINES


@lru_cache(64)
def pays(widths: tuple[int, ...], batch: int, n_parameters: int, dtype: npt.DTypeLike) -> bool:
    """Whether steps on `batch` rows are faster in this form than in gemm.py; flat buffers are (n_parameters,).

    They are if padding the columns there adds more work than padding the rows here, by a factor of GAIN, and if the
    batch has as many shards here as there, or MANY_SHARDS.
    """
    if max(widths) > COLUMNS_MOST:
        return False
    lanes = LINE // np.dtype(dtype).itemsize
    useful = sum(a * b for a, b in pairwise(widths))
    padded = sum(a * -(-b // lanes) * lanes for a, b in pairwise(widths))
    rows, gemm_rows = (
        int(shard_rows(batch, n_parameters, multiple))
        for multiple in (
            tile_of_steps(widths, batch, n_parameters, np.dtype(dtype))[1],
            gemm.row_multiple(widths, dtype),
        )
    )
    shards = -(-batch // rows)
    shared = shards == -(-batch // gemm_rows) or shards >= MANY_SHARDS
    return shared and useful * GAIN * shards * rows <= padded * batch


def pays_in_inference(widths: tuple[int, ...], rows: int, dtype: npt.DTypeLike) -> bool:
    """The same for inference on `rows` rows, through the layers between these widths."""
    if max(widths) > COLUMNS_MOST:
        return False
    lanes = LINE // np.dtype(dtype).itemsize
    useful = sum(a * b for a, b in pairwise(widths))
    padded = sum(a * -(-b // lanes) * lanes for a, b in pairwise(widths))
    return useful * GAIN * round_up(rows, row_multiple(widths, dtype)) <= padded * rows


# In these kernels, `count` is the number of lines of a register tile: LINES or SHORT.


def _product(
    words: Words, count: int, start: list[Value], a: Value, stride: Value, b: Value, depth: Value
) -> RegisterTile:
    """start + A B over `depth` columns of A, as a register tile [column][line of rows].

    start  COLUMNS lines     a  (depth, count x lanes), `stride` bytes from column to column     b  (depth, COLUMNS)
    """

    def add(a: Value, b: Value, *flat: Value) -> list[Value]:
        tile, elements = unflatten(flat, count), _broadcasts(words, b)
        # Line by line: with all lines loaded first, as ``outer_product`` does, they do not fit in registers
        # beside the accumulators where a line needs several.
        for s in range(count):
            line = words.load(words.offset(a, s * LINE))
            for column, element in zip(tile, elements, strict=True):
                column[s] = words.fma(line, element, column[s])
        return [words.offset(a, stride), words.offset(b, LINE), *flatten(tile)]

    # loop 7: C += A[:, p] B[p, :]
    _, _, *flat = words.loop(depth, [a, b, *flatten([[value] * count for value in start])], add)
    return unflatten(flat, count)


def _broadcasts(words: Words, address: Value) -> list[Value]:
    """COLUMNS elements from `address` on, each in every lane of a line."""
    return [words.broadcast(words.offset(address, j * words.itemsize)) for j in range(COLUMNS)]


def _write_forward(count, words, c, a, stride, b, depth, bias, activation, one):  # type: ignore[no-untyped-def]
    """A register tile of ``forward``.

    c  (COLUMNS, count x lanes)     a, b  see _product     bias  (COLUMNS,)     one  (COLUMNS,)
    """
    tile = _product(words, count, _broadcasts(words, bias), a, stride, b, depth)

    for activation_id in words.cases(activation, len(ACTIVATIONS)):
        for j, mask in enumerate(_broadcasts(words, one)):
            for s in range(count):
                value = activate(words, activation_id, tile[j][s], mask)
                words.store(value, words.offset(c, (stride, j), s * LINE))


def _write_residual(count, words, c, a, stride, b, depth, bias, x, row_weight, bound, loss):  # type: ignore[no-untyped-def]
    """A register tile of ``residual``.

    c  (COLUMNS, count x lanes)     x  as c     a, b  see _product     bias  (COLUMNS,)     row_weight  (count x lanes,)
    bound  (1,), or 0     loss  (lanes,)
    """
    tile = _product(words, count, _broadcasts(words, bias), a, stride, b, depth)

    for limited in (False, True):
        with words.when(bound, "!=" if limited else "==", 0):
            limit = words.broadcast(bound) if limited else None
            total = words.load(loss)
            for s in range(count):
                w = words.load(words.offset(row_weight, s * LINE))
                for j in range(COLUMNS):
                    target = words.load(words.offset(x, (stride, j), s * LINE))
                    residual = words.residual(tile[j][s], target)
                    delta, factor = weighted_residual(words, residual, w, limit)
                    total = words.fma(delta, factor, total)
                    words.store(delta, words.offset(c, (stride, j), s * LINE))
            words.store(total, loss)


def _write_backward(count, words, c, h, a, stride, b, depth, activation):  # type: ignore[no-untyped-def]
    """A register tile of ``backward``.

    c, h  (COLUMNS, count x lanes)     a, b  see _product
    """
    tile = _product(words, count, [words.constant(0.0)] * COLUMNS, a, stride, b, depth)

    for activation_id in words.cases(activation, len(ACTIVATIONS)):
        for j in range(COLUMNS):
            for s in range(count):
                value = words.load(words.offset(h, (stride, j), s * LINE))
                delta = times_derivative(words, activation_id, tile[j][s], value)
                words.store(delta, words.offset(c, (stride, j), s * LINE))


def _write_gradient(a_columns, words, c, a, b, stride, lines, accumulate, a_left, b_left):  # type: ignore[no-untyped-def]
    """A register tile of ``gradient``: a_columns x B_COLUMNS elements of C, or a_left x b_left if fewer are left.

    c  (a_columns, B_COLUMNS), LINE bytes from row to row     a  (a_columns, lines)     b  (B_COLUMNS, lines)

    Columns of a and b that are not left may hold anything.
    """

    def add(a: Value, b: Value, *flat: Value) -> list[Value]:
        tile = unflatten(flat, B_COLUMNS)
        deltas = [words.load(words.offset(b, (stride, j))) for j in range(B_COLUMNS)]
        for i in range(a_columns):
            line = words.load(words.offset(a, (stride, i)))
            tile[i] = [words.fma(line, deltas[j], tile[i][j]) for j in range(B_COLUMNS)]
        return [words.offset(a, LINE), words.offset(b, LINE), *flatten(tile)]

    # loop 7: C += A[p, :]' B[p, :], a line of rows p at a time
    _, _, *flat = words.loop(lines, [a, b, *[words.constant(0.0)] * (a_columns * B_COLUMNS)], add)
    sums = []
    for first in range(0, len(flat), words.lanes):
        total = words.lane_sums(flat[first : first + words.lanes])
        sums += [
            words.shuffle(total, total, list(range(k, k + B_COLUMNS)))
            for k in range(0, total.type.count, B_COLUMNS)
        ]
    for add_to_c in words.cases(accumulate, 2):
        for i, row in enumerate(sums):
            with words.when(a_left, ">", i):
                place = words.offset(c, i * LINE)
                value = words.add(words.load_short(place, B_COLUMNS), row) if add_to_c else row
                words.store_first(value, place, b_left)


def _write_column_sums(words, sums, a, stride, lines, columns):  # type: ignore[no-untyped-def]
    """sums += the sum over rows of SUM_COLUMNS columns of a, or of `columns` if fewer are left.

    sums  (SUM_COLUMNS,)     a  (SUM_COLUMNS, lines), `stride` bytes from column to column
    """

    def add(a: Value, *flat: Value) -> list[Value]:
        added = [words.add(words.load(words.offset(a, (stride, j))), flat[j]) for j in range(SUM_COLUMNS)]
        return [words.offset(a, LINE), *added]

    _, *flat = words.loop(lines, [a, *[words.constant(0.0)] * SUM_COLUMNS], add)
    total = words.add(words.load_short(sums, SUM_COLUMNS), words.lane_sums(flat))
    words.store_first(total, sums, columns)


def _write_from_rows(words: Words, stored, stride, x, row_stride, row_numbers, first, groups, columns):  # type: ignore[no-untyped-def]
    """``from_rows``: `groups` of as many rows as a line has lanes.

    stored  (columns, rows), `stride` bytes from column to column     x, row_numbers  see rows.Source
    """
    lanes = words.lanes
    whole, left = (f(columns, words.count(lanes)) for f in (words.builder.sdiv, words.builder.srem))
    block_bytes = words.times(stride, lanes)

    def square(lines, target):  # type: ignore[no-untyped-def]
        for j, line in enumerate(words.transposed(lines)):
            words.store(line, words.offset(target, (stride, j)))

    for indexed in (0, 1):
        with words.when(row_numbers, "!=" if indexed else "==", 0):
            by = 8 if indexed else row_stride
            start = words.offset(row_numbers if indexed else x, (first, by))
            for group, first_column in words.walk(groups, [start, stored], [words.times(by, lanes), LINE]):
                places = [words.offset(group, (by, i)) for i in range(lanes)]
                if indexed:
                    places = [words.offset(x, (words.load_count(place), row_stride)) for place in places]
                begin = [words.count(0), first_column]
                for passed, target in words.walk(whole, begin, [LINE, block_bytes]):
                    square([words.load(words.offset(p, passed), aligned=False) for p in places], target)
                with words.when(left, ">", 0):  # both have moved behind the whole blocks
                    square([words.load_first(words.offset(p, passed), left) for p in places], target)


def _write_store_rows(words: Words, out, stride, h, column_bytes, columns, rows):  # type: ignore[no-untyped-def]
    """A line's columns of ``store_rows``: `columns` of them at most are left.

    out  (rows, lanes), `stride` bytes from row to row     h  (lanes, rows), `column_bytes` from column to column
    """
    lanes = words.lanes

    def transposed(h: Value) -> list[Value]:
        return words.transposed([words.load(words.offset(h, (column_bytes, j))) for j in range(lanes)])

    whole, left = (f(rows, words.count(lanes)) for f in (words.builder.sdiv, words.builder.srem))
    place, target = h, out
    for place, target in words.walk(whole, [h, out], [LINE, words.times(stride, lanes)]):
        for i, line in enumerate(transposed(place)):
            words.store_first(line, words.offset(target, (stride, i)), columns)
    with words.when(left, ">", 0):  # both have moved behind the whole lines of rows
        for i, line in enumerate(transposed(place)[:-1]):
            with words.when(left, ">", i):
                words.store_first(line, words.offset(target, (stride, i)), columns)


def _write_row_errors(words: Words, out, xhat, x, column_weight, missing, column_bytes, columns, rows):  # type: ignore[no-untyped-def]
    """``row_errors``: a sum for every eighth column, in the order of cost.py.

    out  float64 (rows,)     xhat, x  `column_bytes` from column to column     column_weight  float64 (columns,)
    """
    wide, b = words.wide(), words.builder
    count = wide.lanes
    whole, left = (f(columns, words.count(count)) for f in (b.sdiv, b.srem))
    some_left = b.zext(b.icmp_signed(">", left, words.count(0)), left.type)

    def errors_of(missing: int, xhat, x):  # type: ignore[no-untyped-def]
        """The errors of as many rows as a vector of float64 has lanes."""

        def add(valid: Value | None, xhat, x, weight, *totals):  # type: ignore[no-untyped-def]
            sums = []
            for j, total in enumerate(totals):
                output, target = (
                    words.load_short(words.offset(matrix, (column_bytes, j)), count) for matrix in (xhat, x)
                )
                factor = wide.broadcast(words.offset(weight, j * wide.itemsize))
                value = weighted_square(wide, total, output, target, factor, missing)
                if valid is not None:  # columns that are not in use may hold anything
                    value = b.select(b.icmp_signed(">", valid, words.count(j)), value, total)
                sums.append(value)
            columns_bytes = words.times(column_bytes, count)
            places = words.offset(xhat, columns_bytes), words.offset(x, columns_bytes)
            return [*places, words.offset(weight, count * wide.itemsize), *sums]

        start = [xhat, x, column_weight, *[wide.constant(0.0)] * count]
        carried = words.loop(whole, start, partial(add, None))
        return wide.tree_sum(words.loop(some_left, carried, partial(add, left))[3:])

    for allowed in words.cases(missing, 2):
        times, rest = (f(rows, words.count(count)) for f in (b.sdiv, b.srem))
        places = [out, xhat, x]
        steps = count * wide.itemsize, count * words.itemsize, count * words.itemsize
        for here in words.walk(times, places, list(steps)):
            places = here
            wide.store_short(errors_of(allowed, *here[1:]), here[0])
        with words.when(rest, ">", 0):
            wide.store_first(errors_of(allowed, *places[1:]), places[0], rest)


_column_sums, _from_rows, _store_rows, _row_errors = (
    vector_kernel(write)
    for write in (_write_column_sums, _write_from_rows, _write_store_rows, _write_row_errors)
)
_gradient, _gradient_more = (
    vector_kernel(partial(_write_gradient, columns)) for columns in (A_COLUMNS, A_COLUMNS_MORE)
)
_forward, _residual, _backward = (
    vector_kernel(partial(write, LINES)) for write in (_write_forward, _write_residual, _write_backward)
)
_forward_short, _residual_short, _backward_short = (
    vector_kernel(partial(write, SHORT)) for write in (_write_forward, _write_residual, _write_backward)
)


@callee
def _tiles(rows, lanes):  # type: ignore[no-untyped-def]
    """(tall, all): the register tiles of LINES lines that come first, and how many there are with those of SHORT."""
    lines = in_blocks(rows, lanes)
    short = short_tiles(lines)
    tall = (lines - short * SHORT) // LINES
    return tall, tall + short


@callee
def _first_row(tile, tall, lanes):  # type: ignore[no-untyped-def]
    """The first row of register tile `tile`, if the first `tall` have LINES lines."""
    return (tile * LINES if tile <= tall else tall * LINES + (tile - tall) * SHORT) * lanes


@callee
def _columns_of_more(columns):  # type: ignore[no-untyped-def]
    """How many of `columns` columns of A go to a gradient's register tiles of A_COLUMNS_MORE.

    The others are then a multiple of A_COLUMNS. None do if there are too few columns for that.
    """
    count = columns % A_COLUMNS * A_COLUMNS_MORE
    return count if A_COLUMNS_MORE > A_COLUMNS and count <= columns else 0


@callee
def _add_column_sums(like, sums, a, stride, rows, columns):  # type: ignore[no-untyped-def]
    """sums += the sums over rows of a, column by column: the bias gradient.

    sums  (columns,)     a  (columns, rows), `stride` bytes from column to column; `like` is an array of its dtype
    """
    itemsize = like.itemsize
    for j in range(0, columns, SUM_COLUMNS):
        _column_sums(
            like, (sums + j * itemsize, a + j * stride, stride, rows * itemsize // LINE, columns - j)
        )


# -- the contract of products.py --------------------------------------------------------------------------------------


@ByAddress
def forward(out, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h = g(a w + bias). `leaves` is ignored: a result that leaves the network is stored as any other."""
    like = carray(out, (1,))
    h, itemsize = np.int64(like.ctypes.data), like.itemsize
    lanes, stride = LINE // itemsize, height * itemsize
    block = round_up(fan_in, lanes) * LINE
    tall, tiles = _tiles(rows, lanes)
    for tile in range(tiles):  # loop 6: C[i : i + r, :]
        i = _first_row(tile, tall, lanes)
        for j in range(0, fan_out, COLUMNS):  # loop 5: C[i : i + r, j : j + n]
            c, e, o = h + j * stride + i * itemsize, bias + j * itemsize, one + j * itemsize
            b = w + j // lanes * block + j % lanes * itemsize
            arguments = (c, a + i * itemsize, stride, b, fan_in, e, activation, o)
            if tile < tall:
                _forward(like, arguments)
            else:
                _forward_short(like, arguments)


@ByAddress
def residual(out, a, w, bias, x, row_weight, bound, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """delta = row_weight (a w + bias - x), 0 where x is NaN; within row_weight bound if there is a bound."""
    like = carray(out, (1,))
    delta, itemsize = np.int64(like.ctypes.data), like.itemsize
    lanes, stride = LINE // itemsize, height * itemsize
    block = round_up(fan_in, lanes) * LINE
    tall, tiles = _tiles(rows, lanes)
    for tile in range(tiles):  # loop 6: C[i : i + r, :]
        i = _first_row(tile, tall, lanes)
        for j in range(0, fan_out, COLUMNS):  # loop 5: C[i : i + r, j : j + n]
            k = j * stride + i * itemsize
            b = w + j // lanes * block + j % lanes * itemsize
            rest = bias + j * itemsize, x + k, row_weight + i * itemsize, bound, loss
            arguments = (delta + k, a + i * itemsize, stride, b, fan_in, *rest)
            if tile < tall:
                _residual(like, arguments)
            else:
                _residual_short(like, arguments)
    _add_column_sums(like, sums, delta, stride, rows, fan_out)


@ByAddress
def backward(out, h, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """below = (delta wt) * g'(h)."""
    like = carray(out, (1,))
    below, itemsize = np.int64(like.ctypes.data), like.itemsize
    lanes, stride = LINE // itemsize, height * itemsize
    block = round_up(fan_out, lanes) * LINE
    tall, tiles = _tiles(rows, lanes)
    for tile in range(tiles):  # loop 6: C[i : i + r, :]
        i = _first_row(tile, tall, lanes)
        for j in range(0, fan_in, COLUMNS):  # loop 5: C[i : i + r, j : j + n]
            k = j * stride + i * itemsize
            b = wt + j // lanes * block + j % lanes * itemsize
            arguments = (below + k, h + k, delta + i * itemsize, stride, b, fan_out, activation)
            if tile < tall:
                _backward(like, arguments)
            else:
                _backward_short(like, arguments)
    _add_column_sums(like, sums, below, stride, rows, fan_in)


@ByAddress
def gradient(out, a, delta, accumulate, rows, height, dw_rows, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """dw (+)= a' delta over `rows` rows, rounded up to whole lines: below them, delta is zero."""
    like = carray(out, (1,))
    dw, itemsize = np.int64(like.ctypes.data), like.itemsize
    lanes, stride = LINE // itemsize, height * itemsize
    block, lines = dw_rows * LINE, in_blocks(rows, lanes)
    more = _columns_of_more(fan_in)
    for j in range(0, fan_out, B_COLUMNS):  # loop 5: C[:, j : j + n]
        c, d = dw + j // lanes * block + j % lanes * itemsize, delta + j * stride
        i = 0
        while i < fan_in:  # loop 6: C[i : i + r, j : j + n]
            left = fan_in - i, fan_out - j
            arguments = (c + i * LINE, a + i * stride, d, stride, lines, accumulate, *left)
            if i < more:
                _gradient_more(like, arguments)
                i += A_COLUMNS_MORE
            else:
                _gradient(like, arguments)
                i += A_COLUMNS


@ByAddress
def from_rows(out, x, row_stride, row_numbers, first, rows, height, columns):  # type: ignore[no-untyped-def]
    """Read rows of a caller's matrix as (columns, height). `rows` are whole lines."""
    like = carray(out, (1,))
    place, stride = np.int64(like.ctypes.data), height * like.itemsize
    groups = rows // (LINE // like.itemsize)
    _from_rows(like, (place, stride, x, row_stride, row_numbers, first, groups, columns))


@ByAddress
def to_columns(out, source, rows, height, blocks):  # type: ignore[no-untyped-def]
    """Convert a blocked matrix to (columns, height): ``from_blocked`` of the contract."""
    like = carray(out, (1,))
    target, itemsize = np.int64(like.ctypes.data), like.itemsize
    lanes = LINE // itemsize
    stride = height * itemsize
    for j in range(blocks):
        block = target + j * lanes * stride, stride, LINE, source + j * height * LINE
        transpose(like, (*block, rows // lanes))


@ByAddress
def store_rows(out, stride, h, columns, rows, height):  # type: ignore[no-untyped-def]
    """Write rows of h (columns, height) to a dense row-major matrix."""
    like = carray(out, (1,))
    place, column_bytes = np.int64(like.ctypes.data), height * like.itemsize
    lanes = LINE // like.itemsize
    for j in range(0, columns, lanes):
        left = min(columns - j, lanes)
        _store_rows(like, (place + j * like.itemsize, stride, h + j * column_bytes, column_bytes, left, rows))


@ByAddress
def row_errors(out, xhat, x, column_weight, missing, columns, rows, height):  # type: ignore[no-untyped-def]
    """out = the errors of rows of matrices (columns, height)."""
    like = carray(out, (1,))
    arguments = np.int64(like.ctypes.data), xhat, x, column_weight, missing
    _row_errors(like, (*arguments, height * like.itemsize, columns, rows))


ROW_LANES = Form(
    name="rows in lanes",
    dtypes=("float32", "float64"),
    forward=forward,
    residual=residual,
    backward=backward,
    gradient=gradient,
    from_rows=from_rows if TARGET.isa == "avx512" else None,  # AVX2: 0 to 5% slower than from_blocked
    from_blocked=to_columns,
    delta_from_blocked=to_columns,
    prepare_weights=prepare_weights,
    sparsity_delta=None,
    code_delta=None,
    add_delta=None,
    store_rows=store_rows,
    row_errors=row_errors,
    row_multiple=row_multiple,
    height=height,
    pays=pays,
    tile_of_steps=tile_of_steps,
    most_height=most_height,
    pays_in_inference=pays_in_inference,
    target_in_form=True,
    leaves=False,
)
