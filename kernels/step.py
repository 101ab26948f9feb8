"""Gradient steps by a crew of threads: the one jitted call that each of them makes for a job.

Each thread of a crew makes one call, ``run``, on the same job. A step has up to four phases, each a number of items
that threads claim, each its own first and then what others have left:

    TRANSPOSE   one stretch of the flat buffers: W' of its weights, or both as bfloat16; only in a job's first step
    CODE        one shard of the rows: the sum of its codes; only where the mean code has a cost
    SHARD       one shard of the rows: its own gradient, its own loss
    UPDATE      one stretch of the flat buffers: shards added in a fixed order, then the optimizer, then W'

What an item computes depends on the job alone, never on who claims it, so the bits are the same for any number of
threads, and a thread that comes late, or never, costs nothing but its help. Whoever finishes a phase's last item opens
the next phase.

The loops of a step, and the slice that each selects; the numbers stand beside the loops in the files below:

    loop 1    the phases of all steps             rows first .. first + batch of X          step.py
    loop 2    the items of a phase                a shard of these rows, or a stretch       step.py, partition.py
    loop 3    the tiles of a shard                up to `height` rows                       shard.py
    loop 4    the layers, forwards and back       one layer's matrices of the tile          tile.py
    loop 5    blocks of columns, 3, 2 or 1        C[:, j : j + n]                           gemm.py
    loop 6    register tiles of rows              C[i : i + r, j : j + n]                   gemm.py
    loop 7    columns of A                        C += A[:, p] B[p, :]                      gemm.py

The caller is member 0, the leader: ``open_job`` lets the others in, and its ``run`` is OVER when the job is done and
they are all out again. It returns before, BUSY or WAITING, when its quota of work is used up (so that Python can handle
a signal) or when it has waited long (so that Python can yield the core), and is then made again; between two calls,
``admit`` may let more helpers in, or send some out: they go once they hold no item. A helper's ``run`` listens for the
next job for a while before it is OVER: waking a thread takes longer than many a step.
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
from fastae.kernels.partition import epoch_of, items_of, rows_of_shard
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
from fastae.kernels.stretch import transpose_item, update_item

PRESENT = Member.present.offset  # type: ignore[attr-defined]  # bytes from a member's record to its word
MEMBER_BYTES = MEMBER.itemsize
NOT_YET = -1
SPINS = 20000  # turns to wait within a job, longer than a phase of a small step lasts: 0.2 ms
LISTEN = 20000  # turns a helper waits for another job: 0.2 ms where a pause is 10 ns


ITEMS = {
    "load_at": load_tile,
    "shard_at": shard_item,
    "transpose_at": transpose_item,
    "update_at": update_item,
    "infer_at": infer,
}


@cache
def addresses(form: products.Form, dtype: np.dtype[Any]) -> dict[str, int]:
    """Fields of a job: where all that it calls by address lies, compiled for `dtype`."""
    return products.addresses(form, dtype) | {name: item.address(dtype) for name, item in ITEMS.items()}


@kernel
def admit(control_at, members_at, size):  # type: ignore[no-untyped-def]
    """Let members 0 .. size - 1 into the job, and the others out when they find nothing to do.

    The helpers that sleep get `wake` set, and are `present` from now on.

    control_at   the control block of job.py        members_at   MEMBER (at least size,)
    """
    exchange(control_at + OPEN, size)
    for number in range(1, size):
        member_at = members_at + number * MEMBER_BYTES
        member = record_at(member_at, MEMBER)
        member.wake = np.int64(compare_and_swap(member_at + PRESENT, 0, 1))


@kernel
def open_job(control_at, members_at, claim, size):  # type: ignore[no-untyped-def]
    """A new job, which begins at `claim`, for members 0 .. size - 1."""
    words = array_at(control_at, (CONTROL_BYTES // 8,), np.int64)
    for place in range(CLAIM // 8, CONTROL_BYTES // 8):
        words[place] = 0
    words[CLAIM // 8] = claim
    admit(control_at, members_at, size)


@callee
def _close_job(control_at):  # type: ignore[no-untyped-def]
    """Let nobody in any more: OVER, or WAITING while helpers are still inside."""
    exchange(control_at + OPEN, 0)
    for _ in range(SPINS):
        if load_acquire(control_at + INSIDE) == 0:
            return OVER
        pause()
    return WAITING


@kernel
def run(job_at, control_at, me_at, work):  # type: ignore[no-untyped-def]
    """Take part in the job: OVER, BUSY or WAITING.

    job_at       JOB, read only while the job is open
    control_at   the control block of job.py, shared by the crew
    me_at        MEMBER, this thread's
    work         where this thread's memory for tiles begins; what the job calls by address knows its dtype
    """
    state = flush_subnormals()
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    present, open_at, inside_at, number = me_at + PRESENT, control_at + OPEN, control_at + INSIDE, me.number
    # A helper in a job: what the job points at stays until it is out again. It never leaves with an item.
    inside = False
    turns, status = 0, NOT_YET
    while status == NOT_YET:
        if number > 0 and me.held == 0 and load_acquire(open_at) <= number:
            if inside:
                fetch_add(inside_at, -1)
                inside = False
            pause()
            turns += 1
            if turns > LISTEN:
                exchange(present, 0)
                # A leader that opened a job just before may have counted on this helper.
                if load_acquire(open_at) <= number or not compare_and_swap(present, 0, 1):
                    status = OVER
                turns = 0
        elif number > 0 and not inside:
            fetch_add(inside_at, 1)
            inside, turns = True, 0  # now see whether the job is still open
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
                while outcome == OVER and turns < LISTEN and load_acquire(open_at) > number:
                    pause()
                    turns += 1
                fetch_add(inside_at, -1)
                inside = False
                if outcome == WAITING or turns >= LISTEN:
                    status = WAITING
    restore_float_state(state)
    return status


@callee
def _claim(job, control_at, me, phase, items):  # type: ignore[no-untyped-def]
    """An item of phase number `phase`, or -1 where all are claimed.

    job.taken holds the last phase that each item was claimed for. A thread begins at its own share of them, the same
    in every step, so that what it wrote the last time is still in its own cache; then it helps the others out.
    """
    size = load_acquire(control_at + OPEN)
    begin = me.number * items // max(size, me.number + 1)
    for i in range(items):
        item = begin + i if begin + i < items else begin + i - items
        place = job.taken + item * 8
        before = load_acquire(place)
        if before < phase and compare_and_swap(place, before, phase):
            return item
    return -1


@callee
def _steps(job_at, control_at, me_at, work):  # type: ignore[no-untyped-def]
    """Claim items and do them until the job is over, the quota is used up, or there is long nothing to claim."""
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    claim_at, done_at = control_at + CLAIM, control_at + DONE
    words = array_at(control_at, (CONTROL_BYTES // 8,), np.int64)
    losses = array_at(job.losses, (job.steps, 2), np.float64)
    spins, exhausted = 0, -1  # the phase that has no item left to claim
    # Loop 1: the phases of all steps, `number` counting through them; loop 2: the items that this thread claims.
    while True:
        if me.held == 0:
            number = load_acquire(claim_at)
            if number == FINISHED_CLAIM:
                return OVER
            step, phase = number // PHASES, number % PHASES
            if phase != UPDATE and load_acquire(control_at + CANCEL) != 0:
                if not compare_and_swap(claim_at, number, FINISHED_CLAIM):
                    continue
                words[OUTCOME // 8] = CANCELLED
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
            parts = job.parts if job.parts != 0 else items_of(job, step, SHARD)
            call_at(job.update_at, (work, job_at, item, step, parts))
        else:
            if load_acquire(control_at + CANCEL) != 0:
                me.held = 0
                continue
            first, rows = rows_of_shard(job, step, item)
            which = item, first, rows, epoch_of(job, step)
            call_at(job.shard_at, (work, job_at, *which, me_at, np.int64(phase == CODE)))
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
                    words[OUTCOME // 8] = DIVERGED
                    store_release(claim_at, FINISHED_CLAIM)
                    return OVER
            if phase == UPDATE:
                if job.alpha > 0:
                    add_penalties(job, step)
                words[STEPS_DONE // 8] = step + 1
                if step + 1 == job.steps:
                    words[OUTCOME // 8] = COMPLETE
                    store_release(claim_at, FINISHED_CLAIM)
                    return OVER
            following = number + 1
            while items_of(job, following // PHASES, following % PHASES) == 0:
                following += 1  # most steps have nothing to TRANSPOSE and no CODE
            store_release(claim_at, following)
