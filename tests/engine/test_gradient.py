"""The gradient is right at any size, depth and activation: against the reference and finite differences."""

import numpy as np
import pytest
from engines import STACKS, assert_matches_reference, autoencoder, problem

import fastae

SIZES = [
    (1, 1, 1),
    (1, 3, 5),
    (2, 1, 33),
    (4, 2, 7),
    (15, 16, 17),
    (16, 16, 64),
    (17, 15, 100),
    (30, 8, 511),
    (31, 9, 513),
    (33, 47, 1025),
    (48, 64, 256),
    (64, 32, 2049),
    (65, 80, 300),
    (100, 3, 4097),
    (130, 70, 150),
    (784, 64, 70),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "k", "m"), SIZES)
def test_gradient_matches_reference_at_any_size(n, k, m, dtype):
    assert_matches_reference(*autoencoder(n, k, m, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("widths", "activations"), STACKS)
def test_gradient_matches_reference_for_any_stack(widths, activations, dtype):
    network = fastae.Network(widths, activations)
    engine = fastae.Engine(network, 2, dtype)
    assert_matches_reference(engine, *problem(network, 700, dtype))
    assert_matches_reference(engine, *problem(network, 3, dtype))


@pytest.mark.parametrize("last", ["sigmoid", "tanh", "relu", "identity"])
@pytest.mark.parametrize("first", ["sigmoid", "tanh", "relu", "identity"])
def test_gradient_matches_reference_for_any_activations(first, last):
    network = fastae.Network((21, 10, 21), (first, last))
    assert_matches_reference(fastae.Engine(network, 1), *problem(network, 600))


@pytest.mark.parametrize(
    ("widths", "activations"), [((6, 3, 6, 6), ("sigmoid", "sigmoid", "identity")), *STACKS[1:6]]
)
def test_gradient_matches_finite_differences(widths, activations):
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, 23, "float64")
    engine = fastae.Engine(network, 2, "float64")
    errors = fastae.check_gradients(parameters, X, engine=engine, n_samples=20)
    assert set(errors) == set(network.shapes())
    assert max(errors.values()) < 1e-7, errors


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("damage", ["one weight", "one row", "one entry of the gradient"])
def test_the_reference_catches_a_broken_kernel(damage, dtype):
    """A weight off by a thousandth, the last row left out, an entry off by a thousandth of the largest."""
    engine, parameters, X = autoencoder(31, 9, 513, dtype)

    class Broken:
        network, dtype = engine.network, engine.dtype

        def loss_and_gradient(self, parameters, X, **options):
            parameters = parameters.copy()
            if damage == "one weight":
                W2 = parameters["W2"]
                W2[8, 30] *= 1.001
                parameters["W2"] = W2
            loss, gradient = engine.loss_and_gradient(parameters, X[: -1 if damage == "one row" else None])
            gradient = dict(gradient)
            if damage == "one entry of the gradient":
                gradient["W3"][30, 30] += np.abs(gradient["W3"]).max() / 1000
            return loss, gradient

    assert_matches_reference(engine, parameters, X)
    with pytest.raises(AssertionError):
        assert_matches_reference(Broken(), parameters, X)


def test_finite_differences_catch_a_wrong_gradient():
    engine, parameters, X = autoencoder(6, 3, 23, "float64")

    class MeanForBias:
        def loss_and_gradient(self, *arguments, **options):
            loss, gradient = engine.loss_and_gradient(*arguments, **options)
            return loss, {**gradient, "b2": gradient["b2"] / len(X)}

    errors = fastae.check_gradients(parameters, X, engine=MeanForBias())
    assert errors["b2"] > 0.5
    assert max(error for name, error in errors.items() if name != "b2") < 1e-7


def test_a_tile_in_the_middle_of_a_large_batch_counts_like_any_other():
    """A tile that is lost or counted twice changes loss and gradient by far more than rounding does."""
    engine, parameters, X = autoencoder(20, 4, 20_000, "float64", n_threads=3)
    X[7000:7100] += 10
    assert_matches_reference(engine, parameters, X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "k", "m"), [(10, 3, 4096), (30, 8, 128), (33, 9, 2048), (1, 1, 1024)])
def test_rows_that_are_copied_first_give_the_same_bits(n, k, m, dtype):
    """A form may read whole tiles of contiguous rows itself; those of a strided matrix are gathered before."""
    network = fastae.Network((n, k, n + 2), ("sigmoid", "identity"))
    engine = fastae.Engine(network, 2, dtype)
    params, X = problem(network, m, dtype)
    rng = np.random.default_rng(0)
    Y, index = rng.normal(size=(m, n + 2)).astype(dtype), rng.permutation(m)
    Y[3, 1] = Y[-1, 0] = 1e3

    def strided(matrix):
        return np.repeat(matrix, 2, axis=1)[:, ::2]

    for given in ({}, {"index": index}):
        loss, gradient = engine.loss_and_gradient(params, X, Y=Y, **given)
        bits = gradient.flat.copy()
        assert np.isfinite(loss)
        other, gradient = engine.loss_and_gradient(params, strided(X), Y=strided(Y), **given)
        assert loss == other
        assert np.array_equal(gradient.flat, bits)
    assert np.array_equal(engine.reconstruct(params, X), engine.reconstruct(params, strided(X)))
    Y[m // 2, 0] = np.nan
    assert np.isnan(engine.loss_and_gradient(params, X, Y=Y)[0])
    square = fastae.Network.autoencoder(n, k)
    engine, params = fastae.Engine(square, 2, dtype), fastae.Parameters.random(square, dtype=dtype)
    loss, gradient = engine.loss_and_gradient(params, X)
    bits = gradient.flat.copy()
    other, gradient = engine.loss_and_gradient(params, strided(X))
    assert loss == other
    assert np.array_equal(gradient.flat, bits)
    assert np.array_equal(engine.errors(params, X), engine.errors(params, strided(X)))
