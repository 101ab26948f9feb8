"""Products in bfloat16, a form of products: pairs of bfloat16 are multiplied, and added up in float32 (AVX512_BF16).

Not a dtype: parameters, gradients, the loss and all arithmetic outside the products stay float32. The loops and the
register tiles are those of gemm.py. A matrix in bfloat16 begins where the same matrix in float32 would (layout.py), and
needs no more memory:

    stored    (blocks, 2 halves, height / 2 lines). Each block is stored twice: first row by row, (height, 16), where
              two columns of a row are side by side; then in pairs of rows, (height / 2, 16, 2)
    weights   pairs of rows, (fan_out / 16, fan_in / 2, 16, 2), and W' likewise, fan_in and fan_out padded

A product over columns (forward, backward) multiplies the rows of a tile with pairs of rows of the weights. A product
over rows (gradient) multiplies pairs of rows of two tiles.
"""

from fastae.kernels import cost, gemm, rows
from fastae.kernels.activations import times_derivative
from fastae.kernels.compiler import ByAddress, carray
from fastae.kernels.layout import ACTIVATIONS, LINE
from fastae.kernels.products import Form
from fastae.kernels.rounding import in_blocks
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import TARGET

LANES = 16
ROW = LINE // 2  # bytes of one row of a block


class Pairs(gemm.Storage):
    """A block of a tile in bfloat16: the rows, and `half` bytes behind them the pairs of rows."""

    together = 2

    def __init__(self, words: Words, height: Value) -> None:
        super().__init__(words, height)
        self.row = ROW
        self.depth_per_block = LANES // 2
        self.multiply = lambda x, y, z: words.dot(x, y, z)
        self.rows_at = self.half = words.times(height, ROW)

    def depth(self, count: Value) -> Value:
        """The number of pairs of columns, or of rows. If `count` is odd, the last one is zero in one operand."""
        return self.words.quotient(count, 2)

    def load(self, place: Value) -> list[Value]:
        """Load two rows, from their pairs."""
        return list(self.words.unpaired(self.words.load(self.words.offset(place, self.half))))

    def store(self, values: list[Value], place: Value) -> None:
        """Store two rows, as rows and as pairs."""
        store_rows(self.words, values[0], values[1], place, self.half)

    def store_result(self, values: list[Value], block: Value, row: int, leaves: Value) -> None:
        """Store two rows of a result; as float32 if it leaves the network."""
        words = self.words
        with words.when(leaves, "==", 1):
            for r, value in enumerate(values):
                words.store(value, words.offset(block, (row + r) * LINE))
        with words.when(leaves, "==", 0):
            self.store(values, words.offset(block, row * ROW))

    def result_stride(self, rows: int, leaves: Value) -> Value:
        """Bytes of `rows` rows of a result in a block."""
        words = self.words
        return words.builder.select(
            words.builder.icmp_signed("==", leaves, words.count(1)),
            words.count(rows * LINE),
            words.count(rows * ROW),
        )


def store_rows(words: Words, first: Value, second: Value, place: Value, half: Value) -> None:
    """Store two float32 lines as two rows of a block, and as their pairs."""
    line = words.to_bfloat16(first, second)
    words.store(line, place)
    words.store(words.paired(line), words.offset(place, half))


_forward, _residual, _backward, _gradient = (
    writer(Pairs)
    for writer in (gemm.forward_writer, gemm.residual_writer, gemm.backward_writer, gemm.gradient_writer)
)

# -- between float32 and bfloat16 -------------------------------------------------------------------------------------


def _write_to_bfloat16(words: Words, target, source, half, pairs):  # type: ignore[no-untyped-def]
    """``to_bfloat16`` on one block.

    target  a block of a tile, `half` bytes twice     source  float32 lines (2 x pairs, 16)
    """

    def pair(target, source):  # type: ignore[no-untyped-def]
        store_rows(words, words.load(source), words.load(words.offset(source, LINE)), target, half)
        return [words.offset(target, LINE), words.offset(source, 2 * LINE)]

    words.loop(pairs, [target, source], pair)


def _write_to_float32(words: Words, target, source, pairs):  # type: ignore[no-untyped-def]
    """Convert the pairs of rows of one block to float32.

    target  float32 lines (2 x pairs, 16)     source  (pairs, 16, 2)
    """

    def pair(target, source):  # type: ignore[no-untyped-def]
        for r, line in enumerate(words.unpaired(words.load(source))):
            words.store(line, words.offset(target, r * LINE))
        return [words.offset(target, 2 * LINE), words.offset(source, LINE)]

    words.loop(pairs, [target, source], pair)


def _write_code_delta(words: Words, activation, out, h, pairs):  # type: ignore[no-untyped-def]
    """``code_delta`` on one block.

    out  float32 lines (2 x pairs, 16)     h  pairs of rows (pairs, 16, 2)
    """
    for activation_id in words.cases(activation, len(ACTIVATIONS)):
        for line, pair in words.walk(pairs, [out, h], [2 * LINE, LINE]):
            for r, value in enumerate(words.unpaired(words.load(pair))):
                place = words.offset(line, r * LINE)
                words.store(times_derivative(words, activation_id, words.load(place), value), place)


def _write_add_delta(words: Words, delta, added, sums, half, pairs):  # type: ignore[no-untyped-def]
    """``add_delta`` on one block.

    delta  a block of a tile, `half` bytes twice     added  float32 lines (2 x pairs, 16)     sums  float32 (16,)
    """

    def pair(delta, added, column_sum):  # type: ignore[no-untyped-def]
        lines = [words.load(words.offset(added, r * LINE)) for r in (0, 1)]
        old = words.unpaired(words.load(words.offset(delta, half)))
        store_rows(words, words.add(old[0], lines[0]), words.add(old[1], lines[1]), delta, half)
        column_sum = words.add(words.add(column_sum, lines[0]), lines[1])
        return [words.offset(delta, LINE), words.offset(added, 2 * LINE), column_sum]

    *_, column_sum = words.loop(pairs, [delta, added, words.load(sums)], pair)
    words.store(column_sum, sums)


def _write_weights(words: Words, w, wt, wt_stride, source, squares):  # type: ignore[no-untyped-def]
    """Write squares of 16 x 16 weights, which lie one below the other, to W and, unless `wt` is 0, to W'.

    w   (squares, 8, 16, 2)     wt   (squares, 8, 16, 2), `wt_stride` bytes from square to square
    source   float32 lines (squares x 16, 16)
    """
    size = LANES * ROW

    def pairs(lines: list[Value], place: Value) -> None:
        for i in range(0, LANES, 2):
            words.store(words.paired(words.to_bfloat16(lines[i], lines[i + 1])), words.offset(place, i * ROW))

    def square(w, wt, source):  # type: ignore[no-untyped-def]
        lines = [words.load(words.offset(source, i * LINE)) for i in range(LANES)]
        pairs(lines, w)
        with words.when(wt, "!=", 0):
            pairs(words.transposed(lines), wt)
        none = words.builder.icmp_signed("==", wt, words.count(0))
        wt = words.builder.select(none, wt, words.offset(wt, wt_stride))
        return [words.offset(w, size), wt, words.offset(source, 2 * size)]

    words.loop(squares, [w, wt, source], square)


_to_bfloat16 = vector_kernel(_write_to_bfloat16)
_to_float32 = vector_kernel(_write_to_float32)
_code_delta = vector_kernel(_write_code_delta)
_add_delta = vector_kernel(_write_add_delta)
_weights = vector_kernel(_write_weights)


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
    """dw (+)= a' delta over `rows` rows, rounded up to pairs: the delta of a last single row's partner is zero."""
    dw = carray(out, (1,))
    _gradient(dw, (dw.ctypes.data, a, delta, accumulate, rows, height, dw_rows, fan_in, fan_out))


@ByAddress
def to_bfloat16(out, source, rows, height, blocks):  # type: ignore[no-untyped-def]
    """Convert a blocked matrix of float32, ``from_blocked`` of the contract; `rows` is even."""
    target = carray(out, (1,))
    for j in range(blocks):
        k = j * height * LINE
        _to_bfloat16(target, (target.ctypes.data + k, source + k, height * ROW, rows // 2))


@ByAddress
def prepare_weights(out, wt, source, fan_in, fan_out, first, last):  # type: ignore[no-untyped-def]
    """Convert squares first .. last - 1 of a layer's weights to pairs of bfloat16: W and, unless `wt` is 0, W'."""
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
def sparsity_delta(out, h, row_weight, slope, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = row_weight slope h (1 - h), in float32."""
    delta = carray(out, (1,))
    for j in range(blocks):
        k = j * height * LINE
        _to_float32(delta, (delta.ctypes.data + k, h + k + height * ROW, rows // 2))
    cost.sparsity_delta(delta, delta.ctypes.data, row_weight, slope, rows, height, blocks)


@ByAddress
def code_delta(out, h, activation, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = out * g'(h); out is float32."""
    like = carray(out, (1,))
    for j in range(blocks):
        k = j * height * LINE
        _code_delta(like, (activation, like.ctypes.data + k, h + k + height * ROW, rows // 2))


@ByAddress
def add_delta(out, added, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """delta += added, which is float32."""
    delta = carray(out, (1,))
    for j in range(blocks):
        k = j * height * LINE
        _add_delta(delta, (delta.ctypes.data + k, added + k, sums + j * LINE, height * ROW, rows // 2))


BFLOAT16 = Form(
    name="bfloat16",
    dtypes=("bfloat16",),
    forward=forward,
    residual=residual,
    backward=backward,
    gradient=gradient,
    from_rows=None,
    from_blocked=to_bfloat16,
    delta_from_blocked=to_bfloat16,
    prepare_weights=prepare_weights,
    sparsity_delta=sparsity_delta,
    code_delta=code_delta,
    add_delta=add_delta,
    store_rows=rows.store_rows,
    row_errors=cost.row_errors,
    row_multiple=gemm.row_multiple,
    height=gemm.tile_height,
    own_weights=True,
    stored_row=ROW,
    available=TARGET.bfloat16,
)
