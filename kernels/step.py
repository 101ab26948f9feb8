"""Gradient steps by a crew of threads: ``run``, the jitted call that each thread makes on a job. No arithmetic is here.

A step has up to four phases. Each consists of items, which threads claim: first those of their own share, then those
that other threads have not claimed yet:

    TRANSPOSE   item: a stretch. Prepare W and W' as products read them; only in the first step of a job
    CODE        item: a shard. Add up its codes; only if the mean code has a cost
    SHARD       item: a shard. Compute its gradient and loss
    UPDATE      item: a stretch. Add the shards' gradients in a fixed order, update the weights, prepare W and W'

What an item computes depends only on the job, never on the thread that claims it. So the bits are the same for any
number of threads, and no thread has to wait for one that comes late or never. The thread that finishes the last item of
a phase opens the next phase.

The loops of a step, and the slice that each selects. The files repeat the numbers beside the loops:

    loop 1    the phases of all steps             rows first : first + batch of X           step.py
    loop 2    the items of a phase                a shard of these rows, or a stretch       step.py, split.py
    loop 3    the tiles of a shard                up to `height` rows of the shard          shard.py, infer.py
    loop 4    the layers, forwards and backwards  the tile's matrices of one layer          tile.py
    loop 5    panels of 3, 2 or 1 blocks          C[:, j : j + n]                           gemm.py, rowlanes.py
    loop 6    register tiles of rows              C[i : i + r, j : j + n]                   gemm.py, rowlanes.py
    loop 7    columns of A                        C += A[:, p] B[p, :]                      gemm.py, rowlanes.py

The leader, member 0, opens a job to helpers with ``open_job``. Its ``run`` returns OVER when the job is done and all
helpers are out of it. It returns earlier, BUSY or WAITING, when its quota of work is used up (so that Python can handle
a signal) or when it has waited for long (so that Python can yield the core); Python then calls it again. Between two
calls, ``admit`` may let more helpers in or send some out, who leave once they hold no item. The ``run`` of a helper
listens for the next job for a while before it returns OVER, because waking a thread takes longer than many steps.
"""

from functools import cache
from typing import Any

import numpy as np

from fastae.kernels import products
from fastae.kernels.compiler import callee, kernel
from fastae.kernels.cost import add_penalties, close_codes, close_shards
from fastae.kernels.infer import infer
from fastae.kernels.job import (
    BUSY,
    CANCEL,
    CANCELLED,
    CLAIM,
    CODE,
    COMPLETE,
    CONTROL_BYTES,
    DIVERGED,
    DONE,
    FINISHED_CLAIM,
    INSIDE,
    JOB,
    MEMBER,
    NONE,
    OPEN,
    OUTCOME,
    OVER,
    PHASES,
    SHARD,
    STEPS_DONE,
    STEPS_TASK,
    TRANSPOSE,
    UPDATE,
    WAITING,
    Member,
)
from fastae.kernels.load import load_tile
from fastae.kernels.shard import shard_item
from fastae.kernels.simd import (
    array_at,
    call_at,
    compare_and_swap,
    exchange,
    fetch_add,
    flush_subnormals,
    load_acquire,
    pause,
    record_at,
    restore_float_state,
    store_release,
)
from fastae.kernels.split import epoch_of, items_of, rows_of_shard
from fastae.kernels.stretch import transpose_item, update_item

PRESENT = Member.present.offset  # type: ignore[attr-defined]  # bytes from a member's record to this field
MEMBER_BYTES = MEMBER.itemsize
NOT_YET = -1  # ``run`` goes on
SPINS = (
    20000  # pauses to wait within a job: longer than a phase of a small step, 0.2 ms if a pause takes 10 ns
)
LISTEN = 20000  # pauses that a helper waits for another job: as long

# What a job calls by address, other than products: field of the job -> function
ITEMS = {
    "load_at": load_tile,
    "shard_at": shard_item,
    "transpose_at": transpose_item,
    "update_at": update_item,
    "infer_at": infer,
}


@cache
def addresses(form: products.Form, dtype: np.dtype[Any]) -> dict[str, int]:
    """Fields of a job: the addresses of all functions that it calls by address, compiled for `dtype`."""
    return products.addresses(form, dtype) | {name: item.address(dtype) for name, item in ITEMS.items()}


@kernel
def admit(control_at, members_at, size):  # type: ignore[no-untyped-def]
    """Open the job to members 0 .. size - 1; other helpers leave once they hold no item.

    Sets `wake` of the helpers that sleep, which the caller must wake: they count as `present` from now on.

    control_at   the control block of job.py        members_at   MEMBER (at least size,)
    """
    exchange(control_at + OPEN, size)
    for number in range(1, size):
        member_at = members_at + number * MEMBER_BYTES
        member = record_at(member_at, MEMBER)
        member.wake = np.int64(compare_and_swap(member_at + PRESENT, 0, 1))


@kernel
def open_job(control_at, members_at, claim, size):  # type: ignore[no-untyped-def]
    """Open a new job to members 0 .. size - 1; `claim` is the number of its first phase. Else as ``admit``."""
    control = array_at(control_at, (CONTROL_BYTES // 8,), np.int64)
    for i in range(CLAIM // 8, CONTROL_BYTES // 8):
        control[i] = 0
    control[CLAIM // 8] = claim
    admit(control_at, members_at, size)


@callee
def _close_job(control_at):  # type: ignore[no-untyped-def]
    """Close the job to helpers; return OVER, or WAITING if some are still inside."""
    exchange(control_at + OPEN, 0)
    for _ in range(SPINS):
        if load_acquire(control_at + INSIDE) == 0:
            return OVER
        pause()
    return WAITING


@kernel
def run(job_at, control_at, me_at, work):  # type: ignore[no-untyped-def]
    """Take part in the job; return OVER, BUSY or WAITING.

    job_at       JOB, read only while the job is open
    control_at   the control block of job.py, shared by the crew
    me_at        MEMBER, this thread's
    work         this thread's memory, mapped by TileMap: an address, since only what the job calls knows its dtype
    """
    state = flush_subnormals()
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    present, open_at, inside_at, number = me_at + PRESENT, control_at + OPEN, control_at + INSIDE, me.number
    # Whether this helper may read the job: the leader keeps all that the job points to until no helper is inside. A
    # helper never leaves with an item.
    inside = False
    pauses, status = 0, NOT_YET
    while status == NOT_YET:
        if number > 0 and me.held == 0 and load_acquire(open_at) <= number:
            if inside:
                fetch_add(inside_at, -1)
                inside = False
            pause()
            pauses += 1
            if pauses > LISTEN:
                exchange(present, 0)
                # A leader that opened a job just before this may have found the helper present, and not wake it.
                if load_acquire(open_at) <= number or not compare_and_swap(present, 0, 1):
                    status = OVER
                pauses = 0
        elif number > 0 and not inside:
            fetch_add(inside_at, 1)
            inside, pauses = True, 0  # the loop now checks whether the job is still open
        else:
            if job.task == STEPS_TASK:
                outcome = _steps(job_at, control_at, me_at, work)
            else:
                call_at(job.infer_at, (work, job_at, control_at, me_at))
                outcome = OVER if me.quota > 0 else BUSY
            if number == 0:
                status = _close_job(control_at) if outcome == OVER else outcome
            elif outcome == BUSY:
                me.quota = me.refill
            else:
                while outcome == OVER and pauses < LISTEN and load_acquire(open_at) > number:
                    pause()
                    pauses += 1
                fetch_add(inside_at, -1)
                inside = False
                if outcome == WAITING or pauses >= LISTEN:
                    status = WAITING
    restore_float_state(state)
    return status


@callee
def _claim(job, control_at, me, phase, items):  # type: ignore[no-untyped-def]
    """Claim an item of phase number `phase`, which has `items`; return -1 if all are claimed.

    job.taken holds the number of the phase for which each item was last claimed. A thread looks for an item at the
    start of its own share first. That is the same in every step, so that what the thread wrote in the last step is
    still in its own cache. Then it goes on to the shares of other threads.
    """
    size = load_acquire(control_at + OPEN)
    begin = me.number * items // max(size, me.number + 1)
    for i in range(items):
        item = begin + i if begin + i < items else begin + i - items
        taken_at = job.taken + item * 8
        before = load_acquire(taken_at)
        if before < phase and compare_and_swap(taken_at, before, phase):
            return item
    return -1


@callee
def _steps(job_at, control_at, me_at, work):  # type: ignore[no-untyped-def]
    """Claim items and process them: until the job is OVER; until the quota is used up, BUSY; or for long without one.

    In the last case, WAITING is returned.
    """
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    claim_at, done_at = control_at + CLAIM, control_at + DONE
    control = array_at(control_at, (CONTROL_BYTES // 8,), np.int64)
    losses = array_at(job.losses, (job.steps, 2), np.float64)
    spins, exhausted = 0, -1  # exhausted: the number of the phase in which no item is left to claim
    # Loop 1, the phases of all steps:     phase number `number`; rows first : first + batch of X
    # Loop 2, the items of a phase:        `item`, as this thread claims it; a shard of these rows, or a stretch
    # They are one loop here, because other threads may open the next phase at any time.
    while True:
        if me.held == 0:
            number = load_acquire(claim_at)
            if number == FINISHED_CLAIM:
                return OVER
            step, phase = number // PHASES, number % PHASES
            if phase != UPDATE and load_acquire(control_at + CANCEL) != 0:
                if not compare_and_swap(claim_at, number, FINISHED_CLAIM):
                    continue
                control[OUTCOME // 8] = CANCELLED
                return OVER
            item = -1
            if number != exhausted:
                item = _claim(job, control_at, me, number, items_of(job, step, phase))
            if item < 0:
                if load_acquire(control_at + OPEN) <= me.number:
                    return OVER
                exhausted = number
                spins += 1
                if spins > SPINS:
                    return WAITING
                pause()
                continue
            me.held, me.item, me.progress = number + 1, item, 0
        spins = 0
        number, item = me.held - 1, me.item
        step, phase = number // PHASES, number % PHASES
        items = items_of(job, step, phase)
        if phase == TRANSPOSE:
            call_at(job.transpose_at, (work, job_at, item))
        elif phase == UPDATE:
            n_parts = job.n_parts if job.n_parts != 0 else items_of(job, step, SHARD)
            call_at(job.update_at, (work, job_at, item, step, n_parts))
        else:
            if load_acquire(control_at + CANCEL) != 0:
                me.held = 0
                continue
            first, rows = rows_of_shard(job, step, item)
            shard = item, first, rows, epoch_of(job, step)
            call_at(job.shard_at, (work, job_at, *shard, me_at, np.int64(phase == CODE)))
            if me.progress < rows:
                return BUSY
        me.held = 0
        if fetch_add(done_at, 1) + 1 == items:
            store_release(done_at, 0)
            if phase == CODE:
                close_codes(job, step, items)
            if phase == SHARD:
                close_shards(job, step, items)
                if job.optimizer != NONE and not np.isfinite(losses[step, 0]):
                    control[OUTCOME // 8] = DIVERGED
                    store_release(claim_at, FINISHED_CLAIM)
                    return OVER
            if phase == UPDATE:
                if job.alpha > 0:
                    add_penalties(job, step)
                control[STEPS_DONE // 8] = step + 1
                if step + 1 == job.steps:
                    control[OUTCOME // 8] = COMPLETE
                    store_release(claim_at, FINISHED_CLAIM)
                    return OVER
            following = number + 1
            while items_of(job, following // PHASES, following % PHASES) == 0:
                following += 1  # most steps have no items in TRANSPOSE and CODE
            store_release(claim_at, following)
