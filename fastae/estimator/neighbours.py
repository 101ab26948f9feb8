"""Neighbours: how far rows are from a few thousand points, in memory that is bounded.

The squared distances to all points, |z|^2 - 2 z'p + |p|^2, but for |z|^2, are one linear layer, which the engine runs
on all threads in float32. For the nearest point, they only select it; the difference from it is computed exactly.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fastae.engine.engine import Engine
from fastae.network import Network, Parameters

# Rows of which the distances to all points are in memory together: few, so that these stay in the cache
ROWS = 256
FLOOR = 1e-4  # added to squared distances per feature: smaller ones are all alike
GROUPS, GROUP_SIZE = 64, 4  # the groups of points that the remoteness is averaged over
ORDER = 8  # seed of the order that puts points into groups


class _Part(NamedTuple):
    """Some rows, and what is known of them."""

    here: slice  # which rows they are
    z: np.ndarray  # (rows, n), float64, in the scale of the network
    there: np.ndarray | None  # (rows, n), bool: the cells that are not missing
    products: np.ndarray  # (rows, K): the squared distances to all points, less |z|^2


class Neighbours:
    """Measures how far rows are from some points: from the nearest, and from most.

    The *remoteness* of a row is the geometric mean, over up to 64 groups of four points each, of its squared distance
    to the nearest point of the group. A cluster that a few in a hundred points belong to is in few of the groups, so
    that a row in it is remote, though it has near neighbours.

    Parameters
    ----------
    points : ndarray of shape (K, n), float32
        The points, in the scale of the network; one at least.
    n_threads : int or None
        As for ``Engine``.
    """

    def __init__(self, points: np.ndarray, n_threads: int | None) -> None:
        order = _order(len(points))
        self._place = np.argsort(order)  # of each point among those in order
        self.points = points[order]
        self._size, self._groups = _members_and_groups(
            len(points)
        )  # member j of group g is point j * groups + g
        self._n_threads = n_threads
        self._products = _Linear(  # -2 z'p + |p|^2
            -2 * self.points.T, n_threads, "float32", np.square(self.points).sum(axis=1)
        )

    @cached_property
    def _grouped(self) -> tuple["_Linear", "_Linear"]:
        """Of all points p in groups: (z, cells) to -2 z'p + cells' p^2, and weights to their sums of p and of p^2."""
        points = self.points[: self._size * self._groups].astype(np.float64)
        weights = np.vstack([-2 * points.T, np.square(points.T)]), np.hstack([points, np.square(points)])
        to_points, from_points = (_Linear(weight, self._n_threads, "float64") for weight in weights)
        return to_points, from_points

    @cached_property
    def _products_of_seen(self) -> tuple["_Linear", "_Linear"]:
        """-2 z'p, and the sum of p^2 over the cells that are there."""
        weights = -2 * self.points.T, np.square(self.points.T)
        products, squares = (_Linear(weight, self._n_threads, "float32") for weight in weights)
        return products, squares

    def distances(
        self,
        X: np.ndarray,
        *,
        shift: np.ndarray | None,
        scale: np.ndarray | None,
        missing: bool = False,
        own: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each row's squared distance to the nearest point and its remoteness, per feature, plus a floor.

        Parameters
        ----------
        X : ndarray of shape (m, n)
            Rows; the points are near (X - shift) * scale.
        missing : bool, default False
            Distances are over the cells that are not NaN, times n / cells.
        own : ndarray of shape (m,), int, optional
            The number of a point that is left out for the row. There must be two points at least.

        Returns
        -------
        nearest, remoteness : ndarrays of shape (m,), float64
        """
        nearest, remoteness = np.empty(len(X)), np.empty(len(X))
        for part in self._parts(X, shift, scale, missing, own):
            nearest[part.here] = np.square(self._differences(part)).mean(axis=1) + FLOOR
            squares = np.square(_seen(part.z, part.there)).sum(axis=1, keepdims=True)
            products = self._of_groups(part).min(axis=1)
            if part.there is not None:
                products /= _share(part.there)
            of_groups = _per_feature(squares + products, part.z.shape[1])
            remoteness[part.here] = np.exp(np.log(of_groups).mean(axis=1))
        return nearest, remoteness

    def shares(
        self,
        X: np.ndarray,
        *,
        shift: np.ndarray | None,
        scale: np.ndarray | None,
        missing: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each feature adds to the distances, up to a factor for each row: two arrays of shape (m, n).

        Parameters are those of ``distances``, and distances are in float64. A feature adds to the logarithm of the
        remoteness its share of the distances d_g to the nearest points p of the groups: the sum over the groups of
        (z - p)^2 / d_g, which is z^2 times the sum of 1 / d_g, less 2 z times that of p / d_g, plus that of p^2 / d_g.
        Points of a group that are equally near count as one.
        """
        nearest, remoteness = np.empty(X.shape), np.empty(X.shape)
        to_points, from_points = self._grouped
        for part in self._parts(X, shift, scale, missing, None):
            nearest[part.here] = np.square(self._differences(part))
            cells = np.ones_like(part.z) if part.there is None else part.there / _share(part.there)
            endless = np.isinf(np.square(part.z))
            is_finite = ~endless.any(axis=1, keepdims=True)
            z = np.where(is_finite & (cells > 0), part.z, 0.0)
            distances = (cells * np.square(z)).sum(axis=1, keepdims=True) + to_points(
                np.hstack([cells * z, cells])
            )
            distances = distances.reshape(-1, self._size, self._groups)
            closest = distances.min(axis=1, keepdims=True)
            is_closest = distances == closest
            weights = is_closest / (is_closest.sum(axis=1, keepdims=True) * _per_feature(closest, z.shape[1]))
            weights = weights.reshape(len(z), -1)
            of_points, of_squares = np.split(from_points(weights), 2, axis=1)
            total = weights.sum(axis=1, keepdims=True)
            sums = cells * np.maximum(np.square(z) * total - 2 * z * of_points + of_squares, 0)
            remoteness[part.here] = np.where(is_finite, sums, endless)
        return nearest, remoteness

    def _parts(self, X: np.ndarray, shift: Any, scale: Any, missing: bool, own: Any) -> Iterator[_Part]:
        for first in range(0, len(X), ROWS):
            here = slice(first, first + ROWS)
            part = X[here]
            products = self._products_of(part, shift, scale, missing)
            if own is not None:
                products[np.arange(len(part)), self._place[own[here]]] = np.inf
            z = part.astype(np.float64) if scale is None else (part - shift) * scale
            yield _Part(here, z, ~np.isnan(part) if missing else None, products)

    def _products_of(self, X: np.ndarray, shift: Any, scale: Any, missing: bool) -> np.ndarray:
        """(rows, K): the squared distances, less |z|^2."""
        if not missing or not np.isnan(X).any():
            out = self._products(X, shift=shift, scale=scale)
        else:
            products, squares = self._products_of_seen
            out = products(X, shift=shift, scale=scale, missing=True)
            out += squares((~np.isnan(X)).astype(np.float32))
        return out

    def _differences(self, part: _Part) -> np.ndarray:
        """(rows, n), float64: the differences from the nearest points; 0 in missing cells, the others larger for it."""
        # A row that is too far for float32 has a neighbour, whichever, at its exact distance
        return _seen(part.z - self.points[part.products.argmin(axis=1)], part.there)

    def _of_groups(self, part: _Part) -> np.ndarray:
        """(rows, members, groups), float64: the products of the points of each group."""
        some = part.products[:, : self._groups * self._size].reshape(-1, self._size, self._groups)
        # Products that are too large for float32 say nothing: |z|^2 is larger still
        return np.where(np.abs(some) < np.inf, some, np.where(some == np.inf, np.inf, 0.0))


class _Linear:
    """A linear layer, X @ weight + bias, that the engine runs."""

    def __init__(
        self,
        weight: np.ndarray,
        n_threads: int | None,
        dtype: Literal["float32", "float64"],
        bias: npt.ArrayLike = 0.0,
    ) -> None:
        network = Network((weight.shape[0], weight.shape[1]), ("identity",), 1)
        arrays = {"W1": weight, "b1": np.broadcast_to(bias, weight.shape[1])}
        self._params = Parameters.from_arrays(network, arrays, dtype)
        self._engine = Engine(network, n_threads, dtype)

    def __call__(self, X: np.ndarray, **inputs: Any) -> np.ndarray:
        """`inputs` are those of ``Engine.reconstruct``."""
        return self._engine.reconstruct(self._params, X, **inputs)


def _per_feature(distances: np.ndarray, features: int) -> np.ndarray:
    """Squared distances, which rounding may have made negative, divided by the number of features, plus a floor."""
    return np.asarray(np.maximum(distances, 0) / features + FLOOR)


def groups_of(points: np.ndarray) -> np.ndarray:
    """(members, groups, n): the points of all groups that the remoteness is averaged over."""
    size, groups = _members_and_groups(len(points))
    grouped: np.ndarray = points[_order(len(points))[: size * groups]]
    return grouped.reshape(size, groups, -1)


def _order(count: int) -> np.ndarray:
    """The order that puts so many points into groups."""
    return np.random.default_rng(ORDER).permutation(count)


def _members_and_groups(count: int) -> tuple[int, int]:
    """The members of a group of so many points, and the groups."""
    size = min(GROUP_SIZE, count)
    return size, min(GROUPS, count // size)


def _seen(values: np.ndarray, there: np.ndarray | None) -> np.ndarray:
    return values if there is None else np.asarray(np.where(there, values, 0.0) / np.sqrt(_share(there)))


def _share(there: np.ndarray) -> np.ndarray:
    """(rows, 1): the share of cells that are there, of one at least."""
    return np.asarray(np.maximum(there.sum(axis=1, keepdims=True), 1) / there.shape[1])
