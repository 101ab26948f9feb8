"""Rows of X become a tile here: they are read, scaled, corrupted and converted to the form that products read.

How a row of any dtype and stride becomes lines is in rows.py, the noise in noise.py. A blocked tile is (blocks,
height, lanes).
"""

from typing import NamedTuple

import numpy as np

from fastae.kernels.compiler import ByAddress, callee, carray, inlined
from fastae.kernels.intrinsics import array_at, call_at, load_float64, load_int64, record_at
from fastae.kernels.job import GIVEN, INPUT, JOB, NO_NOISE, STEPS_TASK, SWAP, TARGET
from fastae.kernels.layout import LINE
from fastae.kernels.lines import zero_lines
from fastae.kernels.noise import corrupt_row, row_key, swapped
from fastae.kernels.rounding import in_blocks, round_up
from fastae.kernels.rows import (
    ITEM_SIZES,
    Source,
    column_of,
    is_plain,
    load_rows,
    note_not_finite,
    prefetch_rows,
    row_number,
)


class _Memory(NamedTuple):
    """The addresses of those arrays of a TileMap that rows are loaded with."""

    clean: int
    gathered: int
    level: int
    cell: int


FETCHED_MOST = 160 << 10  # bytes of the next tile's rows that are fetched into L2
AHEAD_MOST = 256 << 10  # bytes of a batch whose rows are fetched a step ahead: they stay in L2 until then


@callee
def _is_corrupted(job):  # type: ignore[no-untyped-def]
    """Whether the network's input differs from the rows that its output is compared with."""
    return job.missing != 0 or job.noise != NO_NOISE


@callee
def source_of(job, columns, matrix):  # type: ignore[no-untyped-def]
    """The Source that a job describes: for INPUT, X or the codes to decode; for TARGET, Y; or the GIVEN_CODE."""
    x, row_stride, column_stride, dtype_id = job.x, job.row_stride, job.column_stride, job.dtype_id
    shift, scale = job.shift, job.scale
    if matrix == TARGET:
        x, row_stride, column_stride, dtype_id = job.y, job.y_row_stride, job.y_column_stride, job.y_dtype_id
        shift, scale = job.y_shift, job.y_scale
    elif matrix != INPUT:
        x, row_stride, column_stride = job.given_code, job.given_row_stride, job.given_column_stride
        dtype_id, shift, scale = job.given_dtype_id, 0, 0
    return Source(
        x=x,
        columns=columns,
        row_stride=row_stride,
        column_stride=column_stride,
        dtype_id=dtype_id,
        row_numbers=job.index,
        shift=shift,
        scale=scale,
    )


@callee
def _prefetch_next(like, job, source, first, rows):  # type: ignore[no-untyped-def]
    """Begin to fetch the rows of a step that this thread loads after rows first .. first + rows.

    A thread processes the same part of each batch. The rows in the same place of the next batch are fetched if those
    of a whole batch stay in the cache, else the rows that follow.
    """
    row_bytes = source.columns * ITEM_SIZES[source.dtype_id]
    first += job.batch if job.batch * row_bytes <= AHEAD_MOST else rows
    rows = min(rows, job.orders * job.rows - first)
    if rows > 0 and rows * row_bytes <= FETCHED_MOST:
        prefetch_rows(like, source, first, rows)


@callee
def _row_weight(job, i):  # type: ignore[no-untyped-def]
    """The weight of row i of the rows that the steps walk through."""
    if job.sample_weight == 0:
        return 1.0
    row = load_int64(job.index + i * 8) if job.index != 0 else i
    return load_float64(job.sample_weight + row * 8)


@inlined
def _zero_rows(like, tile_at, height, columns, first, rows):  # type: ignore[no-untyped-def]
    """Write zeros to rows first .. first + rows of a blocked tile; `like` is an array of its dtype."""
    for j in range(in_blocks(columns, LINE // like.itemsize)):
        zero_lines(like, (tile_at + (j * height + first) * LINE, rows))


@inlined
def _swap_cells(like, job, memory, height, source, row_at, key, epoch_first):  # type: ignore[no-untyped-def]
    """Replace each cell of a row of the input, with probability noise_level, by that of another row.

    A missing cell, or one of a row of weight 0, is swapped in as 0 if it is NaN. Any other NaN is an error in the data:
    it stays where it is, and is swapped in, so that the loss is NaN.

    memory   _Memory      source   Source: X
    row_at   the address of the row's first line in (blocks, height, lanes); `like` is an array of their dtype
    key      the row's, by ``row_key``
    epoch_first   the first of the rows that this epoch walks through
    """
    lanes = LINE // like.itemsize
    replacement = array_at(memory.cell, (1,), like.dtype)
    for c in range(source.columns):
        other = swapped(key, c, job.noise_level, job.rows)
        if other >= 0:
            row = epoch_first + other
            load_rows(like, memory.cell, 1, column_of(source, c), row, 1, memory.gathered)
            cell_at = row_at + c // lanes * height * LINE + c % lanes * like.itemsize
            cell, value = array_at(cell_at, (1,), like.dtype), replacement[0]
            if cell[0] == cell[0]:
                ignored = value != value and (job.missing != 0 or _row_weight(job, row) == 0.0)
                cell[0] = 0.0 if ignored else value


@inlined
def _corrupt(like, job, memory, height, source, input_at, first, rows, epoch):  # type: ignore[no-untyped-def]
    """Write the input, rows first .. first + rows of X, from the clean rows in `memory`.

    memory     _Memory      source   Source: X
    input_at   the address of blocked (blocks, height, lanes); `like` is an array of their dtype
    """
    array_at(memory.level, (1,), like.dtype)[0] = job.noise_level
    for i in range(rows):
        key = row_key(job.seed, epoch, job.first_row + row_number(source, first + i))
        row_at, clean_at = input_at + i * LINE, memory.clean + i * LINE
        corrupt_row(like, row_at, clean_at, height, source.columns, key, job.noise, memory.level, job.missing)
        if job.noise == SWAP:
            _swap_cells(like, job, memory, height, source, row_at, key, first - first % job.rows)


@ByAddress
def load_tile(out, job_at, matrix, by_form, clean, gathered, height, columns, first, rows, epoch):  # type: ignore[no-untyped-def]
    """Load rows first .. first + rows as a blocked tile, with zeros below them down to a whole register tile.

    out    blocked (blocks, height, lanes): the rows of `matrix`. If it is INPUT and cells may be missing, or there is
           noise, this is the corrupted input, and the clean rows go to `clean`. If `by_form` is 1, it is as the form
           stores it, read by the form's ``from_rows``: no cell is scaled or set to zero
    clean, gathered   addresses of these arrays of a TileMap; the lines behind `gathered` are those of the TileMap, too
    """
    job, like = record_at(job_at, JOB), carray(out, (1,))
    input_at = np.int64(like.ctypes.data)
    memory = _Memory(clean, gathered, gathered + 2 * LINE, gathered + 3 * LINE)
    source = source_of(job, columns, matrix)
    corrupted = matrix == INPUT and _is_corrupted(job)
    clean_at = memory.clean if corrupted else input_at
    if by_form:
        place = source.x, source.row_stride, source.row_numbers
        call_at(job.from_rows_at, (input_at, *place, first, rows, height, columns))
    else:
        load_rows(like, clean_at, height, source, first, rows, memory.gathered)
    if job.not_finite != 0:  # of a job without Y
        blocks = in_blocks(columns, LINE // like.itemsize)
        note_not_finite(like, (job.not_finite, clean_at, height, blocks, rows, job.missing))
    if job.task == STEPS_TASK:
        _prefetch_next(like, job, source, first, rows)
    if job.sample_weight != 0:  # a row of weight 0 does not count, whatever it holds
        for i in range(rows):
            if _row_weight(job, first + i) == 0.0:
                _zero_rows(like, clean_at, height, columns, i, 1)
    below = round_up(rows, job.row_multiple) - rows
    if below > 0:
        _zero_rows(like, clean_at, height, columns, rows, below)
    if corrupted:
        if below > 0:
            _zero_rows(like, input_at, height, columns, rows, below)
        _corrupt(like, job, memory, height, source, input_at, first, rows, epoch)


@callee
def _is_read_by_form(job, source, itemsize, rows, computed):  # type: ignore[no-untyped-def]
    """Whether the form's ``from_rows`` may read rows of a source: whole register tiles, with elements as they are.

    Where ``residual`` takes a blocked target, rows have to be blocked anyway.
    """
    in_form = job.from_rows_at != 0 and job.target_in_form != 0
    untouched = job.sample_weight == 0 and job.not_finite == 0
    return in_form and is_plain(source, itemsize) and untouched and rows == computed


@callee
def load_input(itemsize, job, job_at, memory, height, columns, input_at, first, rows, epoch):  # type: ignore[no-untyped-def]
    """Load rows first .. first + rows as a matrix of the form; return the address of the target.

    The target is what the network's output is compared with: the clean rows, as ``residual`` reads them. It is the
    input itself unless that is corrupted, or lies in another form than the target should.

    memory     TileMap of tiles that are `height` rows high
    input_at   where the matrix (rows, columns) is to be written
    """
    blocks, computed = in_blocks(columns, LINE // itemsize), round_up(rows, job.row_multiple)
    corrupted, converted = _is_corrupted(job), job.from_blocked_at != 0
    by_form = not corrupted and _is_read_by_form(
        job, source_of(job, columns, INPUT), itemsize, rows, computed
    )
    loaded = input_at
    if converted and not by_form:
        loaded = memory.spare if corrupted else memory.clean
    matrix = loaded, job_at, INPUT, np.int64(by_form)
    call_at(job.load_at, (*matrix, memory.clean, memory.gathered, height, columns, first, rows, epoch))
    if converted and not by_form:
        call_at(job.from_blocked_at, (input_at, loaded, computed, height, blocks))
    if job.target_in_form == 0:
        return memory.clean if corrupted or converted else input_at
    if not corrupted:
        return input_at
    call_at(job.from_blocked_at, (memory.target, memory.clean, computed, height, blocks))
    return memory.target


@callee
def load_target(itemsize, job, job_at, memory, row_weight, height, columns, first, rows):  # type: ignore[no-untyped-def]
    """Load rows first .. first + rows of Y, after ``load_input`` and ``load_weights``; return their address.

    They are as ``residual`` reads them or, for GIVEN, blocked. If a cell is NaN and may not be, the first row's weight
    becomes NaN, and so do the loss and the gradient.

    memory   TileMap of tiles that are `height` rows high      row_weight   (rows,)
    """
    blocks, computed = in_blocks(columns, LINE // itemsize), round_up(rows, job.row_multiple)
    in_form = job.target_in_form != 0 and job.loss != GIVEN  # GIVEN: a derivative, read blocked
    by_form = in_form and _is_read_by_form(job, source_of(job, columns, TARGET), itemsize, rows, computed)
    loaded = memory.target if by_form else memory.clean
    matrix = loaded, job_at, TARGET, np.int64(by_form)
    call_at(job.load_at, (*matrix, memory.clean, memory.gathered, height, columns, first, rows, 0))
    if job.loss == GIVEN:
        return loaded
    if job.missing == 0:
        noted = array_at(memory.gathered, (1,), np.int64)
        noted[0] = 0
        if by_form:  # the stored matrix (columns, height), as blocks of height / lanes lines
            lanes = LINE // itemsize
            lines = height // lanes, columns, rows // lanes
        else:
            lines = height, blocks, rows
        note_not_finite(row_weight, (memory.gathered, loaded, *lines, 0))
        if noted[0] != 0:
            row_weight[0] = np.nan
    if by_form or not in_form:
        return loaded
    call_at(job.from_blocked_at, (memory.target, memory.clean, computed, height, blocks))
    return memory.target


@callee
def load_weights(job, row_weight, first, rows, computed):  # type: ignore[no-untyped-def]
    """Set the weights of a tile's rows, 1 by default, and 0 for the rows below them; return the sum.

    row_weight   (height,): written
    """
    for i in range(rows, computed):
        row_weight[i] = 0
    if job.sample_weight == 0:
        for i in range(rows):
            row_weight[i] = 1
        return float(rows)
    total = 0.0
    for i in range(rows):
        weight = _row_weight(job, first + i)
        row_weight[i] = weight
        total += weight
    return total
