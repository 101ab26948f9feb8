"""Products in bfloat16 on the tile registers of AMX, a form of products: operands as in bfloat16.py, other loops.

Imported only where AMX may be used (forms.py), and by tests, for which tile registers are emulated on other CPUs. The
wheel's object files do not hold it: it is compiled at first use.

A *strip* is 32 rows of a tile. A register tile is a strip of two blocks, or of the last one if their number is odd:
four tile registers, or two. It is stored to the stack, where the epilogue reads it in float32. Each block of a stored
matrix has two halves, strip by strip, 1024 bytes each:

    first     rows. Two neighbouring blocks have 32 columns side by side: rows 0 .. 15 of the strip in the one, (16,
              32), rows 16 .. 31 in the other. A last block without a neighbour: (32, 16)
    second    what `gradient` reads: of a delta, pairs of rows, (16, 16, 2); of any other matrix, columns, (16, 32): the
              rows of the strip side by side
    weights   pairs of rows, (fan_out / 16, fan_in / 2, 16, 2), and W' likewise: fan_in, of W' fan_out, padded to 32

    loop 5    panels of C: 2 blocks or 1                               panels
    loop 6    strips; for a gradient, 2 blocks of columns of A or 1    words.walk
    loop 7    32 columns of A; for a gradient, strips                  Operand.product
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy.typing as npt

from fastae.kernels import cost, gemm, rows
from fastae.kernels.activations import activate, times_derivative
from fastae.kernels.bfloat16 import LANES, ROW, _weights
from fastae.kernels.compiler import ByAddress, carray
from fastae.kernels.layout import ACTIVATIONS, LINE
from fastae.kernels.lines import zero_lines
from fastae.kernels.products import Form, Widths
from fastae.kernels.rounding import in_blocks
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import TARGET
from fastae.kernels.tile_unit import TILE, Amx, Emulation, granted

TileUnit = Amx if TARGET.amx else Emulation
STRIP = 32  # rows
STRIP_PAIRS = STRIP // 2  # pairs of rows of a strip
SQUARE = LANES * ROW  # bytes of 16 x 16 weights
# Rows of a tile that fits in L2, and of one that does not: odd multiples of a strip
HEIGHT = 160
HEIGHT_WIDE = 96
Lines = list[list[Value]]  # [row][block], each a line

# Multiplying 16 x 16 x K takes 16 cycles for each 32 of K on a tile unit, and 8 K with vectors (two lines of float32 a
# cycle; the dot instruction of Intel is no faster). Storing the result, loading it again and turning it into columns
# takes some 80 cycles that vectors do not need, so tile registers should pay from K = 11 on. Not measured: three times
# that.
LEAST_DEPTH = 32


class Layout:
    """Emits the loads and stores of a stored matrix, by pairs of rows of a strip: pair i is rows 2 i and 2 i + 1."""

    def __init__(self, words: Words, height: Value) -> None:
        self.words = words
        self.block = words.times(height, LINE)  # bytes from one block to the next
        self.half = words.times(height, ROW)  # bytes from its first half to the second
        self._to_neighbour = words.offset(self.block, -TILE)  # from row 15 to row 16 of a strip, less a row

    def _places(self, strip: Value, n: int, i: Value) -> Lines:
        """The addresses of a pair of rows in the first half of `n` blocks."""
        words = self.words
        if n == 1:
            line = words.offset(strip, (i, LINE))
            return [[line], [words.offset(line, ROW)]]
        # 1 if these rows lie in the second block
        second = words.builder.sdiv(i, words.count(STRIP_PAIRS // 2))
        row = words.offset(strip, (i, 2 * LINE), (second, self._to_neighbour))
        return [[words.offset(row, r * LINE + k * ROW) for k in (0, 1)] for r in (0, 1)]

    def load(self, strip: Value, n: int, i: Value) -> Lines:
        """Load a pair of rows."""
        return [[self.words.load_bfloat16(place) for place in row] for row in self._places(strip, n, i)]

    def store(self, values: Lines, strip: Value, i: Value, pairs: Value, pairs_block: Value | int) -> None:
        """Store a pair of rows: as rows, and as pairs at `pairs`, with `pairs_block` bytes from block to block."""
        words, n = self.words, len(values[0])
        places = self._places(strip, n, i)
        by_block = [words.to_bfloat16(*column) for column in zip(*values, strict=True)]
        if n == 1:
            words.store(by_block[0], places[0][0])
        else:
            for row, place in zip(values, places, strict=True):
                words.store(words.to_bfloat16(*row), place[0])
        for k, line in enumerate(by_block):
            words.store(words.paired(line), words.offset(pairs, (pairs_block, k), (i, LINE)))

    def store_delta(self, values: Lines, strip: Value, i: Value) -> None:
        """Store a pair of rows of a delta."""
        self.store(values, strip, i, self.words.offset(strip, self.half), self.block)

    def store_blocked(self, values: Lines, strip: Value, i: Value) -> None:
        """Store a pair of rows in float32, of a blocked matrix whose strip begins at `strip`."""
        for r, row in enumerate(values):
            for k, value in enumerate(row):
                place = self.words.offset(strip, (self.block, k), (i, 2 * LINE), r * LINE)
                self.words.store(value, place)

    def store_columns(self, strip: Value, n: int, pairs: Value) -> None:
        """Turn the pairs of a strip into its columns: a transpose of pairs. `pairs` is as Scratch holds them."""
        words = self.words
        for k in range(n):
            lines = [words.load(words.offset(pairs, k * 2 * TILE + i * LINE)) for i in range(STRIP_PAIRS)]
            for c, line in enumerate(words.transposed(lines)):
                words.store(line, words.offset(strip, (self.block, k), self.half, c * LINE))


class Scratch:
    """A register tile on the stack, float32 (2 blocks, 32 rows, 16). Pair i of bfloat16 may replace row i."""

    def __init__(self, words: Words) -> None:
        self.words, self.place = words, words.stack(4 * TILE)

    def rows(self, n: int, i: Value) -> Lines:
        """Load a pair of rows of `n` blocks."""
        return lines_at(self.words, self.place, n, i, 2 * TILE)

    def store(self, unit: Amx | Emulation, n: int) -> None:
        """Store tile registers 2 r + k: r = 1 holds rows 16 .. 31, k the block."""
        for r in (0, 1):
            for k in range(n):
                unit.store(2 * r + k, self.words.offset(self.place, k * 2 * TILE + r * TILE))


def lines_at(words: Words, place: Value, n: int, i: Value, block: Value | int) -> Lines:
    """Load a pair of rows of float32 from `n` blocks of a blocked matrix, whose strip begins at `place`."""
    return [
        [words.load(words.offset(place, (block, k), (i, 2 * LINE), r * LINE)) for k in range(n)]
        for r in (0, 1)
    ]


class Operand:
    """A of a product over columns: (rows, depth), stored.

    If the blocks of A are odd, the last one is copied to the stack, padded to 32 columns with zeros.
    """

    def __init__(self, layout: Layout, a: Value, rows: Value, depth: Value) -> None:
        words = layout.words
        b, blocks = words.builder, words.quotient(depth, LANES)
        self.words, self.block, self.a = words, layout.block, a
        self.whole, self.left = b.sdiv(blocks, words.count(2)), b.srem(blocks, words.count(2))
        self.last = words.stack(words.times(rows, LINE))

        def pair(target: Value, source: Value) -> list[Value]:
            line, zero = words.load(source), words.constant(0.0)
            for r in (0, 1):
                half = [r * LANES // 2 + i for i in range(LANES // 2)]
                padded = words.shuffle(line, zero, half + [LANES] * (LANES // 2))
                words.store(padded, words.offset(target, r * LINE))
            return [words.offset(target, 2 * LINE), words.offset(source, LINE)]

        with words.when(self.left, "==", 1):
            source = words.offset(a, (self.whole, words.times(self.block, 2)))
            words.loop(words.quotient(rows, 2), [self.last, source], pair)

    def product(self, unit: Amx | Emulation, n: int, a: Value, last: Value, b: Value, b_block: Value) -> None:
        """Set tile registers 2 r + k to a strip of A times `n` blocks of B; `last` is the strip of the last block."""
        words = self.words

        def add(first: Value, second: Value, b_p: Value) -> None:
            unit.load(4, first)
            for k in range(n):
                unit.load(6 + k, words.offset(b_p, (b_block, k)))
            unit.load(5, second)
            for r in (0, 1):
                for k in range(n):
                    unit.multiply_add(2 * r + k, 4 + r, 6 + k)

        def columns(a_p: Value, b_p: Value) -> list[Value]:
            add(a_p, words.offset(a_p, self.block), b_p)
            return [words.offset(a_p, (self.block, 2)), words.offset(b_p, TILE)]

        for r in (0, 1):
            for k in range(n):
                unit.zero(2 * r + k)
        _, b_p = words.loop(self.whole, [a, b], columns)  # loop 7: C += A[:, p : p + 32] B[p : p + 32, :]
        with words.when(self.left, "==", 1):
            add(last, words.offset(last, TILE), b_p)


def panels(words: Words, blocks: Value) -> Iterator[tuple[int, Value]]:
    """(n, j) of panels of blocks j .. j + n - 1, for ``for`` as ``Words.walk``: two blocks, then one if it is left."""
    b, first = words.builder, words.count(0)
    for n, times in ((2, b.sdiv(blocks, words.count(2))), (1, b.srem(blocks, words.count(2)))):
        for (j,) in words.walk(times, [first], [n]):
            yield n, j
        first = j


def weight_block(words: Words, rows: Value) -> Value:
    """Bytes of one block of W, or of W', with so many rows."""
    return words.times(words.round_up(rows, 2 * LANES), ROW)


def each_pair(words: Words, carried: list[Value], body: Callable[..., list[Value]]) -> list[Value]:
    """Loop over the pairs of rows of a strip: body(i, *carried) returns the next carried values."""

    def pair(i: Value, *values: Value) -> list[Value]:
        return [words.offset(i, 1), *body(i, *values)]

    _, *last = words.loop(words.count(STRIP_PAIRS), [words.count(0), *carried], pair)
    return last


def vector_at(words: Words, place: Value, n: int) -> list[Value]:
    """Load `n` lines, one after the other."""
    return [words.load(words.offset(place, k * LINE)) for k in range(n)]


def store_vector(words: Words, values: list[Value], place: Value) -> None:
    """Store lines, one after the other."""
    for k, value in enumerate(values):
        words.store(value, words.offset(place, k * LINE))


# -- the four products; h_j is where the panel from block j on begins in h, h_ij a strip of it ------------------------


def _write_forward(words, h, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    layout, scratch, w_block = Layout(words, height), Scratch(words), weight_block(words, fan_in)
    operand = Operand(layout, a, rows, fan_in)
    with TileUnit(words) as unit:
        for n, j in panels(words, words.quotient(fan_out, LANES)):
            h_j, w_j = words.offset(h, (j, layout.block)), words.offset(w, (j, w_block))
            biases, masks = (vector_at(words, words.offset(x, (j, LINE)), n) for x in (bias, one))
            places, strides = [h_j, h_j, a, operand.last], [TILE, 2 * TILE, TILE, 2 * TILE]
            strips = words.quotient(rows, STRIP)
            for h_ij, out_ij, a_i, last_i in words.walk(strips, places, strides):
                operand.product(unit, n, a_i, last_i, w_j, w_block)
                scratch.store(unit, n)
                for id_ in words.cases(activation, len(ACTIVATIONS)):
                    _forward_epilogue(layout, scratch, id_, h_ij, out_ij, biases, masks, leaves)


def _forward_epilogue(
    layout: Layout,
    scratch: Scratch,
    activation_id: int,
    h: Value,
    out: Value,
    biases: list[Value],
    masks: list[Value],
    leaves: Value,
) -> None:
    """Store g(z + bias) at h; if `leaves` is 1, blocked at `out`."""
    words, n = layout.words, len(biases)

    def pair(i: Value) -> list[Value]:
        values = [
            [
                activate(words, activation_id, words.add(z, bias), mask)
                for z, bias, mask in zip(row, biases, masks, strict=True)
            ]
            for row in scratch.rows(n, i)
        ]
        with words.when(leaves, "==", 1):
            layout.store_blocked(values, out, i)
        with words.when(leaves, "==", 0):
            layout.store(values, h, i, scratch.place, 2 * TILE)
        return []

    each_pair(words, [], pair)
    with words.when(leaves, "==", 0):
        layout.store_columns(h, n, scratch.place)


def _write_residual(
    words, delta, a, w, bias, x, row_weight, bound, sums, loss, rows, height, fan_in, fan_out
):  # type: ignore[no-untyped-def]
    layout, scratch, w_block = Layout(words, height), Scratch(words), weight_block(words, fan_in)
    operand = Operand(layout, a, rows, fan_in)
    with TileUnit(words) as unit:
        for n, j in panels(words, words.quotient(fan_out, LANES)):
            delta_j, x_j = (words.offset(matrix, (j, layout.block)) for matrix in (delta, x))
            w_j, sums_j = words.offset(w, (j, w_block)), words.offset(sums, (j, LINE))
            biases = vector_at(words, words.offset(bias, (j, LINE)), n)
            places = [delta_j, x_j, row_weight, a, operand.last]
            strides = [TILE, 2 * TILE, STRIP * words.itemsize, TILE, 2 * TILE]
            strips = words.quotient(rows, STRIP)
            for delta_ij, x_ij, weight_i, a_i, last_i in words.walk(strips, places, strides):
                operand.product(unit, n, a_i, last_i, w_j, w_block)
                scratch.store(unit, n)
                for limited in (False, True):
                    with words.when(bound, "!=" if limited else "==", 0):
                        limit = words.broadcast(bound) if limited else None
                        _residual_epilogue(
                            layout, scratch, delta_ij, x_ij, weight_i, limit, biases, sums_j, loss
                        )


def _residual_epilogue(
    layout: Layout,
    scratch: Scratch,
    delta: Value,
    x: Value,
    row_weight: Value,
    limit: Value | None,
    biases: list[Value],
    sums: Value,
    loss: Value,
) -> None:
    """Store row_weight c of ``residual``; add its column sums to `sums` and the weighted costs to `loss`."""
    words, n = layout.words, len(biases)

    def pair(i: Value, total: Value, *column_sums: Value) -> list[Value]:
        sums_of = list(column_sums)
        deltas: Lines = []
        targets = lines_at(words, x, n, i, layout.block)
        for r, row in enumerate(scratch.rows(n, i)):
            weight = words.broadcast(words.offset(row_weight, (i, 2 * words.itemsize), r * words.itemsize))
            deltas.append([])
            for k, z in enumerate(row):
                residual = words.residual(words.add(z, biases[k]), targets[r][k])
                value, factor = cost.weighted_residual(words, residual, weight, limit)
                total = words.fma(value, factor, total)
                sums_of[k] = words.add(sums_of[k], value)
                deltas[r].append(value)
        layout.store_delta(deltas, delta, i)
        return [total, *sums_of]

    total, *column_sums = each_pair(words, [words.load(loss), *vector_at(words, sums, n)], pair)
    words.store(total, loss)
    store_vector(words, column_sums, sums)


def _write_backward(words, below, h, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    layout, scratch, wt_block = Layout(words, height), Scratch(words), weight_block(words, fan_out)
    operand = Operand(layout, delta, rows, fan_out)
    with TileUnit(words) as unit:
        for n, j in panels(words, words.quotient(fan_in, LANES)):
            below_j, h_j = (words.offset(matrix, (j, layout.block)) for matrix in (below, h))
            wt_j, sums_j = words.offset(wt, (j, wt_block)), words.offset(sums, (j, LINE))
            places, strides = [below_j, h_j, delta, operand.last], [TILE, TILE, TILE, 2 * TILE]
            strips = words.quotient(rows, STRIP)
            for below_ij, h_ij, delta_i, last_i in words.walk(strips, places, strides):
                operand.product(unit, n, delta_i, last_i, wt_j, wt_block)
                scratch.store(unit, n)
                for id_ in words.cases(activation, len(ACTIVATIONS)):
                    _backward_epilogue(layout, scratch, n, id_, below_ij, h_ij, sums_j)


def _backward_epilogue(
    layout: Layout, scratch: Scratch, n: int, activation_id: int, below: Value, h: Value, sums: Value
) -> None:
    """Store slope * g'(h), with the activation of this id; add its column sums to `sums`."""
    words = layout.words

    def pair(i: Value, *column_sums: Value) -> list[Value]:
        deltas = [
            [times_derivative(words, activation_id, *both) for both in zip(slopes, values, strict=True)]
            for slopes, values in zip(scratch.rows(n, i), layout.load(h, n, i), strict=True)
        ]
        layout.store_delta(deltas, below, i)
        return [
            words.add(words.add(total, deltas[0][k]), deltas[1][k]) for k, total in enumerate(column_sums)
        ]

    store_vector(words, each_pair(words, vector_at(words, sums, n), pair), sums)


def _write_gradient(words, dw, a, delta, accumulate, rows, height, dw_rows, fan_in, fan_out):  # type: ignore[no-untyped-def]
    layout, dw_block = Layout(words, height), words.times(dw_rows, LINE)
    block, strips = layout.block, words.quotient(rows, STRIP)
    with TileUnit(words) as unit:
        for n, j in panels(words, words.quotient(fan_out, LANES)):
            dw_j, delta_j = (
                words.offset(dw, (j, dw_block)),
                words.offset(delta, layout.half, (j, block)),
            )
            for m, i in panels(words, words.quotient(fan_in, LANES)):
                dw_ij, a_i = words.offset(dw_j, (i, TILE)), words.offset(a, layout.half, (i, block))
                places = {
                    (r, k): words.offset(dw_ij, r * TILE, (dw_block, k)) for r in range(m) for k in range(n)
                }
                for add in words.cases(accumulate, 2):
                    for (r, k), place in places.items():
                        if add:
                            unit.load(2 * r + k, place)
                        else:
                            unit.zero(2 * r + k)
                for a_p, delta_p in words.walk(strips, [a_i, delta_j], [TILE, TILE]):
                    for r in range(m):
                        unit.load(4 + r, words.offset(a_p, (block, r)))
                    for k in range(n):
                        unit.load(6 + k, words.offset(delta_p, (block, k)))
                    for r, k in places:  # loop 7: C += A[p : p + 32, :]' B[p : p + 32, :]
                        unit.multiply_add(2 * r + k, 4 + r, 6 + k)
                for (r, k), place in places.items():
                    unit.store(2 * r + k, place)


# -- between float32 and bfloat16 -------------------------------------------------------------------------------------


def _strips(words: Words, rows: Value, blocks: Value, layout: Layout, matrices: list[tuple[Value, int]]):  # type: ignore[no-untyped-def]
    """(n, j, places) of each panel and strip, for ``for`` as ``Words.walk``.

    `matrices` are places with the bytes from strip to strip.
    """
    for n, j in panels(words, blocks):
        places = [words.offset(matrix, (j, layout.block)) for matrix, _ in matrices]
        for at in words.walk(words.quotient(rows, STRIP), places, [stride for _, stride in matrices]):
            yield n, j, at


def _write_convert(words, stored, blocked, rows, height, blocks):  # type: ignore[no-untyped-def]
    """Convert a blocked matrix that is no delta."""
    layout, scratch = Layout(words, height), Scratch(words)
    for n, _, (stored_ij, source) in _strips(
        words, rows, blocks, layout, [(stored, TILE), (blocked, 2 * TILE)]
    ):

        def pair(i: Value, n=n, stored_ij=stored_ij, source=source) -> list[Value]:  # type: ignore[no-untyped-def]
            values = lines_at(words, source, n, i, layout.block)
            layout.store(values, stored_ij, i, scratch.place, 2 * TILE)
            return []

        each_pair(words, [], pair)
        layout.store_columns(stored_ij, n, scratch.place)


def _write_convert_delta(words, stored, blocked, rows, height, blocks):  # type: ignore[no-untyped-def]
    """Convert a blocked delta."""
    layout = Layout(words, height)
    for n, _, (stored_ij, source) in _strips(
        words, rows, blocks, layout, [(stored, TILE), (blocked, 2 * TILE)]
    ):

        def pair(i: Value, n=n, stored_ij=stored_ij, source=source) -> list[Value]:  # type: ignore[no-untyped-def]
            layout.store_delta(lines_at(words, source, n, i, layout.block), stored_ij, i)
            return []

        each_pair(words, [], pair)


def _write_to_float32(words, blocked, stored, rows, height, blocks):  # type: ignore[no-untyped-def]
    """Convert the rows of a stored matrix to float32."""
    layout = Layout(words, height)
    for n, _, (target, stored_ij) in _strips(
        words, rows, blocks, layout, [(blocked, 2 * TILE), (stored, TILE)]
    ):

        def pair(i: Value, n=n, target=target, stored_ij=stored_ij) -> list[Value]:  # type: ignore[no-untyped-def]
            layout.store_blocked(layout.load(stored_ij, n, i), target, i)
            return []

        each_pair(words, [], pair)


def _write_code_delta(words, activation, out, h, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = out * g'(h); out is float32."""
    layout = Layout(words, height)
    matrices = [(out, 2 * TILE), (h, TILE)]
    for activation_id in words.cases(activation, len(ACTIVATIONS)):
        for n, _, (out_ij, h_ij) in _strips(words, rows, blocks, layout, matrices):

            def pair(i: Value, n=n, out_ij=out_ij, h_ij=h_ij, id_=activation_id) -> list[Value]:  # type: ignore[no-untyped-def]
                both = lines_at(words, out_ij, n, i, layout.block), layout.load(h_ij, n, i)
                layout.store_blocked(
                    [
                        [times_derivative(words, id_, *values) for values in zip(*row, strict=True)]
                        for row in zip(*both, strict=True)
                    ],
                    out_ij,
                    i,
                )
                return []

            each_pair(words, [], pair)


def _write_add_delta(words, delta, added, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """delta += added, whose column sums are added to `sums`."""
    layout = Layout(words, height)
    for n, j, (delta_ij, source) in _strips(words, rows, blocks, layout, [(delta, TILE), (added, 2 * TILE)]):
        sums_j = words.offset(sums, (j, LINE))

        def pair(i: Value, *column_sums: Value, n=n, delta_ij=delta_ij, source=source) -> list[Value]:  # type: ignore[no-untyped-def]
            old, new = layout.load(delta_ij, n, i), lines_at(words, source, n, i, layout.block)
            total = [
                [words.add(*both) for both in zip(*row, strict=True)] for row in zip(old, new, strict=True)
            ]
            layout.store_delta(total, delta_ij, i)
            return [words.add(words.add(s, new[0][k]), new[1][k]) for k, s in enumerate(column_sums)]

        store_vector(words, each_pair(words, vector_at(words, sums_j, n), pair), sums_j)


_forward, _residual, _backward, _gradient, _convert, _convert_delta, _to_float32, _code_delta, _add_delta = (
    vector_kernel(write)
    for write in (
        _write_forward,
        _write_residual,
        _write_backward,
        _write_gradient,
        _write_convert,
        _write_convert_delta,
        _write_to_float32,
        _write_code_delta,
        _write_add_delta,
    )
)


# -- the contract of products.py --------------------------------------------------------------------------------------


@ByAddress
def forward(out, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h = g(a w + bias); if `leaves` is 1, in float32."""
    h = carray(out, (1,))
    _forward(h, (h.ctypes.data, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out))


@ByAddress
def residual(out, a, w, bias, x, row_weight, bound, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """delta = row_weight (a w + bias - x), within row_weight bound if there is a bound; x is float32."""
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
    """dw (+)= a' delta over `rows` rows, rounded up to strips: the delta is zero in the rows below those in use."""
    dw = carray(out, (1,))
    _gradient(dw, (dw.ctypes.data, a, delta, accumulate, rows, height, dw_rows, fan_in, fan_out))


@ByAddress
def from_blocked(out, blocked, rows, height, blocks):  # type: ignore[no-untyped-def]
    """Convert a blocked matrix of float32 that is no delta."""
    stored = carray(out, (1,))
    _convert(stored, (stored.ctypes.data, blocked, rows, height, blocks))


@ByAddress
def delta_from_blocked(out, blocked, rows, height, blocks):  # type: ignore[no-untyped-def]
    """Convert a blocked delta of float32."""
    stored = carray(out, (1,))
    _convert_delta(stored, (stored.ctypes.data, blocked, rows, height, blocks))


@ByAddress
def prepare_weights(out, wt, source, fan_in, fan_out, first, last):  # type: ignore[no-untyped-def]
    """Convert squares first .. last - 1 of a layer's weights to pairs of bfloat16: W and, unless `wt` is 0, W'.

    Whoever converts the last square of a column, or of a row in W', sets the square of padding below it to zero.
    """
    w = carray(out, (1,))
    down, across = in_blocks(fan_in, LANES), in_blocks(fan_out, LANES)  # squares
    w_block, wt_block = (down + down % 2) * SQUARE, (across + across % 2) * SQUARE
    square = first
    while square < last:
        column, row = square // down, square % down
        count = min(down - row, last - square)
        place = w.ctypes.data + column * w_block + row * SQUARE
        to = wt + row * wt_block + column * SQUARE if wt != 0 else 0
        _weights(w, (place, to, wt_block, source + square * 2 * SQUARE, count))
        if row + count == down and down % 2 == 1:
            zero_lines(w, (place + count * SQUARE, SQUARE // LINE))
        if wt != 0 and column + 1 == across and across % 2 == 1:
            for i in range(count):
                zero_lines(w, (to + i * wt_block + SQUARE, SQUARE // LINE))
        square += count


@ByAddress
def sparsity_delta(out, h, row_weight, slope, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = row_weight slope h (1 - h), in float32."""
    delta = carray(out, (1,))
    _to_float32(delta, (delta.ctypes.data, h, rows, height, blocks))
    cost.sparsity_delta(delta, delta.ctypes.data, row_weight, slope, rows, height, blocks)


@ByAddress
def code_delta(out, h, activation, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = out * g'(h); out is float32."""
    delta = carray(out, (1,))
    _code_delta(delta, (activation, delta.ctypes.data, h, rows, height, blocks))


@ByAddress
def add_delta(out, added, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """delta += added, which is float32."""
    delta = carray(out, (1,))
    _add_delta(delta, (delta.ctypes.data, added, sums, rows, height, blocks))


def tile_height(widths: Widths, dtype: npt.DTypeLike) -> int:
    """Rows of a tile."""
    return HEIGHT if gemm.tile_height(widths, dtype) == gemm.ROWS else HEIGHT_WIDE


def pays(widths: Widths, *_: object) -> bool:
    """Whether the mean number of products that an element of a step's matrices is the sum of is LEAST_DEPTH or more."""
    products = sum(a * b for a, b in pairwise(widths))
    return 2 * products >= LEAST_DEPTH * sum(a + b for a, b in pairwise(widths))


def pays_in_inference(widths: Widths, *_: object) -> bool:
    """The same for the results of forward products alone."""
    products = sum(a * b for a, b in pairwise(widths))
    return products >= LEAST_DEPTH * sum(widths[1:])


AMX = Form(
    name="tiles in bfloat16",
    dtypes=("bfloat16",),
    forward=forward,
    residual=residual,
    backward=backward,
    gradient=gradient,
    from_rows=None,
    from_blocked=from_blocked,
    delta_from_blocked=delta_from_blocked,
    prepare_weights=prepare_weights,
    sparsity_delta=sparsity_delta,
    code_delta=code_delta,
    add_delta=add_delta,
    store_rows=rows.store_rows,
    row_errors=cost.row_errors,
    row_multiple=lambda *_: STRIP,
    height=tile_height,
    pays=pays,
    pays_in_inference=pays_in_inference,
    own_weights=True,
    stored_row=ROW,
    on_tile_registers=True,
    available=not TARGET.amx or granted(),
)
