"""The helper threads of the process, lent to any crew that has work, and the number of CPUs. Knows nothing of networks.

A helper sleeps on a lock until it is lent, and is idle again when its work returns. Threads do not survive a fork: the
child starts its own.

A helper that is woken on the CPU of the thread that wakes it may wait there for milliseconds, longer than many jobs
last. So helpers are kept off that CPU where the system tells which one it is (Linux).
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable


class _Helper:
    """One thread, which sleeps until it is given work, does the work, and sleeps again."""

    def __init__(self) -> None:
        self._wake = threading.Lock()
        self._wake.acquire()
        self._work: Callable[[], object] | None = None
        self._cpus: set[int] | None = None  # the CPUs it was last allowed, None before the first time
        self._thread = threading.Thread(target=self._live, name="fastae", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        while True:
            self._wake.acquire()
            work, self._work = self._work, None
            try:
                if work is not None:
                    work()
            except BaseException:
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            del work
            _idle.append(self)

    def start(self, work: Callable[[], object]) -> None:
        """Wake this thread to call work()."""
        self._work = work
        self._keep_off(_current_cpu())
        self._wake.release()

    def _keep_off(self, cpu: int) -> None:
        """Allow this helper every CPU that the caller may run on, except `cpu`."""
        thread = self._thread.native_id
        if cpu < 0 or thread is None:
            return
        cpus = os.sched_getaffinity(0)
        cpus = cpus - {cpu} or cpus
        if cpus != self._cpus:
            try:
                os.sched_setaffinity(thread, cpus)
            except OSError:  # not permitted, or the CPUs have just changed: the system chooses
                return
            self._cpus = cpus


def _find_current_cpu() -> Callable[[], int]:
    """A function that returns the CPU its caller runs on, or -1 where the system does not tell."""
    if sys.platform == "linux":
        try:
            function: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
            function()
            return function
        except (OSError, AttributeError):
            pass
    return lambda: -1


_current_cpu = _find_current_cpu()
_idle: list[_Helper] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


def lend(work: Callable[[], object]) -> None:
    """Let an idle helper, or a new one, call work(); return at once. Its errors go to ``threading.excepthook``.

    A RuntimeError if none is idle and no thread can be started, as where the system limits the number of processes.
    """
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    helper.start(work)


def available_cpus() -> int:
    """The number of CPUs that this process may use, by its affinity and the quota of its cgroup."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, count if quota is None else min(count, int(quota + 0.999)))


def _cgroup_quota() -> float | None:
    """The number of CPUs that the cgroup and those above it allow (v2 and v1), or None without a limit."""
    try:
        with open("/proc/self/cgroup") as file:
            own = {line.split(":", 2)[1]: line.rstrip("\n").split(":", 2)[2] for line in file}
    except (OSError, IndexError):
        own = {}
    limits = []  # pairs: microseconds of CPU time per period, and microseconds of a period
    for group in _upwards(own.get("", "/")):
        limits.append(_read_numbers(f"/sys/fs/cgroup{group}/cpu.max"))
    for group in _upwards(next((own[names] for names in own if "cpu" in names.split(",")), "/")):
        parts = [
            _read_numbers(f"/sys/fs/cgroup/cpu{group}/cpu.cfs_{name}_us") for name in ("quota", "period")
        ]
        limits.append(parts[0] + parts[1])
    cpus = [limit[0] / limit[1] for limit in limits if len(limit) == 2 and limit[0] > 0 and limit[1] > 0]
    return min(cpus, default=None)


def _upwards(path: str) -> list[str]:
    """A cgroup's path and those of the groups above it, without a slash at the end: "/a/b" gives /a/b, /a and ""."""
    names = path.strip("/").split("/") if path.strip("/") else []
    return ["".join(f"/{name}" for name in names[:count]) for count in range(len(names), -1, -1)]


def _read_numbers(path: str) -> list[float]:
    """The numbers in a file, without "max"; none if it cannot be read."""
    try:
        with open(path) as file:
            return [float(word) for word in file.read().split() if word != "max"]
    except (OSError, ValueError):
        return []
