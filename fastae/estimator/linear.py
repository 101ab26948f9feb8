"""Engines that several threads compute with at the same time, each with its own; and a linear layer by them."""

import threading
from typing import Literal

import numpy as np

from fastae.engine.engine import Engine
from fastae.network import DType, Network, Parameters


class OwnEngine:
    """For each thread that asks, an engine of its own, which computes on this thread alone.

    Parameters
    ----------
    network, dtype
        As for ``Engine``.
    """

    def __init__(self, network: Network, dtype: DType | Literal["bfloat16"]) -> None:
        self._network, self._dtype = network, dtype
        self._of_thread = threading.local()

    def get(self) -> Engine:
        """The engine of the thread that calls this."""
        if not hasattr(self._of_thread, "engine"):
            self._of_thread.engine = Engine(self._network, 1, self._dtype)
        engine: Engine = self._of_thread.engine
        return engine


class Linear:
    """X @ weight, with the same bits in any thread, whatever BLAS does: each thread has an engine of its own.

    Parameters
    ----------
    weight : ndarray of shape (n, q)
    dtype : "float32" or "float64"
        Of the products and of the result.
    """

    def __init__(self, weight: np.ndarray, dtype: DType) -> None:
        network = Network(weight.shape, ("identity",), 1)
        arrays = {"W1": weight, "b1": np.zeros(weight.shape[1])}
        self._params = Parameters.from_arrays(network, arrays, dtype)
        self._engine = OwnEngine(network, dtype)

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """(m, q), of X (m, n)."""
        return self._engine.get().reconstruct(self._params, X)
