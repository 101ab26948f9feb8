"""The register tile, in its three forms. Not a general GEMM: no packing, no transposes, no alpha and beta.

    forward    C = g(A B + bias)        A a tile of activations, B a weight matrix
    backward   C = (A B) * g'(C)        A a tile of deltas, B a transposed weight matrix, C holds h and becomes delta
    gradient   C (+)= A' B              A a tile of activations, B a tile of deltas, C a weight gradient

All operands lie in the blocked layout (layout.py). Each form holds `rows x blocks` lines of C in registers, and its
epilogue works there, before anything is stored. Addresses and strides are in bytes:

    a, b, c   where the tile's part of A, B, C begins      *_block   from one column block to the next
"""

from functools import partial

from fastae.kernels.activations import activate, times_derivative
from fastae.kernels.layout import ACTIVATIONS
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import LINE, TARGET

Tile = list[list[Value]]  # [row][block]
UNROLL = 8  # columns of A at a time; measured: 4 is up to 10% slower at n = 784, 16 a little everywhere


def _product(
    words: Words, start: Tile, a: Value, a_block: Value, b: Value, b_block: Value, depth: Value
) -> Tile:
    """start + A B over `depth` columns of A: whole blocks of A, then the columns that are left."""
    rows, width = len(start), len(start[0])
    builder = words.builder

    def step(tile: Tile, a: Value, b: Value, p: int) -> Tile:
        lines = [words.load(words.offset(b, (b_block, j), p * LINE)) for j in range(width)]
        result = []
        for i in range(rows):
            x = words.broadcast(words.offset(a, i * LINE + p * words.itemsize))
            result.append([words.fma(x, lines[j], tile[i][j]) for j in range(width)])
        return result

    # From stretch to stretch of a block, then to the next block: the moves take turns.
    turns, size = words.lanes // UNROLL, words.itemsize
    moves = [words.count(UNROLL * size)] * (turns - 1)
    moves.append(words.offset(a_block, (UNROLL - words.lanes) * size))

    def stretch(a: Value, b: Value, *rest: Value) -> list[Value]:
        (move, *later), tile = rest[:turns], unflatten(rest[turns:], width)
        for p in range(UNROLL):
            tile = step(tile, a, b, p)
        return [words.offset(a, move), words.offset(b, UNROLL * LINE), *later, move, *flatten(tile)]

    def single(a: Value, b: Value, *flat: Value) -> list[Value]:
        tile = step(unflatten(flat, width), a, b, 0)
        return [words.offset(a, words.itemsize), words.offset(b, LINE), *flatten(tile)]

    unroll = words.count(UNROLL)
    a, b, *rest = words.loop(builder.sdiv(depth, unroll), [a, b, *moves, *flatten(start)], stretch)
    _, _, *flat = words.loop(builder.srem(depth, unroll), [a, b, *rest[turns:]], single)
    return unflatten(flat, width)


def flatten(tile: Tile) -> list[Value]:
    return [value for row in tile for value in row]


def unflatten(flat: list[Value] | tuple[Value, ...], width: int) -> Tile:
    return [list(flat[i : i + width]) for i in range(0, len(flat), width)]


def _place(words: Words, c: Value, c_block: Value, i: int, j: int) -> Value:
    return words.offset(c, (c_block, j), i * LINE)


def forward_tile(rows: int, blocks: int):  # type: ignore[no-untyped-def]
    """C = g(A B + bias) on rows x blocks; `one` is a row of lines of ones, zero in padding lanes."""

    def write(words, c, c_block, a, a_block, b, b_block, depth, bias, activation, one):  # type: ignore[no-untyped-def]
        start = [words.load(words.offset(bias, j * LINE)) for j in range(blocks)]
        tile = _product(words, [start] * rows, a, a_block, b, b_block, depth)

        def finish(code: int) -> None:
            for j in range(blocks):
                mask = words.load(words.offset(one, j * LINE))
                for i in range(rows):
                    words.store(activate(words, code, tile[i][j], mask), _place(words, c, c_block, i, j))

        words.cases(activation, [partial(finish, code) for code in range(len(ACTIVATIONS))])

    return vector_kernel(write)


def residual_tile(rows: int, blocks: int):  # type: ignore[no-untyped-def]
    """C = weight (A B + bias - x) on rows x blocks, for a linear last layer; adds up columns and the loss.

    Where x is NaN, the cell is missing: C is 0 there.

    `weight` holds one element a row. `sums` gains the column sums, `loss` the lanes of sum weight (A B + bias - x)^2.
    """

    def write(words, c, c_block, a, a_block, b, b_block, depth, bias, x, x_block, weight, sums, loss):  # type: ignore[no-untyped-def]
        start = [words.load(words.offset(bias, j * LINE)) for j in range(blocks)]
        tile = _product(words, [start] * rows, a, a_block, b, b_block, depth)
        total = words.load(loss)
        column_sums = [words.load(words.offset(sums, j * LINE)) for j in range(blocks)]
        for i in range(rows):
            w = words.broadcast(words.offset(weight, i * words.itemsize))
            for j in range(blocks):
                target = words.load(_place(words, x, x_block, i, j))
                residual = words.missing_as_zero(words.sub(tile[i][j], target), target)
                delta = words.mul(w, residual)
                total = words.fma(delta, residual, total)
                column_sums[j] = words.add(column_sums[j], delta)
                words.store(delta, _place(words, c, c_block, i, j))
        words.store(total, loss)
        for j in range(blocks):
            words.store(column_sums[j], words.offset(sums, j * LINE))

    return vector_kernel(write)


def backward_tile(rows: int, blocks: int):  # type: ignore[no-untyped-def]
    """C = (A B) * g'(C) on rows x blocks: C holds h and becomes delta; `sums` gains the column sums."""

    def write(words, c, c_block, a, a_block, b, b_block, depth, activation, sums):  # type: ignore[no-untyped-def]
        zero = words.constant(0.0)
        tile = _product(words, [[zero] * blocks] * rows, a, a_block, b, b_block, depth)

        def finish(code: int) -> None:
            for j in range(blocks):
                column_sum = words.load(words.offset(sums, j * LINE))
                for i in range(rows):
                    place = _place(words, c, c_block, i, j)
                    delta = times_derivative(words, code, tile[i][j], words.load(place))
                    column_sum = words.add(column_sum, delta)
                    words.store(delta, place)
                words.store(column_sum, words.offset(sums, j * LINE))

        words.cases(activation, [partial(finish, code) for code in range(len(ACTIVATIONS))])

    return vector_kernel(write)


def gradient_tile(blocks: int):  # type: ignore[no-untyped-def]
    """C (+)= A' B on gradient_rows(blocks) columns of A, over `depth` rows of both; added up apart, then added to C.

    Summing a tile of rows by itself keeps the rounding error at that of a tile and of a sum of tiles.
    """

    def write(words, c, c_block, a, b, b_block, depth, accumulate):  # type: ignore[no-untyped-def]
        rows = gradient_rows(blocks, words.lanes)

        def step(a: Value, b: Value, *flat: Value) -> list[Value]:
            tile = unflatten(flat, blocks)
            lines = [words.load(words.offset(b, (b_block, j))) for j in range(blocks)]
            for i in range(rows):
                x = words.broadcast(words.offset(a, i * words.itemsize))
                tile[i] = [words.fma(x, lines[j], tile[i][j]) for j in range(blocks)]
            return [words.offset(a, LINE), words.offset(b, LINE), *flatten(tile)]

        zeros = [words.constant(0.0)] * (rows * blocks)
        _, _, *flat = words.loop(depth, [a, b, *zeros], step)
        tile = unflatten(flat, blocks)
        for add in (0, 1):
            with words.when(accumulate, "==", add):
                for i in range(rows):
                    for j in range(blocks):
                        place = _place(words, c, c_block, i, j)
                        value = words.add(words.load(place), tile[i][j]) if add else tile[i][j]
                        words.store(value, place)

    return vector_kernel(write)


def rows_of(blocks: int) -> int:
    """Rows of the register tile that is `blocks` wide."""
    return TARGET.tiles[min(blocks, TARGET.widest)]


def gradient_rows(blocks: int, lanes: int) -> int:
    """Columns of A in the gradient's register tile: they must divide a block."""
    return min(rows_of(blocks), lanes) if TARGET.widest > 1 else min(4, rows_of(blocks))
