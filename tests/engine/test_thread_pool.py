"""The process's helper threads, lent and used again, and how many CPUs there are."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fastae
from fastae.engine import thread_pool


def meeting(count):
    """The threads that `count` lent works run on, all at once; back when all are idle again."""
    barrier, threads, left = threading.Barrier(count + 1), [], threading.Semaphore(0)

    def work():
        barrier.wait(10)
        threads.append(threading.get_ident())
        left.release()

    for _ in range(count):
        thread_pool.lend(work)
    barrier.wait(10)
    for _ in range(count):
        assert left.acquire(timeout=10)
    deadline = time.monotonic() + 10
    while len(thread_pool._idle) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    return set(threads)


def test_available_cpus_is_at_least_one_and_follows_affinity():
    count = thread_pool.available_cpus()
    assert 1 <= count <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        code += "from fastae.engine import thread_pool; print(thread_pool.available_cpus())"
        home = Path(fastae.__file__).parents[1]
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True
        )
        assert out.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "/sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "/sys/fs/cgroup/cpu.max": "300000 100000\n",
            },
            2.0,
        ),
        (
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"/proc/self/cgroup": "nonsense\n"}, None),
    ],
)
def test_cgroup_quota_is_the_least_on_the_way_up(files, quota, monkeypatch, tmp_path):
    def fake(path):
        if path not in files:
            raise FileNotFoundError(path)
        made = tmp_path / path.strip("/").replace("/", "_")
        made.write_text(files[path])
        return made.open()

    monkeypatch.setattr("builtins.open", fake)
    found = thread_pool._cgroup_quota()
    monkeypatch.undo()
    assert found == quota


def test_works_lent_at_once_run_at_once_on_threads_of_their_own():
    count = 2 * (os.cpu_count() or 1) + 1
    threads = meeting(count)
    assert len(threads) == count
    assert threading.get_ident() not in threads


def test_helpers_are_used_again():
    meeting(3)
    before = {thread.ident for thread in threading.enumerate()}
    for _ in range(20):
        assert meeting(3) <= before


def test_lend_returns_at_once():
    hold, seen = threading.Event(), []
    thread_pool.lend(lambda: seen.append(hold.wait(10)))
    assert not seen
    hold.set()


def test_an_error_is_told_and_its_helper_works_on(monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))
    meeting(1)
    before = threading.active_count()

    def fail():
        raise ZeroDivisionError("mine")

    thread_pool.lend(fail)
    meeting(1)
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [str(error) for error in told] == ["mine"]
    assert threading.active_count() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_helpers_of_its_own():
    meeting(2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if len(meeting(2)) == 2 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no thread affinity elsewhere")
def test_a_helper_is_kept_off_its_lenders_cpu_and_comes_back_to_all_others():
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("one CPU only")
    ran, done = [], threading.Semaphore(0)

    def work():
        ran.append(os.sched_getaffinity(0))
        done.release()

    try:
        for cpu in sorted(everywhere)[:2] * 2:
            os.sched_setaffinity(0, {cpu})
            thread_pool.lend(work)
            assert done.acquire(timeout=10)
            assert ran.pop() == {cpu}  # never on a CPU that the caller may not use
        os.sched_setaffinity(0, everywhere)
        for _ in range(5):
            thread_pool.lend(work)
            assert done.acquire(timeout=10)
            assert len(ran[-1]) == len(everywhere) - 1
            time.sleep(0.01)
    finally:
        os.sched_setaffinity(0, everywhere)
