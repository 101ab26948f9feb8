"""Activations and deltas by name: the reference's, for every form of products, option and number of slabs."""

import numpy as np
import pytest
from engines import STACKS, TOLERANCE, autoencoder, double, problem

import fastae
from fastae import reference
from fastae.engine import activations
from fastae.engine.warmup import dtypes


def wanted_of(params, x, sample_weight=None):
    names, rows = params.network.activations, np.asarray(x, np.float64)
    weight = None if sample_weight is None else np.asarray(sample_weight)
    forward = reference.forward(rows, double(params), names)
    return forward | reference.backward(rows, double(params), names, weight)


def check(found, wanted, tolerance):
    for name, array in found.items():
        assert array.shape == wanted[name].shape, name
        assert array.flags.c_contiguous
        limit = tolerance * max(np.abs(wanted[name]).max(), 1e-30)
        assert np.abs(array - wanted[name]).max() <= limit, name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("widths", "names"), STACKS)
def test_every_activation_and_delta_is_the_references(widths, names, dtype):
    network = fastae.Network(widths, names)
    engine = fastae.Engine(network, 2, dtype)
    params, X = problem(network, 77, dtype)
    found = engine.activations(params, X, activations.names_of(network))
    assert all(array.dtype == dtype for array in found.values())
    assert {f"z{i}" for i in range(1, len(widths))} | {"xhat"} <= set(found)
    assert {f"dz{i}" for i in range(1, len(widths))} <= set(found)
    check(found, wanted_of(params, X), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 2, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("n", [30, 130])
def test_any_number_of_rows(n, rows):
    """Small networks have rows in lanes, which keep no deltas, and every 2048 rows are a slab."""
    engine, params, X = autoencoder(n, 8, rows)
    found = engine.activations(params, X, ["h1", "z2", "xhat", "dz1", "dz2", "dz3", "dxhat"])
    check(found, wanted_of(params, X), 4 * TOLERANCE["float32"])
    np.testing.assert_array_equal(found["dxhat"], found["dz3"])
    np.testing.assert_allclose(found["h1"], engine.encode(params, X), atol=1e-6)


def test_chosen_rows_scaled_and_weighted():
    engine, params, X = autoencoder(30, 8, 100, "float64")
    rng = np.random.default_rng(0)
    index, weight = rng.integers(0, 100, 63), rng.uniform(0, 2, 100)
    weight[index[5]] = 0
    shift, scale = rng.normal(size=30), rng.uniform(0.5, 2, 30)
    options = {"index": index, "shift": shift, "scale": scale, "sample_weight": weight}
    seen, weights = ((X - shift) * scale)[index], weight[index]
    X[index[5]] = np.nan  # a row of weight 0 does not count, whatever it holds
    seen[weights == 0] = 0
    names = activations.names_of(engine.network)
    check(engine.activations(params, X, names, **options), wanted_of(params, seen, weights), 1e-11)
    huge = engine.activations(params, X, ["dz1"], **options | {"sample_weight": weight * 1e300})
    check(huge, wanted_of(params, seen, weights), 1e-11)


@pytest.mark.parametrize("rows", [90, 4100])
@pytest.mark.parametrize(
    "objective",
    [
        fastae.Objective(sparsity_weight=0.5, sparsity_target=0.1),
        fastae.Objective(noise="gaussian", noise_level=0.3),
        fastae.Objective(noise="swap", noise_level=0.3, missing=True, alpha=0.1),
        fastae.Objective(noise="mask", noise_level=0.2, sparsity_weight=0.1),
    ],
)
def test_the_gradient_is_the_product_of_what_goes_into_a_layer_and_its_delta(objective, rows):
    """With every objective: noise, missing cells, and the cost of the mean code, which is that of all rows."""
    engine, params, X = autoencoder(30, 8, rows, "float64")
    X[3, 7] = np.nan if objective.missing else 0
    options = {"objective": objective, "seed": 3, "epoch": 4}
    _, gradient = engine.loss_and_gradient(params, X, **options)
    found = engine.activations(params, X, activations.names_of(engine.network), **options)
    for layer, below in ((2, "h1"), (3, "h2")):
        delta = found[f"dz{layer}"]
        dW = gradient[f"W{layer}"] - objective.alpha / rows * params[f"W{layer}"]
        np.testing.assert_allclose(found[below].T @ delta, dW, atol=1e-12 * np.abs(dW).max() * 30)
    for layer in (1, 2, 3):
        db = gradient[f"b{layer}"]
        np.testing.assert_allclose(found[f"dz{layer}"].sum(axis=0), db, atol=1e-12 * max(np.abs(db).max(), 1))


@pytest.mark.parametrize(
    ("last", "loss"), [("identity", "squared_error"), ("tanh", "huber"), ("sigmoid", "bernoulli")]
)
def test_deltas_are_those_of_any_loss_and_target(last, loss):
    network = fastae.Network((20, 6, 5), ("tanh", last))
    engine, rng = fastae.Engine(network, 2, "float64"), np.random.default_rng(0)
    params, X = problem(network, 70, "float64")
    options = {"Y": rng.random((70, 5)), "objective": fastae.Objective(loss=loss)}
    _, gradient = engine.loss_and_gradient(params, X, **options)
    found = engine.activations(params, X, ["h1", "dz1", "dz2"], **options)
    np.testing.assert_allclose(found["h1"].T @ found["dz2"], gradient["W2"], atol=1e-13)
    np.testing.assert_allclose(X.T @ found["dz1"], gradient["W1"], atol=1e-13)
    np.testing.assert_allclose(found["dz1"].sum(axis=0), gradient["b1"], atol=1e-13)


def test_targets_that_a_loss_cannot_use_are_named():
    network = fastae.Network((20, 6, 20), ("tanh", "sigmoid"))
    engine, params, X = fastae.Engine(network), *problem(network, 10)
    objective = fastae.Objective(loss="bernoulli")
    for call in (
        lambda: engine.activations(params, X, ["z1"], objective=objective),
        lambda: engine.prepare_loss_and_gradient(params, X, objective=objective),
    ):
        with pytest.raises(ValueError, match=r"X has cells outside \[0, 1\]"):
            call()


@pytest.mark.skipif("bfloat16" not in dtypes(), reason="needs AVX512_BF16")
@pytest.mark.parametrize("n", [30, 130])
def test_bfloat16_is_near_the_reference(n):
    engine, params, X = autoencoder(n, 20, 100, "float32")
    engine = fastae.Engine(engine.network, 2, "bfloat16")
    found = engine.activations(params, X, activations.names_of(engine.network))
    check(found, wanted_of(params, X), 0.03)
    np.testing.assert_array_equal(found["xhat"], engine.reconstruct(params, X))
    np.testing.assert_array_equal(found["h1"], engine.encode(params, X))


def test_the_same_bits_for_any_number_of_threads_and_calls_in_between_see_nothing():
    one, params, X = autoencoder(64, 20, 3000, n_threads=1)
    two = fastae.Engine(one.network, 2)
    names = activations.names_of(one.network)
    loss, gradient = two.loss_and_gradient(params, X)
    call = two.prepare_loss_and_gradient(params, X)
    for _ in range(2):
        found, there = one.activations(params, X, names), two.activations(params, X, names)
        for name in names:
            np.testing.assert_array_equal(found[name], there[name])
        assert two.loss_and_gradient(params, X)[0] == loss == call()
        np.testing.assert_array_equal(call.gradient.flat, gradient.flat)


def test_errors_name_the_argument():
    engine, params, X = autoencoder(30, 8, 10)
    for names, error, message in (
        ("z1", TypeError, "names must be a sequence of names, got the string 'z1'"),
        ([], ValueError, "names is empty"),
        (
            ["z1", "h3"],
            ValueError,
            "names has 'h3', but the network has z1, h1, z2, h2, z3, xhat, dz1, dz2, dz3",
        ),
        (["d_z1"], ValueError, "names has 'd_z1'"),
        ([3], ValueError, "names has 3"),
    ):
        with pytest.raises(error, match=message):
            engine.activations(params, X, names)
    with pytest.raises(TypeError, match="activations has no option out"):
        engine.activations(params, X, ["z1"], out=None)
    with pytest.raises(ValueError, match="index must lie within"):
        engine.activations(params, X, ["z1"], index=[10])
    with pytest.raises(ValueError, match="params are of Network"):
        engine.activations(fastae.Parameters(fastae.Network.autoencoder(30, 9)), X, ["z1"])
