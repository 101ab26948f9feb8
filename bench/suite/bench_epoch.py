"""One epoch of mini-batch Adam, ours and the peers' in turn, A B A B, after a check that all take the same steps."""

from importlib.util import find_spec

import numpy as np
import pytest

import fastae
from fastae.bench.epoch_peers import PEERS, RATE
from fastae.bench.pools import set_threads
from fastae.bench.rounds import Contender, fastest, recorded
from fastae.engine.thread_pool import available_cpus

pytestmark = pytest.mark.benchmark(group="epoch")

# (m, n, k, batch) and the target speed of an epoch, as a multiple of the best peer's
CASES = [
    ((20_000, 30, 8, 256), 3.0),
    ((1_797, 64, 32, 200), 3.0),
    ((20_000, 784, 64, 256), 1.3),
    ((100_000, 30, 8, 4096), 2.0),
]


def ours(X, dense, batch):
    network = fastae.Network.autoencoder(*dense["W1"].shape)
    params = fastae.Parameters.from_arrays(network, dense)
    engine, adam = fastae.Engine(network), fastae.Adam(learning_rate=RATE)
    state = fastae.optimizers.State.zeros(params)

    def epochs(times):
        options = {"optimizer": adam, "batch_size": batch, "shuffle": False, "state": state}
        fastae.train(params, X, engine=engine, epochs=times, **options)
        return params

    return epochs


@pytest.mark.parametrize(
    ("size", "target"), CASES, ids=lambda v: "-".join(map(str, v)) if isinstance(v, tuple) else ""
)
def test_epoch(benchmark, size, target):
    m, n, k, batch = size
    m = m // batch * batch
    X = np.random.default_rng(0).random((m, n), dtype=np.float32)
    dense = dict(fastae.Parameters.random(fastae.Network.autoencoder(n, k)))
    makers = {"fastae": ours} | {name: make for name, (module, make) in PEERS.items() if find_spec(module)}
    epochs = {name: make(X, dict(dense), batch) for name, make in makers.items()}
    set_threads(1)
    after = {name: epoch(1) for name, epoch in epochs.items()}
    furthest = RATE * (m // batch)  # about the largest distance Adam can have moved
    for name, params in after.items():
        for key, wanted in after["numpy"].items():
            error = np.abs(params[key] - wanted).max()
            assert error < 0.02 * furthest, (name, key, error)
    contenders = {name: Contender(epoch, available_cpus()) for name, epoch in epochs.items()}
    if benchmark.enabled:
        for name in contenders.keys() - {"fastae"}:
            settings = dict.fromkeys((1, available_cpus()))
            contenders[name] = fastest([Contender(epochs[name], threads) for threads in settings])
    timings = recorded(benchmark, contenders, target_ratio=target)
    if timings:
        benchmark.extra_info["rows_per_second"] = m / timings["fastae"].median
