"""Neighbours: the distance of rows to the nearest of a few thousand points, exact, in memory that is bounded.

The squared distances to all points, |z|^2 - 2 z'p + |p|^2, but for |z|^2, are one linear layer, which the engine runs
on all threads in float32. They only select the nearest points, whose distances are then computed from the differences.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.engine.engine import Engine
from fastae.network import Network, Parameters

ROWS = 1024  # of which the distances to all points are in memory together
GROUP = 32  # points whose least distance is compared first
FAR = np.float32(3e38)  # instead of an infinite distance, so that there is always an order


class Neighbours:
    """Finds the nearest of some points.

    Parameters
    ----------
    points : ndarray of shape (K, n), float32
        The points, in the scale of the network.
    n_threads : int or None
        As for ``Engine``.
    """

    def __init__(self, points: np.ndarray, n_threads: int | None) -> None:
        self.points = points
        count, columns = points.shape
        self._groups = -(-count // GROUP)
        network = Network((columns, self._groups * GROUP), ("identity",), 1)
        square = np.square(points)

        def layer(weight: np.ndarray, bias: npt.ArrayLike) -> Parameters:
            """Parameters for so many points; those that fill up the last group are never near."""
            params, padded = (
                Parameters(network, "float32"),
                np.zeros((columns, network.widths[1]), np.float32),
            )
            padded[:, :count] = weight.T
            params["W1"] = padded
            params["b1"] = np.concatenate([np.broadcast_to(bias, count), np.full(padded.shape[1] - count, FAR)])
            return params

        self._engine = Engine(network, n_threads, "float32")
        self._products = layer(-2 * points, square.sum(axis=1))  # -2 z'p + |p|^2
        self._seen = layer(square, 0.0), layer(-2 * points, 0.0)  # the sum of p^2 over the cells that are there

    def nearest(
        self,
        X: np.ndarray,
        count: int,
        *,
        shift: np.ndarray | None,
        scale: np.ndarray | None,
        missing: bool = False,
        own: np.ndarray | None = None,
    ) -> "Found":
        """The `count` nearest points of each row of `X`, in no order.

        Parameters
        ----------
        X : ndarray of shape (m, n)
            Rows; the points are near (X - shift) * scale.
        count : int
            At most K, or K - 1 where `own` is given.
        missing : bool, default False
            Cells that are NaN do not count; distances are those over the other cells, times (n / cells)^(1/2).
        own : ndarray of shape (m,), int, optional
            The number of a point that is not a neighbour of the row.
        """
        rows, points = len(X), len(self.points)
        index, square = np.empty((rows, count), np.intp), np.empty((rows, count))
        for first in range(0, rows, ROWS):
            here = slice(first, first + ROWS)
            products = self._products_of(X[here], shift, scale, missing)
            if own is not None:
                products[np.arange(len(products)), own[here]] = FAR
            index[here] = np.minimum(_smallest(products, count, self._groups), points - 1)
            difference = self._differences(X[here], index[here], shift, scale, missing)
            with np.errstate(over="ignore"):
                square[here] = np.square(difference).mean(axis=2)
        return Found(index, square)

    def differences(self, X: np.ndarray, index: np.ndarray, **options: Any) -> np.ndarray:
        """(m, count, n): each row minus its points with these numbers; options are those of ``nearest``."""
        return self._differences(X, index, options["shift"], options["scale"], options["missing"])

    def _products_of(self, X: np.ndarray, shift: Any, scale: Any, missing: bool) -> np.ndarray:
        if not missing or not np.isnan(X).any():
            out = self._engine.reconstruct(self._products, X, shift=shift, scale=scale)
        else:
            seen, products = self._seen
            out = self._engine.reconstruct(products, X, shift=shift, scale=scale, missing=True)
            out += self._engine.reconstruct(seen, (~np.isnan(X)).astype(np.float32))
        # Rows that are too far for float32 have neighbours, whichever, at their exact distances
        return np.nan_to_num(out, copy=False, nan=0.0, posinf=FAR, neginf=-FAR)

    def _differences(
        self, X: np.ndarray, index: np.ndarray, shift: Any, scale: Any, missing: bool
    ) -> np.ndarray:
        z = X.astype(np.float64) if scale is None else (X - shift) * scale
        difference: np.ndarray = z[:, np.newaxis, :] - self.points[index]
        if missing:
            there = ~np.isnan(X)
            share = np.maximum(there.sum(axis=1), 1) / X.shape[1]
            difference = np.where(there[:, np.newaxis], difference, 0.0) / np.sqrt(share)[:, None, None]
        return difference


class Found:
    """The nearest points of some rows.

    Attributes
    ----------
    index : ndarray of shape (m, count), int
        Their numbers.
    square : ndarray of shape (m, count), float64
        Their squared distances, divided by n.
    """

    def __init__(self, index: np.ndarray, square: np.ndarray) -> None:
        self.index, self.square = index, square

    @property
    def distance(self) -> np.ndarray:
        """The square of the mean distance of each row, divided by n."""
        return np.asarray(np.square(np.sqrt(self.square).mean(axis=1)))


def _smallest(values: np.ndarray, count: int, groups: int) -> np.ndarray:
    """The numbers of the `count` smallest of each row's values, in no order.

    They lie in the `count` groups with the smallest minima; a group is every groups-th value, so that the minima are
    taken of whole vectors.
    """
    if groups <= count:
        return np.argpartition(values, count - 1, axis=1)[:, :count]
    grouped = values.reshape(len(values), -1, groups)
    best = np.argpartition(grouped.min(axis=1), count - 1, axis=1)[:, :count]
    candidates = np.take_along_axis(grouped, best[:, np.newaxis, :], axis=2).reshape(len(values), -1)
    chosen = np.argpartition(candidates, count - 1, axis=1)[:, :count]
    return chosen // count * groups + np.take_along_axis(best, chosen % count, axis=1)
