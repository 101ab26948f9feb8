"""Neighbours: how far rows are from a few thousand points, in memory that is bounded.

The squared distances to all points, |z|^2 - 2 z'p + |p|^2, but for |z|^2, are one linear layer, whose outputs are
compared in float32 (engine/nearest.py). For the nearest point, they only select it; the difference from it is computed
exactly.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fastae.engine.many import check_threads
from fastae.engine.nearest import Units
from fastae.engine.side_by_side import rows_side_by_side
from fastae.estimator.linear import Linear

ROWS_LEAST, ROWS_MOST = 64, 256  # that a thread processes at a time
FLOOR = 1e-4  # added to squared distances per feature: smaller ones are all alike
GROUPS, GROUP_SIZE = 64, 4  # the groups of points that the remoteness is averaged over
ORDER = 8  # seed of the order that puts points into groups


class _Part(NamedTuple):
    """Some rows, and what is known of them."""

    z: np.ndarray  # (rows, n), float64, in the scale of the network; 0 in missing cells
    there: np.ndarray | None  # (rows, n), bool: the cells that are not missing, if some are
    # (rows, n), float64: from the nearest point; 0 in missing cells, the others larger for it
    differences: np.ndarray
    # (rows, groups), float64: the least squared distance to a member, less |z|^2
    of_groups: np.ndarray


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
        # Member j of group g is point j * groups + g
        self._size, self._groups = _members_and_groups(len(points))
        self._threads = check_threads(n_threads)
        squares = np.square(self.points).sum(axis=1)
        self._units = Units(-2 * self.points.T, squares, self._size, self._groups)  # z to -2 z'p + |p|^2

    @cached_property
    def _units_of_seen(self) -> Units:
        """(z, cells) to -2 z'p + cells' p^2: over the cells that are there."""
        weights = np.vstack([-2 * self.points.T, np.square(self.points.T)])
        return Units(weights, np.zeros(len(self.points), np.float32), self._size, self._groups)

    @cached_property
    def _grouped(self) -> tuple["Linear", "Linear"]:
        """Of all points p in groups: (z, cells) to -2 z'p + cells' p^2, and weights to their sums of p and of p^2."""
        points = self.points[: self._size * self._groups].astype(np.float64)
        weights = np.vstack([-2 * points.T, np.square(points.T)]), np.hstack([points, np.square(points)])
        to_points, from_points = (Linear(weight, "float64") for weight in weights)
        return to_points, from_points

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

        def measure(here: slice) -> None:
            part = self._part(X[here], shift, scale, missing, None if own is None else own[here])
            nearest[here], remoteness[here] = _measured(part)

        self._side_by_side(measure, X, missing)
        return nearest, remoteness

    def distances_and_shares(
        self,
        X: np.ndarray,
        *,
        shift: np.ndarray | None,
        scale: np.ndarray | None,
        missing: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What ``distances`` returns; and what each feature adds to both, up to a factor for each row: (m, n) each.

        Shares are of distances in float64. A feature adds to the logarithm of the remoteness its share of the distances
        d_g to the nearest points p of the groups: the sum over the groups of (z - p)^2 / d_g, which is z^2 times the
        sum of 1 / d_g, less 2 z times that of p / d_g, plus that of p^2 / d_g. Points of a group that are equally near
        count as one.
        """
        distance, remoteness = np.empty(len(X)), np.empty(len(X))
        of_distance, of_remoteness = np.empty(X.shape), np.empty(X.shape)
        to_points, from_points = self._grouped

        def share(here: slice) -> None:
            part = self._part(X[here], shift, scale, missing, None)
            distance[here], remoteness[here] = _measured(part)
            of_distance[here] = np.square(part.differences)
            z = part.z
            cells = np.ones_like(z) if part.there is None else part.there / _share(part.there)
            endless = np.isinf(np.square(z))
            is_finite = ~endless.any(axis=1, keepdims=True)
            z = np.where(is_finite, z, 0.0)
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
            of_remoteness[here] = np.where(is_finite, sums, endless)

        self._side_by_side(share, X, missing)
        return distance, remoteness, of_distance, of_remoteness

    def _side_by_side(self, task: Callable[[slice], None], X: np.ndarray, missing: bool) -> None:
        """Call `task` with some rows of `X` after others, on all threads."""
        if missing and np.isnan(X).any():
            self._units_of_seen  # noqa: B018  which is made here, by one thread

        def with_numbers_out_of_range(here: slice) -> None:
            with out_of_range():
                task(here)

        rows_side_by_side(with_numbers_out_of_range, len(X), self._threads, ROWS_LEAST, ROWS_MOST)

    def _part(self, X: np.ndarray, shift: Any, scale: Any, missing: bool, own: np.ndarray | None) -> _Part:
        z, there = _scaled(X, shift, scale, missing)
        units = self._units if there is None else self._units_of_seen
        inputs = z if there is None else np.hstack([z, there])
        index, of_groups = units.least(inputs, None if own is None else self._place[own])
        # A row that is too far for float32 has a neighbour, whichever, at its exact distance; and products that are
        # too large for it say nothing, because |z|^2 is larger still
        of_groups = np.where(np.isfinite(of_groups), of_groups, 0.0).astype(np.float64)
        return _Part(z, there, _seen(z - self.points[index], there), of_groups)


def out_of_range() -> Any:
    """A context without warnings in this thread, for rows that are too large for float32."""
    return np.errstate(over="ignore", invalid="ignore")


def _measured(part: _Part) -> tuple[np.ndarray, np.ndarray]:
    """What ``distances`` returns for these rows."""
    squares = np.square(_seen(part.z, part.there)).sum(axis=1, keepdims=True)
    of_groups = part.of_groups if part.there is None else part.of_groups / _share(part.there)
    distances = _per_feature(squares + of_groups, part.z.shape[1])
    return np.square(part.differences).mean(axis=1) + FLOOR, np.exp(np.log(distances).mean(axis=1))


def _scaled(X: np.ndarray, shift: Any, scale: Any, missing: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """(rows, n) each: rows in the scale of the network, 0 in missing cells; and which cells are there, or None: all."""
    z = np.ascontiguousarray(X if scale is None else (X - shift) * scale, np.float64)
    there = ~np.isnan(X) if missing else None
    if there is None or there.all():
        return z, None
    return np.where(there, z, 0.0), there


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
