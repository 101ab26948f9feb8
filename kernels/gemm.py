"""Products on column blocks, the form of products of most networks: the register tile, and the loops around it.

Not a general GEMM: no packing, no transposes, no alpha and beta. C = A B, where A (rows, depth), B (depth, columns) and
C (rows, columns) have the blocked layout (layout.py); the gradient is C = A' B. The *epilogue* (the activation or its
derivative, column sums, the loss) is applied to a register tile before it is stored. The loops of a step (step.py
numbers them from 1) continue here:

    loop 5    panels of C: 3, 2 or 1 blocks of columns            C[:, j : j + n]          panels
    loop 6    register tiles of a panel: rows of C                C[i : i + r, j : j + n]  register_tiles
    loop 7    columns of A; for a gradient, rows of A             C += A[:, p] B[p, :]     product, _gradient_product

A ``Storage`` describes how the rows of a tile lie within a block, and how they are multiplied: as float32 or float64
lines here, as pairs of bfloat16 in bfloat16.py. Everything else is the same for both.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.kernels import cost
from fastae.kernels.activations import activate, times_derivative
from fastae.kernels.compiler import ByAddress, carray
from fastae.kernels.layout import ACTIVATIONS, LINE, blocks, lanes
from fastae.kernels.products import Form, Widths
from fastae.kernels.rows import store_rows
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import TARGET
from fastae.kernels.transpose import transpose_squares

RegisterTile = list[list[Value]]  # a register tile: [row][block], each a line
UNROLL = 8  # columns of A per iteration of loop 7; measured: 4 is up to 10% slower at n = 784, 16 a little everywhere
WORKSPACE = 1 << 20  # bytes that a tile should fit in: less than L2
ROWS, ROWS_WIDE = 192, 144  # rows of a tile that fits, and of one that does not


class Storage:
    """Emits the loads, stores and multiply-adds of a tile whose rows, within a block, are lines of the dtype."""

    together = 1  # rows that are loaded or stored at a time

    def __init__(self, words: Words, height: Value) -> None:
        self.words = words
        self.block = words.times(height, LINE)  # bytes from one block of a tile to the next
        self.row = LINE  # bytes from one row to the next
        self.depth_per_block = words.lanes  # multiply-adds over the columns of one block of A
        self.multiply = words.fma  # (x, y, z): z + x y
        self.rows_at: Value | int = 0  # bytes from the start of a block to the rows that `gradient` reads

    def depth(self, count: Value) -> Value:
        """The number of multiply-adds over `count` columns, or rows."""
        return count

    def weight_block(self, rows: Value) -> Value:
        """Bytes of one block of a weight matrix of so many rows, which are padded to whole blocks."""
        return self.words.times(self.words.round_up(rows, self.words.lanes), self.row)

    def load(self, place: Value) -> list[Value]:
        """Load `together` rows at `place`."""
        return [self.words.load(place)]

    def store(self, values: list[Value], place: Value) -> None:
        """Store `together` rows at `place`."""
        self.words.store(values[0], place)

    def store_result(self, values: list[Value], block: Value, row: int, leaves: Value) -> None:
        """Store `together` rows of a result, from row `row` of a block on; blocked if `leaves` is 1."""
        self.store(values, self.words.offset(block, row * self.row))

    def result_stride(self, rows: int, leaves: Value) -> Value:
        """Bytes of `rows` rows of a result in a block."""
        return self.words.count(rows * self.row)


# -- loops 5, 6 and 7, the innermost first ----------------------------------------------------------------------------


def outer_product(
    words: Words,
    tile: RegisterTile,
    x: Value,
    x_between: int,
    y: Value,
    y_between: Value | int,
    multiply: Callable[[Value, Value, Value], Value],
) -> RegisterTile:
    """A register tile plus x y': elements of x, `x_between` bytes apart, times lines of y, `y_between` bytes apart."""
    lines = [words.load(words.offset(y, (y_between, k))) for k in range(len(tile[0]))]
    result = []
    for i, row in enumerate(tile):
        element = words.broadcast(words.offset(x, i * x_between))
        result.append([multiply(element, line, value) for line, value in zip(lines, row, strict=True)])
    return result


def flatten(tile: RegisterTile) -> list[Value]:
    """The lines of a register tile, row by row."""
    return [value for row in tile for value in row]


def unflatten(flat: list[Value] | tuple[Value, ...], width: int) -> RegisterTile:
    """The register tile of these lines: rows of `width` lines."""
    return [list(flat[i : i + width]) for i in range(0, len(flat), width)]


def product(
    storage: Storage, start: RegisterTile, a: Value, b: Value, b_block: Value, depth: Value
) -> RegisterTile:
    """start + A B, one register tile, over `depth` multiply-adds: UNROLL at a time, then the rest.

    `a` is the address of its first row of A, `b` of its first block of B, which is `b_block` bytes from the next.
    """
    words, width = storage.words, len(start[0])

    def add(tile: RegisterTile, a_p: Value, b_p: Value, p: int) -> RegisterTile:
        x, y = words.offset(a_p, p * words.itemsize), words.offset(b_p, p * LINE)
        return outer_product(words, tile, x, storage.row, y, b_block, storage.multiply)

    # How far A's place moves after UNROLL columns: within a block so many times, then to the next block. The loop
    # carries these moves, and rotates them.
    count, itemsize = storage.depth_per_block // UNROLL, words.itemsize
    moves = [words.count(UNROLL * itemsize)] * (count - 1)
    moves.append(words.offset(storage.block, (UNROLL - storage.depth_per_block) * itemsize))

    def unrolled(a_p: Value, b_p: Value, *rest: Value) -> list[Value]:
        (move, *later), tile = rest[:count], unflatten(rest[count:], width)
        for p in range(UNROLL):
            tile = add(tile, a_p, b_p, p)
        return [words.offset(a_p, move), words.offset(b_p, UNROLL * LINE), *later, move, *flatten(tile)]

    def single(a_p: Value, b_p: Value, *flat: Value) -> list[Value]:
        tile = add(unflatten(flat, width), a_p, b_p, 0)
        return [words.offset(a_p, itemsize), words.offset(b_p, LINE), *flatten(tile)]

    unroll = words.count(UNROLL)
    whole, left = words.builder.sdiv(depth, unroll), words.builder.srem(depth, unroll)
    # loop 7: C += A[:, p] B[p, :]
    a_p, b_p, *rest = words.loop(whole, [a, b, *moves, *flatten(start)], unrolled)
    _, _, *flat = words.loop(left, [a_p, b_p, *rest[count:]], single)
    return unflatten(flat, width)


def _gradient_product(
    storage: Storage, columns: int, n: int, a: Value, delta: Value, depth: Value
) -> RegisterTile:
    """A' B, one register tile of `columns` rows and `n` blocks, over `depth` multiply-adds."""
    words = storage.words

    def add(a_p: Value, delta_p: Value, *flat: Value) -> list[Value]:
        tile = outer_product(
            words, unflatten(flat, n), a_p, words.itemsize, delta_p, storage.block, storage.multiply
        )
        return [words.offset(a_p, LINE), words.offset(delta_p, LINE), *flatten(tile)]

    zeros = [words.constant(0.0)] * (columns * n)
    _, _, *flat = words.loop(depth, [a, delta, *zeros], add)  # loop 7: C += A[p, :]' B[p, :]
    return unflatten(flat, n)


def register_tiles(
    words: Words, rows: Value, tile_rows: int, places: list[Value], strides: list[Value | int]
) -> Iterator[list[Value]]:
    """The places of each register tile of `tile_rows` rows, for ``for`` as ``Words.walk``; `strides` are in bytes."""
    yield from words.walk(words.quotient(rows, tile_rows), places, strides)  # loop 6: C[i : i + r, j : j + n]


def panels(words: Words, blocks: Value) -> Iterator[tuple[int, Value]]:
    """(n, j) of panels of blocks j .. j + n - 1, for ``for`` as ``Words.walk``.

    Panels have 3 blocks, then up to two have 2; one has 1 block if there is no other block.
    """
    b, count = words.builder, words.count
    if TARGET.most_blocks == 1:
        panels_of = {1: blocks}
    else:
        is_one = b.icmp_signed("==", blocks, count(1))
        one = b.zext(is_one, blocks.type)
        pairs = b.select(is_one, count(0), b.srem(b.sub(count(3), b.srem(blocks, count(3))), count(3)))
        panels_of = {3: b.sdiv(b.sub(blocks, words.offset(one, (pairs, 2))), count(3)), 2: pairs, 1: one}
    first = count(0)
    for n, times in panels_of.items():
        for (j,) in words.walk(times, [first], [n]):  # loop 5: C[:, j : j + n]
            yield n, j
        first = j


def rows_of(blocks: int) -> int:
    """Rows of the register tile that is `blocks` wide."""
    return TARGET.register_tiles[min(blocks, TARGET.most_blocks)]


def gradient_columns(blocks: int, lanes: int) -> int:
    """Columns of A in the gradient's register tile; a divisor of the columns of a block."""
    return min(rows_of(blocks), lanes) if TARGET.most_blocks > 1 else min(4, rows_of(blocks))


# -- epilogues --------------------------------------------------------------------------------------------------------
# What is computed from a register tile of a product. Addresses are those of its first row and block.


def lines(words: Words, place: Value, count: int) -> list[Value]:
    """Load `count` lines, one after the other."""
    return [words.load(words.offset(place, k * LINE)) for k in range(count)]


def _forward_epilogue(
    storage: Storage, z: RegisterTile, activation_id: int, h: Value, one: Value, leaves: Value
) -> None:
    """Store g(z), with the activation of this id."""
    words = storage.words
    for k in range(len(z[0])):
        mask, place = words.load(words.offset(one, k * LINE)), words.offset(h, (storage.block, k))
        for i in range(0, len(z), storage.together):
            values = [activate(words, activation_id, z[i + r][k], mask) for r in range(storage.together)]
            storage.store_result(values, place, i, leaves)


def _residual_epilogue(
    storage: Storage,
    xhat: RegisterTile,
    delta: Value,
    x: Value,
    row_weight: Value,
    bound: Value | None,
    sums: Value,
    loss: Value,
) -> None:
    """Store row_weight c of ``residual``; add its column sums to `sums` and the weighted costs to `loss`."""
    words, n = storage.words, len(xhat[0])
    limit = None if bound is None else words.broadcast(bound)
    total, column_sums = words.load(loss), lines(words, sums, n)
    for i in range(0, len(xhat), storage.together):
        weights = [
            words.broadcast(words.offset(row_weight, (i + r) * words.itemsize))
            for r in range(storage.together)
        ]
        for k in range(n):
            deltas = []
            for r, weight in enumerate(weights):
                target = words.load(words.offset(x, (storage.block, k), (i + r) * LINE))
                residual = words.residual(xhat[i + r][k], target)
                weighted, factor = cost.weighted_residual(words, residual, weight, limit)
                deltas.append(weighted)
                total = words.fma(weighted, factor, total)
                column_sums[k] = words.add(column_sums[k], deltas[r])
            storage.store(deltas, words.offset(delta, (storage.block, k), i * storage.row))
    words.store(total, loss)
    for k, column_sum in enumerate(column_sums):
        words.store(column_sum, words.offset(sums, k * LINE))


def _backward_epilogue(
    storage: Storage, slope: RegisterTile, activation_id: int, delta: Value, h: Value, sums: Value
) -> None:
    """Store slope * g'(h), with the activation of this id; add its column sums to `sums`."""
    words = storage.words
    for k in range(len(slope[0])):
        column_sum = words.load(words.offset(sums, k * LINE))
        for i in range(0, len(slope), storage.together):
            h_i, delta_i = (words.offset(x, (storage.block, k), i * storage.row) for x in (h, delta))
            deltas = [
                times_derivative(words, activation_id, slope[i + r][k], value)
                for r, value in enumerate(storage.load(h_i))
            ]
            for value in deltas:
                column_sum = words.add(column_sum, value)
            storage.store(deltas, delta_i)
        words.store(column_sum, words.offset(sums, k * LINE))


def _store_gradient(words: Words, tile: RegisterTile, dw: Value, dw_block: Value, accumulate: Value) -> None:
    """Store a register tile in dw, or add it if `accumulate` is 1."""
    for add in words.cases(accumulate, 2):
        for i, row in enumerate(tile):
            for k, value in enumerate(row):
                place = words.offset(dw, (dw_block, k), i * LINE)
                words.store(words.add(words.load(place), value) if add else value, place)


# -- the four products ------------------------------------------------------------------------------------------------
# Arguments are those of products.py. h_j is where the panel from block j on begins in h, h_ij a register tile of it,
# and a_i the rows of a that belong to this register tile.


def forward_writer(storage_of: type[Storage]) -> Any:
    """The kernel of h = g(a w + bias)."""

    def write(words, h, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
        storage = storage_of(words, height)
        w_block, depth = storage.weight_block(fan_in), storage.depth(fan_in)
        for n, j in panels(words, words.quotient(fan_out, words.lanes)):
            h_j, w_j = words.offset(h, (j, storage.block)), words.offset(w, (j, w_block))
            bias_j, one_j = words.offset(bias, (j, LINE)), words.offset(one, (j, LINE))
            strides = [storage.result_stride(rows_of(n), leaves), rows_of(n) * storage.row]
            for h_ij, a_i in register_tiles(words, rows, rows_of(n), [h_j, a], strides):
                start = [lines(words, bias_j, n)] * rows_of(n)
                z = product(storage, start, a_i, w_j, w_block, depth)
                for activation_id in words.cases(activation, len(ACTIVATIONS)):
                    _forward_epilogue(storage, z, activation_id, h_ij, one_j, leaves)

    return vector_kernel(write)


def residual_writer(storage_of: type[Storage]) -> Any:
    """The kernel of delta = row_weight (a w + bias - x), 0 where x is NaN. It adds to `sums` and `loss`."""

    def write(words, delta, a, w, bias, x, row_weight, bound, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
        storage = storage_of(words, height)
        w_block, depth = storage.weight_block(fan_in), storage.depth(fan_in)
        for n, j in panels(words, words.quotient(fan_out, words.lanes)):
            delta_j, x_j = (words.offset(matrix, (j, storage.block)) for matrix in (delta, x))
            bias_j, sums_j = (words.offset(vector, (j, LINE)) for vector in (bias, sums))
            w_j = words.offset(w, (j, w_block))
            strides = [size * rows_of(n) for size in (storage.row, storage.row, LINE, words.itemsize)]
            places = [delta_j, a, x_j, row_weight]
            for delta_ij, a_i, x_ij, weight_i in register_tiles(words, rows, rows_of(n), places, strides):
                start = [lines(words, bias_j, n)] * rows_of(n)
                xhat = product(storage, start, a_i, w_j, w_block, depth)
                for limited in (False, True):
                    with words.when(bound, "!=" if limited else "==", 0):
                        limit = bound if limited else None
                        _residual_epilogue(storage, xhat, delta_ij, x_ij, weight_i, limit, sums_j, loss)

    return vector_kernel(write)


def backward_writer(storage_of: type[Storage]) -> Any:
    """The kernel of below = (delta wt) * g'(h), the delta of the layer below. It adds to `sums`, the bias gradient."""

    def write(words, below, h, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
        storage = storage_of(words, height)
        wt_block, depth = storage.weight_block(fan_out), storage.depth(fan_out)
        for n, j in panels(words, words.quotient(fan_in, words.lanes)):
            below_j, h_j = (words.offset(matrix, (j, storage.block)) for matrix in (below, h))
            wt_j, sums_j = words.offset(wt, (j, wt_block)), words.offset(sums, (j, LINE))
            strides: list[Value | int] = [rows_of(n) * storage.row] * 3
            for below_ij, h_ij, delta_i in register_tiles(
                words, rows, rows_of(n), [below_j, h_j, delta], strides
            ):
                zeros = [[words.constant(0.0)] * n] * rows_of(n)
                slope = product(storage, zeros, delta_i, wt_j, wt_block, depth)
                for activation_id in words.cases(activation, len(ACTIVATIONS)):
                    _backward_epilogue(storage, slope, activation_id, below_ij, h_ij, sums_j)

    return vector_kernel(write)


def gradient_writer(storage_of: type[Storage]) -> Any:
    """The kernel of dw (+)= a' delta over `rows` rows.

    Here loop 6 is over columns of a, which are rows of dw. The products of a tile are added up first, and their sum is
    then added to dw: the rounding error is that of a sum over a tile, and that of a sum of tiles.
    """

    def write(words, dw, a, delta, accumulate, rows, height, dw_rows, fan_in, fan_out):  # type: ignore[no-untyped-def]
        storage = storage_of(words, height)
        b, lanes, depth = words.builder, words.count(words.lanes), storage.depth(rows)
        dw_block = words.times(dw_rows, LINE)
        for n, j in panels(words, words.quotient(fan_out, words.lanes)):
            columns = gradient_columns(n, words.lanes)
            dw_j, delta_j = (
                words.offset(dw, (j, dw_block)),
                words.offset(delta, storage.rows_at, (j, storage.block)),
            )
            places, strides = [dw_j, words.count(0)], [columns * LINE, columns]
            for dw_ij, i in register_tiles(words, fan_in, columns, places, strides):
                block, lane = b.sdiv(i, lanes), b.srem(i, lanes)  # of column i of a
                a_i = words.offset(a, storage.rows_at, (block, storage.block), (lane, words.itemsize))
                tile = _gradient_product(storage, columns, n, a_i, delta_j, depth)
                _store_gradient(words, tile, dw_ij, dw_block, accumulate)

    return vector_kernel(write)


_forward, _residual, _backward, _gradient = (
    writer(Storage) for writer in (forward_writer, residual_writer, backward_writer, gradient_writer)
)

# -- the contract of products.py --------------------------------------------------------------------------------------


@ByAddress
def forward(out, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h = g(a w + bias)."""
    h = carray(out, (1,))
    _forward(h, (h.ctypes.data, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out))


@ByAddress
def residual(out, a, w, bias, x, row_weight, bound, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """delta = row_weight (a w + bias - x), within row_weight bound if there is a bound."""
    delta = carray(out, (1,))
    sizes = rows, height, fan_in, fan_out
    _residual(delta, (delta.ctypes.data, a, w, bias, x, row_weight, bound, sums, loss, *sizes))


@ByAddress
def backward(out, h, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """below = (delta wt) * g'(h)."""
    below = carray(out, (1,))
    _backward(below, (below.ctypes.data, h, delta, wt, sums, activation, rows, height, fan_in, fan_out))


@ByAddress
def gradient(out, a, delta, accumulate, rows, height, dw_rows, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """dw (+)= a' delta."""
    dw = carray(out, (1,))
    _gradient(dw, (dw.ctypes.data, a, delta, accumulate, rows, height, dw_rows, fan_in, fan_out))


@ByAddress
def prepare_weights(out, wt, source, fan_in, fan_out, first, last):  # type: ignore[no-untyped-def]
    """Prepare W' only, because products read the weights themselves as W."""
    w = carray(out, (1,))
    if wt != 0:
        transpose_squares(w, wt, source, fan_in, fan_out, first, last)


@ByAddress
def sparsity_delta(out, h, row_weight, slope, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = row_weight slope h (1 - h); both are blocked."""
    cost.sparsity_delta(carray(out, (1,)), h, row_weight, slope, rows, height, blocks)


@ByAddress
def code_delta(out, h, activation, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = out * g'(h); both are blocked."""
    cost.code_delta(carray(out, (1,)), h, activation, rows, height, blocks)


@ByAddress
def add_delta(out, added, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """delta += added; both are blocked."""
    cost.add_delta(carray(out, (1,)), added, sums, rows, height, blocks)


def row_multiple(widths: Widths, dtype: npt.DTypeLike) -> int:
    """Rows of whole register tiles, for each of the register tiles that this network uses; it divides ROW_MULTIPLE."""
    # Register tiles of one block are used only for layers of one block.
    one_block = any(blocks(columns, dtype) == 1 for columns in widths[1:])
    return int(np.lcm.reduce([rows_of(n) for n in ((1, 2, 3) if one_block else (2, 3))]))


def tile_height(widths: Widths, dtype: npt.DTypeLike) -> int:
    """Rows of a tile. Measured: equally fast from 144 to 256 at every width; fewer for wide networks, to stay in L2."""
    elements = sum(blocks(columns, dtype) * lanes(dtype) for columns in widths)
    return ROWS if elements * np.dtype(dtype).itemsize * ROWS <= WORKSPACE else ROWS_WIDE


ROW_MULTIPLE = int(np.lcm.reduce([rows_of(n) for n in (1, 2, 3)]))

COLUMN_BLOCKS = Form(
    name="column blocks",
    dtypes=("float32", "float64"),
    forward=forward,
    residual=residual,
    backward=backward,
    gradient=gradient,
    from_rows=None,
    from_blocked=None,
    delta_from_blocked=None,
    prepare_weights=prepare_weights,
    sparsity_delta=sparsity_delta,
    code_delta=code_delta,
    add_delta=add_delta,
    store_rows=store_rows,
    row_errors=cost.row_errors,
    row_multiple=row_multiple,
    height=tile_height,
    stored_row=LINE,
)
