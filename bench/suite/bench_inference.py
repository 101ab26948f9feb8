"""Inference per row, beside NumPy's and beside a training step; and what a detector adds to the engine's time."""

from functools import partial

import numpy as np
import pytest

import fastae
from fastae import reference
from fastae.bench.cases import Case
from fastae.bench.probe import Probe
from fastae.bench.rounds import Contender, recorded
from fastae.engine.thread_pool import available_cpus

pytestmark = pytest.mark.benchmark(group="inference")

CASES = [Case(10, 3, 1_000_000), Case(30, 8, 1_000_000), Case(128, 32, 200_000), Case(784, 64, 20_000)]
DEEP = fastae.Network((784, 1000, 500, 250, 30, 250, 500, 1000, 784), ("relu",) * 7 + ("identity",))


def repeat(function, *arguments):
    def run(times):
        for _ in range(times):
            function(*arguments)

    return Contender(run, available_cpus())


def flops(network):
    """Operations of the products, per row."""
    return sum(2.0 * a * b for a, b in zip(network.widths, network.widths[1:], strict=False))


def note(benchmark, timings, rows, of, probe=None):
    """Record the time per call and per row; with a probe, the share of the FMA peak at `of` FLOPs a row."""
    if timings:
        benchmark.extra_info["scaling"] = {
            str(name): {
                "us": timing.median * 1e6,
                "ns a row": timing.median / rows * 1e9,
                **({"share of FMA peak": of * rows / timing.median / 1e9 / probe.median} if probe else {}),
            }
            for name, timing in timings.items()
            if name != "peak"
        }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_inference(benchmark, case):
    """`step` is one loss and gradient on the same rows: three times the operations."""
    engine, params, X = fastae.Engine(case.network), case.parameters, case.X
    few, dense = X[:2000], {name: value.astype("f8") for name, value in case.dense.items()}
    wanted = reference.forward(few.astype("f8"), dense)["xhat"]
    np.testing.assert_allclose(engine.reconstruct(params, few), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(engine.errors(params, few), ((wanted - few) ** 2).sum(axis=1), rtol=1e-4)
    methods = {"errors": engine.errors, "reconstruct": engine.reconstruct, "encode": engine.encode}
    contenders = {name: repeat(method, params, X) for name, method in methods.items()}
    contenders["step"] = repeat(engine.loss_and_gradient, params, X)
    contenders["numpy reconstruct"] = repeat(lambda: reference.forward(X, case.dense))
    probe = Probe(available_cpus())
    contenders["peak"] = Contender(probe, available_cpus())
    note(benchmark, recorded(benchmark, contenders), case.m, flops(case.network), probe)


@pytest.mark.parametrize("rows", [1, 1_000_000])
def test_scores(benchmark, rows):
    """A detector's scores beside the engine's errors of the same rows."""
    X = np.random.default_rng(0).random((max(rows, 1000), 30), dtype=np.float32)
    detector = fastae.AutoencoderDetector((8,), n_estimators=1, max_iter=1).fit(X[:1000])
    engine, options = detector._engine(), detector._in()
    X = X[:rows]
    errors = partial(engine.errors, detector.params_, X, **options)
    np.testing.assert_allclose(-30 * detector.score_samples(X), errors(), rtol=1e-12)
    contenders = {"score_samples": repeat(detector.score_samples, X), "errors": repeat(errors)}
    note(benchmark, recorded(benchmark, contenders), rows, 0)


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize(
    "network", [DEEP, fastae.Network((784, 784), ("identity",))], ids=["deep", "784-784"]
)
def test_few_rows_of_a_wide_network(benchmark, network, rows):
    """On one thread and on all."""
    params = fastae.Parameters.random(network)
    X = np.random.default_rng(0).random((rows, 784), dtype=np.float32)
    engines = {count: fastae.Engine(network, count) for count in sorted({1, available_cpus()})}
    assert len({engine.reconstruct(params, X).tobytes() for engine in engines.values()}) == 1
    contenders = {
        f"{count} threads": repeat(engine.reconstruct, params, X) for count, engine in engines.items()
    }
    note(benchmark, recorded(benchmark, contenders), rows, flops(network))


@pytest.mark.parametrize("batch", [256, 4096])
def test_epoch_of_rows_beyond_the_caches(benchmark, batch):
    """2 GB of rows, in order and shuffled: share of the FMA peak."""
    m = 8_000_000 if benchmark.enabled else 10_000
    network = fastae.Network.autoencoder(64, 8)
    X, rng = np.empty((m, 64), np.float32), np.random.default_rng(0)
    for first in range(0, m, 100_000):
        rng.random(out=X[first : first + 100_000], dtype=np.float32)
    engine, params, gradient = (
        fastae.Engine(network),
        fastae.Parameters.random(network),
        fastae.Parameters(network),
    )
    state, rates = fastae.optimizers.State.zeros(params), np.full(-(-m // batch), 1e-5)
    options = {
        "gradient": gradient,
        "optimizer": fastae.Adam(),
        "state": state,
        "rates": rates,
        "batch_size": batch,
    }
    orders = {"in order": None, "shuffled": rng.permutation(m)}
    probe, threads = Probe(available_cpus()), available_cpus()
    contenders = {
        name: Contender(partial(epochs, engine=engine, params=params, X=X, index=index, **options), threads)
        for name, index in orders.items()
    }
    contenders["peak"] = Contender(probe, threads)
    note(benchmark, recorded(benchmark, contenders), m, 3 * flops(network) - 2 * 64 * 8, probe)


def epochs(times, *, engine, params, X, **options):
    """So many epochs of steps that hardly move."""
    for _ in range(times):
        losses = engine.run_steps(params, X, **options)
        assert np.isfinite(losses).all()
