"""Sample weights: what they mean, and that their unit does not matter."""

import numpy as np
import pytest
from engines import assert_matches_reference, autoencoder, bits, problem

import fastae


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("last", ["identity", "sigmoid"])
def test_sample_weights_match_reference(last, dtype):
    network = fastae.Network((30, 8, 30), ("sigmoid", last))
    engine = fastae.Engine(network, 2, dtype)
    parameters, X = problem(network, 3000, dtype)
    rng = np.random.default_rng(0)
    weight = rng.exponential(size=3000) * (rng.random(3000) < 0.7)
    assert_matches_reference(engine, parameters, X, sample_weight=weight)
    index = rng.permutation(3000)[:1111]
    assert_matches_reference(engine, parameters, X, X[index], sample_weight=weight, index=index)


def test_equal_weights_are_no_weights_and_whole_weights_repeat_rows():
    engine, parameters, X = autoencoder(m=700, dtype="float64")
    plain = engine.loss_and_gradient(parameters, X)
    assert bits(engine.loss_and_gradient(parameters, X, sample_weight=np.ones(700))) == bits(plain)
    times = np.random.default_rng(0).integers(0, 4, 700)
    assert_matches_reference(engine, parameters, X, sample_weight=times)
    loss, gradient = engine.loss_and_gradient(parameters, X, sample_weight=times)
    repeated, wanted = engine.loss_and_gradient(parameters, np.repeat(X, times, axis=0))
    assert loss == pytest.approx(repeated, rel=1e-12)
    np.testing.assert_allclose(gradient.flat, wanted.flat, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("unit", [1e-300, 1e-40, 1e40, 1e300])
def test_the_unit_of_the_weights_does_not_matter(unit, dtype):
    engine, parameters, X = autoencoder(m=700, dtype=dtype)
    weight = np.random.default_rng(0).random(700)
    loss, gradient = engine.loss_and_gradient(
        parameters, X, sample_weight=weight, objective=fastae.Objective(alpha=2.0)
    )
    scaled, also = engine.loss_and_gradient(
        parameters, X, sample_weight=weight * unit, objective=fastae.Objective(alpha=2.0 * unit)
    )
    assert scaled == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(also.flat, gradient.flat, rtol=1e-4, atol=1e-6)


def test_a_row_of_weight_zero_does_not_count():
    engine, parameters, X = autoencoder(m=700)
    weight = np.ones(700)
    weight[100:300] = 0
    other = X.copy()
    other[100:300] = 1e3
    assert bits(engine.loss_and_gradient(parameters, X, sample_weight=weight)) == bits(
        engine.loss_and_gradient(parameters, other, sample_weight=weight)
    )


@pytest.mark.parametrize("last", [1.0, 1e308])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_whose_sum_is_infinite_are_weights_like_any_other(dtype, last):
    """Their history too: a loss of each epoch is a mean over its batches, by the sums of their weights."""
    network = fastae.Network.autoencoder(30, 8)
    _, X = problem(network, 300, dtype)
    losses = []
    for largest in (2.0**10, 2.0**1023):
        params = fastae.Parameters.random(network, 0, dtype)
        weight = np.full(300, largest)
        weight[-1] *= last / 1e308
        losses.append(fastae.train(params, X, epochs=3, batch_size=70, sample_weight=weight).loss)
    assert np.isfinite(losses).all()
    assert losses[0] == losses[1]


def test_weights_so_small_that_the_penalty_is_infinite_are_refused():
    engine, parameters, X = autoencoder(m=30)
    with pytest.raises(ValueError, match="sample_weight is too small: alpha"):
        engine.loss_and_gradient(
            parameters, X, sample_weight=np.full(30, 5e-324), objective=fastae.Objective(alpha=0.1)
        )
