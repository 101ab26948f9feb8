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

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray

from fastae.kernels.compiler import inlined, kernel
from fastae.kernels.infer import infer
from fastae.kernels.job import (
    BUSY,
    CANCEL,
    CANCELLED,
    CLAIM,
    CODE,
    CODE_LAYER,
    CODES,
    COMPLETE,
    CONTROL,
    DIVERGED,
    DONE,
    FINISHED_CLAIM,
    GRADIENT,
    GRADIENTS,
    HELD,
    INSIDE,
    ITEM,
    LOSSES,
    MEMBER,
    MOMENTS,
    MULTIPLE,
    NARROW_AT,
    NARROW_WEIGHTS_AT,
    NORMS,
    OPEN,
    OPTIMIZER,
    OUTCOME,
    OVER,
    PARAMETERS,
    PHASES,
    PRESENT,
    PROGRESS,
    QUOTA,
    RATES,
    REFILL,
    SETTINGS,
    SHARD,
    SHARD_AT,
    SIZE,
    SLOPES,
    SPARSE,
    STEPS,
    STEPS_DONE,
    STEPS_TASK,
    SUMS,
    TAKEN,
    TASK,
    TOTALS,
    TRANSPOSE,
    UPDATE,
    WAITING,
    WAKE,
    WEIGHTS,
    WT,
    WT_SIZE,
)
from fastae.kernels.layout import (
    BIAS,
    FAN_IN,
    FAN_OUT,
    TRANSPOSED,
    WEIGHT,
)
from fastae.kernels.optimizer import (
    ALPHA,
    NONE,
    SPARSITY_TARGET,
    SPARSITY_WEIGHT,
    add_penalty,
    add_up,
    transpose_squares,
    update,
)
from fastae.kernels.optimizer import SETTINGS as SETTINGS_SIZE
from fastae.kernels.partition import (
    SHARDS_MOST,
    items_of,
    rows_in_step,
    rows_of_shard,
    shards_of,
    stretch,
    stretches,
)
from fastae.kernels.shard import (
    load_tile,
    shard_item,
)
from fastae.kernels.simd import (
    call_at,
    compare_and_swap,
    exchange,
    fetch_add,
    flush_subnormals,
    load_acquire,
    pause,
    pointer_to,
    restore_float_state,
    store_release,
)
from fastae.kernels.target import LINE

NOT_YET = -1
SPINS = 20000  # turns to wait within a job, longer than a phase of a small step lasts: 0.2 ms
LISTEN = 20000  # turns a helper waits for another job: 0.2 ms where a pause is 10 ns


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


@cache
def addresses(form: Any, dtype: npt.DTypeLike) -> list[int]:
    """What a job holds from FORWARD_AT to ADD_PULL_AT; `form` is layer.py, rowlanes.py or bfloat16.py."""
    products, others = form.addresses(dtype)
    return [*products, load_tile.address(dtype), shard_item.address(dtype), *others]


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
def _close_job(control):  # type: ignore[no-untyped-def]
    """Let nobody in any more: OVER, or WAITING while helpers are still inside."""
    shared = np.int64(control.ctypes.data)
    exchange(shared + OPEN * 8, 0)
    for _ in range(SPINS):
        if load_acquire(shared + INSIDE * 8) == 0:
            return OVER
        pause()
    return WAITING


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
    shared, present = np.int64(control.ctypes.data), np.int64(me.ctypes.data) + PRESENT * 8
    open_at, inside_at, member = shared + OPEN * 8, shared + INSIDE * 8, me[MEMBER]
    inside = False  # a helper in an open job: what the job points at stays until it is out again
    turns, status = 0, NOT_YET
    while status == NOT_YET:
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
                    status = OVER
                turns = 0
        elif member > 0 and not inside:
            fetch_add(inside_at, 1)
            inside, turns = True, 0  # now see whether the job is still open
        else:
            if job[TASK] == STEPS_TASK:
                outcome = _steps(job, plan, control, me, work)
            else:
                outcome = infer(job, plan, control, me, work)
            if member == 0:
                status = _close_job(control) if outcome == OVER else outcome
            elif outcome == BUSY:
                me[QUOTA] = me[REFILL]
            else:
                while outcome == OVER and turns < LISTEN and load_acquire(open_at) > member:
                    pause()
                    turns += 1
                fetch_add(inside_at, -1)
                inside = False
                if outcome == WAITING or turns >= LISTEN:
                    status = WAITING
    restore_float_state(state)
    return status


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
                item = _claim(job, control, me, number, items_of(job, plan, step, phase, lanes))
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
        items = items_of(job, plan, step, phase, lanes)
        if phase == TRANSPOSE:
            which, low, high, _, _ = stretch(plan, item, lanes)
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
            start, end = rows_of_shard(job, step, item)
            if start + me[PROGRESS] < end:
                return BUSY
        else:
            which, low, high, first, last = stretch(plan, item, lanes)
            _, rows = rows_in_step(job, step)
            shards = shards_of(rows, job[SIZE], job[MULTIPLE])
            weight = losses[step, 1]
            factor = 1.0 / weight if weight > 0 else 0.0
            if job[SUMS] != 0:
                factor = 1.0
            add_up(gradient, gradients, shards, first, last, factor)
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
            while items_of(job, plan, following // PHASES, following % PHASES, lanes) == 0:
                following += 1  # most steps have nothing to TRANSPOSE and no CODE
            store_release(claim_at, following)
