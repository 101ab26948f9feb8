"""A step's products in bfloat16, two at a time (AVX512_BF16), added up in float32. Compiled only where asked for.

Parameters, gradients, the loss and all arithmetic outside the products stay float32. What is narrowed begins where the
float32 of layout.py would, and takes no more room:

    tile      a block of 16 columns twice: first its rows as they are, (height, 16), where two columns of a row are
              side by side; then pairs of rows, (height / 2, 16, 2)
    weights   pairs of rows, (fan_out / 16, fan_in / 2, 16, 2), and W' likewise in its own place

So a product over columns (forward, backward) takes a tile's rows and pairs of weights; one over rows (gradient) takes
two tiles' pairs. Addresses and strides are in bytes; `block` is that of a tile, from one column block to the next, and
`half` where its second half begins.
"""

from functools import partial

import numpy as np
import numpy.typing as npt
from numba import carray

from fastae.kernels import gemm, layer
from fastae.kernels.activations import activate, times_derivative
from fastae.kernels.compiler import ByAddress
from fastae.kernels.gemm import Tile, flatten, unflatten
from fastae.kernels.layer import width
from fastae.kernels.layout import ACTIVATIONS
from fastae.kernels.partition import in_blocks, round_up
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import LINE

LANES = 16
ROW = LINE // 2  # bytes of a row of a block


# -- the register tile, in its three forms ----------------------------------------------------------------------------


def _product(
    words: Words, start: Tile, a: Value, a_block: Value, b: Value, b_block: Value, pairs: Value
) -> Tile:
    """start + A B over `pairs` pairs of columns of A: whole blocks of A, then the pairs that are left."""
    rows, width = len(start), len(start[0])

    def step(tile: Tile, a: Value, b: Value, p: int) -> Tile:
        lines = [words.load(words.offset(b, (b_block, j), p * LINE)) for j in range(width)]
        result = []
        for i in range(rows):
            x = words.broadcast(words.offset(a, i * ROW + p * words.itemsize))
            result.append([words.dot(x, lines[j], tile[i][j]) for j in range(width)])
        return result

    def block(a: Value, b: Value, *flat: Value) -> list[Value]:
        tile = unflatten(flat, width)
        for p in range(LANES // 2):
            tile = step(tile, a, b, p)
        return [words.offset(a, a_block), words.offset(b, LANES // 2 * LINE), *flatten(tile)]

    def single(a: Value, b: Value, *flat: Value) -> list[Value]:
        tile = step(unflatten(flat, width), a, b, 0)
        return [words.offset(a, words.itemsize), words.offset(b, LINE), *flatten(tile)]

    per_block = words.count(LANES // 2)
    a, b, *flat = words.loop(words.builder.sdiv(pairs, per_block), [a, b, *flatten(start)], block)
    _, _, *flat = words.loop(words.builder.srem(pairs, per_block), [a, b, *flat], single)
    return unflatten(flat, width)


def _store_rows(words: Words, first: Value, second: Value, place: Value, half: Value) -> None:
    """Two rows of a block, in both forms."""
    line = words.narrow(first, second)
    words.store(line, place)
    words.store(words.paired(line), words.offset(place, half))


def _forward(blocks: int):  # type: ignore[no-untyped-def]
    """C = g(A B + bias) on `blocks` blocks and `tiles` register tiles of rows; where `wide` is 1, C is float32."""
    rows = gemm.rows_of(blocks)

    def write(words, c, a, block, half, b, b_block, pairs, bias, activation, one, wide, tiles):  # type: ignore[no-untyped-def]
        def tile(c: Value, a: Value) -> list[Value]:
            start = [words.load(words.offset(bias, j * LINE)) for j in range(blocks)]
            z = _product(words, [start] * rows, a, block, b, b_block, pairs)

            def finish(code: int) -> None:
                for j in range(blocks):
                    mask, first = words.load(words.offset(one, j * LINE)), words.offset(c, (block, j))
                    for i in range(0, rows, 2):
                        h = [activate(words, code, z[i + r][j], mask) for r in (0, 1)]
                        with words.when(wide, "==", 1):
                            for r in (0, 1):
                                words.store(h[r], words.offset(first, (i + r) * LINE))
                        with words.when(wide, "==", 0):
                            _store_rows(words, h[0], h[1], words.offset(first, i * ROW), half)

            words.cases(activation, [partial(finish, code) for code in range(len(ACTIVATIONS))])
            step = words.builder.select(wide_rows, words.count(rows * LINE), words.count(rows * ROW))
            return [words.offset(c, step), words.offset(a, rows * ROW)]

        wide_rows = words.builder.icmp_signed("==", wide, words.count(1))
        words.loop(tiles, [c, a], tile)

    return vector_kernel(write)


def _residual(blocks: int):  # type: ignore[no-untyped-def]
    """C = weight (A B + bias - x), x float32, 0 where x is NaN; adds up columns and the loss, as gemm.py does."""
    rows = gemm.rows_of(blocks)

    def write(words, c, a, block, half, b, b_block, pairs, bias, x, weight, sums, loss, tiles):  # type: ignore[no-untyped-def]
        def tile(c: Value, a: Value, x: Value, weight: Value) -> list[Value]:
            start = [words.load(words.offset(bias, j * LINE)) for j in range(blocks)]
            xhat = _product(words, [start] * rows, a, block, b, b_block, pairs)
            total = words.load(loss)
            column_sums = [words.load(words.offset(sums, j * LINE)) for j in range(blocks)]
            for i in range(0, rows, 2):
                w = [words.broadcast(words.offset(weight, (i + r) * words.itemsize)) for r in (0, 1)]
                for j in range(blocks):
                    deltas = []
                    for r in (0, 1):
                        target = words.load(words.offset(x, (block, j), (i + r) * LINE))
                        residual = words.missing_as_zero(words.sub(xhat[i + r][j], target), target)
                        delta = words.mul(w[r], residual)
                        total = words.fma(delta, residual, total)
                        column_sums[j] = words.add(column_sums[j], delta)
                        deltas.append(delta)
                    _store_rows(words, deltas[0], deltas[1], words.offset(c, (block, j), i * ROW), half)
            words.store(total, loss)
            for j in range(blocks):
                words.store(column_sums[j], words.offset(sums, j * LINE))
            steps = rows * ROW, rows * ROW, rows * LINE, rows * words.itemsize
            return [words.offset(place, step) for place, step in zip((c, a, x, weight), steps, strict=True)]

        words.loop(tiles, [c, a, x, weight], tile)

    return vector_kernel(write)


def _backward(blocks: int):  # type: ignore[no-untyped-def]
    """C = (A B) * g'(C): C holds h and becomes delta; `sums` gains the column sums."""
    rows = gemm.rows_of(blocks)

    def write(words, c, a, block, half, b, b_block, pairs, activation, sums, tiles):  # type: ignore[no-untyped-def]
        def tile(c: Value, a: Value) -> list[Value]:
            zero = words.constant(0.0)
            slope = _product(words, [[zero] * blocks] * rows, a, block, b, b_block, pairs)

            def finish(code: int) -> None:
                for j in range(blocks):
                    column_sum = words.load(words.offset(sums, j * LINE))
                    for i in range(0, rows, 2):
                        place = words.offset(c, (block, j), i * ROW)
                        h = words.unpaired(words.load(words.offset(place, half)))
                        deltas = [times_derivative(words, code, slope[i + r][j], h[r]) for r in (0, 1)]
                        column_sum = words.add(words.add(column_sum, deltas[0]), deltas[1])
                        _store_rows(words, deltas[0], deltas[1], place, half)
                    words.store(column_sum, words.offset(sums, j * LINE))

            words.cases(activation, [partial(finish, code) for code in range(len(ACTIVATIONS))])
            return [words.offset(c, rows * ROW), words.offset(a, rows * ROW)]

        words.loop(tiles, [c, a], tile)

    return vector_kernel(write)


def _gradient(blocks: int):  # type: ignore[no-untyped-def]
    """C (+)= A' B, C float32, over `pairs` pairs of rows; `tiles` register tiles of A's columns."""
    rows = gemm.gradient_rows(blocks, LANES)

    def write(words, c, column, a, block, b, pairs, accumulate, tiles):  # type: ignore[no-untyped-def]
        builder = words.builder

        def step(a: Value, b: Value, *flat: Value) -> list[Value]:
            tile = unflatten(flat, blocks)
            lines = [words.load(words.offset(b, (block, j))) for j in range(blocks)]
            for i in range(rows):
                x = words.broadcast(words.offset(a, i * words.itemsize))
                tile[i] = [words.dot(x, lines[j], tile[i][j]) for j in range(blocks)]
            return [words.offset(a, LINE), words.offset(b, LINE), *flatten(tile)]

        def tile(c: Value, feature: Value) -> list[Value]:
            lanes = words.count(LANES)
            within = builder.mul(builder.srem(feature, lanes), words.count(words.itemsize))
            place = builder.add(builder.mul(builder.sdiv(feature, lanes), block), within)
            zeros = [words.constant(0.0)] * (rows * blocks)
            _, _, *flat = words.loop(pairs, [builder.add(a, place), b, *zeros], step)
            made = unflatten(flat, blocks)
            for add in (0, 1):
                with words.when(accumulate, "==", add):
                    for i in range(rows):
                        for j in range(blocks):
                            to = words.offset(c, (column, j), i * LINE)
                            words.store(words.add(words.load(to), made[i][j]) if add else made[i][j], to)
            return [words.offset(c, rows * LINE), words.offset(feature, rows)]

        words.loop(tiles, [c, words.count(0)], tile)

    return vector_kernel(write)


_forward_1, _forward_2, _forward_3 = (_forward(n) for n in (1, 2, 3))
_residual_1, _residual_2, _residual_3 = (_residual(n) for n in (1, 2, 3))
_backward_1, _backward_2, _backward_3 = (_backward(n) for n in (1, 2, 3))
_gradient_1, _gradient_2, _gradient_3 = (_gradient(n) for n in (1, 2, 3))
ROWS_1, ROWS_2, ROWS_3 = layer.ROWS_1, layer.ROWS_2, layer.ROWS_3
COLUMNS_1, COLUMNS_2, COLUMNS_3 = layer.GRADIENT_ROWS_1, layer.GRADIENT_ROWS_2, layer.GRADIENT_ROWS_3


# -- one layer on a tile of rows, with the arguments of layer.py's -----------------------------------------------------


@ByAddress
def forward(out, a, w, bias, one, activation, wide, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h = g(a w + bias); where `wide` is 1, as float32."""
    like = carray(out, (1,))
    h = np.int64(like.ctypes.data)
    blocks, column, pairs = (
        in_blocks(fan_out, LANES),
        round_up(fan_in, LANES) * ROW,
        (fan_in + 1) // 2,
    )
    block, half = height * LINE, height * ROW
    j = 0
    while j < blocks:
        n = width(blocks - j)
        c, b, e, o = h + j * block, w + j * column, bias + j * LINE, one + j * LINE
        if n == 3:
            _forward_3(like, (c, a, block, half, b, column, pairs, e, activation, o, wide, rows // ROWS_3))
        elif n == 2:
            _forward_2(like, (c, a, block, half, b, column, pairs, e, activation, o, wide, rows // ROWS_2))
        else:
            _forward_1(like, (c, a, block, half, b, column, pairs, e, activation, o, wide, rows // ROWS_1))
        j += n


@ByAddress
def residual(out, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """delta = weight (a w + bias - x), x float32; its column sums and the loss's lanes are added up."""
    like = carray(out, (1,))
    delta = np.int64(like.ctypes.data)
    blocks, column, pairs = (
        in_blocks(fan_out, LANES),
        round_up(fan_in, LANES) * ROW,
        (fan_in + 1) // 2,
    )
    block, half = height * LINE, height * ROW
    j = 0
    while j < blocks:
        n = width(blocks - j)
        c, b, e, t, s = delta + j * block, w + j * column, bias + j * LINE, x + j * block, sums + j * LINE
        if n == 3:
            _residual_3(like, (c, a, block, half, b, column, pairs, e, t, weight, s, loss, rows // ROWS_3))
        elif n == 2:
            _residual_2(like, (c, a, block, half, b, column, pairs, e, t, weight, s, loss, rows // ROWS_2))
        else:
            _residual_1(like, (c, a, block, half, b, column, pairs, e, t, weight, s, loss, rows // ROWS_1))
        j += n


@ByAddress
def backward(out, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h becomes (delta wt) * g'(h); its column sums are added up."""
    like = carray(out, (1,))
    h = np.int64(like.ctypes.data)
    blocks, column, pairs = (
        in_blocks(fan_in, LANES),
        round_up(fan_out, LANES) * ROW,
        (fan_out + 1) // 2,
    )
    block, half = height * LINE, height * ROW
    j = 0
    while j < blocks:
        n = width(blocks - j)
        c, b, s = h + j * block, wt + j * column, sums + j * LINE
        if n == 3:
            _backward_3(like, (c, delta, block, half, b, column, pairs, activation, s, rows // ROWS_3))
        elif n == 2:
            _backward_2(like, (c, delta, block, half, b, column, pairs, activation, s, rows // ROWS_2))
        else:
            _backward_1(like, (c, delta, block, half, b, column, pairs, activation, s, rows // ROWS_1))
        j += n


@ByAddress
def gradient(out, a, delta, accumulate, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """dw (+)= a' delta over `rows` rows, and one more where they are odd: its delta is zero."""
    like = carray(out, (1,))
    dw = np.int64(like.ctypes.data)
    blocks, column, pairs = (
        in_blocks(fan_out, LANES),
        round_up(fan_in, LANES) * LINE,
        (rows + 1) // 2,
    )
    block, half = height * LINE, height * ROW
    j = 0
    while j < blocks:
        n = width(blocks - j)
        c, d = dw + j * column, delta + half + j * block
        if n == 3:
            tiles = (fan_in + COLUMNS_3 - 1) // COLUMNS_3
            _gradient_3(like, (c, column, a + half, block, d, pairs, accumulate, tiles))
        elif n == 2:
            tiles = (fan_in + COLUMNS_2 - 1) // COLUMNS_2
            _gradient_2(like, (c, column, a + half, block, d, pairs, accumulate, tiles))
        else:
            tiles = (fan_in + COLUMNS_1 - 1) // COLUMNS_1
            _gradient_1(like, (c, column, a + half, block, d, pairs, accumulate, tiles))
        j += n


# -- between float32 and bfloat16 -------------------------------------------------------------------------------------


def _write_narrow(words: Words, target, source, half, pairs):  # type: ignore[no-untyped-def]
    """Pairs of rows of one float32 block into a block of both forms."""

    def pair(target, source):  # type: ignore[no-untyped-def]
        _store_rows(words, words.load(source), words.load(words.offset(source, LINE)), target, half)
        return [words.offset(target, LINE), words.offset(source, 2 * LINE)]

    words.loop(pairs, [target, source], pair)


def _write_widen(words: Words, target, source, pairs):  # type: ignore[no-untyped-def]
    """Pairs of rows of one block into a float32 block."""

    def pair(target, source):  # type: ignore[no-untyped-def]
        for r, line in enumerate(words.unpaired(words.load(source))):
            words.store(line, words.offset(target, r * LINE))
        return [words.offset(target, 2 * LINE), words.offset(source, LINE)]

    words.loop(pairs, [target, source], pair)


def _write_add_pull(words: Words, delta, pull, sums, half, pairs):  # type: ignore[no-untyped-def]
    """delta += pull, float32, on one block; its column sums are added up."""

    def pair(delta, pull, column_sum):  # type: ignore[no-untyped-def]
        lines = [words.load(words.offset(pull, r * LINE)) for r in (0, 1)]
        old = words.unpaired(words.load(words.offset(delta, half)))
        _store_rows(words, words.add(old[0], lines[0]), words.add(old[1], lines[1]), delta, half)
        column_sum = words.add(words.add(column_sum, lines[0]), lines[1])
        return [words.offset(delta, LINE), words.offset(pull, 2 * LINE), column_sum]

    *_, column_sum = words.loop(pairs, [delta, pull, words.load(sums)], pair)
    words.store(column_sum, sums)


def _write_weights(words: Words, narrow, turned, turned_step, source, squares):  # type: ignore[no-untyped-def]
    """`squares` squares of 16 x 16 weights, one below the other in `source`, as pairs of rows; so is W', if wanted."""
    size = LANES * ROW

    def pairs(lines: list[Value], place: Value) -> None:
        for i in range(0, LANES, 2):
            words.store(words.paired(words.narrow(lines[i], lines[i + 1])), words.offset(place, i * ROW))

    def square(narrow, turned, source):  # type: ignore[no-untyped-def]
        lines = [words.load(words.offset(source, i * LINE)) for i in range(LANES)]
        pairs(lines, narrow)
        with words.when(turned, "!=", 0):
            pairs(words.transposed(lines), turned)
        turned = words.builder.select(
            words.builder.icmp_signed("==", turned, words.count(0)), turned, words.offset(turned, turned_step)
        )
        return [words.offset(narrow, size), turned, words.offset(source, 2 * size)]

    words.loop(squares, [narrow, turned, source], square)


_narrow = vector_kernel(_write_narrow)
_widen = vector_kernel(_write_widen)
_add_pull = vector_kernel(_write_add_pull)
_weights = vector_kernel(_write_weights)


@ByAddress
def narrow_tile(out, source, rows, height, blocks):  # type: ignore[no-untyped-def]
    """A float32 tile as bfloat16, in both forms; `rows` is even."""
    like = carray(out, (1,))
    target = np.int64(like.ctypes.data)
    for j in range(blocks):
        k = j * height * LINE
        _narrow(like, (target + k, source + k, height * ROW, rows // 2))


@ByAddress
def narrow_weights(out, turned, source, fan_in, fan_out, first, last):  # type: ignore[no-untyped-def]
    """Squares first .. last - 1 of a layer's W at `source`, as W and, unless `turned` is 0, as W'."""
    like = carray(out, (1,))
    narrow, size = np.int64(like.ctypes.data), LANES * ROW
    down, across = in_blocks(fan_in, LANES), in_blocks(fan_out, LANES)  # squares
    square = first
    while square < last:
        column, row = square // down, square % down
        count = min(down - row, last - square)
        to = turned + (row * across + column) * size if turned != 0 else 0
        _weights(like, (narrow + square * size, to, across * size, source + square * 2 * size, count))
        square += count


# -- the cost of the mean code, as in layer.py ------------------------------------------------------------------------


@ByAddress
def pull(out, h, weight, slope, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = weight slope h (1 - h), as float32."""
    like = carray(out, (1,))
    target = np.int64(like.ctypes.data)
    for j in range(blocks):
        k = j * height * LINE
        _widen(like, (target + k, h + k + height * ROW, rows // 2))
    layer.pull(like, target, target, weight, slope, rows, height, blocks)


@ByAddress
def add_pull(out, pull, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out, a delta, += what ``pull`` put out; its column sums are added up."""
    like = carray(out, (1,))
    delta = np.int64(like.ctypes.data)
    for j in range(blocks):
        k = j * height * LINE
        _add_pull(like, (delta + k, pull + k, sums + j * LINE, height * ROW, rows // 2))


def addresses(dtype: npt.DTypeLike) -> tuple[list[int], list[int]]:
    """As layer.py's; `dtype` is float32."""
    products = forward, residual, backward, gradient
    others = narrow_tile, narrow_tile, narrow_weights, pull, add_pull
    return [made.address(dtype) for made in products], [made.address(dtype) for made in others]
