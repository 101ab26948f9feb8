"""Steps put together from sums over partitions of the rows, and what run_steps and combine_sums refuse."""

import numpy as np
import pytest
from engines import autoencoder, problem

import fastae
from fastae.objective import Objective
from fastae.optimizers import State


def update(optimizer, state, steps=1):
    """What tells run_steps to update the parameters."""
    return {"optimizer": optimizer, "state": state, "rates": optimizer.rates(state.steps, steps)}


def update_once(optimizer, state):
    """What tells combine_sums to."""
    options = update(optimizer, state)
    (rate,) = options.pop("rates")
    return options | {"rate": rate}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [fastae.SGD(momentum=0.9, learning_rate=0.01), fastae.Adam()])
def test_a_step_from_sums_over_partitions_equals_the_step_on_all_rows(dtype, optimizer):
    network = fastae.Network.autoencoder(9, 4)
    engine = fastae.Engine(network, 2, dtype)
    X = np.random.default_rng(0).normal(size=(2500, 9))
    weight = np.random.default_rng(1).random(2500)
    noise = {"noise": "gaussian", "noise_level": 0.3}

    def step_on_all_rows(params, gradient, state):
        objective, options = Objective(alpha=0.1, **noise), update(optimizer, state)
        options |= {"seed": 5, "epoch": state.steps, "sample_weight": weight, "objective": objective}
        return engine.run_steps(params, X, gradient=gradient, **options)[0, 0]

    def step_from_sums(params, gradient, state):
        parts, totals = [], np.zeros(2)
        for first, last in ((0, 700), (700, 701), (701, 2500)):
            options = {"seed": 5, "epoch": state.steps, "objective": Objective(**noise), "sums": True}
            options |= {"first_row": first, "sample_weight": weight[first:last]}
            totals += engine.run_steps(params, X[first:last], gradient=gradient, **options)[0]
            parts.append(gradient.flat.copy())
        options = update_once(optimizer, state) | {"alpha": 0.1}
        penalty = engine.combine_sums(params, np.array(parts), totals[1], gradient=gradient, **options)
        return totals[0] / totals[1] + penalty

    results = []
    for step in (step_on_all_rows, step_from_sums):
        params, gradient = fastae.Parameters.random(network, 0, dtype), fastae.Parameters(network, dtype)
        state, losses = State.zeros(params), []
        for _ in range(3):
            losses.append(step(params, gradient, state))
            state.steps += 1
        results.append((losses, params.flat, gradient.flat))
    (losses, flat, gradient), (losses_2, flat_2, gradient_2) = results
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(losses_2, losses, rtol=tolerance)
    np.testing.assert_allclose(gradient_2, gradient, atol=tolerance * np.abs(gradient).max(), rtol=0)
    np.testing.assert_allclose(flat_2, flat, atol=20 * tolerance, rtol=0)
    assert np.abs(flat - fastae.Parameters.random(network, 0, dtype).flat).max() > 100 * tolerance


def test_sums_have_no_cost_of_the_whole_batch():
    network = fastae.Network.autoencoder(3, 2)
    params = fastae.Parameters.random(network)
    with pytest.raises(ValueError, match="sums are of rows: objective must have neither alpha"):
        fastae.Engine(network, 1).run_steps(
            params, np.ones((4, 3)), gradient=params.copy(), sums=True, objective=Objective(alpha=1.0)
        )


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
def test_sums_are_in_the_unit_of_the_weights(unit):
    network = fastae.Network.autoencoder(5, 3)
    params, X = problem(network, 40)
    weight = np.random.default_rng(1).random(40)
    results = []
    for factor in (1.0, unit):
        gradient = fastae.Parameters(network)
        options = {"gradient": gradient, "sums": True, "sample_weight": weight * factor}
        losses = fastae.Engine(network, 1).run_steps(params, X, **options)
        results.append((losses / factor, gradient.flat / np.float32(factor)))
    (losses, plain), (scaled_losses, scaled) = results
    np.testing.assert_allclose(scaled_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("wrong", ["params", "gradient"])
def test_sums_and_steps_refuse_another_dtype(wrong):
    engine, params, X = autoencoder(m=10)
    arguments = {"params": params, "gradient": fastae.Parameters(engine.network)}
    arguments[wrong] = fastae.Parameters(engine.network, "float64")
    parts = np.zeros((2, params.flat.size), np.float32)
    with pytest.raises(ValueError, match=f"{wrong} are float64"):
        engine.combine_sums(parts=parts, weight=1.0, **arguments)
    with pytest.raises(ValueError, match=f"{wrong} are float64"):
        engine.run_steps(X=X, **arguments)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("state", State(0, np.zeros((2, 3), np.float32))),
        ("state", State(0, np.zeros((2, 10_000), np.float64))),
        ("rates", ()),
        ("rates", [[0.1]]),
        ("batch_size", -1),
        ("batch_size", 0),
    ],
)
def test_errors_of_steps_name_the_argument(name, wrong):
    network = fastae.Network.autoencoder(5, 3)
    params, X = problem(network, 40)
    before = params.flat.copy()
    arguments = {"gradient": params.copy(), "batch_size": 20}
    arguments |= update(fastae.Adam(), State.zeros(params), steps=2)
    fastae.Engine(network, 2).run_steps(params.copy(), X, **arguments)  # which is all that is needed
    with pytest.raises(ValueError, match=name):
        fastae.Engine(network, 2).run_steps(params, X, **(arguments | {name: wrong}))
    assert np.array_equal(params.flat, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parts_in_any_memory_order_add_up_and_no_weight_is_no_step(dtype):
    engine, params, _ = autoencoder(n=17, k=5, dtype=dtype)
    gradient, rng = fastae.Parameters(engine.network, dtype), np.random.default_rng(0)
    parts = np.zeros((3, params.flat.size), dtype)
    for part in parts:
        part[:] = fastae.Parameters.random(engine.network, rng, dtype).flat
    for strided in (parts, np.asfortranarray(parts), np.repeat(parts, 2, axis=0)[::2]):
        penalty = engine.combine_sums(params, strided, 4.0, gradient=gradient, alpha=0.5)
        squares = 0.0
        for name in gradient:
            total = fastae.Parameters(engine.network, dtype)
            total.flat[:] = parts.sum(axis=0)
            wanted = total[name] / 4
            if name.startswith("W"):
                wanted, squares = wanted + 0.5 / 4 * params[name], squares + (params[name] ** 2).sum()
            np.testing.assert_allclose(gradient[name], wanted, rtol=1e-5, atol=1e-6)
        assert penalty == pytest.approx(0.5 * squares / 8, rel=1e-5)
        assert engine.combine_sums(params, strided, 0.0, gradient=gradient, alpha=0.5) == 0
        assert not gradient.flat.any()
    for bad in (parts[0], parts[:, 1:], parts[:0]):
        with pytest.raises(ValueError, match="parts must be of shape"):
            engine.combine_sums(params, bad, 4.0, gradient=gradient)
    for bad, error in ((None, TypeError), ("four", ValueError)):
        with pytest.raises(error, match="float"):
            engine.combine_sums(params, parts, bad, gradient=gradient, alpha=0.5)
