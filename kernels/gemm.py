"""Products on column blocks, the form of products of most networks: the register tile, and the loops around it.

Not a general GEMM: no packing, no transposes, no alpha and beta. C = A B, where A (rows, depth), B (depth, columns) and
C (rows, columns) have the blocked layout (layout.py); the gradient is C = A' B. The *epilogue*, which is all that a
layer computes besides the product, is applied to a register tile before it is stored. The loops of a step (step.py
numbers them from 1) continue here:

    loop 5    panels of C: 3, 2 or 1 blocks of columns            C[:, j : j + n]          panels
    loop 6    register tiles of a panel: rows of C                C[i : i + r, j : j + n]  register_tiles
    loop 7    columns of A; for a gradient, rows of A             C += A[:, p] B[p, :]     _product, gradient_writer

A ``Storage`` describes how the rows of a tile lie within a block, and how they are multiplied: as float32 or float64
lines here, as pairs of bfloat16 in bfloat16.py. Everything else is the same for both.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray

from fastae.kernels import cost
from fastae.kernels.activations import activate, times_derivative
from fastae.kernels.compiler import ByAddress
from fastae.kernels.layout import ACTIVATIONS, blocks, lanes
from fastae.kernels.optimizer import transpose_squares
from fastae.kernels.products import Form, Widths
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import LINE, TARGET

RegisterTile = list[list[Value]]  # a register tile: [row][block], each a line
UNROLL = 8  # columns of A per iteration of loop 7; measured: 4 is up to 10% slower at n = 784, 16 a little everywhere
WORKSPACE = 1 << 20  # bytes that a tile should fit in: less than L2
ROWS, ROWS_WIDE = 192, 144  # rows of a tile that fits, and of one that does not


class Storage:
    """Emits the loads, stores and multiply-adds of a tile whose rows, within a block, are lines of the dtype."""

    together = 1  # rows that are loaded or stored at a time

    def __init__(self, words: Words, height: Value) -> None:
        self.words = words
        self.row = LINE  # bytes from one row to the next
        self.depth_per_block = words.lanes  # multiply-adds over the columns of one block of A
        self.multiply = words.fma  # (x, y, z): z + x y
        self.rows_at: Value | int = 0  # bytes from the start of a block to the rows that `gradient` reads

    def depth(self, count: Value) -> Value:
        """The number of multiply-adds over `count` columns, or rows."""
        return count

    def load(self, place: Value) -> list[Value]:
        """Load `together` rows at `place`."""
        return [self.words.load(place)]

    def store(self, values: list[Value], place: Value) -> None:
        """Store `together` rows at `place`."""
        self.words.store(values[0], place)

    def store_result(self, values: list[Value], block: Value, row: int, leaves: Value) -> None:
        """Store `together` rows of a result, from row `row` of a block on; as lines if `leaves` is 1."""
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
    lines = [words.load(words.offset(y, (y_between, j))) for j in range(len(tile[0]))]
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


def _product(
    storage: Storage, start: RegisterTile, a: Value, a_block: Value, b: Value, b_block: Value, depth: Value
) -> RegisterTile:
    """start + A B, one register tile, over `depth` multiply-adds: UNROLL at a time, then the rest.

    `a` is the address of its first row of A, `b` of its first block of B. `a_block` and `b_block` are the bytes of a
    block.
    """
    words, width = storage.words, len(start[0])

    def add(tile: RegisterTile, a: Value, b: Value, p: int) -> RegisterTile:
        x, y = words.offset(a, p * words.itemsize), words.offset(b, p * LINE)
        return outer_product(words, tile, x, storage.row, y, b_block, storage.multiply)

    # How far `a` moves after UNROLL columns: `count` - 1 times within a block, then to the next block. The loop carries
    # these moves, and rotates them.
    count, size = storage.depth_per_block // UNROLL, words.itemsize
    moves = [words.count(UNROLL * size)] * (count - 1)
    moves.append(words.offset(a_block, (UNROLL - storage.depth_per_block) * size))

    def unrolled(a: Value, b: Value, *rest: Value) -> list[Value]:
        (move, *later), tile = rest[:count], unflatten(rest[count:], width)
        for p in range(UNROLL):
            tile = add(tile, a, b, p)
        return [words.offset(a, move), words.offset(b, UNROLL * LINE), *later, move, *flatten(tile)]

    def single(a: Value, b: Value, *flat: Value) -> list[Value]:
        tile = add(unflatten(flat, width), a, b, 0)
        return [words.offset(a, size), words.offset(b, LINE), *flatten(tile)]

    unroll = words.count(UNROLL)
    whole, left = words.builder.sdiv(depth, unroll), words.builder.srem(depth, unroll)
    # loop 7: C += A[:, p] B[p, :]
    a, b, *rest = words.loop(whole, [a, b, *moves, *flatten(start)], unrolled)
    _, _, *flat = words.loop(left, [a, b, *rest[count:]], single)
    return unflatten(flat, width)


def register_tiles(
    words: Words,
    rows: Value,
    tile_rows: int,
    places: list[Value],
    strides: list[Value | int],
    write: Callable[..., None],
) -> None:
    """write(*places) for each register tile of `tile_rows` rows; `strides` are bytes from one to the next."""

    def register_tile(*places: Value) -> list[Value]:
        write(*places)
        return [words.offset(place, stride) for place, stride in zip(places, strides, strict=True)]

    words.loop(words.quotient(rows, tile_rows), places, register_tile)  # loop 6: C[i : i + r, j : j + n]


def panels(words: Words, blocks: Value, write: Callable[[int, Value], None]) -> None:
    """write(n, j) for each panel, blocks j .. j + n - 1: of 3 blocks, then up to two of 2; of 1 for 1 block only."""
    b, count = words.builder, words.count

    def several(n: int, times: Value, j: Value) -> Value:
        def panel(j: Value) -> list[Value]:
            write(n, j)
            return [words.offset(j, n)]

        (j,) = words.loop(times, [j], panel)  # loop 5: C[:, j : j + n]
        return j

    if TARGET.widest == 1:
        several(1, blocks, count(0))
        return
    is_one = b.icmp_signed("==", blocks, count(1))
    one = b.zext(is_one, blocks.type)
    pairs = b.select(is_one, count(0), b.srem(b.sub(count(3), b.srem(blocks, count(3))), count(3)))
    threes = b.sdiv(b.sub(blocks, words.offset(one, (pairs, 2))), count(3))
    several(1, one, several(2, pairs, several(3, threes, count(0))))


def rows_of(blocks: int) -> int:
    """Rows of the register tile that is `blocks` wide."""
    return TARGET.tiles[min(blocks, TARGET.widest)]


def gradient_columns(blocks: int, lanes: int) -> int:
    """Columns of A in the gradient's register tile; a divisor of the columns of a block."""
    return min(rows_of(blocks), lanes) if TARGET.widest > 1 else min(4, rows_of(blocks))


# -- the four products: arguments as in products.py -------------------------------------------------------------------


def forward_writer(storage_of: type[Storage]) -> Any:
    """The kernel of h = g(a w + bias)."""

    def write(words, h, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
        storage = storage_of(words, height)
        block, w_block = words.times(height, LINE), _weight_block(words, fan_in, storage.row)
        depth = storage.depth(fan_in)

        def panel(n: int, j: Value) -> None:
            bias_j, one_j, b = (
                words.offset(bias, (j, LINE)),
                words.offset(one, (j, LINE)),
                words.offset(w, words.times(j, w_block)),
            )

            def register_tile(c: Value, a: Value) -> None:
                start = [words.load(words.offset(bias_j, i * LINE)) for i in range(n)]
                z = _product(storage, [start] * rows_of(n), a, block, b, w_block, depth)

                def epilogue(activation: int) -> None:
                    for k in range(n):
                        mask, place = words.load(words.offset(one_j, k * LINE)), words.offset(c, (block, k))
                        for i in range(0, rows_of(n), storage.together):
                            values = [z[i + r][k] for r in range(storage.together)]
                            values = [activate(words, activation, value, mask) for value in values]
                            storage.store_result(values, place, i, leaves)

                words.cases(activation, [partial(epilogue, id_) for id_ in range(len(ACTIVATIONS))])

            strides = [storage.result_stride(rows_of(n), leaves), rows_of(n) * storage.row]
            register_tiles(
                words, rows, rows_of(n), [words.offset(h, words.times(j, block)), a], strides, register_tile
            )

        panels(words, words.quotient(fan_out, words.lanes), panel)

    return vector_kernel(write)


def residual_writer(storage_of: type[Storage]) -> Any:
    """The kernel of delta = weight (a w + bias - x), 0 where x is NaN. It adds to `sums` and `loss`."""

    def write(words, delta, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
        storage = storage_of(words, height)
        block, w_block = words.times(height, LINE), _weight_block(words, fan_in, storage.row)
        depth = storage.depth(fan_in)

        def panel(n: int, j: Value) -> None:
            bias_j, sums_j, b = (
                words.offset(bias, (j, LINE)),
                words.offset(sums, (j, LINE)),
                words.offset(w, words.times(j, w_block)),
            )

            def register_tile(c: Value, a: Value, x: Value, weight: Value) -> None:
                start = [words.load(words.offset(bias_j, k * LINE)) for k in range(n)]
                xhat = _product(storage, [start] * rows_of(n), a, block, b, w_block, depth)
                total = words.load(loss)
                column_sums = [words.load(words.offset(sums_j, k * LINE)) for k in range(n)]
                for i in range(0, rows_of(n), storage.together):
                    weights = [
                        words.broadcast(words.offset(weight, (i + r) * words.itemsize))
                        for r in range(storage.together)
                    ]
                    for k in range(n):
                        deltas = []
                        for r in range(storage.together):
                            target = words.load(words.offset(x, (block, k), (i + r) * LINE))
                            difference = words.missing_as_zero(words.sub(xhat[i + r][k], target), target)
                            value = words.mul(weights[r], difference)
                            total = words.fma(value, difference, total)
                            column_sums[k] = words.add(column_sums[k], value)
                            deltas.append(value)
                        storage.store(deltas, words.offset(c, (block, k), i * storage.row))
                words.store(total, loss)
                for k in range(n):
                    words.store(column_sums[k], words.offset(sums_j, k * LINE))

            places = [
                words.offset(delta, words.times(j, block)),
                a,
                words.offset(x, words.times(j, block)),
                weight,
            ]
            strides = [size * rows_of(n) for size in (storage.row, storage.row, LINE, words.itemsize)]
            register_tiles(words, rows, rows_of(n), places, strides, register_tile)

        panels(words, words.quotient(fan_out, words.lanes), panel)

    return vector_kernel(write)


def backward_writer(storage_of: type[Storage]) -> Any:
    """The kernel of h = (delta wt) * g'(h), the delta of the layer below. It adds to `sums`, the bias gradient."""

    def write(words, h, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
        storage = storage_of(words, height)
        block, w_block = words.times(height, LINE), _weight_block(words, fan_out, storage.row)
        depth = storage.depth(fan_out)

        def panel(n: int, j: Value) -> None:
            sums_j, b = words.offset(sums, (j, LINE)), words.offset(wt, words.times(j, w_block))

            def register_tile(c: Value, a: Value) -> None:
                zero = words.constant(0.0)
                slope = _product(storage, [[zero] * n] * rows_of(n), a, block, b, w_block, depth)

                def epilogue(activation: int) -> None:
                    for k in range(n):
                        column_sum = words.load(words.offset(sums_j, k * LINE))
                        for i in range(0, rows_of(n), storage.together):
                            place = words.offset(c, (block, k), i * storage.row)
                            deltas = [
                                times_derivative(words, activation, slope[i + r][k], value)
                                for r, value in enumerate(storage.load(place))
                            ]
                            for value in deltas:
                                column_sum = words.add(column_sum, value)
                            storage.store(deltas, place)
                        words.store(column_sum, words.offset(sums_j, k * LINE))

                words.cases(activation, [partial(epilogue, id_) for id_ in range(len(ACTIVATIONS))])

            strides: list[Value | int] = [rows_of(n) * storage.row] * 2
            register_tiles(
                words,
                rows,
                rows_of(n),
                [words.offset(h, words.times(j, block)), delta],
                strides,
                register_tile,
            )

        panels(words, words.quotient(fan_in, words.lanes), panel)

    return vector_kernel(write)


def gradient_writer(storage_of: type[Storage]) -> Any:
    """The kernel of dw (+)= a' delta over `rows` rows.

    Here loop 6 is over columns of a, which are rows of dw. The products of a tile are added up first, and their sum is
    then added to dw: the rounding error is that of a sum over a tile, and that of a sum of tiles.
    """

    def write(words, dw, a, delta, accumulate, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
        storage = storage_of(words, height)
        b, lanes, size = words.builder, words.count(words.lanes), words.itemsize
        block, w_block = words.times(height, LINE), _weight_block(words, fan_in, LINE)
        depth = storage.depth(rows)
        a, delta = words.offset(a, storage.rows_at), words.offset(delta, storage.rows_at)

        def panel(n: int, j: Value) -> None:
            columns, d = gradient_columns(n, words.lanes), words.offset(delta, words.times(j, block))

            def register_tile(c: Value, feature: Value) -> None:
                within = words.times(b.srem(feature, lanes), size)
                part = words.offset(a, words.times(b.sdiv(feature, lanes), block), within)

                def add(a: Value, d: Value, *flat: Value) -> list[Value]:
                    tile = outer_product(words, unflatten(flat, n), a, size, d, block, storage.multiply)
                    return [words.offset(a, LINE), words.offset(d, LINE), *flatten(tile)]

                zeros = [words.constant(0.0)] * (columns * n)
                _, _, *flat = words.loop(depth, [part, d, *zeros], add)  # loop 7: C += A[p, :]' B[p, :]
                for onto in (0, 1):
                    with words.when(accumulate, "==", onto):
                        for i, row in enumerate(unflatten(flat, n)):
                            for k, value in enumerate(row):
                                place = words.offset(c, (w_block, k), i * LINE)
                                words.store(words.add(words.load(place), value) if onto else value, place)

            strides: list[Value | int] = [columns * LINE, columns]
            places = [words.offset(dw, words.times(j, w_block)), words.count(0)]
            register_tiles(words, fan_in, columns, places, strides, register_tile)

        panels(words, words.quotient(fan_out, words.lanes), panel)

    return vector_kernel(write)


def _weight_block(words: Words, rows: Value, size: int) -> Value:
    """Bytes of one block of a weight matrix of `rows` rows, of `size` bytes each, padded to whole blocks."""
    return words.times(words.round_up(rows, words.lanes), size)


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
def residual(out, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """delta = weight (a w + bias - x)."""
    delta = carray(out, (1,))
    _residual(delta, (delta.ctypes.data, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out))


@ByAddress
def backward(out, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h becomes (delta wt) * g'(h)."""
    h = carray(out, (1,))
    _backward(h, (h.ctypes.data, delta, wt, sums, activation, rows, height, fan_in, fan_out))


@ByAddress
def gradient(out, a, delta, accumulate, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """dw (+)= a' delta."""
    dw = carray(out, (1,))
    _gradient(dw, (dw.ctypes.data, a, delta, accumulate, rows, height, fan_in, fan_out))


@ByAddress
def prepare_weights(out, wt, source, fan_in, fan_out, first, last):  # type: ignore[no-untyped-def]
    """Prepare W' only, because products read the weights themselves as W."""
    w = carray(out, (1,))
    if wt != 0:
        transpose_squares(w, wt, source, fan_in, fan_out, first, last)


@ByAddress
def sparsity_delta(out, h, weight, slope, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = weight slope h (1 - h); all are lines."""
    cost.sparsity_delta(carray(out, (1,)), h, weight, slope, rows, height, blocks)


@ByAddress
def add_delta(out, added, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """delta += added; both are lines."""
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
    forward=forward,
    residual=residual,
    backward=backward,
    gradient=gradient,
    from_lines=None,
    prepare_weights=prepare_weights,
    sparsity_delta=sparsity_delta,
    add_delta=add_delta,
    target_in_form=False,
    row_multiple=row_multiple,
    height=tile_height,
)
