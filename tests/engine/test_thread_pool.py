"""The process's helper threads, lent and used again, and how many CPUs the process may use."""

import os
import sys
import threading
import time

import pytest
from processes import answer_of_fork, run_python

from fastae.engine import thread_pool


def meeting(count):
    """The threads that `count` pieces of work, lent one after another, run on all at the same time."""
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
    return set(threads)


def test_available_cpus_is_at_least_one_and_follows_affinity():
    count = thread_pool.available_cpus()
    assert 1 <= count <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        out = run_python(
            """
            import os
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            from fastae.engine import thread_pool
            print(thread_pool.available_cpus())
            """
        )
        assert out.strip() == "1"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "/sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "/sys/fs/cgroup/cpu.max": "300000 100000\n",
            },
            2,
        ),
        (
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        (
            {
                "/proc/self/cgroup": "9:name=systemd:/\n4:cpu,cpuacct:/jobs/7\n0::/\n",
                "/sys/fs/cgroup/cpu/jobs/7/cpu.cfs_quota_us": "300000\n",
                "/sys/fs/cgroup/cpu/jobs/7/cpu.cfs_period_us": "100000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"/proc/self/cgroup": "nonsense\n"}, 8),
    ],
)
def test_available_cpus_follow_the_least_cgroup_quota_on_the_way_up(files, cpus, monkeypatch, tmp_path):
    def fake(path):
        if path not in files:
            raise FileNotFoundError(path)
        copy = tmp_path / path.strip("/").replace("/", "_")
        copy.write_text(files[path])
        return copy.open()

    with monkeypatch.context() as patched:
        patched.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
        patched.setattr("builtins.open", fake)
        available = thread_pool.available_cpus()
    assert available == cpus


def test_works_lent_at_once_run_at_once_on_threads_of_their_own():
    count = 2 * (os.cpu_count() or 1) + 1
    threads = meeting(count)
    assert len(threads) == count
    assert threading.get_ident() not in threads


def test_helpers_are_used_again():
    """A helper that is not idle yet when it is needed has another take its place: now and then, not each time."""
    threads = set()
    for _ in range(100):
        threads |= meeting(3)
    assert len(threads) < 30


def test_lend_returns_before_the_work_is_done():
    hold, seen, done = threading.Event(), [], threading.Event()

    def work():
        seen.append(hold.wait(10))
        done.set()

    thread_pool.lend(work)
    assert not seen
    hold.set()
    assert done.wait(10)
    assert seen == [True]


def test_an_error_goes_to_excepthook_and_its_helper_works_on(monkeypatch):
    messages, failed, reported = [], [], threading.Semaphore(0)

    def hook(arguments):
        messages.append(str(arguments.exc_value))
        reported.release()

    def fail():
        failed.append(threading.get_ident())
        raise ZeroDivisionError("mine")

    monkeypatch.setattr(threading, "excepthook", hook)
    for _ in range(100):
        thread_pool.lend(fail)
        assert reported.acquire(timeout=10)
    assert messages == ["mine"] * 100
    assert len(set(failed)) < 30
    assert set(failed) <= {thread.ident for thread in threading.enumerate()}, "a thread ended"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_helpers_of_its_own():
    meeting(2)
    assert answer_of_fork(lambda: bytes([len(meeting(2))])) == b"\x02"


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
