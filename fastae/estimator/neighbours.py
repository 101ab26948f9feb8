"""Neighbours: the nearest of a few thousand points, and each row's difference from it, in memory that is bounded.

The squared distances to all points, |z|^2 - 2 z'p + |p|^2, but for |z|^2, are one linear layer, which the engine runs
on all threads in float32. They only select the nearest point; the difference from it is then computed exactly.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.engine.engine import Engine
from fastae.network import Network, Parameters

ROWS = 1024  # of which the distances to all points are in memory together


class Neighbours:
    """Finds the nearest of some points to each row.

    Parameters
    ----------
    points : ndarray of shape (K, n), float32
        The points, in the scale of the network.
    n_threads : int or None
        As for ``Engine``.
    """

    def __init__(self, points: np.ndarray, n_threads: int | None) -> None:
        self.points = points
        self._network = Network((points.shape[1], len(points)), ("identity",), 1)
        self._engine = Engine(self._network, n_threads, "float32")
        self._products = self._layer(-2 * points, np.square(points).sum(axis=1))  # -2 z'p + |p|^2

    def _layer(self, weight: np.ndarray, bias: npt.ArrayLike = 0.0) -> Parameters:
        bias = np.broadcast_to(bias, len(self.points))
        return Parameters.from_arrays(self._network, {"W1": weight.T, "b1": bias})

    @cached_property
    def _products_of_seen(self) -> tuple[Parameters, Parameters]:
        """-2 z'p, and the sum of p^2 over the cells that are there."""
        return self._layer(-2 * self.points), self._layer(np.square(self.points))

    def differences(
        self,
        X: np.ndarray,
        *,
        shift: np.ndarray | None,
        scale: np.ndarray | None,
        missing: bool = False,
        own: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """For some rows after the other: their differences from their nearest points, (rows, n), float64.

        Parameters
        ----------
        X : ndarray of shape (m, n)
            Rows; the points are near (X - shift) * scale.
        missing : bool, default False
            The difference of cells that are NaN is 0, and that of the others is multiplied by (n / cells)^(1/2).
        own : ndarray of shape (m,), int, optional
            The number of a point that is not a neighbour of the row.
        """
        for first in range(0, len(X), ROWS):
            part = X[first : first + ROWS]
            products = self._products_of(part, shift, scale, missing)
            if own is not None:
                products[np.arange(len(part)), own[first : first + ROWS]] = np.inf
            # A row that is too far for float32 has a neighbour, whichever, at its exact distance
            z = part.astype(np.float64) if scale is None else (part - shift) * scale
            difference: np.ndarray = z - self.points[products.argmin(axis=1)]
            if missing:
                there = ~np.isnan(part)
                share = np.maximum(there.sum(axis=1), 1) / part.shape[1]
                difference = np.where(there, difference, 0.0) / np.sqrt(share)[:, np.newaxis]
            yield difference

    def _products_of(self, X: np.ndarray, shift: Any, scale: Any, missing: bool) -> np.ndarray:
        """(rows, K): the squared distances, less |z|^2."""
        if not missing or not np.isnan(X).any():
            out = self._engine.reconstruct(self._products, X, shift=shift, scale=scale)
        else:
            products, squares = self._products_of_seen
            out = self._engine.reconstruct(products, X, shift=shift, scale=scale, missing=True)
            out += self._engine.reconstruct(squares, (~np.isnan(X)).astype(np.float32))
        return out
