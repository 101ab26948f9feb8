"""Inference: runs rows through a range of layers; writes each row's output or its reconstruction error.

Any thread computes any rows, since no row depends on another, and a row's result has the same bits in any tile. A tile
is what a thread claims at a time: loop 3 is here.
"""

import numpy as np

from fastae.kernels.compiler import ByAddress, callee, carray
from fastae.kernels.intrinsics import array_at, call_at, fetch_add, load_acquire, record_at
from fastae.kernels.job import CANCEL, ERRORS_TASK, INPUT, JOB, MEMBER, NEXT, OPEN
from fastae.kernels.layout import LAYER
from fastae.kernels.load import FETCHED_MOST, load_input, source_of
from fastae.kernels.rounding import round_up
from fastae.kernels.rows import ITEM_SIZES, prefetch_rows
from fastae.kernels.tile import forward_layers, output_at, tile_map


@callee
def _share_of_fetch(job, columns, first, layers):  # type: ignore[no-untyped-def]
    """The rows of the tile from row `first` on to fetch before each of `layers` layers; 0 if it is left alone."""
    rows = min(job.batch, job.rows - first)
    if rows <= 0 or rows * columns * ITEM_SIZES[job.dtype_id] > FETCHED_MOST:
        return 0
    return (rows + layers - 1) // layers


@ByAddress
def infer(out, job_at, control_at, me_at):  # type: ignore[no-untyped-def]
    """Claim job.batch rows at a time and run them through layers first_layer .. last_layer - 1, while the quota lasts.

    Writes their outputs to job.out or, for ERRORS_TASK, their errors.

    out          the thread's memory, mapped by TileMap        control_at   the control words of job.py
    job_at       JOB        me_at   MEMBER, this thread's
    """
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    plan = array_at(job.plan, (job.layers,), LAYER)
    work = carray(out, (1,))
    itemsize, height, start, last = work.itemsize, job.height, job.first_layer, job.last_layer - 1
    memory = tile_map(plan, height, np.int64(work.ctypes.data), itemsize)
    columns, features = plan[start].fan_in, plan[last].fan_out
    source = output_at(plan, start - 1, memory.tiles, height, itemsize)
    output = output_at(plan, last, memory.tiles, height, itemsize)
    while me.quota > 0:  # loop 3: rows first : first + rows of X
        if load_acquire(control_at + CANCEL) != 0:
            return
        first = fetch_add(control_at + NEXT, 1) * job.batch
        if first >= job.rows:
            return
        rows = min(job.batch, job.rows - first)
        target = load_input(itemsize, job, job_at, memory, height, columns, source, first, rows, 0)
        computed = round_up(rows, job.row_multiple)
        # What this thread claims next, most likely
        ahead = first + load_acquire(control_at + OPEN) * job.batch
        share = _share_of_fetch(job, columns, ahead, last + 1 - start)
        for i in range(start, last + 1):
            if share > 0:  # spread out, because few cache lines can be on their way at a time
                prefetch_rows(work, source_of(job, columns, INPUT), ahead, min(share, job.rows - ahead))
                ahead += share
            leaves_at = output if i == last else 0
            forward_layers(itemsize, job, plan, memory.tiles, leaves_at, computed, height, i, i + 1)
        if job.task == ERRORS_TASK:
            errors = job.out + first * 8, output, target, job.column_weight
            call_at(job.row_errors_at, (*errors, job.missing, features, rows, height))
        else:
            stride = job.out_stride
            call_at(job.store_rows_at, (job.out + first * stride, stride, output, features, rows, height))
        me.quota -= rows * columns
