"""Rows of X become a tile here: they are read, scaled, corrupted and converted to the form that products read.

How a row of any dtype and stride becomes lines is in rows.py, the noise in noise.py. A tile in lines is (blocks,
height, lanes).
"""

import numpy as np
from numba import carray

from fastae.kernels.compiler import ByAddress, callee
from fastae.kernels.job import JOB, NO_NOISE, SWAP
from fastae.kernels.layout import LAYER
from fastae.kernels.noise import corrupt_row, row_key, swapped
from fastae.kernels.partition import in_blocks, round_up
from fastae.kernels.rows import load_rows, zero_lines
from fastae.kernels.simd import array_at, call_at, load_float64, load_int64, record_at
from fastae.kernels.target import LINE
from fastae.kernels.tile import tile_map


@callee
def _row_weight(job, place):  # type: ignore[no-untyped-def]
    """The weight of the row at `place` of the rows that the steps walk through."""
    if job.sample_weight == 0:
        return 1.0
    row = load_int64(job.index + place * 8) if job.index != 0 else place
    return load_float64(job.sample_weight + row * 8)


@ByAddress
def load_tile(out, job_at, base, columns, first, rows, epoch):  # type: ignore[no-untyped-def]
    """Load rows first .. first + rows as lines, with zeros below them down to a whole register tile.

    out    lines (blocks, height, lanes): the input. If cells may be missing, or there is noise, this is the corrupted
           input, and the clean rows go to `clean` of the TileMap
    base   the address of the thread's memory
    """
    job = record_at(job_at, JOB)
    tile_at, size = carray(out, (1,)), carray(out, (1,)).itemsize
    dtype, to = tile_at.dtype, np.int64(tile_at.ctypes.data)
    memory = tile_map(array_at(job.plan, (job.layers,), LAYER), job.height, base, size)
    height, lanes = job.height, LINE // size
    corrupted = job.missing != 0 or job.noise != NO_NOISE
    clean = memory.clean if corrupted else to
    load_rows(
        tile_at,
        clean,
        height,
        job.x,
        job.row_stride,
        job.column_stride,
        job.kind,
        columns,
        job.index,
        first,
        rows,
        job.shift,
        job.scale,
        memory.gathered,
    )
    if job.sample_weight != 0:  # a row of weight 0 does not count, whatever it holds
        for i in range(rows):
            if _row_weight(job, first + i) == 0.0:
                for j in range(in_blocks(columns, lanes)):
                    zero_lines(tile_at, (clean + (j * height + i) * LINE, 1))
    computed = round_up(rows, job.row_multiple)
    if computed > rows:
        for j in range(in_blocks(columns, lanes)):
            below = (j * height + rows) * LINE
            zero_lines(tile_at, (clean + below, computed - rows))
            zero_lines(tile_at, (to + below, computed - rows))
    if corrupted:
        tile = array_at(to, (in_blocks(columns, lanes), height, lanes), dtype)
        level, cell = array_at(memory.level, (1,), dtype), array_at(memory.cell, (1,), dtype)
        level[0] = job.noise_level
        for i in range(rows):
            row = load_int64(job.index + (first + i) * 8) if job.index != 0 else first + i
            key = row_key(job.seed, epoch, job.first_row + row)
            corrupt_row(
                tile_at,
                to + i * LINE,
                clean + i * LINE,
                height,
                columns,
                key,
                job.noise,
                memory.level,
                job.missing,
            )
            if job.noise == SWAP:
                for c in range(columns):
                    other = swapped(key, c, job.noise_level, job.rows)
                    if other >= 0:
                        load_rows(
                            tile_at,
                            memory.cell,
                            1,
                            job.x + c * job.column_stride,
                            job.row_stride,
                            job.column_stride,
                            job.kind,
                            1,
                            job.index,
                            other,
                            1,
                            job.shift + c * 8 if job.shift != 0 else 0,
                            job.scale + c * 8 if job.shift != 0 else 0,
                            memory.gathered,
                        )
                        own, value = tile[c // lanes, i, c % lanes], cell[0]
                        if own != own:  # an error in the data, which no noise hides
                            continue
                        ignored = job.missing != 0 or _row_weight(job, other) == 0.0
                        tile[c // lanes, i, c % lanes] = 0.0 if value != value and ignored else value


@callee
def load_input(size, job, job_at, memory, columns, to, first, rows, epoch):  # type: ignore[no-untyped-def]
    """Load rows first .. first + rows as a tile of the form; return the address of the target.

    The target is what the network's output is compared with: the clean rows, as ``residual`` reads them. It is the
    input itself unless that is corrupted, or lies in another form than the target should.

    memory   TileMap of the thread's memory
    to       tile (rows, columns): written
    """
    height = job.height
    blocks, computed = in_blocks(columns, LINE // size), round_up(rows, job.row_multiple)
    corrupted, converted = job.missing != 0 or job.noise != NO_NOISE, job.from_lines_at != 0
    loaded = to
    if converted:
        loaded = memory.spare if corrupted else memory.clean
    call_at(job.load_at, (loaded, job_at, memory.tiles, columns, first, rows, epoch))
    if converted:
        call_at(job.from_lines_at, (to, loaded, computed, height, blocks))
    if job.target_in_form == 0:
        return memory.clean if corrupted or converted else to
    if not corrupted:
        return to
    call_at(job.from_lines_at, (memory.target, memory.clean, computed, height, blocks))
    return memory.target


@callee
def load_weights(job, weight, first, rows, computed):  # type: ignore[no-untyped-def]
    """Set the weights of a tile's rows, 1 by default, and 0 for the rows below them; return the sum.

    weight   (height,): written
    """
    for i in range(rows, computed):
        weight[i] = 0
    if job.sample_weight == 0:
        for i in range(rows):
            weight[i] = 1
        return float(rows)
    total = 0.0
    for i in range(rows):
        w = _row_weight(job, first + i)
        weight[i] = w
        total += w
    return total
