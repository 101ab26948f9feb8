"""A shard of rows, tile after tile, through all layers and back: its own gradient, its own loss.

A tile's matrices lie one behind the other in a thread's own memory, at the plan's offsets; behind them come the column
sums, the rows' weights and the scratch.
"""

import numpy as np
from numba import carray

from fastae.kernels import layer
from fastae.kernels.compiler import ByAddress, callee, inlined
from fastae.kernels.job import (
    ADD_PULL_AT,
    BACKWARD_AT,
    CODE_LAYER,
    CODES,
    COLUMN_STRIDE,
    FIRST_ROW,
    FORWARD_AT,
    GRADIENT_AT,
    GRADIENTS,
    HEIGHT,
    INDEX,
    JOB,
    KIND,
    LAYERS,
    LOAD_AT,
    MISSING,
    MULTIPLE,
    NARROW_AT,
    NO_NOISE,
    NOISE,
    NOISE_LEVEL,
    ONES,
    PARAMETERS,
    PLAN_AT,
    PREPARE_AT,
    PROGRESS,
    PULL_AT,
    QUOTA,
    RESIDUAL_AT,
    ROW_STRIDE,
    ROWS,
    SAMPLE_WEIGHT,
    SCALE,
    SEED,
    SETTINGS,
    SHIFT,
    SIZE,
    SLOPES,
    SPARSE,
    SWAP,
    TOTALS,
    TURNED,
    WEIGHTS,
    WT,
    X,
)
from fastae.kernels.layout import (
    ACTIVATION,
    BIAS,
    COLUMN_SUMS,
    FAN_IN,
    FAN_OUT,
    IDENTITY,
    OUTPUT,
    PLAN,
    TRANSPOSED,
    WEIGHT,
)
from fastae.kernels.noise import corrupt_row, row_key, swapped
from fastae.kernels.partition import SHARDS_MOST, in_blocks, round_up
from fastae.kernels.rows import add_lines, load_rows, zero_lines
from fastae.kernels.simd import array_at, call_at, load_float64, load_int64
from fastae.kernels.target import LINE

WORK_MOST = 1 << 40  # elements: the length of a thread's memory is not checked

# Places in a thread's scratch, in lines after the tiles
LOSS, SPARE, LEVEL, CELL, SCRATCH = 0, 1, 3, 4, 5


@callee
def target_place(plan, height, lanes):  # type: ignore[no-untyped-def]
    """Where in a thread's `work` the clean copy of a corrupted tile begins; a spare tile follows it."""
    last = plan.shape[0] - 1
    outputs = round_up(plan[last, FAN_OUT], lanes)
    tiles, sums = plan[last, OUTPUT] + outputs, plan[last, COLUMN_SUMS] + outputs
    return tiles * height + sums + height + SCRATCH * lanes


@ByAddress
def load_tile(out, job_at, scratch, columns, place, first, rows, epoch):  # type: ignore[no-untyped-def]
    """Rows into work[place:], `out` being work, and zeros below them down to a whole register tile.

    Where cells may be missing, or noise is asked for, that holds the input and the rows as they are go to
    work[target_place:], which is where the scratch ends.
    """
    job = array_at(job_at, (JOB,), np.int64)
    height = job[HEIGHT]
    work = carray(out, (WORK_MOST,))
    size = work.itemsize
    lanes, base = LINE // size, np.int64(work.ctypes.data)
    spoilt = job[MISSING] != 0 or job[NOISE] != NO_NOISE
    to = scratch + SCRATCH * lanes if spoilt else place
    spare, cell = base + (scratch + SPARE * lanes) * size, scratch + CELL * lanes
    x, row_stride, column_stride, kind = job[X], job[ROW_STRIDE], job[COLUMN_STRIDE], job[KIND]
    index, shift, scale = job[INDEX], job[SHIFT], job[SCALE]
    load_rows(
        work,
        base + to * size,
        height,
        x,
        row_stride,
        column_stride,
        kind,
        columns,
        index,
        first,
        rows,
        shift,
        scale,
        spare,
    )
    whole = round_up(rows, job[MULTIPLE])
    if whole > rows:
        for j in range(in_blocks(columns, lanes)):
            below = (j * height + rows) * lanes
            zero_lines(work, (base + (to + below) * size, whole - rows))
            zero_lines(work, (base + (place + below) * size, whole - rows))
    if spoilt:
        level = load_float64(job[SETTINGS] + NOISE_LEVEL * 8) if job[NOISE] != NO_NOISE else 0.0
        work[scratch + LEVEL * lanes] = level
        for i in range(rows):
            row = load_int64(index + (first + i) * 8) if index != 0 else first + i
            key = row_key(job[SEED], epoch, job[FIRST_ROW] + row)
            corrupt_row(
                work,
                place + i * lanes,
                to + i * lanes,
                height,
                columns,
                key,
                job[NOISE],
                scratch + LEVEL * lanes,
            )
            if job[NOISE] == SWAP:
                for c in range(columns):
                    other = swapped(key, c, level, job[ROWS])
                    if other >= 0:
                        load_rows(
                            work,
                            base + cell * size,
                            1,
                            x + c * column_stride,
                            row_stride,
                            column_stride,
                            kind,
                            1,
                            index,
                            other,
                            1,
                            shift + c * 8 if shift != 0 else 0,
                            scale + c * 8 if shift != 0 else 0,
                            spare,
                        )
                        value = work[cell]
                        at = place + (c // lanes * height + i) * lanes + c % lanes
                        work[at] = value if value == value else 0.0


@callee
def load_input(like, job, job_at, base, scratch, columns, place, first, rows, epoch):  # type: ignore[no-untyped-def]
    """``load_tile``, in the form that products take; where in `work` the rows lie that the output is compared with.

    That is `place`, where the input is, unless it is corrupted or of another dtype. In memory behind target_place come
    a spare tile and, where rows lie in the lanes, one for the turned target.
    """
    height, size = job[HEIGHT], like.itemsize
    lanes = LINE // size
    blocks, whole = in_blocks(columns, lanes), round_up(rows, job[MULTIPLE])
    target, tile = scratch + SCRATCH * lanes, blocks * lanes * height
    spoilt, prepared = job[MISSING] != 0 or job[NOISE] != NO_NOISE, job[PREPARE_AT] != 0
    loaded = place
    if prepared:
        loaded = target + tile if spoilt else target
    call_at(job[LOAD_AT], (base, job_at, scratch, columns, loaded, first, rows, epoch))
    if prepared:
        call_at(job[PREPARE_AT], (base + place * size, base + loaded * size, whole, height, blocks))
    if job[TURNED] == 0:
        return target if spoilt or prepared else place
    if not spoilt:
        return place
    turned = target + 2 * tile
    call_at(job[PREPARE_AT], (base + turned * size, base + target * size, whole, height, blocks))
    return turned


@callee
def _load_weights(job, work, place, first, rows, whole):  # type: ignore[no-untyped-def]
    """The weights of a tile's rows, 1 by default, and 0 for those below them, from work[place] on; their sum."""
    for i in range(rows, whole):
        work[place + i] = 0
    if job[SAMPLE_WEIGHT] == 0:
        for i in range(rows):
            work[place + i] = 1
        return float(rows)
    total = 0.0
    for i in range(rows):
        row = first + i
        if job[INDEX] != 0:
            row = load_int64(job[INDEX] + row * 8)
        w = load_float64(job[SAMPLE_WEIGHT] + row * 8)
        work[place + i] = w
        total += w
    return total


@inlined
def forward_layers(like, job, plan, tiles, wide, rows, height, first, last):  # type: ignore[no-untyped-def]
    """Layers first .. last - 1 on a tile; the input of layer i lies where layer i - 1's output goes.

    The last one's output goes to `wide`, in the engine's dtype, unless that is 0.
    """
    parameters, weights, ones, size = job[PARAMETERS], job[WEIGHTS], job[ONES], like.itemsize
    for i in range(first, last):
        source = tiles + (plan[i - 1, OUTPUT] * height * size if i > 0 else 0)
        ends = wide != 0 and i == last - 1
        arguments = (
            wide if ends else tiles + plan[i, OUTPUT] * height * size,
            source,
            weights + plan[i, WEIGHT] * size,
            parameters + plan[i, BIAS] * size,
            ones + plan[i, COLUMN_SUMS] * size,
            plan[i, ACTIVATION],
            np.int64(ends),
            rows,
            height,
            plan[i, FAN_IN],
            plan[i, FAN_OUT],
        )
        call_at(job[FORWARD_AT], arguments)


@inlined
def _tile_gradient(
    like, job, plan, tiles, target, spare, sums, weight, loss, gradient, add, rows, whole, height
):  # type: ignore[no-untyped-def]
    """Loss and gradient of a tile of `rows` rows, computed as `whole`, into (`add`: onto) a shard's gradient.

    All layers are done already, but a linear last one. Deltas overwrite the activations they belong to. `spare` is a
    tile of codes; where products are narrow, the output of a last layer that is not linear comes in it.
    """
    parameters, transposed, narrow = job[PARAMETERS], job[WT], job[NARROW_AT] != 0
    size = like.itemsize
    lanes = LINE // size
    last = plan.shape[0] - 1
    top = tiles + plan[last, OUTPUT] * height * size
    top_sums = sums + plan[last, COLUMN_SUMS] * size
    linear = plan[last, ACTIVATION] == IDENTITY
    if linear:
        source = tiles + (plan[last - 1, OUTPUT] * height * size if last > 0 else 0)
        w, b = job[WEIGHTS] + plan[last, WEIGHT] * size, parameters + plan[last, BIAS] * size
        sizes = whole, height, plan[last, FAN_IN], plan[last, FAN_OUT]
        call_at(job[RESIDUAL_AT], (top, source, w, b, target, weight, top_sums, loss, *sizes))
    else:
        blocks = in_blocks(plan[last, FAN_OUT], lanes)
        wide = spare if narrow else top
        layer.output_delta(
            like, wide, target, weight, top_sums, loss, plan[last, ACTIVATION], whole, height, blocks
        )
        if narrow:
            call_at(job[NARROW_AT], (top, wide, whole, height, blocks))
    for i in range(last, -1, -1):
        fan_in, fan_out = plan[i, FAN_IN], plan[i, FAN_OUT]
        below = tiles + (plan[i - 1, OUTPUT] * height * size if i > 0 else 0)
        delta = tiles + plan[i, OUTPUT] * height * size
        dw = gradient + plan[i, WEIGHT] * size
        call_at(job[GRADIENT_AT], (dw, below, delta, add, rows, height, fan_in, fan_out))
        if i > 0:
            blocks = in_blocks(fan_in, lanes)
            sparse = job[SPARSE] != 0 and i - 1 == job[CODE_LAYER]
            if sparse and narrow:
                pull = spare, below, weight, job[SLOPES], whole, height, blocks
                call_at(job[PULL_AT], pull)
            elif sparse:
                layer.pull(like, spare, below, weight, job[SLOPES], whole, height, blocks)
            chained = (
                below,
                delta,
                transposed + plan[i, TRANSPOSED] * size,
                sums + plan[i - 1, COLUMN_SUMS] * size,
                plan[i - 1, ACTIVATION],
                whole,
                height,
                fan_in,
                fan_out,
            )
            call_at(job[BACKWARD_AT], chained)
            below_sums = sums + plan[i - 1, COLUMN_SUMS] * size
            if sparse and narrow:
                call_at(job[ADD_PULL_AT], (below, spare, below_sums, whole, height, blocks))
            elif sparse:
                layer.add_pull(like, below, spare, below_sums, whole, height, blocks)


@callee
def _add_codes(work, place, columns, weight_at, rows, height, sums):  # type: ignore[no-untyped-def]
    """sums, float64, gains the codes of a tile's rows, each times its row's weight."""
    lanes = LINE // work.itemsize
    for c in range(columns):
        column = place + c // lanes * height * lanes + c % lanes
        total = 0.0
        for i in range(rows):
            total += float(work[weight_at + i]) * float(work[column + i * lanes])
        sums[c] += total


@ByAddress
def shard_item(out, job_at, item, first, rows, epoch, me_at, code_phase):  # type: ignore[no-untyped-def]
    """Tiles of shard `item`, the rows first .. first + rows, from row me[PROGRESS] of it on, while the quota lasts.

    In the CODE phase only the sums of their codes, else their loss and gradient. `out` is the thread's work.
    """
    job = array_at(job_at, (JOB,), np.int64)
    plan = array_at(job[PLAN_AT], (job[LAYERS], PLAN), np.int64)
    me = array_at(me_at, (8,), np.int64)
    work = carray(out, (WORK_MOST,))
    totals = array_at(job[TOTALS], (SHARDS_MOST, 2), np.float64)
    codes = array_at(job[CODES], (SHARDS_MOST, plan[job[CODE_LAYER], FAN_OUT]), np.float64)
    size, height = work.itemsize, job[HEIGHT]
    lanes, base = LINE // size, np.int64(work.ctypes.data)
    features, code, last = plan[0, FAN_IN], job[CODE_LAYER], plan.shape[0] - 1
    outputs = round_up(plan[last, FAN_OUT], lanes)
    width = plan[last, COLUMN_SUMS] + outputs  # of all column sums
    sums_at = (plan[last, OUTPUT] + outputs) * height
    weight_at = sums_at + width
    scratch = weight_at + height
    loss_at = scratch + LOSS * lanes
    spare_at = target_place(plan, height, lanes) + round_up(features, lanes) * height
    narrow = job[NARROW_AT] != 0
    gradient_at = job[GRADIENTS] + item * job[SIZE] * size
    while me[QUOTA] > 0 and me[PROGRESS] < rows:
        row = first + me[PROGRESS]
        count = min(height, rows - me[PROGRESS])
        accumulate = 1 if me[PROGRESS] > 0 else 0
        if accumulate == 0:
            totals[item, 0] = 0.0
            totals[item, 1] = 0.0
            if code_phase:
                for c in range(codes.shape[1]):
                    codes[item, c] = 0.0
        compared_at = load_input(work, job, job_at, base, scratch, features, 0, row, count, epoch)
        whole = round_up(count, job[MULTIPLE])
        weights = _load_weights(job, work, weight_at, row, count, whole)
        place = plan[code, OUTPUT] * height
        layers, wide = code + 1, base + place * size
        if code_phase == 0:
            linear = plan[last, ACTIVATION] == IDENTITY
            layers = last if linear else last + 1
            wide = 0 if linear or not narrow else base + spare_at * size
        forward_layers(work, job, plan, base, wide, whole, height, 0, layers)
        if code_phase:
            _add_codes(work, place, plan[code, FAN_OUT], weight_at, count, height, codes[item])
            totals[item, 1] += weights
            me[PROGRESS] += count
            me[QUOTA] -= count * features
            continue
        zero_lines(work, (base + sums_at * size, width // lanes))
        zero_lines(work, (base + loss_at * size, 1))
        _tile_gradient(
            work,
            job,
            plan,
            base,
            base + compared_at * size,
            base + spare_at * size,
            base + sums_at * size,
            base + weight_at * size,
            base + loss_at * size,
            gradient_at,
            accumulate,
            count,
            whole,
            height,
        )
        for i in range(plan.shape[0]):
            db, sums = gradient_at + plan[i, BIAS] * size, base + (sums_at + plan[i, COLUMN_SUMS]) * size
            add_lines(work, (db, sums, in_blocks(plan[i, FAN_OUT], lanes), accumulate))
        loss = 0.0
        for c in range(lanes):
            loss += work[loss_at + c]
        totals[item, 0] += loss
        totals[item, 1] += weights
        me[PROGRESS] += count
        me[QUOTA] -= count * features
