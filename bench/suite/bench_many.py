"""Many small networks in one call: ours and vmap of torch and JAX in turn, after a check that steps are the same."""

import statistics
import time
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

import fastae
from fastae.bench.epoch_peers import RATE
from fastae.bench.many_peers import PEERS, by_fastae
from fastae.bench.pools import set_threads
from fastae.bench.probe import Probe
from fastae.bench.rounds import Contender, recorded
from fastae.engine.thread_pool import available_cpus

pytestmark = pytest.mark.benchmark(group="many")

NETWORKS, N, K, BATCH, ROWS = 100, 30, 8, 200, 2000
EPOCHS = 20  # of one call: a training has many


def initial(count):
    network = fastae.Network.autoencoder(N, K)
    return [dict(fastae.Parameters.random(network, seed=i)) for i in range(count)]


def rows():
    return np.random.default_rng(0).random((ROWS, N), dtype=np.float32)


def ceiling(threads):
    """Seconds of an ideal epoch of all networks, which spends time only on products and then on sigmoids."""
    peak, sigmoid = Probe(threads, "float32"), Probe(threads, "float32", of="sigmoid")
    for _ in range(25):
        peak(), sigmoid()
    flops, sigmoids = ROWS * (10 * N * K + 6 * N * N), ROWS * (K + N)
    return NETWORKS * (flops / (peak.median * 1e9) + sigmoids / (sigmoid.median * 1e9))


def many_epochs(epochs, times):
    return epochs(EPOCHS * times)


def test_many(benchmark):
    X, networks = rows(), initial(NETWORKS)
    makers = {"fastae": by_fastae} | {
        name: make for name, (module, make) in PEERS.items() if find_spec(module)
    }
    epochs = {name: make(X, networks, BATCH) for name, make in makers.items()}
    set_threads(1)
    after = {name: epoch(1) for name, epoch in epochs.items()}
    furthest = RATE * (ROWS // BATCH)  # about the largest distance Adam can have moved
    for name, params in after.items():
        assert np.abs(params["W1"] - np.stack([dense["W1"] for dense in networks])).max() > 0.1 * furthest
        for key, wanted in after["fastae"].items():
            error = np.abs(
                params[key] - wanted
            )  # Adam takes a rounding error for a step where a gradient is nearly 0
            assert error.mean() < 1e-4 * furthest, (name, key, error.mean())
            assert error.max() < 0.2 * furthest, (name, key, error.max())
    contenders = {
        name: Contender(partial(many_epochs, epoch), available_cpus()) for name, epoch in epochs.items()
    }
    timings = recorded(benchmark, contenders, target_ratio=10.0)
    if timings:
        benchmark.extra_info["share_of_ceiling"] = (
            EPOCHS * ceiling(available_cpus()) / timings["fastae"].median
        )
        benchmark.extra_info["networks"] = NETWORKS


def test_as_many_networks_as_threads(benchmark):
    """T networks on T threads beside one on one thread, in turn: shuffled, as training is."""
    X, threads = rows(), available_cpus()
    network = fastae.Network.autoencoder(N, K)

    def train(count, epochs=300):
        params = [fastae.Parameters.random(network, seed=i) for i in range(count)]
        began = time.perf_counter()
        fastae.train_many(
            params, X, epochs=epochs, batch_size=BATCH, seed=list(range(count)), n_threads=count
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
