"""Reads rows of a caller's matrix into a tile, and writes a tile's rows to a matrix. No noise, no forms of products.

A source is any float or integer matrix (m, n): an address, a row and a column stride in bytes, and the id of its dtype,
its place in SOURCE_DTYPES. It is read once and never written. A row becomes one line in each block of a tile (blocks,
height, lanes): converted, shifted and scaled in float64, and rounded once to the engine's dtype; padding becomes zero.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir

from fastae.kernels.compiler import ByAddress, callee, carray
from fastae.kernels.intrinsics import load_int64
from fastae.kernels.job import SOURCE_DTYPES
from fastae.kernels.layout import LINE
from fastae.kernels.rounding import in_blocks
from fastae.kernels.simd import F32, F64, I16, I64, Value, Words, vector_kernel

TOGETHER = 16  # rows of a block that are loaded one after the other, with the same shift and scale
ITEM_SIZES = tuple(dtype.itemsize for dtype in SOURCE_DTYPES)


class Source(NamedTuple):
    """A matrix whose rows are read, as a job describes X."""

    x: int  # the address of (m, columns), of the dtype SOURCE_DTYPES[dtype_id]
    columns: int
    row_stride: int  # in bytes
    column_stride: int
    dtype_id: int
    row_numbers: int  # the address of int64 (rows,): the rows of x to use; 0: all
    shift: int  # the address of float64 (columns,), padded; 0: neither shift nor scale
    scale: int


@callee
def column_of(source, c):  # type: ignore[no-untyped-def]
    """Column c of a source, which is a source itself."""
    scaled = source.shift != 0
    return Source(
        x=source.x + c * source.column_stride,
        columns=1,
        row_stride=source.row_stride,
        column_stride=source.column_stride,
        dtype_id=source.dtype_id,
        row_numbers=source.row_numbers,
        shift=source.shift + c * 8 if scaled else 0,
        scale=source.scale + c * 8 if scaled else 0,
    )


@callee
def is_plain(source, itemsize):  # type: ignore[no-untyped-def]
    """Whether each row is contiguous and holds elements as the engine's dtype, of `itemsize` bytes, has them."""
    of_dtype = source.dtype_id == (0 if itemsize == 4 else 1)
    return of_dtype and source.column_stride == itemsize and source.shift == 0


@callee
def row_number(source, i):  # type: ignore[no-untyped-def]
    """The row of x that is row i of the source."""
    return load_int64(source.row_numbers + i * 8) if source.row_numbers != 0 else i


def _source_line(words: Words, dtype: np.dtype, source: Value, count: Value, to: ir.Type) -> Value:
    """The first `count` lanes from elements of `dtype` at `source`, converted to `to`; zero in the others."""
    bits = dtype.itemsize * 8
    if dtype.kind == "f" and bits == 16:
        return words.convert(words.half_to_single(words.load_first(source, count, I16, 1)), True, to)
    element = ir.IntType(bits) if dtype.kind in "iu" else (F64 if bits == 64 else F32)
    return words.convert(words.load_first(source, count, element, 1), dtype.kind == "i", to)


def _row_places(words: Words, x, row_stride, row_numbers, first, rows, moves):  # type: ignore[no-untyped-def]
    """The address of each row first .. first + rows of x, for ``for`` as ``Words.walk``; and what moves along with it.

    row_numbers  int64 (rows of the source,), or 0: all rows of x, in order     moves  pairs (address, stride)
    """
    for indexed in (0, 1):
        with words.when(row_numbers, "!=" if indexed else "==", 0):
            stride = 8 if indexed else row_stride
            start = words.offset(row_numbers if indexed else x, (first, stride))
            places, strides = [place for place, _ in moves], [by for _, by in moves]
            for place, *moved in words.walk(rows, [start, *places], [stride, *strides]):
                row = words.offset(x, (words.load_count(place), row_stride)) if indexed else place
                yield row, *moved


def _write_load_lines(
    words: Words, target, x, row_stride, row_numbers, first, rows, count, dtype_id, shift, scale
):  # type: ignore[no-untyped-def]
    """One block of some rows of a tile, from `count` contiguous elements each: (x - shift) scale, or x if `shift` is 0.

    target  lines (rows, lanes)     x  of the dtype SOURCE_DTYPES[dtype_id]     shift, scale  float64 (count,), or 0
    """
    b, dtypes = words.builder, SOURCE_DTYPES
    source = x, row_stride, row_numbers, first, rows
    with words.when(shift, "==", 0):
        for case in words.cases(dtype_id, len(dtypes)):
            for row, line in _row_places(words, *source, [(target, LINE)]):
                words.store(_source_line(words, dtypes[case], row, count, words.scalar), line)
    with words.when(shift, "!=", 0):
        minus, factor = (words.load_first(vector, count, F64, 8) for vector in (shift, scale))
        for case in words.cases(dtype_id, len(dtypes)):
            for row, line in _row_places(words, *source, [(target, LINE)]):
                shifted = b.fsub(_source_line(words, dtypes[case], row, count, F64), minus)
                words.store(words.convert(b.fmul(shifted, factor), True), line)


_load_lines = vector_kernel(_write_load_lines)


def _write_copy_rows(words: Words, tile, height, x, row_stride, row_numbers, first, rows, columns):  # type: ignore[no-untyped-def]
    """``load_rows`` of contiguous rows of the engine's dtype, neither shifted nor scaled.

    tile  blocked (blocks, height, lanes)     x  rows of (columns,), `row_stride` bytes from row to row
    """
    b = words.builder
    whole, left = (f(columns, words.count(words.lanes)) for f in (b.sdiv, b.srem))
    block_bytes = words.times(height, LINE)

    def block(target, source):  # type: ignore[no-untyped-def]
        words.store(words.load(source, aligned=False), target)
        return [words.offset(target, block_bytes), words.offset(source, LINE)]

    for source, target in _row_places(words, x, row_stride, row_numbers, first, rows, [(tile, LINE)]):
        target, source = words.loop(whole, [target, source], block)
        with words.when(left, ">", 0):
            words.store(words.load_first(source, left), target)


copy_rows = vector_kernel(_write_copy_rows)


def _write_store_rows(words: Words, out, stride, tile, height, columns, rows):  # type: ignore[no-untyped-def]
    """``store_rows``."""
    b, block_bytes = words.builder, words.times(height, LINE)
    whole, left = b.sdiv(columns, words.count(words.lanes)), b.srem(columns, words.count(words.lanes))

    def block(line, target):  # type: ignore[no-untyped-def]
        words.store(words.load(line), target, aligned=False)
        return [words.offset(line, block_bytes), words.offset(target, LINE)]

    for row, line in words.walk(rows, [out, tile], [stride, LINE]):
        line, target = words.loop(whole, [line, row], block)
        with words.when(left, ">", 0):
            words.store_first(words.load(line), target, left)


write_rows = vector_kernel(_write_store_rows)


def _write_copy(words: Words, target, source, count, stride, size):  # type: ignore[no-untyped-def]
    """Gather `count` elements of `size` bytes, `stride` bytes apart.

    target  (count,)     source  (count,), strided
    """
    for bytes_ in (1, 2, 4, 8):
        with words.when(size, "==", bytes_):
            integer = ir.IntType(bytes_ * 8)

            def element(target, source, integer=integer, bytes_=bytes_):  # type: ignore[no-untyped-def]
                value = words.builder.load(words.pointer(source, integer))
                value.align = 1
                words.builder.store(value, words.pointer(target, integer)).align = bytes_
                return [words.offset(target, bytes_), words.offset(source, stride)]

            words.loop(count, [target, source], element)


_copy_elements = vector_kernel(_write_copy)


@callee
def load_rows(like, tile, height, source, first, rows, spare):  # type: ignore[no-untyped-def]
    """Read rows first .. first + rows of a source into a tile.

    tile     blocked (blocks, height, lanes); `like` is an array of their dtype
    source   Source
    spare    16 elements of 8 bytes: gathers columns
    """
    itemsize, column_stride = ITEM_SIZES[source.dtype_id], source.column_stride
    lanes = LINE // like.itemsize
    contiguous, scaled = column_stride == itemsize, source.shift != 0
    place = source.row_stride, source.row_numbers
    if is_plain(source, like.itemsize):
        copy_rows(like, (tile, height, source.x, *place, first, rows, source.columns))
        return
    for i in range(0, rows, TOGETHER):
        here = min(rows - i, TOGETHER)
        for j in range(in_blocks(source.columns, lanes)):
            count = min(lanes, source.columns - j * lanes)
            target = tile + (j * height + i) * LINE
            part = source.x + j * lanes * column_stride
            shift = source.shift + j * lanes * 8 if scaled else 0
            scale = source.scale + j * lanes * 8 if scaled else 0
            if contiguous:
                _load_lines(
                    like, (target, part, *place, first + i, here, count, source.dtype_id, shift, scale)
                )
                continue
            for r in range(here):
                row_at = part + row_number(source, first + i + r) * source.row_stride
                _copy_elements(like, (spare, row_at, count, column_stride, itemsize))
                line = spare, 0, 0, 0, 1
                _load_lines(like, (target + r * LINE, *line, count, source.dtype_id, shift, scale))


def _write_note_not_finite(words: Words, noted, tile, height, blocks, rows, missing):  # type: ignore[no-untyped-def]
    """Set the int64 at `noted` to 1 if a cell of a tile is infinite or, unless `missing` is 1, NaN.

    tile  blocked (blocks, height, lanes)
    """
    b, block_bytes = words.builder, words.times(height, LINE)
    for allowed in words.cases(missing, 2):

        def row(line, total, allowed=allowed):  # type: ignore[no-untyped-def]
            x = words.missing_as_zero(words.load(line)) if allowed else words.load(line)
            # 0 x is NaN if x is infinite or NaN, and so is every sum with it
            return [words.offset(line, LINE), words.fma(x, words.constant(0.0), total)]

        def block(first, total, row=row):  # type: ignore[no-untyped-def]
            _, total = words.loop(rows, [first, total], row)
            return [words.offset(first, block_bytes), total]

        _, total = words.loop(blocks, [tile, words.constant(0.0)], block)
        some = b.zext(b.bitcast(words.is_nan(total), ir.IntType(words.lanes)), I64)
        with words.when(some, "!=", 0):
            b.store(words.count(1), words.pointer(noted, I64))


note_not_finite = vector_kernel(_write_note_not_finite)


def _write_prefetch_rows(words: Words, x, row_stride, row_bytes, row_numbers, first, rows):  # type: ignore[no-untyped-def]
    """``prefetch_rows``."""
    lines, last = words.quotient(row_bytes, LINE), words.builder.sub(row_bytes, words.count(1))
    for (row,) in _row_places(words, x, row_stride, row_numbers, first, rows, []):
        for (line,) in words.walk(lines, [row], [LINE]):
            words.prefetch(line)
        words.prefetch(words.offset(row, last))


_prefetch_rows = vector_kernel(_write_prefetch_rows)


@callee
def prefetch_rows(like, source, first, rows):  # type: ignore[no-untyped-def]
    """Begin to fetch rows first .. first + rows of a source into L2, unless each column lies apart."""
    itemsize = ITEM_SIZES[source.dtype_id]
    if source.column_stride == itemsize:
        place = source.x, source.row_stride, source.columns * itemsize
        _prefetch_rows(like, (*place, source.row_numbers, first, rows))


@ByAddress
def store_rows(out, stride, tile, columns, rows, height):  # type: ignore[no-untyped-def]
    """Write rows of a blocked matrix to a dense row-major one: ``store_rows`` of the contract (products.py)."""
    like = carray(out, (1,))
    write_rows(like, (np.int64(like.ctypes.data), stride, tile, height, columns, rows))
