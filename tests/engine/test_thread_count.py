"""The number of threads that is settled on, with made-up times; and that changing it in the middle changes no bits."""

import random

import numpy as np
import pytest

import fastae
from fastae.engine import engine as engines
from fastae.engine.thread_count import ThreadCount as Pace


def simulate(pace, step_seconds, total, longest=0.05, rng=None):
    """Take steps for `total` seconds, in slices that end in the midst of one; the seconds on each number, the steps."""
    clock, position, spent, seconds = 0.0, 0.0, {}, longest
    while clock < total:
        threads, before = pace.threads, int(position)
        each = step_seconds(threads)
        if rng is not None:
            each *= 1 + abs(rng.normal(0, 0.1)) + (rng.random() < 0.02) * 5
        position += seconds / each
        spent[threads] = spent.get(threads, 0.0) + seconds
        clock += seconds
        pace.record(seconds, int(position) - before)
        seconds = pace.slice(longest)
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
def test_settles_on_the_fastest_number_and_loses_little_by_trying(most, seconds, best, noisy):
    rng = np.random.default_rng(0) if noisy else None
    spent, steps = simulate(Pace(most), seconds.__getitem__, 2.0, rng=rng)
    assert max(spent, key=spent.get) == best
    mean = 1 + 0.08 + 0.1 if noisy else 1
    assert steps * seconds[best] * mean > (0.9 if noisy else 0.97) * 2.0


def test_follows_a_change_for_the_worse_at_once_and_one_for_the_better_soon():
    good, bad = {1: 34e-6, 2: 20e-6}, {1: 34e-6, 2: 60e-6}
    pace = Pace(2)
    simulate(pace, good.__getitem__, 1.0)
    assert pace.threads == 2
    simulate(pace, bad.__getitem__, 0.3)  # a slice of 50 ms may be under way
    spent, _ = simulate(pace, bad.__getitem__, 0.5)
    assert spent[1] > 0.9 * 0.5
    simulate(pace, good.__getitem__, 0.3)
    spent, _ = simulate(pace, good.__getitem__, 0.5)
    assert spent[2] > 0.9 * 0.5


def test_one_thread_is_not_tried_against_anything():
    pace = Pace(1)
    spent, _ = simulate(pace, lambda threads: 1e-4, 0.1)
    assert list(spent) == [1]


class Fickle:
    """Another number of threads for every slice, and the shortest slices."""

    def __init__(self, most):
        self.most, self.random, self.threads, self.seen = most, random.Random(0), most, set()

    def slice(self, longest):
        return 0.0

    def record(self, seconds, steps):
        self.seen.add(self.threads)
        self.threads = self.random.randint(1, self.most)


@pytest.mark.parametrize("first_call", [engines.FIRST_CALL, 1e5])  # the latter ends within every other shard
@pytest.mark.parametrize(("n", "k", "batch", "epochs"), [(40, 24, 100, 60), (300, 150, 128, 12)])
@pytest.mark.parametrize("objective", [fastae.Objective(), fastae.Objective(alpha=0.1, sparsity_weight=0.1)])
def test_threads_that_come_and_go_change_no_bits(objective, n, k, batch, epochs, first_call, monkeypatch):
    monkeypatch.setattr(engines, "FIRST_CALL", first_call)
    monkeypatch.setattr(engines, "SMALL_JOB", 0.0)
    monkeypatch.setattr(engines, "Pace", Fickle)
    monkeypatch.setattr(engines.thread_pool, "available_cpus", lambda: 4)
    network = fastae.Network.autoencoder(n, k)
    X = np.random.default_rng(0).random((2000, n), np.float32)
    made = []
    for n_threads in (1, 4):
        engine = fastae.Engine(network, n_threads)
        params = fastae.Parameters.random(network)
        history = fastae.train(
            params,
            X,
            engine=engine,
            optimizer=fastae.Adam(),
            objective=objective,
            batch_size=batch,
            epochs=epochs,
        )
        made.append((params.flat.tobytes(), history.loss))
    (pace,) = engine._paces.values()
    assert pace.seen == {1, 2, 3, 4}
    assert made[0] == made[1]


def test_small_steps_take_no_more_threads_than_there_are_cpus(monkeypatch):
    monkeypatch.setattr(engines.thread_pool, "available_cpus", lambda: 2)
    engine = fastae.Engine(fastae.Network.autoencoder(30, 8), 16)
    params, X = fastae.Parameters.random(engine.network), np.ones((2560, 30), np.float32)
    fastae.train(params, X, engine=engine, batch_size=256, epochs=10)
    (pace,) = engine._paces.values()
    assert pace.threads <= 2
