"""Steps put together from sums over partitions of the rows, and what run_steps and combine_sums refuse."""

import numpy as np
import pytest
from engines import autoencoder, problem

import fastae
from fastae.objective import Objective
from fastae.optimizers import State


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [fastae.SGD(momentum=0.9, learning_rate=0.01), fastae.Adam()])
def test_a_step_from_sums_over_blocks_equals_the_step_on_all_rows(dtype, optimizer):
    network = fastae.Network.autoencoder(9, 4)
    X = np.random.default_rng(0).normal(size=(2500, 9))
    weight = np.random.default_rng(1).random(2500)
    noisy = {"noise": "gaussian", "noise_level": 0.3}
    engine = fastae.Engine(network, 2, dtype)
    made = []
    for blocks in ([0, 2500], [0, 700, 701, 2500]):
        params = fastae.Parameters.random(network, 0, dtype)
        state = State.zeros(params)
        gradient = fastae.Parameters(network, dtype)
        for rate in optimizer.rates(0, 3):
            how = {"optimizer": optimizer, "state": state}
            options = {"seed": 5, "epoch": state.steps}
            if len(blocks) == 2:
                objective = Objective(alpha=0.1, **noisy)
                how |= {"rates": [rate]}
                options |= how | {"objective": objective, "sample_weight": weight}
                loss = engine.run_steps(params, X, gradient=gradient, **options)[0, 0]
            else:
                parts, totals = np.zeros((3, params.flat.size), dtype), np.zeros(2)
                for part, first, last in zip(parts, blocks[:-1], blocks[1:], strict=True):
                    options |= {"first_row": first, "objective": Objective(**noisy), "sums": True}
                    options |= {"sample_weight": weight[first:last]}
                    totals += engine.run_steps(params, X[first:last], gradient=gradient, **options)[0]
                    part[:] = gradient.flat
                how |= {"rate": rate, "alpha": 0.1}
                penalty = engine.combine_sums(params, parts, totals[1], gradient=gradient, **how)
                loss = totals[0] / totals[1] + penalty
            state.steps += 1
        made.append((loss, params.flat, gradient.flat))
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    assert made[1][0] == pytest.approx(made[0][0], rel=tolerance)
    np.testing.assert_allclose(made[1][2], made[0][2], atol=tolerance * np.abs(made[0][2]).max(), rtol=0)
    np.testing.assert_allclose(made[1][1], made[0][1], atol=20 * tolerance, rtol=0)


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
    made = []
    for factor in (1.0, unit):
        gradient = fastae.Parameters(network)
        how = {"gradient": gradient, "sums": True, "sample_weight": weight * factor}
        losses = fastae.Engine(network, 1).run_steps(params, X, **how)
        made.append((losses / factor, gradient.flat / np.float32(factor)))
    np.testing.assert_allclose(made[1][0], made[0][0], rtol=1e-5)
    np.testing.assert_allclose(made[1][1], made[0][1], rtol=0, atol=1e-5 * np.abs(made[0][1]).max())


@pytest.mark.parametrize("wrong", ["params", "gradient"])
def test_sums_and_steps_take_nothing_of_another_dtype(wrong):
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
def test_steps_name_what_they_cannot_take(name, wrong):
    network = fastae.Network.autoencoder(5, 3)
    params, X = problem(network, 40)
    before, adam = params.flat.copy(), fastae.Adam()
    arguments = {
        "gradient": params.copy(),
        "optimizer": adam,
        "state": State.zeros(params),
        "rates": [0.1, 0.1],
        "batch_size": 20,
    }
    with pytest.raises(ValueError, match=name):
        fastae.Engine(network, 2).run_steps(params, X, **(arguments | {name: wrong}))
    assert np.array_equal(params.flat, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_no_weight_are_no_step_and_parts_may_lie_anyhow(dtype):
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
