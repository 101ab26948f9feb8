"""The kernels compiled ahead, or loaded where they have been: all that engines, training and estimators call."""

import time

import numpy as np

from fastae.engine import Engine
from fastae.kernels import exp, sigmoid_with_derivative
from fastae.network import Network, Parameters
from fastae.training import train


def dtypes() -> list[str]:
    """What engines can compute in on the CPU that kernels are compiled for."""
    from fastae.kernels.target import TARGET

    return ["float32", "float64"] + ["bfloat16"] * TARGET.bfloat16


def warm_up(dtype: str = "float32") -> float:
    """Compile every kernel for one of ``dtypes()`` on a tiny network; returns the seconds it took.

    A kernel is compiled once a dtype, whatever the network, and kept in Numba's cache (``NUMBA_CACHE_DIR``).
    """
    start = time.perf_counter()
    network = Network.autoencoder(2, 1)
    engine = Engine(network, dtype=dtype)
    params = Parameters.random(network, dtype=engine.dtype)
    X = np.zeros((1000, 2), engine.dtype)
    for rows in (2, 1000):  # so many take the products that have rows in the lanes
        train(params, X[:rows], engine=engine, epochs=1)
    engine.reconstruct(params, X)
    sigmoid_with_derivative(X, np.empty_like(X), np.empty_like(X))
    exp(X, np.empty_like(X))
    return time.perf_counter() - start
