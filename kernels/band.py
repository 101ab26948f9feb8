"""A band of a step's rows: through the network and back, with all activations and deltas kept for the patches.

The rows of a band are in split.py, the layers in tile.py. A band is part of a slab, whose memory all threads share.
"""

import numpy as np

from fastae.kernels.compiler import ByAddress, carray
from fastae.kernels.intrinsics import array_at, record_at
from fastae.kernels.job import JOB, MEMBER
from fastae.kernels.layout import LAYER, LINE
from fastae.kernels.lines import zero_lines
from fastae.kernels.load import load_input, load_target, load_weights
from fastae.kernels.rounding import round_up
from fastae.kernels.split import ROWS_ITEMS_MOST, epoch_of, rows_in_round, step_of
from fastae.kernels.tile import (
    TileMap,
    backward_layers,
    forward_layers,
    lane_sum,
    layers_of_loss,
    store_input_delta,
    tile_map,
)


@ByAddress
def band_item(out, job_at, item, first, rows, round_, me_at):  # type: ignore[no-untyped-def]
    """Process band `item`, rows first .. first + rows, unless the quota is used up; sets me.progress.

    Writes the band's part of the slab, its column sums of deltas, its loss and its sum of row weights.

    out      the thread's memory, mapped by TileMap
    job_at   JOB        me_at   MEMBER, this thread's
    """
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    if me.quota <= 0:
        return
    plan = array_at(job.plan, (job.layers,), LAYER)
    work = carray(out, (1,))
    itemsize, height, features = work.itemsize, job.slab_height, plan[0].fan_in
    own = tile_map(plan, job.height, np.int64(work.ctypes.data), itemsize)
    slab = tile_map(plan, height, job.kept, itemsize)
    sums_bytes = own.row_weight - own.sums
    # Bytes above the band's first row in a stored matrix, and in a blocked one
    above = first - rows_in_round(job, round_)[0]
    stored, blocked = above * job.stored_row, above * LINE
    memory = TileMap(
        tiles=slab.tiles + stored,
        sums=job.band_sums + item * sums_bytes,
        row_weight=own.row_weight,
        loss=own.loss,
        gathered=own.gathered,
        level=own.level,
        cell=own.cell,
        clean=slab.clean + blocked,
        spare=slab.spare + blocked,
        target=slab.target + stored,
    )
    zero_lines(work, (memory.sums, sums_bytes // LINE))
    zero_lines(work, (memory.loss, 1))
    computed, epoch = round_up(rows, job.row_multiple), epoch_of(job, step_of(job, round_))
    totals = array_at(job.totals, (ROWS_ITEMS_MOST, 2), np.float64)
    row_weight = array_at(memory.row_weight, (job.height,), work.dtype)
    target = load_input(itemsize, job, job_at, memory, height, features, memory.tiles, first, rows, epoch)
    totals[item, 1] = load_weights(job, row_weight, first, rows, computed)
    if job.y != 0:
        outputs = plan[plan.shape[0] - 1].fan_out
        target = load_target(itemsize, job, job_at, memory, row_weight, height, outputs, first, rows)
    last, leaves_at = layers_of_loss(job, plan, memory)
    forward_layers(itemsize, job, plan, memory.tiles, leaves_at, computed, height, 0, last)
    deltas = job.deltas + stored
    backward_layers(work, job, job_at, plan, memory, deltas, target, 0, 0, first, rows, computed, height)
    if job.input_delta != 0:
        store_input_delta(itemsize, job, plan, memory, deltas, first, rows, computed, height)
    totals[item, 0] = lane_sum(array_at(memory.loss, (LINE // itemsize,), work.dtype))
    me.progress = rows
    me.quota -= rows * features
