"""Gradient steps by a team of threads: a tile through all layers, a shard tile after tile, shards into a step.

Each thread of a team makes one call, ``run``, on the same job. A step has up to four phases, each a number of items
that threads claim, each its own first and then what others have left:

    TRANSPOSE   one stretch of the flat buffers: W' of its weights, or both as bfloat16; only in a job's first step
    CODE        one shard of the rows: the sum of its codes; only where the mean code has a cost
    SHARD       one shard of the rows: its own gradient, its own loss
    UPDATE      one stretch of the flat buffers: shards added in a fixed order, then the optimizer, then W'

What an item computes depends on the job alone, never on who claims it, so the bits are the same for any number of
threads, and a thread that comes late, or never, costs nothing but its help. Whoever finishes a phase's last item opens
the next phase.

The caller is member 0, the leader: ``open_job`` lets the others in, and its ``run`` is OVER when the job is done and
they are all out again. It returns before, BUSY or WAITING, when its quota of work is used up (so that Python can handle
a signal) or when it has waited long (so that Python can yield the core), and is then made again. A helper's ``run``
listens for the next job for a while before it is OVER: waking a thread takes longer than many a step.
"""

import numpy as np
from numba import carray

from fastae.kernels import layer
from fastae.kernels.compiler import ByAddress, inlined, kernel
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
from fastae.kernels.noise import NO_NOISE, SWAP, corrupt_row, row_key, swapped
from fastae.kernels.optimizer import (
    ALPHA,
    NOISE_LEVEL,
    NONE,
    SPARSITY_TARGET,
    SPARSITY_WEIGHT,
    add_penalty,
    add_up,
    transpose_squares,
    update,
)
from fastae.kernels.optimizer import SETTINGS as SETTINGS_SIZE
from fastae.kernels.rows import add_lines, load_rows, store_rows, zero_lines
from fastae.kernels.simd import (
    call_at,
    compare_and_swap,
    exchange,
    fetch_add,
    flush_subnormals,
    load_acquire,
    load_float64,
    load_int64,
    pause,
    pointer_to,
    restore_float_state,
    store_release,
)
from fastae.kernels.target import LINE

# A job: an int64 vector of addresses, strides in bytes and sizes in elements
(
    TASK,  # STEPS_TASK, INFER_TASK or ERRORS_TASK
    X,  # the matrix: its address, strides and kind (rows.KINDS)
    ROW_STRIDE,
    COLUMN_STRIDE,
    KIND,
    INDEX,  # int64 row numbers, or 0
    SAMPLE_WEIGHT,  # float64 weights by row, or 0
    SHIFT,  # float64 columns, or 0
    SCALE,
    ROWS,  # rows that the steps walk through
    BATCH,  # rows a step takes
    STEPS,
    HEIGHT,  # rows of a tile
    SIZE,  # elements of the flat buffers
    PARAMETERS,  # flat
    WEIGHTS,  # what products take: PARAMETERS, or the flat buffer with weights as bfloat16.py has them
    ONES,  # lines of ones, zero in padding lanes, by COLUMN_SUMS
    WT,  # every W' but the first layer's
    WT_SIZE,
    GRADIENTS,  # (shards, flat)
    TOTALS,  # float64 (shards, 2)
    NORMS,  # float64 (stretches,): the weights' sums of squares
    GRADIENT,  # flat
    OPTIMIZER,
    MOMENTS,  # (2, flat)
    RATES,  # float64 (steps,)
    SETTINGS,  # float64, of optimizer.py
    LOSSES,  # float64 (steps, 2): the loss and the sum of weights of each step
    OUT,  # infer: the result and its row stride, layers [FIRST_LAYER, LAST_LAYER)
    OUT_STRIDE,
    FIRST_LAYER,
    LAST_LAYER,
    COLUMN_WEIGHT,  # errors: float64 columns
    MISSING,  # 1: cells that are NaN are missing
    NOISE,  # noise.NOISES, SEED and EPOCH that it is drawn by
    SEED,
    EPOCH,  # of the first step
    CODE_LAYER,  # which layer's output the code is
    SPARSE,  # 1: the mean code has a cost
    CODES,  # float64 (shards, code): sums of codes
    SLOPES,  # (code,): the cost's derivative by each unit's mean
    FIRST_ROW,  # number of the matrix's first row, for the noise: the matrix may be a block of a larger one
    FORWARD_AT,  # where the layer kernels lie: addresses
    RESIDUAL_AT,
    BACKWARD_AT,
    GRADIENT_AT,
    LOAD_AT,  # and those of this file
    SHARD_AT,
    WIDE_AT,  # the forward kernel whose output is of the engine's dtype
    NARROW_AT,  # and the others of bfloat16.py; 0 where products are in the engine's dtype
    NARROW_WEIGHTS_AT,
    PULL_AT,
    ADD_PULL_AT,
    TAKEN,  # (most items of a phase,): which phase each was claimed for last
    SUMS,  # 1: loss and gradient as sums over the rows, not divided by the rows' weights
    JOB,
) = range(56)
STEPS_TASK, INFER_TASK, ERRORS_TASK = range(3)

# The control block: int64s a cache line apart
OPEN, INSIDE, CLAIM, DONE, NEXT, CANCEL, OUTCOME, STEPS_DONE, CONTROL = range(0, 72, 8)
FINISHED_CLAIM = -1

# What a thread of the team keeps: a cache line of int64s
(
    MEMBER,  # 0: the leader
    HELD,  # the phase it holds an item of + 1, or 0
    ITEM,
    PROGRESS,  # rows done of its shard
    QUOTA,  # rows x features it may still go through in this call, at least one tile
    REFILL,  # a helper's next quota
    PRESENT,  # a helper: 1 from when it is woken until it goes back to sleep
    WAKE,  # set by open_job: this helper is to be woken
) = range(8)

# How a run ended, or did not yet
COMPLETE, CANCELLED, DIVERGED = 1, 2, 3
BUSY, WAITING, OVER = 0, 1, 2

TRANSPOSE, CODE, SHARD, UPDATE, PHASES = range(5)
STRETCH = 4096  # elements of weights that an UPDATE item covers at most
SHARDS_MOST, SHARD_ROWS_LEAST, SHARD_FLOPS = 32, (96, 512), 1_600_000
WORK_MOST = 1 << 40  # elements: the length of a thread's memory is not checked
SPINS = 20000  # turns to wait within a job, longer than a phase of a small step lasts: 0.2 ms
LISTEN = 20000  # turns a helper waits for another job: 0.2 ms where a pause is 10 ns

# Places in a thread's scratch, in lines after the tiles
LOSS, SPARE, LEVEL, CELL, SCRATCH = 0, 1, 3, 4, 5


@kernel
def shard_rows(rows, size):  # type: ignore[no-untyped-def]
    """Rows in each shard of a batch but the last, whole register tiles; `size` is that of the flat buffers.

    A shard has 512 rows or more, for its gradient has to be added up; a small batch, so that it can be shared out, is
    cut into up to four, of SHARD_FLOPS each. Their number is a power of two, which most numbers of threads share
    evenly; it never depends on the number of threads: the same job has the same shards.
    """
    few, many = SHARD_ROWS_LEAST
    least = min(max(SHARD_FLOPS // (6 * size), few), many)
    most = min(max(rows // many, min(rows // least, 4)), SHARDS_MOST)
    shards = 1
    while 2 * shards <= most:
        shards *= 2
    each = (rows + shards - 1) // shards
    return (each + layer.ROW_MULTIPLE - 1) // layer.ROW_MULTIPLE * layer.ROW_MULTIPLE


@kernel
def _rows_in_step(job, step):  # type: ignore[no-untyped-def]
    """First row and row count of a step; steps walk through the rows batch by batch, and start over."""
    per_epoch = (job[ROWS] + job[BATCH] - 1) // job[BATCH]
    first = step % per_epoch * job[BATCH]
    return first, min(job[BATCH], job[ROWS] - first)


@kernel
def stretches(plan, lanes):  # type: ignore[no-untyped-def]
    """How many stretches the flat buffers fall into: whole squares of lanes x lanes weights, of one layer each."""
    most = STRETCH // (lanes * lanes)
    total = 0
    for i in range(plan.shape[0]):
        total += ((plan[i, BIAS] - plan[i, WEIGHT]) // (lanes * lanes) + most - 1) // most
    return total


@kernel
def _stretch(plan, item, lanes):  # type: ignore[no-untyped-def]
    """The layer of stretch `item`, its first and last square there, and its elements; a layer's last has its bias."""
    square, most = lanes * lanes, STRETCH // (lanes * lanes)
    for i in range(plan.shape[0]):
        squares = (plan[i, BIAS] - plan[i, WEIGHT]) // square
        count = (squares + most - 1) // most
        if item < count:
            first, last = item * most, min(item * most + most, squares)
            end = plan[i, WEIGHT] + last * square
            if last == squares:
                end += (plan[i, FAN_OUT] + lanes - 1) // lanes * lanes
            return i, first, last, plan[i, WEIGHT] + first * square, end
        item -= count
    return 0, 0, 0, 0, 0


@kernel
def _rows_of_shard(job, step, item):  # type: ignore[no-untyped-def]
    """First and last + 1 row of a shard, counted within its step."""
    _, rows = _rows_in_step(job, step)
    each = shard_rows(rows, job[SIZE])
    return each * item, min(each * (item + 1), rows)


@kernel
def _items(job, plan, step, phase, lanes):  # type: ignore[no-untyped-def]
    if phase == UPDATE or (phase == TRANSPOSE and step == 0):
        return stretches(plan, lanes)
    if phase == SHARD or (phase == CODE and job[SPARSE] != 0):
        _, rows = _rows_in_step(job, step)
        each = shard_rows(rows, job[SIZE])
        return (rows + each - 1) // each
    return 0


@inlined
def _forward_layers(like, job, plan, tiles, wide, rows, height, first, last):  # type: ignore[no-untyped-def]
    """Layers first .. last - 1 on a tile; the input of layer i lies where layer i - 1's output goes.

    The last one's output goes to `wide`, in the engine's dtype, unless that is 0.
    """
    parameters, weights, ones, size = job[PARAMETERS], job[WEIGHTS], job[ONES], like.itemsize
    lanes = LINE // size
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
            rows,
            height,
            plan[i, FAN_IN],
            (plan[i, FAN_OUT] + lanes - 1) // lanes,
            (plan[i, FAN_IN] + lanes - 1) // lanes * lanes,
        )
        call_at(job[WIDE_AT] if ends else job[FORWARD_AT], arguments)


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
    fan_in = (plan[last, FAN_IN] + lanes - 1) // lanes * lanes
    blocks = (plan[last, FAN_OUT] + lanes - 1) // lanes
    top_sums = sums + plan[last, COLUMN_SUMS] * size
    linear = plan[last, ACTIVATION] == IDENTITY
    if linear:
        source = tiles + (plan[last - 1, OUTPUT] * height * size if last > 0 else 0)
        w, b = job[WEIGHTS] + plan[last, WEIGHT] * size, parameters + plan[last, BIAS] * size
        depth = plan[last, FAN_IN]
        arguments = (top, source, w, b, target, weight, top_sums, loss, whole, height, depth, blocks, fan_in)
        call_at(job[RESIDUAL_AT], arguments)
    else:
        wide = spare if narrow else top
        layer.output_delta(
            like, wide, target, weight, top_sums, loss, plan[last, ACTIVATION], whole, height, blocks
        )
        if narrow:
            call_at(job[NARROW_AT], (top, wide, whole, height, blocks))
    for i in range(last, -1, -1):
        blocks = (plan[i, FAN_OUT] + lanes - 1) // lanes
        fan_in = (plan[i, FAN_IN] + lanes - 1) // lanes * lanes
        below = tiles + (plan[i - 1, OUTPUT] * height * size if i > 0 else 0)
        delta = tiles + plan[i, OUTPUT] * height * size
        dw = gradient + plan[i, WEIGHT] * size
        product = dw, below, delta, add, rows, height, plan[i, FAN_IN], blocks, fan_in
        call_at(job[GRADIENT_AT], product)
        if i > 0:
            sparse = job[SPARSE] != 0 and i - 1 == job[CODE_LAYER]
            if sparse and narrow:
                pull = spare, below, weight, job[SLOPES], whole, height, fan_in // lanes
                call_at(job[PULL_AT], pull)
            elif sparse:
                layer.pull(like, spare, below, weight, job[SLOPES], whole, height, fan_in // lanes)
            chained = (
                below,
                delta,
                transposed + plan[i, TRANSPOSED] * size,
                sums + plan[i - 1, COLUMN_SUMS] * size,
                plan[i - 1, ACTIVATION],
                whole,
                height,
                plan[i, FAN_OUT],
                fan_in // lanes,
                blocks * lanes,
            )
            call_at(job[BACKWARD_AT], chained)
            below_sums = sums + plan[i - 1, COLUMN_SUMS] * size
            if sparse and narrow:
                call_at(job[ADD_PULL_AT], (below, spare, below_sums, whole, height, fan_in // lanes))
            elif sparse:
                layer.add_pull(like, below, spare, below_sums, whole, height, fan_in // lanes)


@kernel
def whole_rows(rows):  # type: ignore[no-untyped-def]
    """Rows that are computed for `rows`: whole register tiles."""
    return (rows + layer.ROW_MULTIPLE - 1) // layer.ROW_MULTIPLE * layer.ROW_MULTIPLE


@kernel
def target_place(plan, height, lanes):  # type: ignore[no-untyped-def]
    """Where in a thread's `work` the clean copy of a corrupted tile begins; a spare tile follows it."""
    last = plan.shape[0] - 1
    outputs = (plan[last, FAN_OUT] + lanes - 1) // lanes * lanes
    tiles, sums = plan[last, OUTPUT] + outputs, plan[last, COLUMN_SUMS] + outputs
    return tiles * height + sums + height + SCRATCH * lanes


@ByAddress
def load_tile(out, job_at, scratch, columns, place, first, rows, epoch):  # type: ignore[no-untyped-def]
    """Rows into work[place:], `out` being work, and zeros below them down to a whole register tile.

    Where cells may be missing, or noise is asked for, that holds the input and the rows as they are go to
    work[target_place:], which is where the scratch ends.
    """
    job = carray(pointer_to(job_at), (JOB,), np.int64)
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
    whole = whole_rows(rows)
    if whole > rows:
        for j in range((columns + lanes - 1) // lanes):
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


@kernel
def _load_input(like, job, job_at, base, scratch, columns, place, first, rows, epoch):  # type: ignore[no-untyped-def]
    """``load_tile``; where products are narrow, as bfloat16, with the rows as they are at target_place."""
    height, size = job[HEIGHT], like.itemsize
    lanes = LINE // size
    blocks = (columns + lanes - 1) // lanes
    loaded = place
    if job[NARROW_AT] != 0:
        loaded = scratch + SCRATCH * lanes
        if job[MISSING] != 0 or job[NOISE] != NO_NOISE:
            loaded += blocks * lanes * height  # the spare tile
    call_at(job[LOAD_AT], (base, job_at, scratch, columns, loaded, first, rows, epoch))
    if job[NARROW_AT] != 0:
        tile = base + place * size, base + loaded * size, whole_rows(rows), height, blocks
        call_at(job[NARROW_AT], tile)


@kernel
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


@kernel
def _epoch(job, step):  # type: ignore[no-untyped-def]
    return job[EPOCH] + step // ((job[ROWS] + job[BATCH] - 1) // job[BATCH])


@kernel
def _add_codes(work, place, columns, weight_at, rows, height, sums):  # type: ignore[no-untyped-def]
    """sums, float64, gains the codes of a tile's rows, each times its row's weight."""
    lanes = LINE // work.itemsize
    for c in range(columns):
        column = place + c // lanes * height * lanes + c % lanes
        total = 0.0
        for i in range(rows):
            total += float(work[weight_at + i]) * float(work[column + i * lanes])
        sums[c] += total


@kernel
def _close_codes(totals, codes, slopes, settings, losses, step, shards):  # type: ignore[no-untyped-def]
    """The cost of the mean code, SPARSITY_WEIGHT sum KL(target, mean), as the step's loss so far, and its slopes.

    KL(p, q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)); dKL/dq = (1 - p) / (1 - q) - p / q.
    """
    weight = 0.0
    for shard in range(shards):
        weight += totals[shard, 1]
    p, cost = settings[SPARSITY_TARGET], 0.0
    for c in range(codes.shape[1]):
        total = 0.0
        for shard in range(shards):
            total += codes[shard, c]
        q = total / weight if weight > 0 else p
        if not np.isnan(q):
            q = min(max(q, 1e-12), 1.0 - 1e-12)
        cost += p * np.log(p / q) + (1.0 - p) * np.log((1.0 - p) / (1.0 - q))
        slopes[c] = settings[SPARSITY_WEIGHT] * ((1.0 - p) / (1.0 - q) - p / q)
    losses[step, 0] = settings[SPARSITY_WEIGHT] * cost


@ByAddress
def shard_item(out, job_at, plan_at, layers, step, item, me_at, code_phase):  # type: ignore[no-untyped-def]
    """Tiles of shard `item` from row me[PROGRESS] of it on, while the quota lasts; ``shard_rows_left`` are left.

    In the CODE phase only the sums of their codes, else their loss and gradient. `out` is the thread's work.
    """
    job = carray(pointer_to(job_at), (JOB,), np.int64)
    plan = carray(pointer_to(plan_at), (layers, PLAN), np.int64)
    me = carray(pointer_to(me_at), (8,), np.int64)
    work = carray(out, (WORK_MOST,))
    totals = carray(pointer_to(job[TOTALS]), (SHARDS_MOST, 2), np.float64)
    codes = carray(pointer_to(job[CODES]), (SHARDS_MOST, plan[job[CODE_LAYER], FAN_OUT]), np.float64)
    size, height = work.itemsize, job[HEIGHT]
    lanes, base = LINE // size, np.int64(work.ctypes.data)
    features, code, last = plan[0, FAN_IN], job[CODE_LAYER], plan.shape[0] - 1
    outputs = (plan[last, FAN_OUT] + lanes - 1) // lanes * lanes
    width = plan[last, COLUMN_SUMS] + outputs  # of all column sums
    sums_at = (plan[last, OUTPUT] + outputs) * height
    weight_at = sums_at + width
    scratch = weight_at + height
    loss_at = scratch + LOSS * lanes
    target_at = target_place(plan, height, lanes)
    spare_at = target_at + (features + lanes - 1) // lanes * lanes * height
    narrow = job[NARROW_AT] != 0
    if job[MISSING] == 0 and job[NOISE] == NO_NOISE and not narrow:
        target_at = 0
    gradient_at = job[GRADIENTS] + item * job[SIZE] * size
    first, _ = _rows_in_step(job, step)
    start, end = _rows_of_shard(job, step, item)
    epoch = _epoch(job, step)
    while me[QUOTA] > 0 and start + me[PROGRESS] < end:
        row = start + me[PROGRESS]
        count = min(height, end - row)
        accumulate = 1 if me[PROGRESS] > 0 else 0
        if accumulate == 0:
            totals[item, 0] = 0.0
            totals[item, 1] = 0.0
            if code_phase:
                for c in range(codes.shape[1]):
                    codes[item, c] = 0.0
        _load_input(work, job, job_at, base, scratch, features, 0, first + row, count, epoch)
        whole = whole_rows(count)
        weights = _load_weights(job, work, weight_at, first + row, count, whole)
        place = plan[code, OUTPUT] * height
        layers, wide = code + 1, base + place * size
        if code_phase == 0:
            linear = plan[last, ACTIVATION] == IDENTITY
            layers = last if linear else last + 1
            wide = 0 if linear or not narrow else base + spare_at * size
        _forward_layers(work, job, plan, base, wide, whole, height, 0, layers)
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
            base + target_at * size,
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
            add_lines(work, (db, sums, (plan[i, FAN_OUT] + lanes - 1) // lanes, accumulate))
        loss = 0.0
        for c in range(lanes):
            loss += work[loss_at + c]
        totals[item, 0] += loss
        totals[item, 1] += weights
        me[PROGRESS] += count
        me[QUOTA] -= count * features


@kernel
def _narrow_stretch(job, plan, layer, first, last):  # type: ignore[no-untyped-def]
    """Squares first .. last - 1 of a layer's weights, W and W', as bfloat16; the first layer's W' is not needed."""
    row = plan[layer]
    narrow, turned = job[WEIGHTS] + row[WEIGHT] * 4, job[WT] + row[TRANSPOSED] * 4 if layer > 0 else 0
    source = job[PARAMETERS] + row[WEIGHT] * 4
    call_at(job[NARROW_WEIGHTS_AT], (narrow, turned, source, row[FAN_IN], row[FAN_OUT], first, last))


@kernel
def narrow_all(job, plan):  # type: ignore[no-untyped-def]
    """All weights as bfloat16."""
    for i in range(plan.shape[0]):
        _narrow_stretch(job, plan, i, 0, (plan[i, BIAS] - plan[i, WEIGHT]) // 256)


@kernel
def _transpose_stretch(job, plan, parameters, transposed, layer, first, last):  # type: ignore[no-untyped-def]
    """W' of squares first .. last - 1 of a layer's weights; the first layer's is not needed. Or both as bfloat16."""
    if job[NARROW_AT] != 0:
        _narrow_stretch(job, plan, layer, first, last)
    elif layer > 0:
        row, lanes = plan[layer], LINE // parameters.itemsize
        fan_in = (row[FAN_IN] + lanes - 1) // lanes * lanes
        fan_out = (row[FAN_OUT] + lanes - 1) // lanes * lanes
        target = transposed[row[TRANSPOSED] : row[TRANSPOSED] + fan_in * fan_out]
        transpose_squares(parameters[row[WEIGHT] : row[BIAS]], target, fan_in, fan_out, first, last)


@kernel
def _close_shards(job, totals, losses, step, shards):  # type: ignore[no-untyped-def]
    """The step's loss, and the sum of its rows' weights; a batch of nothing but zero weights costs nothing."""
    loss = weight = 0.0
    for shard in range(shards):
        loss += totals[shard, 0]
        weight += totals[shard, 1]
    if job[SPARSE] == 0:
        losses[step, 0] = 0.0
    if job[SUMS] != 0:
        losses[step, 0] += loss / 2.0
    elif weight > 0:
        losses[step, 0] += loss / (2.0 * weight)
    losses[step, 1] = weight


@kernel
def _add_norms(norms, losses, step, alpha):  # type: ignore[no-untyped-def]
    """alpha / (2 sum of weights) times the weights' squares, onto the step's loss."""
    total = 0.0
    for norm in norms:
        total += norm
    if losses[step, 1] > 0:
        losses[step, 0] += alpha * total / (2.0 * losses[step, 1])


def addresses(dtype, narrow):  # type: ignore[no-untyped-def]
    """What a job holds from FORWARD_AT to ADD_PULL_AT: the kernels that are called by their address."""
    own = [load_tile.address(dtype), shard_item.address(dtype)]
    if narrow:
        from fastae.kernels import bfloat16

        products, others = bfloat16.addresses()
        return [*products, *own, *others]
    products = layer.addresses(dtype)
    return [*products, *own, products[0], 0, 0, 0, 0]


@kernel
def open_job(control, members, claim, size):  # type: ignore[no-untyped-def]
    """Let members 0 .. size - 1 in; the helpers that sleep get WAKE set, and are PRESENT from now on."""
    shared = np.int64(control.ctypes.data)
    for place in range(CLAIM, CONTROL):
        control[place] = 0
    control[CLAIM] = claim
    exchange(shared + OPEN * 8, size)
    for member in range(1, size):
        present = np.int64(members[member].ctypes.data) + PRESENT * 8
        members[member, WAKE] = compare_and_swap(present, 0, 1)


@kernel
def run(job, plan, control, me, work):  # type: ignore[no-untyped-def]
    """Take part in the job: OVER, BUSY or WAITING.

    job       int64 (JOB,), read only while the job is open
    plan      int64 (layers, PLAN), of layout.py
    control   int64 (CONTROL,), shared by the team
    me        int64 (8,), this thread's
    work      this thread's tiles and scratch; its dtype is that of all arithmetic
    """
    state = flush_subnormals()
    outcome = _take_part(job, plan, control, me, work)
    restore_float_state(state)
    return outcome


@inlined
def _take_part(job, plan, control, me, work):  # type: ignore[no-untyped-def]
    shared, present = np.int64(control.ctypes.data), np.int64(me.ctypes.data) + PRESENT * 8
    open_at, inside_at, member = shared + OPEN * 8, shared + INSIDE * 8, me[MEMBER]
    inside = False  # a helper in an open job: what the job points at stays until it is out again
    turns = 0
    while True:
        if member > 0 and load_acquire(open_at) <= member:
            if inside:
                fetch_add(inside_at, -1)
                inside = False
            pause()
            turns += 1
            if turns > LISTEN:
                exchange(present, 0)
                # A leader that opened a job just before may have counted on this helper.
                if load_acquire(open_at) <= member or not compare_and_swap(present, 0, 1):
                    return OVER
                turns = 0
            continue
        if member > 0 and not inside:
            fetch_add(inside_at, 1)
            inside, turns = True, 0
            continue  # to see whether the job is still open
        if job[TASK] == STEPS_TASK:
            outcome = _steps(job, plan, control, me, work)
        else:
            outcome = _infer(job, plan, control, me, work)
        if member == 0:
            if outcome != OVER:
                return outcome
            exchange(open_at, 0)
            while load_acquire(inside_at) != 0:
                pause()
                turns += 1
                if turns > SPINS:
                    return WAITING
            return OVER
        if outcome == BUSY:
            me[QUOTA] = me[REFILL]
            continue
        while outcome == OVER and turns < LISTEN and load_acquire(open_at) > member:
            pause()
            turns += 1
        fetch_add(inside_at, -1)
        inside = False
        if outcome == WAITING or turns >= LISTEN:
            return WAITING


@kernel
def _claim(job, control, me, number, items):  # type: ignore[no-untyped-def]
    """An item of phase `number`, or -1 where all are claimed.

    TAKEN holds the last phase that each item was claimed for. A thread begins at its own share of them, the same in
    every step, so that what it wrote the last time is still in its own cache; then it helps the others out.
    """
    size = load_acquire(np.int64(control.ctypes.data) + OPEN * 8)
    begin = me[MEMBER] * items // max(size, me[MEMBER] + 1)
    for i in range(items):
        item = begin + i if begin + i < items else begin + i - items
        place = job[TAKEN] + item * 8
        before = load_acquire(place)
        if before < number and compare_and_swap(place, before, number):
            return item
    return -1


@inlined
def _steps(job, plan, control, me, work):  # type: ignore[no-untyped-def]
    shared = np.int64(control.ctypes.data)
    claim_at, done_at = shared + CLAIM * 8, shared + DONE * 8
    like, lanes, size, steps = work, LINE // work.itemsize, job[SIZE], job[STEPS]
    parameters = carray(pointer_to(job[PARAMETERS]), (size,), like.dtype)
    transposed = carray(pointer_to(job[WT]), (job[WT_SIZE],), like.dtype)
    gradients = carray(pointer_to(job[GRADIENTS]), (SHARDS_MOST, size), like.dtype)
    gradient = carray(pointer_to(job[GRADIENT]), (size,), like.dtype)
    moments = carray(pointer_to(job[MOMENTS]), (2, size), like.dtype)
    totals = carray(pointer_to(job[TOTALS]), (SHARDS_MOST, 2), np.float64)
    norms = carray(pointer_to(job[NORMS]), (stretches(plan, lanes),), np.float64)
    rates = carray(pointer_to(job[RATES]), (steps,), np.float64)
    settings = carray(pointer_to(job[SETTINGS]), (SETTINGS_SIZE,), np.float64)
    losses = carray(pointer_to(job[LOSSES]), (steps, 2), np.float64)
    code = plan[job[CODE_LAYER], FAN_OUT]
    codes = carray(pointer_to(job[CODES]), (SHARDS_MOST, code), np.float64)
    slopes = carray(pointer_to(job[SLOPES]), (code,), like.dtype)
    spins, exhausted = 0, -1  # the phase that has no item left to claim
    while True:
        if me[HELD] == 0:
            number = load_acquire(claim_at)
            if number == FINISHED_CLAIM:
                return OVER
            step, phase = number // PHASES, number % PHASES
            if phase != UPDATE and load_acquire(shared + CANCEL * 8) != 0:
                if not compare_and_swap(claim_at, number, FINISHED_CLAIM):
                    continue
                control[OUTCOME] = CANCELLED
                return OVER
            item = -1
            if number != exhausted:
                item = _claim(job, control, me, number, _items(job, plan, step, phase, lanes))
            if item < 0:
                exhausted = number
                spins += 1
                if spins > SPINS:
                    return WAITING
                pause()
                continue
            me[HELD], me[ITEM], me[PROGRESS] = number + 1, item, 0
        spins = 0
        number, item = me[HELD] - 1, me[ITEM]
        step, phase = number // PHASES, number % PHASES
        items = _items(job, plan, step, phase, lanes)
        if phase == TRANSPOSE:
            which, low, high, _, _ = _stretch(plan, item, lanes)
            _transpose_stretch(job, plan, parameters, transposed, which, low, high)
        elif phase != UPDATE:
            if load_acquire(shared + CANCEL * 8) != 0:
                me[HELD] = 0
                continue
            arguments = (
                np.int64(work.ctypes.data),
                np.int64(job.ctypes.data),
                np.int64(plan.ctypes.data),
                plan.shape[0],
                step,
                item,
                np.int64(me.ctypes.data),
                np.int64(phase == CODE),
            )
            call_at(job[SHARD_AT], arguments)
            start, end = _rows_of_shard(job, step, item)
            if start + me[PROGRESS] < end:
                return BUSY
        else:
            which, low, high, first, last = _stretch(plan, item, lanes)
            _, rows = _rows_in_step(job, step)
            each = shard_rows(rows, job[SIZE])
            weight = losses[step, 1]
            factor = 1.0 / weight if weight > 0 else 0.0
            if job[SUMS] != 0:
                factor = 1.0
            add_up(gradient, gradients, (rows + each - 1) // each, first, last, factor)
            if settings[ALPHA] > 0:
                norms[item] = add_penalty(gradient, parameters, plan, first, last, settings[ALPHA] * factor)
            if job[OPTIMIZER] != NONE:
                update(
                    job[OPTIMIZER],
                    parameters,
                    gradient,
                    moments[0],
                    moments[1],
                    first,
                    last,
                    rates[step],
                    step,
                    settings,
                )
                if step + 1 < steps:
                    _transpose_stretch(job, plan, parameters, transposed, which, low, high)
        me[HELD] = 0
        if fetch_add(done_at, 1) + 1 == items:
            store_release(done_at, 0)
            if phase == CODE:
                _close_codes(totals, codes, slopes, settings, losses, step, items)
            if phase == SHARD:
                _close_shards(job, totals, losses, step, items)
                if job[OPTIMIZER] != NONE and not np.isfinite(losses[step, 0]):
                    control[OUTCOME] = DIVERGED
                    store_release(claim_at, FINISHED_CLAIM)
                    return OVER
            if phase == UPDATE:
                if settings[ALPHA] > 0:
                    _add_norms(norms, losses, step, settings[ALPHA])
                control[STEPS_DONE] = step + 1
                if step + 1 == steps:
                    control[OUTCOME] = COMPLETE
                    store_release(claim_at, FINISHED_CLAIM)
                    return OVER
            following = number + 1
            while _items(job, plan, following // PHASES, following % PHASES, lanes) == 0:
                following += 1  # most steps have nothing to TRANSPOSE and no CODE
            store_release(claim_at, following)


@kernel
def _row_errors(job, work, output, target, columns, first, rows):  # type: ignore[no-untyped-def]
    """OUT of each row: sum over columns of COLUMN_WEIGHT (xhat - x)^2 in float64, cells that are missing left out.

    xhat starts at work[output], x at work[target].
    """
    lanes, height = LINE // work.itemsize, job[HEIGHT]
    out = carray(pointer_to(job[OUT]), (job[ROWS],), np.float64)
    weight = carray(pointer_to(job[COLUMN_WEIGHT]), ((columns + lanes - 1) // lanes * lanes,), np.float64)
    for i in range(rows):
        total = 0.0
        for j in range((columns + lanes - 1) // lanes):
            start = (j * height + i) * lanes
            x, xhat = (
                work[target + start : target + start + lanes],
                work[output + start : output + start + lanes],
            )
            for c in range(lanes):
                difference = float(xhat[c]) - float(x[c])
                if job[MISSING] != 0 and x[c] != x[c]:
                    difference = 0.0
                total += weight[j * lanes + c] * (difference * difference)
        out[first + i] = total


@inlined
def _infer(job, plan, control, me, work):  # type: ignore[no-untyped-def]
    """Layers FIRST_LAYER .. LAST_LAYER - 1 on all rows, tile by tile, each claimed: OVER or BUSY.

    What comes out goes into OUT or, for ERRORS_TASK, each row's error does.
    """
    size, height = work.itemsize, job[HEIGHT]
    lanes, base = LINE // size, np.int64(work.ctypes.data)
    start, last = job[FIRST_LAYER], job[LAST_LAYER] - 1
    columns = plan[start, FAN_IN]
    source = plan[start - 1, OUTPUT] * height if start > 0 else 0
    target = target_place(plan, height, lanes)
    scratch = target - SCRATCH * lanes
    while me[QUOTA] > 0:
        if load_acquire(np.int64(control.ctypes.data) + CANCEL * 8) != 0:
            return OVER
        first = fetch_add(np.int64(control.ctypes.data) + NEXT * 8, 1) * height
        if first >= job[ROWS]:
            return OVER
        rows = min(height, job[ROWS] - first)
        _load_input(work, job, np.int64(job.ctypes.data), base, scratch, columns, source, first, rows, 0)
        out, features = plan[last, OUTPUT] * height, plan[last, FAN_OUT]
        _forward_layers(work, job, plan, base, base + out * size, whole_rows(rows), height, start, last + 1)
        if job[TASK] == ERRORS_TASK:
            kept = job[MISSING] != 0 or job[NARROW_AT] != 0
            _row_errors(job, work, out, target if kept else 0, features, first, rows)
        else:
            stride = job[OUT_STRIDE]
            store_rows(work, job[OUT] + first * stride, stride, base + out * size, height, features, rows)
        me[QUOTA] -= rows * columns
    return BUSY
