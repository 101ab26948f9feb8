"""Transposes W, and other matrices of whole squares of lanes x lanes, square by square in registers."""

from fastae.kernels.compiler import callee
from fastae.kernels.layout import LINE
from fastae.kernels.rounding import in_blocks
from fastae.kernels.simd import vector_kernel


def _write_transpose(words, target, line_stride, square_stride, source, squares):  # type: ignore[no-untyped-def]
    """Transpose squares of lanes x lanes that lie one below the other in `source`.

    target   (squares, lanes, lanes), `square_stride` bytes from square to square, `line_stride` from line to line
    source   (squares x lanes, lanes)
    """

    def square(target, source):  # type: ignore[no-untyped-def]
        lines = words.transposed([words.load(words.offset(source, i * LINE)) for i in range(words.lanes)])
        for i, line in enumerate(lines):
            words.store(line, words.offset(target, (line_stride, i)))
        return [words.offset(target, square_stride), words.offset(source, words.lanes * LINE)]

    words.loop(squares, [target, source], square)


transpose = vector_kernel(_write_transpose)


@callee
def transpose_squares(like, target, source, fan_in, fan_out, first, last):  # type: ignore[no-untyped-def]
    """Write squares first .. last - 1 of W to W': lanes x lanes each, counted in the order of memory.

    target   W', lines (fan_out, fan_in)      source   W, lines (fan_in, fan_out); `like` is an array of their dtype
    """
    lanes = LINE // like.itemsize
    down, across = in_blocks(fan_in, lanes), in_blocks(fan_out, lanes)  # squares of W
    square = first
    while square < last:
        column, row = square // down, square % down
        count = min(down - row, last - square)
        place = target + (row * across + column) * lanes * LINE
        transpose(like, (place, LINE, across * lanes * LINE, source + square * lanes * LINE, count))
        square += count
