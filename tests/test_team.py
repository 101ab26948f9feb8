"""The team of threads: CPUs counted, helpers used again, errors and interrupts that reach the caller."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fastae
from fastae import team


class Items:
    """A job of `count` items, claimed one by one; what each member did."""

    def __init__(self, count, pause=0.0):
        self.left, self.pause, self.lock = count, pause, threading.Lock()
        self.done: dict[int, int] = {}
        self.threads: set[int] = set()
        self.cancelled = False

    def work(self, member):
        with self.lock:
            self.threads.add(threading.get_ident())
            if self.left == 0 or self.cancelled:
                return False
            self.left -= 1
            self.done[member] = self.done.get(member, 0) + 1
        time.sleep(self.pause)
        return True

    def cancel(self):
        self.cancelled = True


def meeting(members):
    """A job that ends only when all members are in it, and the threads that took part."""
    barrier, threads = threading.Barrier(members), set()

    def work(member):
        barrier.wait(10)
        threads.add((member, threading.get_ident()))
        return False

    team.run(work, members, barrier.abort)
    return threads


def test_available_cpus_is_at_least_one_and_follows_affinity():
    count = team.available_cpus()
    assert 1 <= count <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        code += "from fastae import team; print(team.available_cpus())"
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
    found = team._cgroup_quota()
    monkeypatch.undo()
    assert found == quota


@pytest.mark.parametrize("members", [1, 2, 3, 8])
def test_every_item_is_done_once(members):
    items = Items(100)
    team.run(items.work, members, items.cancel)
    assert items.left == 0
    assert sum(items.done.values()) == 100
    assert set(items.done) <= set(range(members))


def test_more_members_than_cores_all_take_part():
    members = 2 * (os.cpu_count() or 1) + 1
    assert {member for member, _ in meeting(members)} == set(range(members))


def test_caller_is_member_0_and_alone_starts_no_thread():
    before = threading.active_count()
    assert meeting(1) == {(0, threading.get_ident())}
    assert threading.active_count() == before
    assert (0, threading.get_ident()) in meeting(2)


def test_helpers_are_used_again():
    first = {thread for _, thread in meeting(3)}
    before = threading.active_count()
    for _ in range(20):
        assert {thread for _, thread in meeting(3)} == first
    assert threading.active_count() == before


def test_callers_side_by_side_have_helpers_of_their_own():
    jobs = [Items(50, 0.001) for _ in range(4)]
    threads = [threading.Thread(target=team.run, args=(job.work, 2, job.cancel)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [sum(job.done.values()) for job in jobs] == [50] * 4


@pytest.mark.parametrize("who", [0, 1, 2])
def test_an_error_in_any_member_reaches_the_caller_and_cancels(who):
    cancelled, barrier = threading.Event(), threading.Barrier(3)
    arrived = set()

    def work(member):
        if member not in arrived:
            arrived.add(member)
            barrier.wait(10)
        if member == who:
            raise ZeroDivisionError("of member", member)
        time.sleep(0.001)
        return not cancelled.is_set()

    with pytest.raises(ZeroDivisionError) as caught:
        team.run(work, 3, cancelled.set)
    assert caught.value.args == ("of member", who)
    assert cancelled.is_set()
    # and the team is as good as before
    count = threading.active_count()
    assert len(meeting(3)) == 3
    assert threading.active_count() == count


def test_an_error_in_all_members_is_raised_once():
    def work(member):
        raise KeyError(member)

    with pytest.raises(KeyError):
        team.run(work, 3, lambda: None)
    assert len(meeting(3)) == 3


def test_interrupts_wait_for_the_helpers():
    """Two interrupts, the second while the first is being handled: no helper is at work when run() raises."""
    cancelled, busy = threading.Event(), set()
    interrupts = iter([KeyboardInterrupt(1), KeyboardInterrupt(2)])
    entered = threading.Barrier(2)
    first = set()

    def work(member):
        if member not in first:
            first.add(member)
            entered.wait(10)
        if member == 0:
            interrupt = next(interrupts, None)
            if interrupt is not None:
                raise interrupt
            return False
        busy.add(member)
        time.sleep(0.05)
        busy.discard(member)
        return not cancelled.is_set()

    with pytest.raises(KeyboardInterrupt) as caught:
        team.run(work, 2, cancelled.set)
    assert caught.value.args == (1,)
    assert not busy
    assert next(interrupts, None) is None
    assert len(meeting(2)) == 2
