"""The crew: the threads that work on a job. It opens jobs, wakes threads, times them and handles Ctrl-C.

It knows nothing of networks. The calling thread is the leader; the others are helpers, threads of the process that
``thread_pool.py`` lends. ``kernels/job.py`` describes the memory they share; each runs ``run`` of ``kernels/step.py``.
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
PATIENCE = (
    0.05  # seconds that a jitted call of the leader should last at most: Python handles signals in between
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
        from numba.core.errors import NumbaError

        from fastae.kernels import step

        self.work = work
        self._step, self._not_compiled = step, NumbaError
        self._work_at = [address(array) for array in work]
        self._taken = np.zeros(most_items, np.int64)
        self._job = Job()  # the record that helpers read; overwritten only while no job is open
        self._job_at, self._taken_at = ctypes.addressof(self._job), address(self._taken)
        self.reset()

    def reset(self) -> None:
        """New memory for what the threads share, as it is before any helper listens."""
        count = len(self.work)
        self._control = aligned_zeros(fields.CONTROL_BYTES // 8, np.int64)
        self._members = aligned_zeros(count * fields.MEMBER.itemsize // 8, np.int64).view(fields.MEMBER)
        self._members["number"] = np.arange(count)
        self._control_at, self._members_at = address(self._control), address(self._members)
        # Views of one field each, kept because creating one takes as long as all else that a call does with it.
        self._held, self._quota, self._refill, self._wake = (
            self._members[name] for name in ("held", "quota", "refill", "wake")
        )

    def run(
        self, job: Job, claim: int, n_threads: int, quota: int, thread_count: ThreadCount | None = None
    ) -> tuple[int, bool]:
        """Run a job to its end; return how many of its steps were taken, and whether its loss diverged.

        Parameters
        ----------
        job : Job
            Copied; only its ``taken`` is set here.
        claim : int
            The phase that the job begins with.
        n_threads : int
            How many threads take part, the leader included, unless there is a `thread_count`.
        quota : int
            Rows times features that the leader's first jitted call processes. Later quotas are chosen so that a call
            lasts PATIENCE at most.
        thread_count : ThreadCount, optional
            Chooses the number of threads, slice by slice, and records how long their steps took.

        Notes
        -----
        KeyboardInterrupt, or another error, is raised once no thread works on the job any more. Some steps may then
        not have been taken, but none is taken in part.
        """
        control, step = self._control, self._step
        job_at, control_at, members_at = self._job_at, self._control_at, self._members_at
        work_at = self._work_at[0]
        job.taken = self._taken_at
        ctypes.memmove(job_at, ctypes.byref(job), _JOB_BYTES)
        self._refill[:] = quota
        self._held[0] = fields.FREE
        self._taken[:] = -1
        error: BaseException | None = None
        has_steps = job.task == fields.STEPS_TASK  # to thread_count, any other job is one step
        threads = recorded = 0  # threads that the job is open to; steps that thread_count has been told of
        while True:
            try:
                status = fields.BUSY
                while status != fields.OVER:
                    start = time.perf_counter()
                    wanted = n_threads if thread_count is None else thread_count.threads
                    if error is not None:
                        control[fields.CANCEL // 8] = 1
                    elif threads != wanted:
                        is_open, threads = threads > 0, wanted
                        if is_open:
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
                    seconds, next_seconds = time.perf_counter() - start, PATIENCE
                    if thread_count is not None:
                        done = int(control[fields.STEPS_DONE // 8] if has_steps else status == fields.OVER)
                        thread_count.record(seconds, done - recorded)
                        recorded = done
                        next_seconds = thread_count.slice(PATIENCE)
                    quota = max(1, int(quota * min(4.0, next_seconds / max(seconds, 1e-6))))
                break
            except self._not_compiled:  # no thread has run anything, and none will
                raise
            except BaseException as raised:
                error = error or raised
        if error is not None:
            self.reset()  # which helpers were woken is unknown
            raise error
        return int(control[fields.STEPS_DONE // 8]), bool(control[fields.OUTCOME // 8] == fields.DIVERGED)

    def _helper(self, number: int) -> Callable[[], None]:
        """What a helper does as member `number`. It keeps a reference to the memory, not to the crew."""
        run, memory = self._step.run, (self._job, self._control, self._members, self.work[number])
        job_at, control_at, work_at = self._job_at, self._control_at, self._work_at[number]
        me_at = self._members_at + number * fields.MEMBER.itemsize
        held, quota, refill = self._held, self._quota, self._refill

        def take_part(_alive: object = memory) -> None:  # the memory lives as long as this function
            held[number], quota[number] = fields.FREE, refill[number]
            while run(job_at, control_at, me_at, work_at) != fields.OVER:
                time.sleep(0)

        return take_part
