"""T networks on T threads beside one on one thread. bench_step.py times many networks beside other libraries."""

import statistics
import time

import pytest

import fastae
from fastae.bench.cases import MANY
from fastae.engine.thread_pool import available_cpus

pytestmark = pytest.mark.benchmark(group="many")


def test_as_many_networks_as_threads(benchmark):
    """In turn, and shuffled, as training is."""
    (case,) = MANY
    X, threads = case.X, available_cpus()

    def train(count, epochs=300):
        params = [fastae.Parameters.random(case.network, seed=i) for i in range(count)]
        began = time.perf_counter()
        fastae.train_many(
            params, X, epochs=epochs, batch_size=case.batch, seed=list(range(count)), n_threads=count
        )
        return time.perf_counter() - began, params

    _, together = train(threads, 3)
    _, (alone,) = train(1, 3)
    assert (together[0].flat == alone.flat).all()
    if not benchmark.enabled:
        benchmark.pedantic(train, args=(1, 1))
        return
    pairs = [(train(threads)[0], train(1)[0]) for _ in range(9)]
    benchmark.pedantic(train, args=(threads,), rounds=3)
    several, one = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    benchmark.extra_info["milliseconds"] = {"fastae": several * 1e3, "one on one thread": one * 1e3}
    benchmark.extra_info["note"] = f"{threads} networks take {several / one:.2f} times as long as one"
