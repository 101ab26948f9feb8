"""A process-wide team of plain threads that help a caller through one job. Knows nothing of networks.

A job is a function ``work(member)`` that returns True while it must be called again. The caller runs it itself, as
member 0, and as many idle helpers as are free join in; since the jobs here hand out their work item by item, a helper
that comes late or not at all changes nothing but the time. Helpers sleep on a lock between jobs. No helper survives a
fork: the child starts its own.
"""

import os
import threading
from collections.abc import Callable

Work = Callable[[int], bool]


class _Job:
    """What one helper does for one call. Waiting for it may be interrupted, and taken up again."""

    def __init__(self, work: Work, member: int, cancel: Callable[[], None]) -> None:
        self._work, self._member, self._cancel = work, member, cancel
        self._lock = threading.Lock()
        self._lock.acquire()
        self.started = self._over = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while self._work(self._member):
                pass
        except BaseException as error:  # handed to the caller, who raises it
            self.error = error
            self._cancel()
        self._over = True
        self._lock.release()

    def wait(self) -> None:
        while self.started and not self._over:
            self._lock.acquire()


class _Helper:
    """One thread: sleeps until it is given a job, runs it to its end, sleeps again."""

    def __init__(self) -> None:
        self._wake = threading.Lock()
        self._wake.acquire()
        self._job: _Job | None = None
        threading.Thread(target=self._live, name="fastae", daemon=True).start()

    def _live(self) -> None:
        while True:
            self._wake.acquire()
            job, self._job = self._job, None
            assert job is not None
            job.run()
            del job

    def start(self, job: _Job) -> None:
        self._job = job
        job.started = True  # no signal is handled between this line and the next
        self._wake.release()


_idle: list[_Helper] = []
_idle_lock = threading.Lock()


def _forget() -> None:
    global _idle_lock
    _idle.clear()
    _idle_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def available_cpus() -> int:
    """CPUs that this process may use: by affinity, and by the cgroup's quota where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, count if quota is None else min(count, int(quota + 0.999)))


def _cgroup_quota() -> float | None:
    """CPUs that the cgroup grants (v2, then v1), or None without a limit."""
    try:
        with open("/proc/self/cgroup") as file:
            own = {line.split(":", 2)[1]: line.rstrip("\n").split(":", 2)[2] for line in file}
    except (OSError, IndexError):
        own = {}
    limits = []
    path = own.get("", "/")
    while True:
        limits.append(_read_numbers(f"/sys/fs/cgroup{path.rstrip('/')}/cpu.max"))
        if path in ("/", ""):
            break
        path = path.rsplit("/", 1)[0] or "/"
    v1 = [_read_numbers(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    if v1[0] and v1[1]:
        limits.append([v1[0][0], v1[1][0]])
    grants = [limit[0] / limit[1] for limit in limits if len(limit) == 2 and limit[0] > 0 and limit[1] > 0]
    return min(grants, default=None)


def _read_numbers(path: str) -> list[float]:
    try:
        with open(path) as file:
            return [float(word) for word in file.read().split() if word != "max"]
    except (OSError, ValueError):
        return []


def run(work: Work, members: int, cancel: Callable[[], None]) -> None:
    """Run `work` to its end with up to `members` threads, the caller's among them.

    When the caller is interrupted, `cancel` is called, the work is run to its (now near) end, and the interrupt raised;
    further interrupts change nothing, so that no job outlives its caller. An error in any member cancels too.
    """
    helpers: list[_Helper] = []
    jobs: list[_Job] = []
    error: BaseException | None = None
    try:
        with _idle_lock:
            for _ in range(members - 1):
                helpers.append(_idle.pop() if _idle else _Helper())
        for member, helper in enumerate(helpers, start=1):
            jobs.append(_Job(work, member, cancel))
            helper.start(jobs[-1])
        while work(0):
            pass
    except BaseException as raised:
        error = raised
    while True:
        try:
            if error is not None:
                cancel()
            if isinstance(error, KeyboardInterrupt):
                while work(0):
                    pass
            for job in jobs:
                job.wait()
            break
        except KeyboardInterrupt as again:
            error = error or again
        except BaseException as raised:
            error = raised
    with _idle_lock:
        _idle.extend(helpers)
    for job in jobs:
        error = error or job.error
    if error is not None:
        raise error
