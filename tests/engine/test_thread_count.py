"""The thread count that is settled on, given made-up times; and that changing it during a job changes no bits."""

import random

import numpy as np
import pytest
from threads import pretend_cpus, replace

import fastae
from fastae.engine.thread_count import ThreadCount


def simulate(count, step_seconds, total, longest=0.05, rng=None, cpus=1000):
    """Take steps for `total` seconds, in slices that may end within one: the seconds on each count, and the steps.

    Of the threads, `cpus` run at any time.
    """
    clock, position, spent, seconds = 0.0, 0.0, {}, longest
    while clock < total:
        threads, before = count.threads, int(position)
        each = step_seconds(threads)
        if rng is not None:
            each *= 1 + abs(rng.normal(0, 0.1)) + (rng.random() < 0.02) * 5
        position += seconds / each
        spent[threads] = spent.get(threads, 0.0) + seconds
        clock += seconds
        count.record(seconds, int(position) - before, seconds * min(threads, cpus))
        seconds = count.slice(longest)
    return spent, position


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize(
    ("most", "seconds", "best"),
    [
        (2, {1: 50e-6, 2: 27e-6}, 2),
        (2, {1: 34e-6, 2: 60e-6}, 1),
        (3, {1: 50e-6, 2: 30e-6, 3: 22e-6}, 3),
        (16, {1: 50e-6, 2: 30e-6, 4: 20e-6, 8: 30e-6, 16: 45e-6}, 4),
        (16, {1: 50e-6, 2: 60e-6, 4: 70e-6, 8: 90e-6, 16: 150e-6}, 1),
        (2, {1: 750e-6, 2: 500e-6}, 2),  # a step lasts longer than a slice is meant to
        (2, {1: 2e-3, 2: 1.2e-3}, 2),
    ],
)
def test_settles_on_the_fastest_count_and_loses_little_by_trying(most, seconds, best, noisy):
    rng = np.random.default_rng(0) if noisy else None
    spent, steps = simulate(ThreadCount(most), seconds.__getitem__, 2.0, rng=rng)
    assert max(spent, key=spent.get) == best
    mean = 1 + 0.08 + 0.1 if noisy else 1
    assert steps * seconds[best] * mean > (0.9 if noisy else 0.97) * 2.0


def test_leaves_a_count_that_becomes_slower_at_once_and_finds_a_faster_one_soon():
    good, bad = {1: 200e-6, 2: 20e-6}, {1: 200e-6, 2: 600e-6}
    count = ThreadCount(2)
    simulate(count, good.__getitem__, 1.0)
    assert count.threads == 2
    simulate(count, bad.__getitem__, 0.12)  # a slice of 50 ms may be under way
    spent, _ = simulate(count, bad.__getitem__, 0.5)
    assert spent[1] > 0.9 * 0.5
    simulate(count, good.__getitem__, 0.3)
    spent, _ = simulate(count, good.__getitem__, 0.5)
    assert spent[2] > 0.9 * 0.5


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize(
    ("most", "seconds", "best"),
    [
        (2, {1: 15.9e-6, 2: 15.9e-6}, 1),
        (2, {1: 50e-6, 2: 48e-6}, 1),
        (2, {1: 50e-6, 2: 40e-6}, 2),
        (4, {1: 50e-6, 2: 30e-6, 4: 30e-6}, 2),
        (16, {1: 50e-6, 2: 50e-6, 4: 50e-6, 8: 50e-6, 16: 50e-6}, 1),
    ],
)
def test_threads_that_gain_nothing_are_not_kept_busy(most, seconds, best, noisy):
    rng = np.random.default_rng(0) if noisy else None
    count = ThreadCount(most)
    simulate(count, seconds.__getitem__, 0.5, rng=rng)
    spent, _ = simulate(count, seconds.__getitem__, 2.0, rng=rng)
    assert spent[best] > 0.9 * 2.0
    busy = sum(threads * time for threads, time in spent.items()) / sum(spent.values())
    assert busy < best * (1.2 if noisy else 1.05)


def share_with_a_neighbour(count, total, longest=0.05, turn=4e-3):
    """As ``simulate`` on two CPUs, which two threads share with a neighbour: each waits after `turn` seconds."""
    clock, steps, spent, seconds, until_its_turn = 0.0, 0, {}, longest, turn
    while clock < total:
        threads, passed, done, waited = count.threads, 0.0, 0, 0.0
        while passed < seconds:
            each = {1: 50e-6, 2: 30e-6}[threads]
            passed, done = passed + each, done + 1
            if threads == 2:
                until_its_turn -= each
                if until_its_turn <= 0:
                    waited, passed, until_its_turn = waited + 2 * turn, passed + 2 * turn, turn
        count.record(passed, done, threads * passed - waited)
        clock, steps = clock + passed, steps + done
        spent[threads] = spent.get(threads, 0.0) + passed
        seconds = count.slice(longest)
    return spent, steps


def test_small_steps_go_on_with_fewer_threads_while_a_neighbour_takes_a_cpu():
    """Most of the short slices of a trial see no such wait: two threads look faster."""
    count = ThreadCount(2)
    share_with_a_neighbour(count, 2.0)
    spent, steps = share_with_a_neighbour(count, 20.0)
    assert spent[1] > 0.9 * 20
    assert steps * 50e-6 > 0.97 * 20
    simulate(count, {1: 50e-6, 2: 30e-6}.__getitem__, 10.0)  # the neighbour is gone
    spent, _ = simulate(count, {1: 50e-6, 2: 30e-6}.__getitem__, 5.0)
    assert spent[2] > 0.9 * 5


def test_a_clock_of_cpu_time_that_ticks_between_short_jobs_changes_nothing():
    """It is updated every 4 ms, so that of 0.1 s in short jobs, up to half of a helper's time is missed."""
    count, rng, spent = ThreadCount(2), np.random.default_rng(0), {1: 0.0, 2: 0.0}
    for _ in range(2000):
        threads, job = count.threads, 5e-3
        counted = job * (1 + (threads == 2) * rng.choice([0.2, 0.8]))
        spent[threads] += job
        count.record(job, int(job / {1: 47e-6, 2: 31e-6}[threads]), counted)
    assert spent[2] > 0.9 * 10


def test_a_retreat_ends_where_the_threads_have_cpus():
    """Whatever a clock says that counts half of what helpers use: steps on fewer threads are slower anyway."""
    count = ThreadCount(8)
    simulate(count, {1: 200e-6, 2: 100e-6, 4: 50e-6, 8: 25e-6}.__getitem__, 1.0)
    assert count.threads == 8
    starved, spent = {1: 200e-6, 2: 100e-6, 4: 50e-6, 8: 400e-6}, {}
    for _ in range(200):
        threads, job = count.threads, 5e-3
        spent[threads] = spent.get(threads, 0.0) + job
        count.record(job, int(job / starved[threads]), job * (1 + 0.5 * (min(threads, 6) - 1)))
    assert spent[4] > 0.6 * sum(spent.values())


LARGE = {1: 100e-3, 2: 50e-3, 4: 100e-3, 8: 200e-3}  # of steps whose threads share two CPUs


def test_large_steps_are_not_tried_on_fewer_threads():
    spent, _ = simulate(ThreadCount(8, large=True), LARGE.__getitem__, 20.0, cpus=8)
    assert list(spent) == [8]


def test_large_steps_whose_threads_lack_cpus_are_tried_on_fewer_and_on_more_when_these_are_back():
    count = ThreadCount(8, large=True)
    simulate(count, LARGE.__getitem__, 5.0, cpus=2)
    spent, steps = simulate(count, LARGE.__getitem__, 20.0, cpus=2)
    assert spent[2] > 0.9 * 20
    assert steps * LARGE[2] > 0.95 * 20
    simulate(count, {1: 100e-3, 2: 50e-3, 4: 25e-3, 8: 12e-3}.__getitem__, 100.0, cpus=8)
    assert count.threads == 8


def test_large_steps_that_are_as_slow_on_half_the_threads_are_tried_on_as_many_as_have_cpus():
    count = ThreadCount(8, large=True)
    spent, _ = simulate(count, {1: 50e-3, 2: 26e-3, 4: 59e-3, 8: 59e-3}.__getitem__, 5.0, cpus=2)
    assert spent[2] > 0.7 * 5


def test_one_step_of_a_second_is_enough_for_a_trial():
    count = ThreadCount(2, large=True)
    tried = []
    for _ in range(20):
        tried.append(count.threads)
        count.record({1: 2.0, 2: 1.0}[count.threads], 1, 1.0)  # two threads share one CPU
    assert tried.count(1) == 1


def test_a_little_cpu_time_that_others_take_does_not_have_large_steps_tried():
    spent, _ = simulate(ThreadCount(4, large=True), LARGE.__getitem__, 10.0, cpus=3)
    assert list(spent) == [4]


def test_one_thread_is_not_tried_against_anything():
    spent, _ = simulate(ThreadCount(1), lambda threads: 1e-4, 0.1)
    assert list(spent) == [1]


def change_in_every_slice(monkeypatch, most):
    """Have the thread count drawn anew after every slice, and slices as short as can be; the counts that were used."""
    used, drawn = set(), random.Random(0)
    current = [most]

    def record(self, seconds, steps, cpu_seconds):
        used.add(current[0])
        current[0] = drawn.randint(1, most)

    monkeypatch.setattr(ThreadCount, "threads", property(lambda self: current[0]))
    monkeypatch.setattr(ThreadCount, "slice", lambda self, longest: 0.0)
    monkeypatch.setattr(ThreadCount, "record", record)
    return used


@pytest.mark.parametrize("first_call", [None, 1e5], ids=["usual", "short"])  # a short one ends within a shard
@pytest.mark.parametrize(("n", "k", "batch", "epochs"), [(40, 24, 100, 60), (300, 150, 128, 12)])
@pytest.mark.parametrize("objective", [fastae.Objective(), fastae.Objective(alpha=0.1, sparsity_weight=0.1)])
def test_threads_that_come_and_go_change_no_bits(objective, n, k, batch, epochs, first_call, monkeypatch):
    if first_call is not None:
        replace(monkeypatch, "FIRST_CALL", first_call)
    replace(monkeypatch, "SMALL_JOB", 0.0)
    pretend_cpus(monkeypatch, 4)
    used = change_in_every_slice(monkeypatch, most=4)
    X = np.random.default_rng(0).random((2000, n), np.float32)
    options = {"optimizer": fastae.Adam(), "objective": objective, "batch_size": batch, "epochs": epochs}
    results = []
    for n_threads in (1, 4):
        engine = fastae.Engine(fastae.Network.autoencoder(n, k), n_threads)
        params = fastae.Parameters.random(engine.network)
        history = fastae.train(params, X, engine=engine, **options)
        results.append((params.flat.tobytes(), history.loss))
        assert used == ({1, 2, 3, 4} if n_threads == 4 else set())
    assert results[0] == results[1]
