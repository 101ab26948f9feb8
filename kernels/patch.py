"""A patch of the weights: its gradient over all rows of a slab and, after the last slab, its update.

What a patch covers is in split.py; the lowest patches of a layer include their columns' biases.
"""

import numpy as np

from fastae.kernels.compiler import ByAddress, callee, carray
from fastae.kernels.intrinsics import array_at, call_at, record_at
from fastae.kernels.job import JOB, NONE, ROWS
from fastae.kernels.layout import LAYER, LINE
from fastae.kernels.lines import add_lines, zero_lines
from fastae.kernels.optimizer import add_up
from fastae.kernels.rounding import in_blocks, round_up
from fastae.kernels.split import is_last_round, items_of, patch, rows_in_round, step_of
from fastae.kernels.stretch import gradient_factor, penalise_and_update, prepare, zero_sums
from fastae.kernels.tile import output_at


@callee
def _finish(job, job_at, total, first, step, item):  # type: ignore[no-untyped-def]
    """Update the elements of the flat buffers from `first` on, whose gradient `total` is a sum over all rows.

    They are a part of patch `item`. `total` becomes their gradient.
    """
    factor = gradient_factor(job, step)
    add_up(total, array_at(np.int64(total.ctypes.data), (1, total.size), total.dtype), 1, 0, factor)
    penalise_and_update(job, job_at, total, first, step, factor, item)


@ByAddress
def patch_item(out, job_at, item, round_):  # type: ignore[no-untyped-def]
    """Compute the gradient of patch `item` over the rows of a round, or add it to that of the rounds before.

    After the last round of a step, update its parameters and, unless this is the last step, W and W'.

    out      the thread's memory, (elements of the patch,): holds the gradient, unless the caller gets it, or it is
             added up over several rounds or clipped
    job_at   JOB
    """
    job = record_at(job_at, JOB)
    plan = array_at(job.plan, (job.layers,), LAYER)
    work = carray(out, (1,))
    itemsize, height, step = work.itemsize, job.slab_height, step_of(job, round_)
    lanes, block = LINE // itemsize, height * LINE  # bytes of a block of a slab
    layer, top, bottom, left, right = patch(plan, item, lanes)
    this, depth = plan[layer], in_blocks(plan[layer].fan_in, lanes)
    fan_out, square = min(right * lanes, this.fan_out) - left * lanes, lanes * lanes
    is_first, is_last = round_ % job.slabs == 0, is_last_round(job, round_)
    clipped = job.clip_norm > 0
    in_place = step + 1 == job.steps or not (is_first and is_last) or clipped
    _, rows = rows_in_round(job, round_)
    a = output_at(plan, layer - 1, job.kept, height, itemsize)
    deltas = job.kept if layer + 1 == plan.shape[0] else job.deltas
    delta = output_at(plan, layer, deltas, height, itemsize) + left * block
    fan_in = min(bottom * lanes, this.fan_in) - top * lanes
    if in_place:
        dw, dw_rows = job.gradient + (this.weight + (left * depth + top) * square) * itemsize, depth * lanes
    else:
        dw, dw_rows = np.int64(work.ctypes.data), (bottom - top) * lanes
        for j in range(right - left):  # the padding, which products need not write
            zero_lines(work, (dw + (j * dw_rows + fan_in) * LINE, dw_rows - fan_in))
    sizes = rows, height, dw_rows, fan_in, fan_out
    call_at(job.gradient_at, (dw, a + top * block, delta, np.int64(not is_first), *sizes))
    if is_last:
        zero_sums(job, work, item)
        for j in range(left, right):
            total = array_at(dw + (j - left) * dw_rows * LINE, ((bottom - top) * square,), work.dtype)
            first = j * depth + top
            _finish(job, job_at, total, this.weight + first * square, step, item)
            if job.optimizer != NONE and not clipped and step + 1 < job.steps:
                prepare(job, plan, itemsize, layer, first, first + bottom - top)
    if bottom == depth:
        first = this.bias + left * lanes
        db = job.gradient + first * itemsize if in_place else np.int64(work.ctypes.data)
        last = plan[plan.shape[0] - 1]
        columns = last.column_sums + round_up(last.fan_out, lanes)
        sums = job.band_sums + (this.column_sums + left * lanes) * itemsize
        for band in range(items_of(job, round_, ROWS)):
            accumulate = np.int64(band > 0 or not is_first)
            add_lines(work, (db, sums + band * columns * itemsize, right - left, accumulate))
        if is_last:
            _finish(job, job_at, array_at(db, ((right - left) * lanes,), work.dtype), first, step, item)
