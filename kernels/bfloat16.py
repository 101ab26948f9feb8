"""Products of bfloat16 pairs, added up in float32 (AVX512_BF16). A form of products; compiled only where asked for.

Parameters, gradients, the loss and all arithmetic outside the products stay float32. A matrix in bfloat16 begins where
the float32 of layout.py would, and takes no more room:

    tile      a block of 16 columns twice: first its rows as they are, (height, 16), where two columns of a row are
              side by side; then pairs of rows, (height / 2, 16, 2)
    weights   pairs of rows, (fan_out / 16, fan_in / 2, 16, 2), and W' likewise in its own place

So a product over columns (forward, backward) takes a tile's rows and pairs of weights; one over rows (gradient) takes
two tiles' pairs. The loops and the register tiles are gemm.py's.
"""

from numba import carray

from fastae.kernels import cost, gemm
from fastae.kernels.compiler import ByAddress
from fastae.kernels.partition import in_blocks
from fastae.kernels.products import Form
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import LINE

LANES = 16
ROW = LINE // 2  # bytes of a row of a block


class Pairs(gemm.Storage):
    """A block of a tile in bfloat16, in both forms: the second begins `half` behind the first."""

    together = 2

    def __init__(self, words: Words, height: Value) -> None:
        super().__init__(words, height)
        self.row = ROW
        self.depth_per_block = LANES // 2
        self.multiply = lambda x, y, z: words.dot(x, y, z)
        self.rows_at = self.half = words.times(height, ROW)

    def depth(self, count: Value) -> Value:
        """Pairs of columns, or of rows: one more where their number is odd, which is zero in one of the operands."""
        return self.words.quotient(count, 2)

    def load(self, place: Value) -> list[Value]:
        """Two rows, from the second form."""
        return list(self.words.unpaired(self.words.load(self.words.offset(place, self.half))))

    def store(self, values: list[Value], place: Value) -> None:
        """Two rows, in both forms."""
        store_rows(self.words, values[0], values[1], place, self.half)

    def store_result(self, values: list[Value], block: Value, row: int, leaves: Value) -> None:
        """Two rows of a result; in float32 where it leaves the network."""
        words = self.words
        with words.when(leaves, "==", 1):
            for r, value in enumerate(values):
                words.store(value, words.offset(block, (row + r) * LINE))
        with words.when(leaves, "==", 0):
            self.store(values, words.offset(block, row * ROW))

    def result_step(self, rows: int, leaves: Value) -> Value:
        """Bytes that so many rows of a result take in a block."""
        words = self.words
        return words.builder.select(
            words.builder.icmp_signed("==", leaves, words.count(1)),
            words.count(rows * LINE),
            words.count(rows * ROW),
        )


def store_rows(words: Words, first: Value, second: Value, place: Value, half: Value) -> None:
    """Two rows of a block, in both forms."""
    line = words.narrow(first, second)
    words.store(line, place)
    words.store(words.paired(line), words.offset(place, half))


_forward, _residual, _backward, _gradient = (
    writer(Pairs)
    for writer in (gemm.forward_writer, gemm.residual_writer, gemm.backward_writer, gemm.gradient_writer)
)

# -- between float32 and bfloat16 -------------------------------------------------------------------------------------


def _write_to_bfloat16(words: Words, target, source, half, pairs):  # type: ignore[no-untyped-def]
    """Pairs of rows of one float32 block into a block of both forms."""

    def pair(target, source):  # type: ignore[no-untyped-def]
        store_rows(words, words.load(source), words.load(words.offset(source, LINE)), target, half)
        return [words.offset(target, LINE), words.offset(source, 2 * LINE)]

    words.loop(pairs, [target, source], pair)


def _write_to_float32(words: Words, target, source, pairs):  # type: ignore[no-untyped-def]
    """Pairs of rows of one block into a float32 block."""

    def pair(target, source):  # type: ignore[no-untyped-def]
        for r, line in enumerate(words.unpaired(words.load(source))):
            words.store(line, words.offset(target, r * LINE))
        return [words.offset(target, 2 * LINE), words.offset(source, LINE)]

    words.loop(pairs, [target, source], pair)


def _write_add_delta(words: Words, delta, added, sums, half, pairs):  # type: ignore[no-untyped-def]
    """delta += added, float32, on one block; its column sums are added up."""

    def pair(delta, added, column_sum):  # type: ignore[no-untyped-def]
        lines = [words.load(words.offset(added, r * LINE)) for r in (0, 1)]
        old = words.unpaired(words.load(words.offset(delta, half)))
        store_rows(words, words.add(old[0], lines[0]), words.add(old[1], lines[1]), delta, half)
        column_sum = words.add(words.add(column_sum, lines[0]), lines[1])
        return [words.offset(delta, LINE), words.offset(added, 2 * LINE), column_sum]

    *_, column_sum = words.loop(pairs, [delta, added, words.load(sums)], pair)
    words.store(column_sum, sums)


def _write_weights(words: Words, w, wt, wt_step, source, squares):  # type: ignore[no-untyped-def]
    """`squares` squares of 16 x 16 weights, one below the other in `source`, as pairs of rows; so is W', if wanted."""
    size = LANES * ROW

    def pairs(lines: list[Value], place: Value) -> None:
        for i in range(0, LANES, 2):
            words.store(words.paired(words.narrow(lines[i], lines[i + 1])), words.offset(place, i * ROW))

    def square(w, wt, source):  # type: ignore[no-untyped-def]
        lines = [words.load(words.offset(source, i * LINE)) for i in range(LANES)]
        pairs(lines, w)
        with words.when(wt, "!=", 0):
            pairs(words.transposed(lines), wt)
        none = words.builder.icmp_signed("==", wt, words.count(0))
        wt = words.builder.select(none, wt, words.offset(wt, wt_step))
        return [words.offset(w, size), wt, words.offset(source, 2 * size)]

    words.loop(squares, [w, wt, source], square)


_to_bfloat16 = vector_kernel(_write_to_bfloat16)
_to_float32 = vector_kernel(_write_to_float32)
_add_delta = vector_kernel(_write_add_delta)
_weights = vector_kernel(_write_weights)


# -- the contract of products.py --------------------------------------------------------------------------------------


@ByAddress
def forward(out, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h = g(a w + bias); where `leaves` is 1, as float32."""
    h = carray(out, (1,))
    _forward(h, (h.ctypes.data, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out))


@ByAddress
def residual(out, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """delta = weight (a w + bias - x), x float32."""
    delta = carray(out, (1,))
    _residual(delta, (delta.ctypes.data, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out))


@ByAddress
def backward(out, delta, wt, sums, activation, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """h becomes (delta wt) * g'(h)."""
    h = carray(out, (1,))
    _backward(h, (h.ctypes.data, delta, wt, sums, activation, rows, height, fan_in, fan_out))


@ByAddress
def gradient(out, a, delta, accumulate, rows, height, fan_in, fan_out):  # type: ignore[no-untyped-def]
    """dw (+)= a' delta over `rows` rows, and one more where they are odd: its delta is zero."""
    dw = carray(out, (1,))
    _gradient(dw, (dw.ctypes.data, a, delta, accumulate, rows, height, fan_in, fan_out))


@ByAddress
def to_bfloat16(out, source, rows, height, blocks):  # type: ignore[no-untyped-def]
    """Lines of float32 as a tile, in both forms; `rows` is even."""
    target = carray(out, (1,))
    for j in range(blocks):
        k = j * height * LINE
        _to_bfloat16(target, (target.ctypes.data + k, source + k, height * ROW, rows // 2))


@ByAddress
def prepare_weights(out, wt, source, fan_in, fan_out, first, last):  # type: ignore[no-untyped-def]
    """Squares first .. last - 1 of a layer's weights at `source`, as W and, unless `wt` is 0, as W'."""
    w, size = carray(out, (1,)), LANES * ROW
    down, across = in_blocks(fan_in, LANES), in_blocks(fan_out, LANES)  # squares
    square = first
    while square < last:
        column, row = square // down, square % down
        count = min(down - row, last - square)
        to = wt + (row * across + column) * size if wt != 0 else 0
        _weights(w, (w.ctypes.data + square * size, to, across * size, source + square * 2 * size, count))
        square += count


@ByAddress
def sparsity_delta(out, h, weight, slope, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = weight slope h (1 - h), as float32."""
    delta = carray(out, (1,))
    for j in range(blocks):
        k = j * height * LINE
        _to_float32(delta, (delta.ctypes.data + k, h + k + height * ROW, rows // 2))
    cost.sparsity_delta(delta, delta.ctypes.data, weight, slope, rows, height, blocks)


@ByAddress
def add_delta(out, added, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """delta += added, which is float32."""
    delta = carray(out, (1,))
    for j in range(blocks):
        k = j * height * LINE
        _add_delta(delta, (delta.ctypes.data + k, added + k, sums + j * LINE, height * ROW, rows // 2))


PAIRS = Form(
    forward=forward,
    residual=residual,
    backward=backward,
    gradient=gradient,
    from_lines=to_bfloat16,
    prepare_weights=prepare_weights,
    sparsity_delta=sparsity_delta,
    add_delta=add_delta,
    target_in_form=False,
    row_multiple=gemm.row_multiple,
    height=gemm.tile_height,
)
