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
a signal) or when it has waited long (so that Python can yield the core), and is then made again; between two calls,
``admit`` may let more helpers in, or send some out: they go once they hold no item. A helper's ``run`` listens for the
next job for a while before it is OVER: waking a thread takes longer than many a step.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.kernels.compiler import callee, kernel
from fastae.kernels.infer import infer
from fastae.kernels.job import (
    ALPHA,
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
    HELD,
    INFER_AT,
    INSIDE,
    ITEM,
    LAYERS,
    LOSSES,
    MEMBER,
    NONE,
    NORMS,
    OPEN,
    OPTIMIZER,
    OUTCOME,
    OVER,
    PARTS,
    PHASES,
    PLAN_AT,
    PRESENT,
    PROGRESS,
    QUOTA,
    REFILL,
    SETTINGS,
    SETTINGS_SIZE,
    SHARD,
    SHARD_AT,
    SLOPES,
    SPARSE,
    SPARSITY_TARGET,
    SPARSITY_WEIGHT,
    STEPS,
    STEPS_DONE,
    STEPS_TASK,
    STRETCHES,
    SUMS,
    TAKEN,
    TASK,
    TOTALS,
    TRANSPOSE,
    TRANSPOSE_AT,
    UPDATE,
    UPDATE_AT,
    WAITING,
    WAKE,
)
from fastae.kernels.layout import FAN_OUT, PLAN
from fastae.kernels.partition import SHARDS_MOST, epoch_of, items_of, rows_of_shard
from fastae.kernels.shard import load_tile, shard_item
from fastae.kernels.simd import (
    array_at,
    call_at,
    compare_and_swap,
    exchange,
    fetch_add,
    flush_subnormals,
    load_acquire,
    pause,
    restore_float_state,
    store_release,
)
from fastae.kernels.stretch import transpose_item, update_item

NOT_YET = -1
SPINS = 20000  # turns to wait within a job, longer than a phase of a small step lasts: 0.2 ms
LISTEN = 20000  # turns a helper waits for another job: 0.2 ms where a pause is 10 ns


@callee
def _close_codes(job, settings, losses, step, shards):  # type: ignore[no-untyped-def]
    """The cost of the mean code, SPARSITY_WEIGHT sum KL(target, mean), as the step's loss so far, and its slopes.

    KL(p, q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)); dKL/dq = (1 - p) / (1 - q) - p / q.
    """
    plan = array_at(job[PLAN_AT], (job[LAYERS], PLAN), np.int64)
    code = plan[job[CODE_LAYER], FAN_OUT]
    totals = array_at(job[TOTALS], (SHARDS_MOST, 2), np.float64)
    codes = array_at(job[CODES], (SHARDS_MOST, code), np.float64)
    slopes = array_at(job[SLOPES], (code,), np.float64)
    weight = 0.0
    for shard in range(shards):
        weight += totals[shard, 1]
    p, cost = settings[SPARSITY_TARGET], 0.0
    for c in range(code):
        total = 0.0
        for shard in range(shards):
            total += codes[shard, c]
        q = total / weight if weight > 0 else p
        if not np.isnan(q):
            q = min(max(q, 1e-12), 1.0 - 1e-12)
        cost += p * np.log(p / q) + (1.0 - p) * np.log((1.0 - p) / (1.0 - q))
        slopes[c] = settings[SPARSITY_WEIGHT] * ((1.0 - p) / (1.0 - q) - p / q)
    losses[step, 0] = settings[SPARSITY_WEIGHT] * cost


@callee
def _close_shards(job, losses, step, shards):  # type: ignore[no-untyped-def]
    """The step's loss, and the sum of its rows' weights; a batch of nothing but zero weights costs nothing."""
    totals = array_at(job[TOTALS], (SHARDS_MOST, 2), np.float64)
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


@callee
def _add_norms(job, losses, step, alpha):  # type: ignore[no-untyped-def]
    """alpha / (2 sum of weights) times the weights' squares, onto the step's loss."""
    total = 0.0
    for norm in array_at(job[NORMS], (job[STRETCHES],), np.float64):
        total += norm
    if losses[step, 1] > 0:
        losses[step, 0] += alpha * total / (2.0 * losses[step, 1])


@cache
def addresses(form: Any, dtype: npt.DTypeLike) -> npt.NDArray[np.int64]:
    """What a job holds from FORWARD_AT to ADD_PULL_AT; `form` is layer.py, rowlanes.py or bfloat16.py."""
    products, others = form.addresses(dtype)
    return np.array([*products, *item_addresses(dtype), *others])


def item_addresses(dtype: npt.DTypeLike) -> list[int]:
    """Where the functions lie that do what threads claim."""
    return [made.address(dtype) for made in (load_tile, shard_item, transpose_item, update_item, infer)]


@kernel
def admit(control, members, size):  # type: ignore[no-untyped-def]
    """Let members 0 .. size - 1 into the job, and the others out when they find nothing to do.

    The helpers that sleep get WAKE set, and are PRESENT from now on.
    """
    shared = np.int64(control.ctypes.data)
    exchange(shared + OPEN * 8, size)
    for member in range(1, size):
        present = np.int64(members[member].ctypes.data) + PRESENT * 8
        members[member, WAKE] = compare_and_swap(present, 0, 1)


@kernel
def open_job(control, members, claim, size):  # type: ignore[no-untyped-def]
    """A new job, which begins at `claim`, for members 0 .. size - 1."""
    for place in range(CLAIM, CONTROL):
        control[place] = 0
    control[CLAIM] = claim
    admit(control, members, size)


@callee
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
def run(job, control, me, work):  # type: ignore[no-untyped-def]
    """Take part in the job: OVER, BUSY or WAITING.

    job       int64 (JOB,), read only while the job is open
    control   int64 (CONTROL,), shared by the team
    me        int64 (8,), this thread's
    work      where this thread's memory for tiles begins; its dtype is known to what the job calls by address
    """
    state = flush_subnormals()
    shared, present = np.int64(control.ctypes.data), np.int64(me.ctypes.data) + PRESENT * 8
    open_at, inside_at, member = shared + OPEN * 8, shared + INSIDE * 8, me[MEMBER]
    # A helper in a job: what the job points at stays until it is out again. It never leaves with an item.
    inside = False
    turns, status = 0, NOT_YET
    while status == NOT_YET:
        if member > 0 and me[HELD] == 0 and load_acquire(open_at) <= member:
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
                outcome = _steps(job, control, me, work)
            else:
                call_at(job[INFER_AT], (work, np.int64(job.ctypes.data), shared, np.int64(me.ctypes.data)))
                outcome = OVER if me[QUOTA] > 0 else BUSY
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


@callee
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


@callee
def _steps(job, control, me, work):  # type: ignore[no-untyped-def]
    shared, job_at, me_at = np.int64(control.ctypes.data), np.int64(job.ctypes.data), np.int64(me.ctypes.data)
    claim_at, done_at = shared + CLAIM * 8, shared + DONE * 8
    steps = job[STEPS]
    settings = array_at(job[SETTINGS], (SETTINGS_SIZE,), np.float64)
    losses = array_at(job[LOSSES], (steps, 2), np.float64)
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
                item = _claim(job, control, me, number, items_of(job, step, phase))
            if item < 0:
                if load_acquire(shared + OPEN * 8) <= me[MEMBER]:
                    return OVER
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
        items = items_of(job, step, phase)
        if phase == TRANSPOSE:
            call_at(job[TRANSPOSE_AT], (work, job_at, item))
        elif phase == UPDATE:
            parts = job[PARTS] if job[PARTS] != 0 else items_of(job, step, SHARD)
            call_at(job[UPDATE_AT], (work, job_at, item, step, parts))
        else:
            if load_acquire(shared + CANCEL * 8) != 0:
                me[HELD] = 0
                continue
            first, rows = rows_of_shard(job, step, item)
            which = item, first, rows, epoch_of(job, step)
            call_at(job[SHARD_AT], (work, job_at, *which, me_at, np.int64(phase == CODE)))
            if me[PROGRESS] < rows:
                return BUSY
        me[HELD] = 0
        if fetch_add(done_at, 1) + 1 == items:
            store_release(done_at, 0)
            if phase == CODE:
                _close_codes(job, settings, losses, step, items)
            if phase == SHARD:
                _close_shards(job, losses, step, items)
                if job[OPTIMIZER] != NONE and not np.isfinite(losses[step, 0]):
                    control[OUTCOME] = DIVERGED
                    store_release(claim_at, FINISHED_CLAIM)
                    return OVER
            if phase == UPDATE:
                if settings[ALPHA] > 0:
                    _add_norms(job, losses, step, settings[ALPHA])
                control[STEPS_DONE] = step + 1
                if step + 1 == steps:
                    control[OUTCOME] = COMPLETE
                    store_release(claim_at, FINISHED_CLAIM)
                    return OVER
            following = number + 1
            while items_of(job, following // PHASES, following % PHASES) == 0:
                following += 1  # most steps have nothing to TRANSPOSE and no CODE
            store_release(claim_at, following)
