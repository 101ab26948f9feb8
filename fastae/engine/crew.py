"""The crew: the threads that work on a job. It opens jobs, wakes threads, times them and handles Ctrl-C.

It knows nothing of networks. The calling thread is the leader; the others are helpers, which ``thread_pool.py`` lends
out. ``kernels/job.py`` describes the memory they share. Each thread runs ``run`` of ``kernels/step.py``, which has the
table of what they do.
"""

import ctypes
import threading
import time
from collections.abc import Callable

import numpy as np

from fastae.engine import thread_pool
from fastae.engine.side_by_side import Stopped
from fastae.engine.thread_count import ThreadCount
from fastae.kernels import job as fields
from fastae.kernels.job import Job
from fastae.kernels.layout import address, aligned_zeros

_JOB_BYTES = ctypes.sizeof(Job)
_STEPS_DONE, _OUTCOME = fields.STEPS_DONE // 8, fields.OUTCOME // 8
# Seconds that a jitted call of the leader should last at most: Python handles signals in between.
PATIENCE = 0.05


class _Shared:
    """What the threads of a crew read and write: the control words and a record for each member (kernels/job.py)."""

    def __init__(self, size: int) -> None:
        self.control = aligned_zeros(fields.CONTROL_BYTES // 8, np.int64)
        self.members = aligned_zeros(size * fields.MEMBER.itemsize // 8, np.int64).view(fields.MEMBER)
        self.members["number"] = np.arange(size)
        self.control_at, self.members_at = address(self.control), address(self.members)
        # Views of one field each, kept because creating one takes as long as all else that a call does with it.
        self.held, self.quota, self.refill, self.present, self.wake = (
            self.members[name] for name in ("held", "quota", "refill", "present", "wake")
        )


class Crew:
    """Runs jobs, one at a time, on up to as many threads as it has memory for.

    Parameters
    ----------
    work : list of ndarray
        Memory for tiles, one array per thread; the leader's first.
    most_items : int
        The most items that a phase of any job has.
    """

    def __init__(self, work: list[np.ndarray], most_items: int) -> None:
        from fastae.kernels import split, step

        self.work, self._step, self._most_items = work, step, most_items
        self._work_at = [address(array) for array in work]
        self._taken = np.zeros(most_items, np.int64)
        groups = -(-most_items // split.GROUP)
        self._group_done = aligned_zeros(groups * fields.APART // 8, np.int64)
        self._taken_at, self._group_done_at = address(self._taken), address(self._group_done)
        self._job = Job()  # the record that helpers read; overwritten only while no job is open
        self._job_at = ctypes.addressof(self._job)
        self._shared: _Shared | None = _Shared(len(work))
        self._abandon = step.abandon.loaded()  # now: in ``run``, a signal could interrupt the compiler
        self._run_alone: Callable[..., int] | None = None  # the C function, loaded by the first job
        self.stop: threading.Event | None = None  # once it is set, jobs end with Stopped

    def forget_helpers(self) -> None:
        """Begin the next job with new shared memory, and so with helpers woken anew: present ones hear of no job."""
        self._shared = None

    def run_alone(self, job: Job, claim: int) -> tuple[int, bool]:
        """Run a job that takes much less than PATIENCE on the calling thread alone; return as ``run`` does.

        No helper takes part, so the shared memory stays as it is if an error or a signal ends the call.
        """
        job.taken, job.group_done = self._taken_at, self._group_done_at
        if self.stop is not None and self.stop.is_set():
            raise Stopped
        shared = self._shared
        if shared is None:
            shared = self._shared = _Shared(len(self.work))
        if self._run_alone is None:
            self._run_alone = self._step.run_alone.loaded()
        places = shared.control_at, shared.members_at, self._work_at[0]
        job_at = ctypes.addressof(job)
        status = self._run_alone(job_at, *places, claim, self._most_items)
        while status != fields.OVER:  # a helper that is late notices that there is nothing for it to do
            time.sleep(0)
            status = self._step.run(job_at, *places)
        control = shared.control
        return control.item(_STEPS_DONE), control.item(_OUTCOME) == fields.DIVERGED

    def run(self, job: Job, claim: int, threads: int | ThreadCount, quota: int) -> tuple[int, bool]:
        """Run a job to its end; return how many of its steps were taken, and whether its loss diverged.

        Parameters
        ----------
        job : Job
            Copied; only its ``taken`` and ``group_done`` are set here.
        claim : int
            The phase that the job begins with.
        threads : int or ThreadCount
            How many threads take part, the leader included; or what chooses their number, slice by slice, and is told
            how long their steps took.
        quota : int
            Rows times features that the leader's first jitted call processes. Later quotas are chosen so that a call
            lasts PATIENCE at most.

        Notes
        -----
        KeyboardInterrupt, or another error, is raised once no thread works on the job any more. Some steps may then
        not have been taken, but none is taken in part.
        """
        # From here until the job has ended well, the crew has no shared memory: after an error, which helpers were
        # woken is unknown, and the next job begins with new memory.
        shared, self._shared = self._shared or _Shared(len(self.work)), None
        job.taken, job.group_done = self._taken_at, self._group_done_at
        ctypes.memmove(self._job_at, ctypes.byref(job), _JOB_BYTES)
        shared.refill[:] = quota
        shared.held[0] = fields.FREE
        self._taken[:] = -1
        self._group_done[:] = 0
        try:
            self._run_slices(shared, claim, threads, quota, job.task == fields.STEPS_TASK)
        except BaseException:
            # Signals may raise KeyboardInterrupt again at any time. But Python handles none between an error and the
            # end of the first call after it, which is this one. When it returns, no thread works on the job.
            self._abandon(shared.control_at)
            raise
        self._shared = shared
        control = shared.control
        return int(control[_STEPS_DONE]), bool(control[_OUTCOME] == fields.DIVERGED)

    def _run_slices(
        self, shared: _Shared, claim: int, threads: int | ThreadCount, quota: int, has_steps: bool
    ) -> None:
        """Run the job until it is over, in slices, each of one jitted call or several; see ``run``."""
        thread_count = None if isinstance(threads, int) else threads
        n_threads = recorded = 0  # threads that the job is open to; steps that thread_count was told of
        status = fields.BUSY
        while status != fields.OVER:
            if self.stop is not None and self.stop.is_set():
                raise Stopped
            start, cpu_start = time.perf_counter(), time.process_time()
            wanted = threads if isinstance(threads, int) else threads.threads
            if wanted != n_threads:
                self._open_or_admit(shared, claim, n_threads, wanted)
                n_threads = wanted
            status = self._run_slice(shared, quota)
            seconds, next_seconds = time.perf_counter() - start, PATIENCE
            if thread_count is not None:
                # To a thread count, a job without steps is one step.
                done = int(shared.control[_STEPS_DONE] if has_steps else status == fields.OVER)
                thread_count.record(seconds, done - recorded, time.process_time() - cpu_start)
                recorded, next_seconds = done, thread_count.slice(PATIENCE)
            quota = max(1, int(quota * min(4.0, next_seconds / max(seconds, 1e-6))))

    def _open_or_admit(self, shared: _Shared, claim: int, before: int, n_threads: int) -> None:
        """Open the job to so many threads; if it was open `before` to more or to fewer, send out or admit helpers."""
        if before > 0:
            self._step.admit(shared.control_at, shared.members_at, n_threads)
        else:
            self._step.open_job(shared.control_at, shared.members_at, claim, n_threads)
        for number in range(1, n_threads):
            if shared.wake[number]:
                try:
                    thread_pool.lend(self._helper(shared, number))
                except RuntimeError:  # no thread can be started: go on with those there are
                    shared.present[number] = 0  # the next job tries again

    def _run_slice(self, shared: _Shared, quota: int) -> int:
        """Have the leader process `quota`, or what is left of the job; return BUSY or OVER."""
        run, job_at, work_at = self._step.run, self._job_at, self._work_at[0]
        shared.quota[0] = quota
        status: int = run(job_at, shared.control_at, shared.members_at, work_at)
        while status == fields.WAITING:
            time.sleep(0)
            status = run(job_at, shared.control_at, shared.members_at, work_at)
        return status

    def _helper(self, shared: _Shared, number: int) -> Callable[[], None]:
        """What a helper does as member `number`. It keeps a reference to the memory, not to the crew."""
        run, job_at, control_at, work_at = (
            self._step.run,
            self._job_at,
            shared.control_at,
            self._work_at[number],
        )
        me_at = shared.members_at + number * fields.MEMBER.itemsize
        memory = self._job, shared, self.work[number]

        def take_part(_alive: object = memory) -> None:  # the memory lives as long as this function
            shared.held[number], shared.quota[number] = fields.FREE, shared.refill[number]
            while run(job_at, control_at, me_at, work_at) != fields.OVER:
                time.sleep(0)

        return take_part
