"""Steps of networks with few columns, rows in lanes; the products by themselves are in test_products.py."""

import os

import numpy as np
import pytest
from guard import guard_buffers, guarded
from layers import TOLERANCE
from threads import pretend_cpus

import fastae
from fastae import reference
from fastae.kernels import forms, gemm, rowlanes, split
from fastae.kernels.target import TARGET
from fastae.objective import Objective

posix = pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
NETWORKS = [
    fastae.Network.autoencoder(10, 3),
    fastae.Network.autoencoder(30, 8),
    fastae.Network.autoencoder(1, 1),
    fastae.Network((13, 7, 2, 7, 13), ("tanh", "relu", "identity", "identity")),
    fastae.Network((51, 13, 51), ("relu", "identity")),
]


def options(m, n, seed=0):
    rng = np.random.default_rng(seed)
    yield {}
    yield {"sample_weight": rng.integers(0, 3, m) + (np.arange(m) == 0)}
    yield {"shift": rng.normal(size=n), "scale": rng.uniform(0.5, 2, n)}
    yield {"index": rng.permutation(m)}


def choose_form(monkeypatch, pays):
    """Have engines take rows in the lanes, or in blocks; returns a list that grows where one is asked which."""
    asked = []
    form = rowlanes.ROW_LANES if pays else gemm.COLUMN_BLOCKS
    monkeypatch.setattr(forms, "choose", lambda *_, **__: asked.append(pays) or form)
    return asked


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(network.widths))
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("m", [1, 70, 127, 200, 1000, 2500])
def test_steps_are_the_references(network, dtype, m, monkeypatch):
    asked = choose_form(monkeypatch, True)
    n = network.widths[0]
    X = np.random.default_rng(m).normal(size=(m, n)).astype(dtype)
    engine, params = fastae.Engine(network, 2, dtype), fastae.Parameters.random(network, dtype=dtype)
    dense = {name: value.astype("f8") for name, value in params.items()}
    for option in options(m, n):
        rows = X[option["index"]] if "index" in option else X
        seen = (rows.astype("f8") - option.get("shift", 0.0)) * option.get("scale", 1.0)
        weight = option.get("sample_weight")
        loss, gradient = engine.loss_and_gradient(params, X, **option)
        wanted = reference.backward(seen, dense, network.activations, sample_weight=weight)
        exact = reference.cost(seen, reference.forward(seen, dense, network.activations)["xhat"], weight)
        assert loss == pytest.approx(exact, rel=3e-6 if dtype == "float32" else 1e-13), option.keys()
        for name in gradient:
            error = np.abs(gradient[name] - wanted[f"d{name}"]).max()
            limit = 1e-5 if dtype == "float32" else 1e-12
            assert error <= limit * max(np.abs(wanted[f"d{name}"]).max(), 0.1), (option.keys(), name)
    assert asked == [True] * 4


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(network.widths))
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("noise", [None, "gaussian", "mask", "swap"])
def test_corrupted_input_is_the_same_as_in_blocks(network, missing, noise, monkeypatch):
    X = np.random.default_rng(1).normal(size=(700, network.widths[0]))
    if missing:
        X[::3, 0] = np.nan
    params = fastae.Parameters.random(network, dtype="float64")
    objective = Objective(noise=noise, noise_level=0.3 if noise else 0.0, missing=missing, alpha=0.1)
    results = []
    for pays in (True, False):
        asked = choose_form(monkeypatch, pays)
        engine = fastae.Engine(network, 1, "float64")
        gradient = fastae.Parameters(network, "float64")
        loss = engine.run_steps(params, X, gradient=gradient, objective=objective, seed=5)[0, 0]
        results.append((loss, gradient.flat))
        assert asked == [pays]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=1e-12 * np.abs(results[1][1]).max())


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "widths", [(7, 7), (3, 80, 3), (64, 2, 64), (30, 8, 30, 30), (5, 4, 3, 2, 1, 2, 3, 4, 5)], ids=str
)
def test_an_engine_stays_within_its_memory_in_either_form(widths, dtype, end, monkeypatch):
    """All of an engine's memory at guard pages; what one form leaves there, the other must not see."""
    network = fastae.Network(widths, ("sigmoid",) * (len(widths) - 2) + ("identity",))
    params = fastae.Parameters.random(network, dtype=dtype)
    guard_buffers(monkeypatch, end)
    engine, gradient = fastae.Engine(network, 2, dtype), fastae.Parameters(network, dtype)
    for m in (1, 199, 1500):
        X = guarded(np.random.default_rng(m).normal(size=(m, widths[0])).astype(dtype), end)
        X[m // 2, 0] = np.nan
        index = np.random.default_rng(0).permutation(m)
        results = {True: [], False: []}
        for pays in (True, False, True, False):
            asked = choose_form(monkeypatch, pays)
            for noise in (None, "gaussian", "swap"):
                objective = Objective(missing=True, noise=noise, noise_level=0.2 if noise else 0.0)
                options = {"shift": np.ones(widths[0])} if noise else {"sample_weight": np.arange(m) + 1.0}
                losses = engine.run_steps(
                    params,
                    X,
                    gradient=gradient,
                    objective=objective,
                    index=index,
                    batch_size=m // 2 + 1,
                    rates=np.zeros(2),
                    **options,
                )
                results[pays].append((losses.tobytes(), gradient.flat.tobytes()))
            assert asked == [pays] * 3
        assert results[True][:3] == results[True][3:]
        assert results[False][:3] == results[False][3:]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_bits_are_the_same_for_any_number_of_threads(dtype, monkeypatch):
    pretend_cpus(monkeypatch, 5)
    network = fastae.Network.autoencoder(10, 3)
    assert rowlanes.pays(network.widths, 5000, 10**3, np.dtype(dtype))
    X = np.random.default_rng(2).normal(size=(20_000, 10)).astype(dtype)
    parameters = []
    for threads in (1, 2, 3, 5):
        params = fastae.Parameters.random(network, dtype=dtype)
        engine = fastae.Engine(network, threads, dtype)
        fastae.train(params, X, engine=engine, epochs=2, batch_size=5000, optimizer=fastae.Adam())
        parameters.append(params.flat.tobytes())
    assert len(set(parameters)) == 1


def test_an_engine_goes_from_one_form_to_the_other_and_back():
    """They share a thread's memory: what one leaves there, the other must not see."""
    network = fastae.Network.autoencoder(10, 3)
    X = np.random.default_rng(3).normal(size=(3000, 10)).astype("f4")
    params, engine = fastae.Parameters.random(network), fastae.Engine(network, 1)
    first = [engine.loss_and_gradient(params, X[:m]) for m in (3000, 1)], engine.reconstruct(params, X)
    again = [engine.loss_and_gradient(params, X[:m]) for m in (3000, 1)], engine.reconstruct(params, X)
    for (loss, gradient), (loss_2, gradient_2) in zip(first[0], again[0], strict=True):
        assert loss == loss_2
        assert np.array_equal(gradient.flat, gradient_2.flat)
    assert np.array_equal(first[1], again[1])


def test_a_short_last_batch_may_have_more_shards():
    """16385 rows are 26 shards of 640, and 16384 are 32 of 512."""
    network = fastae.Network.autoencoder(10, 3)
    X = np.random.default_rng(6).normal(size=(16385 + 16384, 10)).astype("f4")
    params, engine = fastae.Parameters.random(network), fastae.Engine(network, 1)
    size, multiple = params.flat.size, rowlanes.row_multiple(network.widths, "float32")
    assert rowlanes.pays(network.widths, 16385, size, engine.dtype)
    if TARGET.isa == "avx512":
        assert [split.shards_of(rows, size, multiple) for rows in (16385, 16384)] == [26, 32]
    gradient = fastae.Parameters(network)
    losses = engine.run_steps(params, X, gradient=gradient, batch_size=16385, rates=np.zeros(2))
    loss, last = fastae.Engine(network, 1).loss_and_gradient(params, X[16385:])
    assert losses[1, 0] == loss
    assert np.array_equal(gradient.flat, last.flat)


def test_gradient_is_that_of_finite_differences():
    network = fastae.Network.autoencoder(6, 3)
    X = np.random.default_rng(4).normal(size=(1000, 6))
    assert rowlanes.pays(network.widths, 1000, 10**3, np.dtype("float64"))
    params, engine = fastae.Parameters.random(network, dtype="float64"), fastae.Engine(network, 1, "float64")
    _, gradient = engine.loss_and_gradient(params, X)
    for name in gradient:
        for place in np.ndindex(gradient[name].shape):
            value, sides = params[name], []
            for step in (1e-6, -1e-6):
                moved = value.copy()
                moved[place] += step
                params[name] = moved
                sides.append(engine.loss_and_gradient(params, X)[0])
            params[name] = value
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(gradient[name][place], abs=1e-8), (
                name,
                place,
            )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_tile_of_steps_is_filled_by_register_tiles(dtype):
    dtype, highest = np.dtype(dtype), 0
    lanes = 64 // dtype.itemsize
    for widths in [(30, 8, 30, 30), (1, 1, 1), (80, 80, 80), (3, 64, 3)]:
        for batch in range(1, 700):
            height, multiple = rowlanes.tile_of_steps(widths, batch, 2000, dtype)
            assert height % multiple == 0
            assert height <= rowlanes.most_height(widths, dtype)
            lines, short = multiple // lanes, rowlanes.short_tiles(multiple // lanes)
            assert (lines - short * rowlanes.SHORT) % rowlanes.LINES == 0
            assert lines >= short * rowlanes.SHORT
            highest = max(highest, height)
    assert highest > 200


def test_few_rows_are_padding():
    """200 rows are 13 lines: register tiles of 8 and of 5, where a CPU has AVX-512."""
    if TARGET.isa == "avx512":
        assert rowlanes.tile_of_steps((30, 8, 30, 30), 200, 2128, np.dtype("f4")) == (208, 208)
        assert rowlanes.pays((30, 8, 30, 30), 200, 2128, np.dtype("f4"))


def test_where_it_pays():
    f4, f8, size = np.dtype("f4"), np.dtype("f8"), 4000
    assert rowlanes.pays((10, 3, 10, 10), 100_000, size, f4)
    assert rowlanes.pays((30, 8, 30, 30), 65_536, size, f4)
    assert not rowlanes.pays((32, 16, 32, 32), 65_536, size, f4)  # nothing is padding
    assert not rowlanes.pays((100, 10, 100, 100), 65_536, size, f4)  # too wide
    assert not rowlanes.pays((10, 3, 10, 10), 1, size, f4)  # rows would be padding
    assert not rowlanes.pays((16, 8, 16, 16), 65_536, size, f8)  # blocks of 8: nothing is padding


@pytest.mark.parametrize("case", ["last layer", "mean code", "bfloat16"])
def test_what_it_cannot_do_is_done_in_blocks(case):
    """A narrow network on many rows, but of a form that rows in the lanes have no kernels for."""
    activations = ("sigmoid", "sigmoid") if case == "last layer" else ("sigmoid", "identity")
    network = fastae.Network((10, 3, 10), activations, code_layer=1)
    if case == "bfloat16" and not TARGET.bfloat16:
        pytest.skip("no bfloat16 products here")
    dtype = "bfloat16" if case == "bfloat16" else "float32"
    engine, params = fastae.Engine(network, 1, dtype), fastae.Parameters.random(network)
    X = np.random.default_rng(5).random((5000, 10), dtype=np.float32)
    objective = Objective(sparsity_weight=1.0, sparsity_target=0.1) if case == "mean code" else Objective()
    gradient = fastae.Parameters(network)
    engine.run_steps(params, X, gradient=gradient, objective=objective)
    assert rowlanes.pays(network.widths, 5000, params.flat.size, engine.dtype)
    plain = reference.backward(X, dict(params), network.activations)
    if case == "mean code":  # its gradient is checked in test_objective
        assert np.isfinite(gradient.flat).all()
        assert np.abs(gradient["W1"] - plain["dW1"]).max() > 1e-3
        return
    for name in gradient:
        error = np.abs(gradient[name] - plain[f"d{name}"]).max()
        assert error <= (0.02 if case == "bfloat16" else 1e-4) * np.abs(plain[f"d{name}"]).max(), name
