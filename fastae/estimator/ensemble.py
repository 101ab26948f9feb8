"""Ensemble: several trained networks, and training rows as these reconstruct them, that score rows together.

The error of a row x is E^(2/3) D^(1/3), in units of squared error per feature, in the scale of the network:

    E   the mean over the networks i of e_i c / c_i:  e_i is the mean squared error of x, and c_i the median of that of
        the training rows that network i left out; c is the geometric mean of the c_i
    D   the square of the mean distance to the 5 nearest of up to 4096 training rows, as the networks together
        reconstruct them, divided by n

The constants were chosen on development sets; docs/detection.md has the tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastae.engine.engine import Engine
from fastae.estimator.neighbours import Neighbours
from fastae.network import Parameters

FLOOR = 1e-4  # added to errors and distances per feature: smaller ones are all alike
NEIGHBOURS = 5
DISTANCE = 1 / 3  # the exponent of D
CHUNK = 8192  # rows whose reconstructions are in memory together


@dataclass
class Ensemble:
    """Trained networks of one shape, and the rows that distances are measured from.

    Attributes
    ----------
    members : tuple of Parameters
    typical : ndarray of shape (T,), float64
        c_i, by network.
    kept : ndarray of shape (K, n), float32
        Training rows as the networks reconstruct them, in the scale of the network.
    represented : int
        The number of training rows that those of `kept` were drawn from.
    """

    members: tuple[Parameters, ...]
    typical: np.ndarray
    kept: np.ndarray
    represented: int

    @property
    def balance(self) -> np.ndarray:
        """c / c_i, by network."""
        return np.asarray(np.exp(np.log(self.typical).mean()) / self.typical)


class EnsembleModel:
    """What an ensemble says of rows, with the shift, scale and threads of an estimator.

    Parameters
    ----------
    ensemble : Ensemble
    engine : Engine
        Of the networks.
    n_threads : int or None
    inputs : dict
        `shift`, `scale` and `missing`, as for the methods of ``Engine``.
    """

    def __init__(
        self, ensemble: Ensemble, engine: Engine, n_threads: int | None, inputs: dict[str, Any]
    ) -> None:
        self.ensemble, self.engine, self.inputs = ensemble, engine, inputs
        self._neighbours = Neighbours(ensemble.kept, n_threads) if len(ensemble.kept) else None

    # -- rows through all networks --------------------------------------------------------------------------------

    def reconstruct(self, X: np.ndarray) -> np.ndarray:
        """(m, n), float64: the mean of the networks' reconstructions, in their scale."""
        return sum_over(self.ensemble.members, lambda p: self.engine.reconstruct(p, X, **self.inputs)) / len(
            self.ensemble.members
        )

    def encode(self, X: np.ndarray) -> np.ndarray:
        """(m, T k): the codes of all networks, side by side."""
        return np.hstack([self.engine.encode(params, X, **self.inputs) for params in self.ensemble.members])

    def decode(self, code: np.ndarray) -> np.ndarray:
        """(m, n), float64: the mean of what the networks decode from such codes."""
        members = self.ensemble.members
        parts = iter(np.split(code, len(members), axis=1))
        return sum_over(members, lambda p: self.engine.decode(p, np.ascontiguousarray(next(parts)))) / len(
            members
        )

    # -- errors ---------------------------------------------------------------------------------------------------

    def member_errors(self, X: np.ndarray) -> np.ndarray:
        """(m, T), float32: e_i, the mean squared error over the cells that are there, plus a floor."""
        cells = self._cells(X)
        errors = [
            self.engine.errors(params, X, **self.inputs) / cells + FLOOR for params in self.ensemble.members
        ]
        with np.errstate(over="ignore"):
            return np.stack(errors, axis=1).astype(np.float32)

    def distances(self, X: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """(m,): D of each row; with `own`, without the kept row of that number."""
        neighbours, count = self._neighbours, self._count(own)
        if neighbours is None or not count:
            return np.ones(len(X))
        return neighbours.nearest(X, count, own=own, **self.inputs).distance + FLOOR

    def errors(self, X: np.ndarray) -> np.ndarray:
        """(m,), float64: the error of each row."""
        return combined(self.member_errors(X).astype(np.float64) @ self.ensemble.balance / len(self.ensemble.members),
                        self.distances(X))

    def shares(self, X: np.ndarray) -> np.ndarray:
        """(m, n), float64: each feature's share of the row's error, which add up to 1, or are all 0."""
        shares = np.empty(X.shape)
        for first in range(0, len(X), CHUNK):
            part = X[first : first + CHUNK]
            shares[first : first + CHUNK] = self._shares(part)
        return shares

    def _shares(self, X: np.ndarray) -> np.ndarray:
        z = X.astype(np.float64) if self.inputs["scale"] is None else (X - self.inputs["shift"]) * self.inputs["scale"]
        there = ~np.isnan(X) if self.inputs["missing"] else np.ones(X.shape, bool)
        balance = iter(self.ensemble.balance)

        def residuals(params: Parameters) -> np.ndarray:
            xhat = self.engine.reconstruct(params, X, **self.inputs)
            return np.where(there, np.square(xhat - z), 0.0) * next(balance)

        with np.errstate(over="ignore"):
            of_error = _normed(sum_over(self.ensemble.members, residuals))
        neighbours, count = self._neighbours, self._count(None)
        if neighbours is None or not count:
            return of_error
        of_distance = np.empty(X.shape)
        for first in range(0, len(X), 1024):
            here = slice(first, first + 1024)
            found = neighbours.nearest(X[here], count, **self.inputs)
            with np.errstate(over="ignore"):
                squares = np.square(neighbours.differences(X[here], found.index, **self.inputs))
            of_distance[here] = _normed(squares.sum(axis=1))
        both = (1 - DISTANCE) * of_error + DISTANCE * of_distance
        return _normed(both)

    def _cells(self, X: np.ndarray) -> Any:
        return np.maximum((~np.isnan(X)).sum(axis=1), 1) if self.inputs["missing"] else X.shape[1]

    def _count(self, own: np.ndarray | None) -> int:
        return min(NEIGHBOURS, len(self.ensemble.kept) - (own is not None))


def combined(error: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """E^(2/3) D^(1/3)."""
    return np.asarray(error ** (1 - DISTANCE) * distance**DISTANCE)


def sum_over(members: Sequence[Parameters], function: Callable[[Parameters], np.ndarray]) -> np.ndarray:
    """The sum of function(params) over the networks, in float64."""
    total: Any = 0.0
    for params in members:
        total = total + function(params).astype(np.float64, copy=False)
    return np.asarray(total)


def _normed(parts: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; infinite parts share the whole, and a row of zeros stays one."""
    endless = np.isinf(parts)
    parts = np.where(endless.any(axis=1, keepdims=True), endless.astype(np.float64), parts)
    with np.errstate(over="ignore"):
        largest = parts.max(axis=1, keepdims=True, initial=0.0)
    parts = parts / np.where(largest > 0, largest, 1.0)
    total = parts.sum(axis=1, keepdims=True)
    return np.asarray(parts / np.where(total > 0, total, 1.0))
