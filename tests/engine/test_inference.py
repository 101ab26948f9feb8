"""reconstruct, encode, decode and errors: what the reference computes, and errors of the reconstruction."""

import numpy as np
import pytest
from engines import STACKS, TOLERANCE, double, problem

import fastae
from fastae import reference


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", [1, 65, 3000])
@pytest.mark.parametrize(
    ("widths", "activations"), [((30, 8, 30, 30), ("sigmoid", "sigmoid", "identity")), STACKS[2], *STACKS[4:]]
)
def test_reconstruct_encode_and_decode_match_reference(widths, activations, m, dtype):
    network = fastae.Network(widths, activations)
    engine = fastae.Engine(network, 2, dtype)
    parameters, X = problem(network, m, dtype)
    wanted = reference.forward(X.astype("f8"), double(parameters), activations)
    code = engine.encode(parameters, X)
    for output, name in (
        (engine.reconstruct(parameters, X), "xhat"),
        (code, f"h{network.code_layer}"),
        (engine.decode(parameters, code), "xhat"),
    ):
        assert output.dtype == dtype
        assert output.shape == wanted[name].shape
        assert np.abs(output - wanted[name]).max() <= TOLERANCE[dtype] * np.abs(wanted[name]).max()


@pytest.mark.parametrize(("n", "k", "m"), [(30, 8, 2000), (5, 2, 3), (100, 40, 700)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_are_those_of_the_reconstruction(dtype, n, k, m):
    network = fastae.Network.autoencoder(n, k)
    engine, params = fastae.Engine(network, 2, dtype), fastae.Parameters.random(network, dtype=dtype)
    rng = np.random.default_rng(0)
    X, shift, weight = rng.random((m, n)), rng.random(n), rng.random(n)
    index = rng.permutation(m)[: m // 2 + 1]
    residual = engine.reconstruct(params, X, shift=shift).astype("f8") - (X - shift)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(
        engine.errors(params, X, shift=shift, column_weight=weight), residual**2 @ weight, rtol=tolerance
    )
    errors = engine.errors(params, X, shift=shift, index=index)
    np.testing.assert_allclose(errors, (residual**2).sum(axis=1)[index], rtol=tolerance)
    loss, _ = engine.loss_and_gradient(params, X, shift=shift)
    assert engine.errors(params, X, shift=shift).mean() / 2 == pytest.approx(loss, rel=tolerance)


def test_a_network_that_does_not_reconstruct_encodes_but_has_no_loss():
    network = fastae.Network((6, 3, 4), ("tanh", "identity"))
    engine = fastae.Engine(network, 1)
    parameters, X = problem(network, 10)
    wanted = reference.forward(X, parameters)["xhat"]
    np.testing.assert_allclose(engine.reconstruct(parameters, X), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="network puts out 4 features, but X has 6"):
        engine.loss_and_gradient(parameters, X)


def test_a_network_that_ends_in_its_code_has_nothing_to_decode_with():
    network = fastae.Network((6, 3), ("tanh",))
    with pytest.raises(ValueError, match="network has no layer above its code"):
        fastae.Engine(network, 1).decode(fastae.Parameters(network), np.zeros((2, 3)))
