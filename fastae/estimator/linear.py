"""Linear: a linear layer that several threads may call at the same time."""

import threading

import numpy as np

from fastae.engine.engine import Engine
from fastae.network import DType, Network, Parameters


class Linear:
    """X @ weight, with the same bits in any thread, whatever BLAS does: each thread has an engine of its own.

    Parameters
    ----------
    weight : ndarray of shape (n, q)
    dtype : "float32" or "float64"
        Of the products and of the result.
    """

    def __init__(self, weight: np.ndarray, dtype: DType) -> None:
        self._network, self._dtype = Network(weight.shape, ("identity",), 1), dtype
        arrays = {"W1": weight, "b1": np.zeros(weight.shape[1])}
        self._params = Parameters.from_arrays(self._network, arrays, dtype)
        self._own = threading.local()

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """(m, q), of X (m, n)."""
        if not hasattr(self._own, "engine"):
            self._own.engine = Engine(self._network, 1, self._dtype)
        result: np.ndarray = self._own.engine.reconstruct(self._params, X)
        return result
