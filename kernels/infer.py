"""Inference: runs rows through a range of layers; writes each row's output or its reconstruction error.

Any thread computes any rows, since no row depends on another. A tile is what a thread claims at a time: loop 3 is here.
"""

import numpy as np
from numba import carray

from fastae.kernels.compiler import ByAddress
from fastae.kernels.cost import row_errors
from fastae.kernels.job import CANCEL, ERRORS_TASK, JOB, MEMBER, NEXT
from fastae.kernels.layout import LAYER
from fastae.kernels.load import load_input
from fastae.kernels.rows import store_rows
from fastae.kernels.simd import array_at, fetch_add, load_acquire, record_at
from fastae.kernels.split import in_blocks, round_up
from fastae.kernels.target import LINE
from fastae.kernels.tile import forward_layers, output_at, tile_map


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
    lanes = LINE // itemsize
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
        forward_layers(itemsize, job, plan, memory.tiles, output, computed, height, start, last + 1)
        if job.task == ERRORS_TASK:
            shape = in_blocks(features, lanes), height, lanes
            row_errors(
                job,
                array_at(output, shape, work.dtype),
                array_at(target, shape, work.dtype),
                features,
                first,
                rows,
            )
        else:
            stride = job.out_stride
            store_rows(work, job.out + first * stride, stride, output, height, features, rows)
        me.quota -= rows * columns
