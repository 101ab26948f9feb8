"""The kernels compiled ahead, or loaded where they have been: all that engines, training and estimators call."""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from fastae.engine import Engine
from fastae.kernels import exp, sigmoid_with_derivative
from fastae.network import Network, Parameters
from fastae.training import train


def dtypes() -> list[str]:
    """What engines can compute in on the CPU that kernels are compiled for."""
    from fastae.kernels.target import TARGET

    return ["float32"] + ["bfloat16"] * TARGET.bfloat16 + ["float64"]


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


def warm_up_all() -> Iterator[tuple[str, float]]:
    """``warm_up`` for each of ``dtypes()``, and its seconds; float64, which shares no kernel, in a process beside.

    Threads would not do: Numba compiles one function at a time.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        double = beside.submit(warm_up, "float64")
        for dtype in dtypes():
            yield dtype, double.result() if dtype == "float64" else warm_up(dtype)
