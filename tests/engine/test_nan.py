"""NaN in rows is missing only where the objective says so; elsewhere the loss is NaN, and training stops."""

import numpy as np
import pytest

import fastae
from fastae.kernels import rowlanes
from fastae.kernels.target import TARGET
from fastae.objective import Objective

DTYPES = ["float32", "float64"] + ["bfloat16"] * TARGET.bfloat16
WIDTHS = [1, 2, 6, 16, 24, 64, 100]
NOISES = [None, "gaussian", "mask", "swap"]


def problem(n, m=300, dtype="float32", last="identity"):
    network = fastae.Network((n, max(1, n // 3), n, n), ("sigmoid", "sigmoid", last), 1)
    X = np.random.default_rng(n).normal(size=(m, n))
    params = fastae.Parameters.random(network, dtype="float32" if dtype == "bfloat16" else dtype)
    return fastae.Engine(network, 2, dtype), params, X


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("last", ["identity", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", WIDTHS)
def test_a_row_that_is_all_nan_makes_the_loss_nan(n, dtype, last, noise):
    engine, params, X = problem(n, dtype=dtype, last=last)
    X[7] = np.nan
    objective = Objective(noise=noise, noise_level=0.9 if noise else 0.0)
    assert np.isnan(engine.loss_and_gradient(params, X, objective=objective)[0])
    missing = Objective(noise=noise, noise_level=0.9 if noise else 0.0, missing=True)
    loss, gradient = engine.loss_and_gradient(params, X, objective=missing)
    assert np.isfinite(loss)
    assert np.isfinite(gradient.flat).all()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n", [2, 30])
def test_a_single_nan_cell_makes_the_loss_nan_whatever_the_noise(n, noise):
    engine, params, X = problem(n)
    for cell in ((0, 0), (299, n - 1)):
        holed = X.copy()
        holed[cell] = np.nan
        for seed in range(3):
            objective = Objective(noise=noise, noise_level=0.9 if noise else 0.0)
            loss, _ = engine.loss_and_gradient(params, holed, objective=objective, seed=seed)
            assert np.isnan(loss)


@pytest.mark.parametrize("n", WIDTHS)
def test_training_on_nan_raises_and_leaves_the_parameters(n, tmp_path):
    engine, params, X = problem(n)
    X[7] = np.nan
    before = params.flat.copy()
    np.save(tmp_path / "x.npy", X)
    for rows in (X, fastae.open_rows(tmp_path / "x.npy", chunk_bytes=8 * n * 100)):
        with pytest.raises(fastae.DivergenceError, match="NaN or infinity"):
            fastae.train(params, rows, engine=engine, epochs=1)
        assert np.array_equal(params.flat, before)


def test_nan_in_every_cell_is_no_perfect_fit():
    for n in (6, 30):
        engine, params, X = problem(n)
        assert np.isnan(engine.loss_and_gradient(params, np.full_like(X, np.nan))[0])


@pytest.mark.parametrize("name", ["shift", "scale"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_shift_and_scale_must_be_finite(name, value):
    engine, params, X = problem(6)
    vector = np.ones(6)
    vector[3] = value
    for call in (engine.loss_and_gradient, engine.reconstruct, engine.errors):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            call(params, X, **{name: vector})
    engine.reconstruct(params, X, **{name: np.full(6, 1e200)})  # squares overflow, the numbers do not


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_a_row_of_weight_zero_counts_for_nothing_whatever_it_holds(hole, pays, noise, monkeypatch):
    monkeypatch.setattr(rowlanes, "pays", lambda *_: pays)
    engine, params, X = problem(10, dtype="float64")
    weight = np.random.default_rng(0).random(300)
    weight[[3, 120, 299]] = 0
    objective = Objective(noise=noise, noise_level=0.3 if noise else 0.0)
    clean = X.copy()
    clean[weight == 0] = 0.0
    holed = X.copy()
    holed[weight == 0] = hole
    losses, gradients = zip(
        *(
            engine.loss_and_gradient(params, rows, sample_weight=weight, objective=objective)
            for rows in (clean, holed)
        ),
        strict=True,
    )
    assert np.isfinite(losses).all()
    if noise != "swap" or hole is np.nan:  # an infinite cell may be swapped into another row
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        np.testing.assert_allclose(gradients[0].flat, gradients[1].flat, atol=1e-12)
