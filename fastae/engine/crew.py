"""The threads that work on one job at a time: opened, woken, timed, interrupted. Knows nothing of networks.

The calling thread is the leader; the others are helpers, lent by the process (``thread_pool.py``). What they share is
described in ``kernels/job.py``, what each of them runs is ``kernels/step.py``.
"""

import ctypes
import time
from collections.abc import Callable

import numpy as np

from fastae.engine import thread_pool
from fastae.engine.thread_count import ThreadCount
from fastae.kernels import job as fields
from fastae.kernels.job import Job
from fastae.kernels.layout import address, aligned_zeros

_JOB_BYTES = ctypes.sizeof(Job)
PATIENCE = 0.05  # seconds a jitted call should last, so that signals are handled in time


class Crew:
    """Threads and their memory.

    Parameters
    ----------
    work : list of ndarray
        Memory for tiles, one array per thread.
    most_items : int
        The most items that a phase of a job has.
    """

    def __init__(self, work: list[np.ndarray], most_items: int) -> None:
        from numba.core.errors import NumbaError

        from fastae.kernels import step

        self.work = work
        self._step, self._not_compiled = step, NumbaError
        self._work_at = [address(array) for array in work]
        self._taken = np.zeros(most_items, np.int64)
        self._job = Job()  # the memory that helpers read; rewritten while no job is open
        self._job_at, self._taken_at = ctypes.addressof(self._job), address(self._taken)
        self.form()

    def form(self) -> None:
        """What the threads share and keep, as it is before any helper listens."""
        count = len(self.work)
        self._control = aligned_zeros(fields.CONTROL_BYTES // 8, np.int64)
        self._members = aligned_zeros(count * fields.MEMBER.itemsize // 8, np.int64).view(fields.MEMBER)
        self._members["number"] = np.arange(count)
        self._control_at, self._members_at = address(self._control), address(self._members)
        # Views of one field each: to make one takes as long as all else that a call does with it.
        self._held, self._quota, self._refill, self._wake = (
            self._members[name] for name in ("held", "quota", "refill", "wake")
        )

    def run(
        self, job: Job, claim: int, n_threads: int, quota: int, tried: ThreadCount | None = None
    ) -> tuple[int, bool]:
        """Run a job to its end; returns how many of its steps were taken, and whether its loss diverged.

        Parameters
        ----------
        claim : int
            The phase that the job begins with.
        n_threads : int
            How many threads take part, the leader included, where `tried` does not say so.
        quota : int
            Rows times features that the first jitted call processes; later calls are made to last PATIENCE at most.
        tried : ThreadCount, optional
            Says how many threads take part, and is told how long steps took.

        Notes
        -----
        Ctrl-C is raised when no thread is at work any more; it may leave steps undone, but none in part.
        """
        control, step = self._control, self._step
        job_at, control_at, members_at = self._job_at, self._control_at, self._members_at
        work_at = self._work_at[0]
        job.taken = self._taken_at
        ctypes.memmove(job_at, ctypes.byref(job), _JOB_BYTES)
        self._refill[:] = quota
        self._held[0] = 0
        self._taken[:] = -1
        error: BaseException | None = None
        stepping = job.task == fields.STEPS_TASK  # else all of the job is one step
        threads = done = 0  # threads let into the job, steps taken so far
        while True:
            try:
                status = fields.BUSY
                while status != fields.OVER:
                    began = time.perf_counter()
                    wanted = n_threads if tried is None else tried.threads
                    if error is not None:
                        control[fields.CANCEL // 8] = 1
                    elif threads != wanted:
                        opened, threads = threads > 0, wanted
                        if opened:
                            step.admit(control_at, members_at, threads)
                        else:
                            step.open_job(control_at, members_at, claim, threads)
                        for number in range(1, threads):
                            if self._wake[number]:
                                thread_pool.lend(self._helper(number))
                    self._quota[0] = quota
                    status = step.run(job_at, control_at, members_at, work_at)
                    while status == fields.WAITING:
                        time.sleep(0)
                        status = step.run(job_at, control_at, members_at, work_at)
                    took, longest = time.perf_counter() - began, PATIENCE
                    if tried is not None:
                        taken = int(control[fields.STEPS_DONE // 8] if stepping else status == fields.OVER)
                        tried.record(took, taken - done)
                        done = taken
                        longest = tried.slice(PATIENCE)
                    quota = max(1, int(quota * min(4.0, longest / max(took, 1e-6))))
                break
            except self._not_compiled:  # nothing has run, on any thread, and nothing will
                raise
            except BaseException as raised:
                error = error or raised
        if error is not None:
            self.form()  # it is not known which helpers were woken
            raise error
        return int(control[fields.STEPS_DONE // 8]), bool(control[fields.OUTCOME // 8] == fields.DIVERGED)

    def _helper(self, number: int) -> Callable[[], None]:
        """What a helper does as member `number`; holds on to memory, not to the crew."""
        run, memory = self._step.run, (self._job, self._control, self._members, self.work[number])
        job_at, control_at, work_at = self._job_at, self._control_at, self._work_at[number]
        me_at = self._members_at + number * fields.MEMBER.itemsize
        held, quota, refill = self._held, self._quota, self._refill

        def take_part() -> None:
            assert memory  # kept alive until the thread has left it
            held[number], quota[number] = 0, refill[number]
            while run(job_at, control_at, me_at, work_at) != fields.OVER:
                time.sleep(0)

        return take_part
