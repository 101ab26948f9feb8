"""Gradient steps by a crew of threads: ``run``, the jitted call that each thread makes on a job. No arithmetic is here.

How a step is cut into items, by rows or by weights, is in split.py. A *round* is a slab of the step's rows or, by rows,
the whole step. It has up to five phases. Each consists of items, which threads claim: first those of their own share,
then those that other threads have not claimed yet:

    TRANSPOSE   item: a stretch. Prepare W and W' as products read them; only in the first round of a job
    CODE        item: a shard. Add up its codes; only in the first round of a step, if the mean code has a cost
    ROWS        item: a shard. Compute its gradient and loss
                or a band. Compute its activations, deltas and loss
    WEIGHTS     item: a stretch. Add the shards' gradients in a fixed order, update the weights, prepare W and W'
                or a patch. Compute its gradient over the slab; in the last round of a step, update and prepare as well
    CLIP        item: a stretch. Only if the gradient is to be clipped, in the last round of a step: WEIGHTS leaves the
                gradient and its norm, and the update is here

What an item computes depends only on the job, never on the thread that claims it. So results are bit-identical for any
number of threads, and no thread has to wait for one that comes late or never.

The thread that finishes the last item of a phase opens the next phase. CLAIM holds the phase that is open:

    when                                                                     the next phase is
    the last item of a phase is done                                         the next one that has items
    the last item of ROWS is done, but the step's loss is not finite         none: OUTCOME is DIVERGED
    the last item of the last step is done                                   none: OUTCOME is COMPLETE
    CANCEL is set, and a member looks for an item of a phase before WEIGHTS  none: OUTCOME is CANCELLED

The loops of a step, and the slice that each selects. The files repeat the numbers beside the loops:

    loop 1    the phases of all rounds            rows first : first + batch of X           step.py
    loop 2    the items of a phase                a part of these rows, or of the weights   step.py, split.py
    loop 3    the tiles of a shard                up to `height` rows of the shard          shard.py, infer.py
              (a band is one tile)                                                          band.py
    loop 4    the layers, forwards and backwards  the tile's matrices of one layer          tile.py
    loop 5    panels of 3, 2 or 1 blocks          C[:, j : j + n]                           gemm.py, rowlanes.py, amx.py
    loop 6    register tiles of rows              C[i : i + r, j : j + n]                   the same
    loop 7    columns of A                        C += A[:, p] B[p, :]                      the same

The leader, member 0, opens a job to helpers with ``open_job``. A member is always in one of these states:

    member      state       until                                       then
    a helper    asleep      open_job or admit sets its `wake`           Python wakes it: listening
                listening   the job is open to it                       inside
                            it has listened for long                    asleep; ``run`` returns OVER
                inside      it claims an item of the phase              holding
                            the job is over or closed to it             listening
                            it has found nothing to claim for long      listening; ``run`` returns WAITING
                holding     the item is done, or dropped: cancelled     inside
    the leader  inside      it claims an item of the phase              holding
                            the job is over and no helper is inside     ``run`` returns OVER
                            it has waited for long for either           ``run`` returns WAITING: it is called again
                holding     the item is done, or dropped: cancelled     inside
                            its quota of work is used up                ``run`` returns BUSY: it is called again

A helper asleep has `present` = 0, any other 1. INSIDE counts the helpers that are inside or holding: while there are
any, the leader keeps all that the job points to. Helpers listen for a while before they sleep, because waking a thread
takes longer than many steps.

Between two calls of the leader's ``run``, Python handles signals, and may admit more helpers or send some out with
``admit``. If it gives the job up, it calls ``abandon``. Even then no step is taken in part: whoever opens WEIGHTS
or CLIP claims its items until none is left, and no one leaves ``run`` with one.
"""

from functools import cache
from typing import Any

import numpy as np

from fastae.kernels import products
from fastae.kernels.band import band_item
from fastae.kernels.compiler import callee, expect, inlined, kernel
from fastae.kernels.cost import add_penalties, close_codes, close_rows
from fastae.kernels.infer import infer
from fastae.kernels.intrinsics import (
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
from fastae.kernels.job import (
    APART,
    BUSY,
    BY_WEIGHTS,
    CANCEL,
    CANCELLED,
    CLAIM,
    CLIP,
    CODE,
    COMPLETE,
    CONTROL_BYTES,
    DIVERGED,
    DONE,
    FINISHED_CLAIM,
    FREE,
    INSIDE,
    JOB,
    MEMBER,
    NONE,
    OPEN,
    OUTCOME,
    OVER,
    PHASES,
    ROWS,
    STEPS_DONE,
    STEPS_TASK,
    TRANSPOSE,
    WAITING,
    WEIGHTS,
    Member,
)
from fastae.kernels.load import load_tile
from fastae.kernels.patch import patch_item
from fastae.kernels.rounding import in_blocks
from fastae.kernels.shard import shard_item
from fastae.kernels.split import (
    GROUP,
    group_of,
    is_last_round,
    items_of,
    rows_of_item,
    share_begin,
    step_of,
)
from fastae.kernels.stretch import clip_item, close_gradient, transpose_item, update_item, update_parts

PRESENT = Member.present.offset  # type: ignore[attr-defined]  # bytes from a member's record to this field
MEMBER_BYTES = MEMBER.itemsize
# Pauses to wait within a job: longer than a phase of a small step, 0.2 ms if a pause takes 10 ns
SPINS = 20000
LISTEN = 20000  # pauses that a helper waits for another job: as long
# What ``_next_item`` returns if the member holds an item now; else OVER or WAITING, as ``run`` does
HOLDING = -1

# What a job calls by address, other than products: field of the job -> function
ITEMS = {
    "load_at": load_tile,
    "shard_at": shard_item,
    "band_at": band_item,
    "transpose_at": transpose_item,
    "update_at": update_item,
    "patch_at": patch_item,
    "clip_at": clip_item,
    "update_parts_at": update_parts,
    "infer_at": infer,
}


@cache
def addresses(form: products.Form, dtype: np.dtype[Any]) -> dict[str, int]:
    """Fields of a job: the addresses of all functions that it calls by address, compiled for `dtype`."""
    of_form = [function for name in products.FUNCTIONS if (function := getattr(form, name)) is not None]
    expect([*of_form, *ITEMS.values(), open_job, admit, run, run_alone], dtype)
    return products.addresses(form, dtype) | {name: item.address(dtype) for name, item in ITEMS.items()}


@kernel
def admit(control_at, members_at, size):  # type: ignore[no-untyped-def]
    """Open the job to members 0 .. size - 1; other helpers leave once they hold no item.

    Sets `wake` of the helpers that sleep, which the caller must wake: they count as `present` from now on.

    control_at   the control words of job.py        members_at   MEMBER (at least size,)
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


@kernel
def abandon(control_at):  # type: ignore[no-untyped-def]
    """Cancel the job and close it; return once no helper is inside. The leader must not call ``run`` for it again."""
    exchange(control_at + CANCEL, 1)
    exchange(control_at + OPEN, 0)
    while load_acquire(control_at + INSIDE) != 0:
        pause()


@kernel
def run(job_at, control_at, me_at, work) -> int:  # type: ignore[no-untyped-def]
    """Take part in the job; return OVER, BUSY or WAITING.

    job_at       JOB, read only while the job is open
    control_at   the control words of job.py, shared by the crew
    me_at        MEMBER, this thread's
    work         this thread's memory, mapped by TileMap: an address, since only what the job calls knows its dtype
    """
    state = flush_subnormals()
    if record_at(me_at, MEMBER).number == 0:
        status = _lead(job_at, control_at, me_at, work)
    else:
        status = _help(job_at, control_at, me_at, work)
    restore_float_state(state)
    return status


@inlined
def _lead(job_at, control_at, me_at, work):  # type: ignore[no-untyped-def]
    """``run`` for the leader."""
    status = _work(job_at, control_at, me_at, work)
    if status != OVER:
        return status
    exchange(control_at + OPEN, 0)
    for _ in range(SPINS):
        if load_acquire(control_at + INSIDE) == 0:
            return OVER
        pause()
    return WAITING


@inlined
def _help(job_at, control_at, me_at, work):  # type: ignore[no-untyped-def]
    """``run`` for a helper: take part in one job after another; return OVER, asleep, or WAITING, listening."""
    me, open_at = record_at(me_at, MEMBER), control_at + OPEN
    while _listen(control_at, me_at):
        fetch_add(control_at + INSIDE, 1)
        # The job may have been closed before this helper was inside, and what it points to may be gone.
        status = BUSY
        while status == BUSY and (me.held != FREE or load_acquire(open_at) > me.number):
            me.quota = me.refill
            status = _work(job_at, control_at, me_at, work)
        pauses = 0
        while status == OVER and load_acquire(open_at) > me.number:  # until the leader closes the job
            pause()
            pauses += 1
            if pauses == LISTEN:
                status = WAITING
        fetch_add(control_at + INSIDE, -1)
        if status == WAITING:
            return WAITING
    return OVER


@inlined
def _listen(control_at, me_at):  # type: ignore[no-untyped-def]
    """Wait until the job is open to this helper: True. After a long wait, it is asleep: False."""
    number, present_at, pauses = record_at(me_at, MEMBER).number, me_at + PRESENT, 0
    while load_acquire(control_at + OPEN) <= number:
        pause()
        pauses += 1
        if pauses > LISTEN:
            exchange(present_at, 0)
            # A leader that opened a job just before this may have found the helper present, and not wake it.
            if load_acquire(control_at + OPEN) <= number or not compare_and_swap(present_at, 0, 1):
                return False
            pauses = 0
    return True


@kernel
def run_alone(job_at, control_at, members_at, work, claim, most_items) -> int:  # type: ignore[no-untyped-def]
    """Open a new job to the leader alone, and work on it without a quota; return OVER, or WAITING as ``run`` does.

    `claim` is the number of the job's first phase. job.taken is (most_items,), and job.group_done has as many groups.
    """
    job, me = record_at(job_at, JOB), record_at(members_at, MEMBER)
    taken = array_at(job.taken, (most_items,), np.int64)
    for i in range(most_items):
        taken[i] = -1
    group_done = array_at(job.group_done, (in_blocks(most_items, GROUP) * (APART // 8),), np.int64)
    for i in range(group_done.size):
        group_done[i] = 0
    me.held, me.quota = FREE, np.int64(1) << 62
    open_job(control_at, members_at, claim, 1)
    return run(job_at, control_at, members_at, work)


@callee
def _work(job_at, control_at, me_at, work):  # type: ignore[no-untyped-def]
    """Work on the job as a member inside; return OVER, or BUSY if the quota is used up, or WAITING."""
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    if job.task == STEPS_TASK:
        return _steps(job_at, control_at, me_at, work)
    call_at(job.infer_at, (work, job_at, control_at, me_at))
    return OVER if me.quota > 0 else BUSY


@callee
def _steps(job_at, control_at, me_at, work):  # type: ignore[no-untyped-def]
    """Work on steps: claim items and process them. Returns as ``_work`` does."""
    job, me = record_at(job_at, JOB), record_at(me_at, MEMBER)
    search = FINISHED_CLAIM, 0, 0, 0  # see _next_item
    # Loop 1, the phases of all rounds:    phase `phase_number`; rows first : first + batch of X
    # Loop 2, the items of a phase:        `item`, as this thread claims it; a part of these rows, or of the weights
    # They are one loop here, because other threads may open the next phase at any time.
    while True:
        if me.held == FREE:
            status, search = _next_item(job, control_at, me, search)
            if status != HOLDING:
                return status
        phase_number = me.held
        if _cancelled(control_at, phase_number):
            me.held = FREE
            continue
        items = items_of(job, phase_number // PHASES, phase_number % PHASES)
        if not _process_item(job, job_at, me, me_at, work):
            return BUSY
        me.held = FREE
        if _is_last(job, control_at, me.item, items):
            _finish_phase(job, control_at, phase_number, items)


@inlined
def _cancelled(control_at, phase_number):  # type: ignore[no-untyped-def]
    """Whether to stop in this phase: not in WEIGHTS or CLIP, which would leave a step taken in part."""
    return phase_number % PHASES < WEIGHTS and load_acquire(control_at + CANCEL) != 0


@inlined
def _next_item(job, control_at, me, search):  # type: ignore[no-untyped-def]
    """Claim an item of the phase that is open: HOLDING. Returns OVER or WAITING if there is none, as ``_work`` does.

    job.taken holds the number of the phase for which each item was last claimed. A thread goes through the items once
    per phase, in the order of split.share_begin: those it has passed are taken, and stay so until the phase is over.

    `search` is what this returned with the status before: (phase, its items, the first one looked at, items passed).
    """
    claim_at = control_at + CLAIM
    searched, items, begin, passed = search
    pauses = 0
    while pauses <= SPINS:
        phase_number = load_acquire(claim_at)
        if phase_number == FINISHED_CLAIM:
            return OVER, (searched, items, begin, passed)
        if _cancelled(control_at, phase_number):
            if compare_and_swap(claim_at, phase_number, FINISHED_CLAIM):
                array_at(control_at + OUTCOME, (1,), np.int64)[0] = CANCELLED
            continue
        if phase_number != searched:
            size = load_acquire(control_at + OPEN)
            items = items_of(job, phase_number // PHASES, phase_number % PHASES)
            searched, begin, passed = phase_number, share_begin(me.number, size, items), 0
        while passed < items:
            item = begin + passed if begin + passed < items else begin + passed - items
            passed += 1
            taken_at = job.taken + item * 8
            before = load_acquire(taken_at)
            if before < phase_number and compare_and_swap(taken_at, before, phase_number):
                me.held, me.item, me.progress = phase_number, item, 0
                return HOLDING, (searched, items, begin, passed)
        # Only now: the thread that opens WEIGHTS or CLIP must not leave before all its items are claimed.
        if load_acquire(control_at + OPEN) <= me.number:
            return OVER, (searched, items, begin, passed)
        pause()
        pauses += 1
    return WAITING, (searched, items, begin, passed)


@inlined
def _is_last(job, control_at, item, items):  # type: ignore[no-untyped-def]
    """Count an item that is done; return whether all items of the phase are.

    Each group of items has a counter, and DONE counts groups. Whoever finishes a group sets its counter back to 0.
    """
    group, size = group_of(item, items)
    counter_at = job.group_done + group * APART
    if fetch_add(counter_at, 1) + 1 < size:
        return False
    array_at(counter_at, (1,), np.int64)[0] = 0  # visible to whoever sees that the next phase is open
    return fetch_add(control_at + DONE, 1) + 1 == in_blocks(items, GROUP)


@inlined
def _process_item(job, job_at, me, me_at, work):  # type: ignore[no-untyped-def]
    """Process the item that this thread holds: True. If its quota was used up before the end of a shard: False."""
    round_, phase, item = me.held // PHASES, me.held % PHASES, me.item
    by_weights = job.cut == BY_WEIGHTS
    if phase == TRANSPOSE:
        call_at(job.transpose_at, (work, job_at, item))
    elif phase == WEIGHTS:
        if by_weights:
            call_at(job.patch_at, (work, job_at, item, round_))
        else:
            call_at(job.update_at, (work, job_at, item, round_))
    elif phase == CLIP:
        call_at(job.clip_at, (work, job_at, item, round_))
    else:
        first, rows = rows_of_item(job, round_, phase, item)
        if by_weights and phase == ROWS:
            call_at(job.band_at, (work, job_at, item, first, rows, round_, me_at))
        else:
            call_at(job.shard_at, (work, job_at, item, first, rows, round_, me_at, np.int64(phase == CODE)))
        return me.progress == rows
    return True


@inlined
def _finish_phase(job, control_at, phase_number, items):  # type: ignore[no-untyped-def]
    """After the last of a phase's items: combine what they computed, and open the next phase or end the steps."""
    round_, phase = phase_number // PHASES, phase_number % PHASES
    step, is_last = step_of(job, round_), is_last_round(job, round_)
    control = array_at(control_at, (CONTROL_BYTES // 8,), np.int64)
    following = phase_number + 1
    control[DONE // 8] = 0
    if phase == CODE:
        close_codes(job, step, items)
    elif phase == ROWS:
        close_rows(job, step, items, round_ % job.slabs == 0, is_last)
        losses = array_at(job.losses, (job.steps, 2), np.float64)
        if job.optimizer != NONE and is_last and not np.isfinite(losses[step, 0]):
            control[OUTCOME // 8] = DIVERGED
            following = FINISHED_CLAIM
    elif phase == WEIGHTS and is_last:
        if job.alpha > 0:
            add_penalties(job, step, items)
        if job.clip_norm > 0:
            close_gradient(job, items)
        else:
            following += 1  # CLIP has no items
    if phase >= WEIGHTS and is_last and (phase == CLIP or job.clip_norm == 0):
        control[STEPS_DONE // 8] = step + 1
        if step + 1 == job.steps:
            control[OUTCOME // 8] = COMPLETE
            following = FINISHED_CLAIM
    if following != FINISHED_CLAIM:
        while items_of(job, following // PHASES, following % PHASES) == 0:
            following += 1  # most steps have no items in TRANSPOSE, CODE and CLIP
    store_release(control_at + CLAIM, following)
