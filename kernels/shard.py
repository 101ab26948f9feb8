"""A shard of a step's rows: its own gradient and loss, or the sum of its codes, computed tile by tile.

The rows of a shard are in partition.py, the layers of a tile in tile.py. Loop 3 is here (step.py numbers the loops):

    loop 3    the tiles of a shard        rows row : row + count of X, count <= height
"""

import numpy as np
from numba import carray

from fastae.kernels.compiler import ByAddress, callee
from fastae.kernels.job import JOB, MEMBER
from fastae.kernels.layout import IDENTITY, LAYER
from fastae.kernels.load import load_input, load_weights
from fastae.kernels.partition import SHARDS_MOST, in_blocks, round_up
from fastae.kernels.rows import add_lines, zero_lines
from fastae.kernels.simd import array_at, record_at
from fastae.kernels.target import LINE
from fastae.kernels.tile import backward_layers, forward_layers, output_at, tile_map


@callee
def _add_codes(code, weight, columns, rows, sums):  # type: ignore[no-untyped-def]
    """Add the codes of a tile's rows, each times its row's weight, to `sums`.

    code   lines (blocks, height, lanes)      weight  (height,)      sums  float64 (columns,)
    """
    lanes = code.shape[2]
    for c in range(columns):
        total = 0.0
        for i in range(rows):
            total += float(weight[i]) * float(code[c // lanes, i, c % lanes])
        sums[c] += total


@ByAddress
def shard_item(out, job_at, item, first, rows, epoch, me_at, code_phase):  # type: ignore[no-untyped-def]
    """Process shard `item`, rows first .. first + rows, from its row me.progress on, while the quota lasts.

    In the phase CODE this adds to the shard's sum of codes and to its sum of row weights; in the phase SHARD, to its
    gradient, loss and sum of row weights.

    out      the thread's memory, mapped by TileMap
    job_at   JOB        me_at   MEMBER, this thread's
    """
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    plan = array_at(job.plan, (job.layers,), LAYER)
    work = carray(out, (1,))
    size, height, code, last = work.itemsize, job.height, job.code_layer, plan.shape[0] - 1
    lanes = LINE // size
    memory = tile_map(plan, height, np.int64(work.ctypes.data), size)
    weight, losses = (
        array_at(memory.weight, (height,), work.dtype),
        array_at(memory.loss, (lanes,), work.dtype),
    )
    totals = array_at(job.totals, (SHARDS_MOST, 2), np.float64)
    codes = array_at(job.codes, (SHARDS_MOST, plan[code].fan_out), np.float64)
    features, gradient = plan[0].fan_in, job.gradients + item * job.size * size
    while me.quota > 0 and me.progress < rows:  # loop 3: rows row : row + count of X
        row, count = first + me.progress, min(height, rows - me.progress)
        computed = round_up(count, job.row_multiple)
        accumulate = 1 if me.progress > 0 else 0
        if accumulate == 0:
            totals[item, 0] = 0.0
            totals[item, 1] = 0.0
            if code_phase:
                for c in range(codes.shape[1]):
                    codes[item, c] = 0.0
        target = load_input(size, job, job_at, memory, features, memory.tiles, row, count, epoch)
        totals[item, 1] += load_weights(job, weight, row, count, computed)
        me.progress += count
        me.quota -= count * features
        code_at = output_at(plan, code, memory.tiles, height, size)
        layers, leaves_at = code + 1, code_at
        if code_phase == 0:
            # `residual` computes a linear last layer. A nonlinear one leaves the network, for cost.output_delta.
            linear = plan[last].activation == IDENTITY
            layers = last if linear else last + 1
            leaves_at = 0 if linear or job.from_lines_at == 0 else memory.spare
        forward_layers(size, job, plan, memory.tiles, leaves_at, computed, height, 0, layers)
        if code_phase:
            columns = plan[code].fan_out
            lines = array_at(code_at, (in_blocks(columns, lanes), height, lanes), work.dtype)
            _add_codes(lines, weight, columns, count, codes[item])
            continue
        zero_lines(work, (memory.sums, (memory.weight - memory.sums) // LINE))
        zero_lines(work, (memory.loss, 1))
        backward_layers(work, job, plan, memory, target, gradient, accumulate, count, computed, height)
        for i in range(plan.shape[0]):
            db, sums = gradient + plan[i].bias * size, memory.sums + plan[i].column_sums * size
            add_lines(work, (db, sums, in_blocks(plan[i].fan_out, lanes), accumulate))
        loss = 0.0
        for c in range(lanes):
            loss += losses[c]
        totals[item, 0] += loss
