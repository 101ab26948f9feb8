"""A shard of a step's rows: its own gradient and loss, or the sum of its codes, computed tile by tile.

The rows of a shard are in split.py, the layers of a tile in tile.py. Loop 3 is here (step.py numbers the loops):

    loop 3    the tiles of a shard        rows row : row + count of X, count <= height
"""

import numpy as np

from fastae.kernels.compiler import ByAddress, callee, carray, inlined
from fastae.kernels.intrinsics import array_at, record_at
from fastae.kernels.job import JOB, MEMBER
from fastae.kernels.layout import LAYER, LINE
from fastae.kernels.lines import add_lines, zero_lines
from fastae.kernels.load import load_input, load_target, load_weights
from fastae.kernels.rounding import in_blocks, round_up
from fastae.kernels.split import SHARDS_MOST, epoch_of, step_of
from fastae.kernels.tile import (
    backward_layers,
    forward_layers,
    lane_sum,
    layers_of_loss,
    output_at,
    store_input_delta,
    tile_map,
)


@callee
def _add_codes(code, row_weight, columns, rows, sums):  # type: ignore[no-untyped-def]
    """Add the codes of a tile's rows, each times its row's weight, to `sums`.

    code   blocked (blocks, height, lanes)      row_weight  (height,)      sums  float64 (columns,)
    """
    lanes = code.shape[2]
    for c in range(columns):
        total = 0.0
        for i in range(rows):
            total += float(row_weight[i]) * float(code[c // lanes, i, c % lanes])
        sums[c] += total


@inlined
def _add_gradient(work, job, job_at, plan, memory, target, gradient, accumulate, first, rows, computed):  # type: ignore[no-untyped-def]
    """Store the gradient of a tile as that of its shard, or add it if `accumulate` is 1; return the tile's loss.

    Forward is complete, except for a linear last layer. The arguments are those of ``backward_layers``.
    """
    itemsize = work.itemsize
    lanes = LINE // itemsize
    zero_lines(work, (memory.sums, (memory.row_weight - memory.sums) // LINE))
    zero_lines(work, (memory.loss, 1))
    height, tiles = job.height, memory.tiles
    backward_layers(
        work,
        job,
        job_at,
        plan,
        memory,
        tiles,
        target,
        gradient,
        accumulate,
        first,
        rows,
        computed,
        height,
    )
    if job.input_delta != 0:
        store_input_delta(itemsize, job, plan, memory, tiles, first, rows, computed, height)
    for i in range(plan.shape[0]):
        db, sums = gradient + plan[i].bias * itemsize, memory.sums + plan[i].column_sums * itemsize
        add_lines(work, (db, sums, in_blocks(plan[i].fan_out, lanes), accumulate))
    return lane_sum(array_at(memory.loss, (lanes,), work.dtype))


@ByAddress
def shard_item(out, job_at, item, first, rows, round_, me_at, only_codes):  # type: ignore[no-untyped-def]
    """Process shard `item`, rows first .. first + rows, from its row me.progress on, while the quota lasts.

    If `only_codes` is 1 (phase CODE), this adds to the shard's sum of codes and to its sum of row weights; else (phase
    ROWS) to its gradient, loss and sum of row weights.

    out      the thread's memory, mapped by TileMap
    job_at   JOB        me_at   MEMBER, this thread's
    """
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    plan = array_at(job.plan, (job.layers,), LAYER)
    work = carray(out, (1,))
    itemsize, height, code = work.itemsize, job.height, job.code_layer
    memory = tile_map(plan, height, np.int64(work.ctypes.data), itemsize)
    row_weight = array_at(memory.row_weight, (height,), work.dtype)
    totals = array_at(job.totals, (SHARDS_MOST, 2), np.float64)
    epoch = epoch_of(job, step_of(job, round_))
    codes = array_at(job.codes, (SHARDS_MOST, plan[code].fan_out), np.float64)
    outputs = plan[plan.shape[0] - 1].fan_out
    features, gradient = plan[0].fan_in, job.gradients + item * job.n_parameters * itemsize
    # The layers to compute: up to the code, which leaves the network; or all that backward_layers needs
    code_at = output_at(plan, code, memory.tiles, height, itemsize)
    layers, leaves_at = (code + 1, code_at) if only_codes else layers_of_loss(job, plan, memory)
    # Kept in registers until the loop ends: `totals` of several shards lie in one cache line.
    loss, total_weight = totals[item, 0], totals[item, 1]
    if me.progress == 0:
        loss, total_weight = 0.0, 0.0
        if only_codes:
            for c in range(codes.shape[1]):
                codes[item, c] = 0.0
    while me.quota > 0 and me.progress < rows:  # loop 3: rows row : row + count of X
        row, count = first + me.progress, min(height, rows - me.progress)
        computed = round_up(count, job.row_multiple)
        target = load_input(itemsize, job, job_at, memory, height, features, memory.tiles, row, count, epoch)
        total_weight += load_weights(job, row_weight, row, count, computed)
        forward_layers(itemsize, job, plan, memory.tiles, leaves_at, computed, height, 0, layers)
        if only_codes:
            columns = plan[code].fan_out
            shape = in_blocks(columns, LINE // itemsize), height, LINE // itemsize
            _add_codes(array_at(code_at, shape, work.dtype), row_weight, columns, count, codes[item])
        else:
            accumulate = np.int64(me.progress > 0)
            if job.y != 0:
                target = load_target(itemsize, job, job_at, memory, row_weight, height, outputs, row, count)
            loss += _add_gradient(
                work, job, job_at, plan, memory, target, gradient, accumulate, row, count, computed
            )
        me.progress += count
        me.quota -= count * features
    totals[item, 0], totals[item, 1] = loss, total_weight
