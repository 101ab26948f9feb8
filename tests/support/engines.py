"""What tests of engines share: problems, the reference as an oracle, and the bits of a result."""

import numpy as np
import pytest

import fastae
from fastae import reference

TOLERANCE = {"float32": 4e-6, "float64": 1e-12}  # of the largest entry

STACKS = [
    ((20, 20), ("identity",)),
    ((20, 20), ("sigmoid",)),
    ((20, 7, 20), ("tanh", "identity")),
    ((9, 40, 9), ("relu", "sigmoid")),
    ((20, 9, 9, 20), ("relu", "tanh", "relu")),
    ((20, 17, 5, 17, 20), ("tanh", "sigmoid", "relu", "identity")),
    ((33, 64, 16, 3, 50, 33), ("sigmoid", "relu", "identity", "tanh", "tanh")),
]


def problem(network, m, dtype="float32", seed=0):
    """Parameters with biases of both signs, and m rows of unit scale."""
    rng = np.random.default_rng(seed)
    parameters = fastae.Parameters.random(network, rng, dtype)
    for name, shape in network.shapes().items():
        if name.startswith("b"):
            parameters[name] = rng.normal(scale=0.3, size=shape)
    X = away_from_kinks(rng.normal(size=(2 * m, network.widths[0])).astype(dtype), parameters)[:m]
    assert len(X) == m, "too many rows lie near the kink of a relu"
    return parameters, X


def away_from_kinks(X, parameters):
    """The rows for which no relu's input is so near 0 that rounding decides its sign."""
    activations, t = parameters.network.activations, {}
    if "relu" in activations:
        t = reference.forward(X.astype("f8"), double(parameters), activations)
    near = np.zeros(len(X), bool)
    for layer, activation in enumerate(activations, start=1):
        if activation == "relu":
            near |= (np.abs(t[f"z{layer}"]) < 1e-4).any(axis=1)
    return X[~near]


def autoencoder(n=30, k=8, m=1500, dtype="float32", n_threads=2):
    """An engine for the default network, parameters, and m rows."""
    network = fastae.Network.autoencoder(n, k)
    return fastae.Engine(network, n_threads, dtype), *problem(network, m, dtype)


def double(parameters):
    """The same parameters in float64, as plain arrays."""
    return {name: parameters[name].astype("f8") for name in parameters}


def assert_matches_reference(engine, parameters, X, seen=None, sample_weight=None, **options):
    """Loss and gradient against the reference in float64 on `seen`, the rows as the network sees them."""
    loss, gradient = engine.loss_and_gradient(parameters, X, sample_weight=sample_weight, **options)
    x = np.asarray(X if seen is None else seen, np.float64)
    if sample_weight is not None and options.get("index") is not None:
        sample_weight = sample_weight[options["index"]]
    exact, activations = double(parameters), engine.network.activations
    tolerance = TOLERANCE[engine.dtype.name]
    xhat = reference.forward(x, exact, activations)["xhat"]
    assert loss == pytest.approx(float(reference.cost(x, xhat, sample_weight)), rel=tolerance)
    wanted = reference.backward(x, exact, activations, sample_weight=sample_weight)
    assert set(gradient) == set(engine.network.shapes())
    for name in gradient:
        error = np.abs(gradient[name] - wanted[f"d{name}"]).max()
        assert error <= tolerance * np.abs(wanted[f"d{name}"]).max(), name


def bits(result):
    """The bytes of a loss and its gradient."""
    loss, gradient = result
    return np.float64(loss).tobytes() + gradient.flat.tobytes()
