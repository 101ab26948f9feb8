"""Rows of a caller's matrix into a tile, and a tile's rows back out. The matrix is read once and never written.

A source is any float or integer array: an address, a row and a column stride in bytes, and a KIND. Each row of a
tile becomes lines of the engine's dtype: converted, shifted and scaled in float64, rounded once; padding zeroed.
"""

from functools import partial

import numpy as np
from llvmlite import ir

from fastae.kernels.compiler import callee
from fastae.kernels.job import KINDS
from fastae.kernels.partition import in_blocks
from fastae.kernels.simd import F32, F64, I16, Value, Words, load_int64, vector_kernel
from fastae.kernels.target import LINE

ITEM_SIZES = tuple(dtype.itemsize for dtype in list(KINDS)[:11])


def _source_line(words: Words, kind: np.dtype, source: Value, mask: Value, to: ir.Type) -> Value:
    """One line of elements of `kind` in memory, as `to`."""
    bits = kind.itemsize * 8
    if kind.kind == "f" and bits == 16:
        return words.convert(words.half_to_single(words.load_first(source, mask, I16, 1)), True, to)
    element = ir.IntType(bits) if kind.kind in "iu" else (F64 if bits == 64 else F32)
    return words.convert(words.load_first(source, mask, element, 1), kind.kind == "i", to)


def _write_load(words: Words, target, source, count, kind, shift, scale):  # type: ignore[no-untyped-def]
    """One line of a tile from `count` contiguous elements; `shift` 0: as they are, else (x - shift) scale."""
    mask = words.first_lanes(count)

    def as_is(dtype: np.dtype) -> None:
        words.store(_source_line(words, dtype, source, mask, words.scalar), target)

    def scaled(dtype: np.dtype) -> None:
        wide = _source_line(words, dtype, source, mask, F64)
        moved = words.builder.fsub(wide, words.load_first(shift, mask, F64, 8))
        words.store(
            words.convert(words.builder.fmul(moved, words.load_first(scale, mask, F64, 8)), True), target
        )

    kinds = list(KINDS)[:11]
    with words.when(shift, "==", 0):
        words.cases(kind, [partial(as_is, dtype) for dtype in kinds])
    with words.when(shift, "!=", 0):
        words.cases(kind, [partial(scaled, dtype) for dtype in kinds])


_load_line = vector_kernel(_write_load)


def _write_copy_row(words: Words, target, height, source, columns):  # type: ignore[no-untyped-def]
    """A row of `columns` contiguous elements of the engine's dtype into a tile `height` rows high."""
    b = words.builder
    lanes = words.count(words.lanes)
    column = b.mul(height, words.count(LINE))

    def block(target, source):  # type: ignore[no-untyped-def]
        words.store(words.load(source, aligned=False), target)
        return [words.offset(target, column), words.offset(source, LINE)]

    target, source = words.loop(b.sdiv(columns, lanes), [target, source], block)
    left = b.srem(columns, lanes)
    with words.when(left, ">", 0):
        words.store(words.load_first(source, words.first_lanes(left)), target)


_copy_row = vector_kernel(_write_copy_row)


def _write_store(words: Words, target, line, count):  # type: ignore[no-untyped-def]
    words.store_first(words.load(line), target, words.first_lanes(count))


_store_line = vector_kernel(_write_store)


def _write_zero(words: Words, target, lines):  # type: ignore[no-untyped-def]
    def one(target):  # type: ignore[no-untyped-def]
        words.store(words.constant(0.0), target)
        return [words.offset(target, LINE)]

    words.loop(lines, [target], one)


zero_lines = vector_kernel(_write_zero)


def _write_add(words: Words, target, source, lines, accumulate):  # type: ignore[no-untyped-def]
    """target = source, or target += source where `accumulate` is not 0."""
    for add in (0, 1):
        with words.when(accumulate, "==", add):

            def one(target, source, add=add):  # type: ignore[no-untyped-def]
                line = words.load(source)
                words.store(words.add(words.load(target), line) if add else line, target)
                return [words.offset(target, LINE), words.offset(source, LINE)]

            words.loop(lines, [target, source], one)


add_lines = vector_kernel(_write_add)


def _write_copy(words: Words, target, source, count, stride, size):  # type: ignore[no-untyped-def]
    """`count` elements of `size` bytes, `stride` bytes apart, side by side at `target`."""
    for bytes_ in (1, 2, 4, 8):
        with words.when(size, "==", bytes_):
            element = ir.IntType(bytes_ * 8)

            def one(target, source, element=element, bytes_=bytes_):  # type: ignore[no-untyped-def]
                value = words.builder.load(words.pointer(source, element))
                value.align = 1
                words.builder.store(value, words.pointer(target, element)).align = bytes_
                return [words.offset(target, bytes_), words.offset(source, stride)]

            words.loop(count, [target, source], one)


_copy_elements = vector_kernel(_write_copy)


@callee
def load_rows(
    like, tile, height, x, row_stride, column_stride, kind, columns, index, first, rows, shift, scale, spare
):  # type: ignore[no-untyped-def]
    """Rows first .. first + rows of x (through the int64s at `index`, unless 0) into a tile (blocks, height, lanes).

    `spare` is the address of 16 elements of 8 bytes, where columns that do not lie side by side are gathered.
    """
    size = ITEM_SIZES[kind]
    lanes = LINE // like.itemsize
    blocks = in_blocks(columns, lanes)
    direct = kind == (0 if like.itemsize == 4 else 1) and column_stride == size and shift == 0
    for i in range(rows):
        row = first + i
        if index != 0:
            row = load_int64(index + row * 8)
        source = x + row * row_stride
        if direct:
            _copy_row(like, (tile + i * LINE, height, source, columns))
            continue
        for j in range(blocks):
            count = min(lanes, columns - j * lanes)
            target = tile + (j * height + i) * LINE
            part = source + j * lanes * column_stride
            if column_stride != size:
                _copy_elements(like, (spare, part, count, column_stride, size))
                part = spare
            if shift != 0:
                k = j * lanes * 8
                _load_line(like, (target, part, count, kind, shift + k, scale + k))
            else:
                _load_line(like, (target, part, count, kind, 0, 0))


@callee
def store_rows(like, out, row_stride, tile, height, columns, rows):  # type: ignore[no-untyped-def]
    """A tile's rows into a dense row-major matrix of the engine's dtype."""
    lanes = LINE // like.itemsize
    blocks = in_blocks(columns, lanes)
    for i in range(rows):
        for j in range(blocks):
            count = min(lanes, columns - j * lanes)
            _store_line(like, (out + i * row_stride + j * LINE, tile + (j * height + i) * LINE, count))
