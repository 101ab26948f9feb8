"""Ensemble: several trained networks, and training rows as these reconstruct them, that score rows together.

The error of a row x is (E D R)^(1/3), in units of squared error per feature, in the scale of the network:

    E   the mean over the networks i of e_i c / c_i:  e_i is the mean squared error of x, and c_i the median of that of
        the training rows that network i left out; c is the geometric mean of the c_i
    D   the squared distance to the nearest of up to 4096 training rows, as the networks together reconstruct them,
        divided by n
    R   the remoteness: the geometric mean, over 64 groups of four of those training rows, of the squared distance to
        the nearest of the group, divided by n

The constants were chosen on development sets; docs/detection.md has the tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastae.engine.engine import Engine
from fastae.estimator.inference import cells_of
from fastae.estimator.neighbours import FLOOR, Neighbours
from fastae.network import Parameters

CHUNK = 8192  # rows whose reconstructions are in memory together


@dataclass
class Ensemble:
    """Trained networks of one shape, and the rows that distances are measured from.

    Attributes
    ----------
    networks : tuple of Parameters
    typical : ndarray of shape (T,), float64
        c_i, by network.
    kept : ndarray of shape (K, n), float32
        Training rows as the networks reconstruct them, in the scale of the network.
    represented : int
        The number of training rows that those of `kept` were drawn from.
    """

    networks: tuple[Parameters, ...]
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
    refuse : callable
        Called with rows in which the engine has met NaN or infinity.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        engine: Engine,
        n_threads: int | None,
        inputs: dict[str, Any],
        refuse: Callable[[np.ndarray], None],
    ) -> None:
        self.ensemble, self.engine, self.inputs, self._refuse = ensemble, engine, inputs, refuse
        self._neighbours = Neighbours(ensemble.kept, n_threads) if len(ensemble.kept) else None

    # -- rows through all networks --------------------------------------------------------------------------------

    def reconstruct(self, X: np.ndarray) -> np.ndarray:
        """(m, n), float64: the mean of the networks' reconstructions, in their scale."""
        networks, inputs = self.ensemble.networks, self._checked_inputs(X)
        return sum_over(networks, lambda p: self.engine.reconstruct(p, X, **inputs)) / len(networks)

    def encode(self, X: np.ndarray) -> np.ndarray:
        """(m, T k): the codes of all networks, side by side."""
        inputs = self._checked_inputs(X)
        return np.hstack([self.engine.encode(params, X, **inputs) for params in self.ensemble.networks])

    def decode(self, code: np.ndarray) -> np.ndarray:
        """(m, n), float64: the mean of what the networks decode from such codes."""
        networks = self.ensemble.networks
        parts = iter(np.split(code, len(networks), axis=1))
        return sum_over(networks, lambda p: self.engine.decode(p, np.ascontiguousarray(next(parts)))) / len(
            networks
        )

    # -- errors ---------------------------------------------------------------------------------------------------

    def network_errors(self, X: np.ndarray) -> np.ndarray:
        """(m, T), float64: e_i, the mean squared error over the cells that are there, plus a floor."""
        cells, inputs = cells_of(X, self.inputs["missing"]), self._checked_inputs(X)
        errors = [
            self.engine.errors(params, X, **inputs) / cells + FLOOR for params in self.ensemble.networks
        ]
        return _or_infinity(np.stack(errors, axis=1))

    def distances(self, X: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """D and R of each row, (m,) and (m,); with `own`, without the kept row of that number."""
        if self._neighbours is None or (own is not None and len(self.ensemble.kept) == 1):
            return np.ones(len(X)), np.ones(len(X))
        with np.errstate(over="ignore"):
            return self._neighbours.distances(X, own=own, **self.inputs)

    def errors(self, X: np.ndarray) -> np.ndarray:
        """(m,), float64: the error of each row."""
        mean = self.network_errors(X) @ self.ensemble.balance / len(self.ensemble.networks)
        return combined(mean, *self.distances(X))

    def shares(self, X: np.ndarray) -> np.ndarray:
        """(m, n), float64: each feature's share of the row's error, which add up to 1, or are all 0."""
        parts = [self._shares(X[first : first + CHUNK]) for first in range(0, len(X), CHUNK)]
        return np.concatenate(parts)

    def _shares(self, X: np.ndarray) -> np.ndarray:
        shift, scale, missing = (self.inputs[name] for name in ("shift", "scale", "missing"))
        z, inputs = X.astype(np.float64) if scale is None else (X - shift) * scale, self._checked_inputs(X)
        balance = iter(self.ensemble.balance)

        def residuals(params: Parameters) -> np.ndarray:
            residual = np.square(self.engine.reconstruct(params, X, **inputs) - z) * next(balance)
            return np.where(np.isnan(X), 0.0, residual) if missing else residual

        with np.errstate(over="ignore"):
            parts = [_or_infinity(sum_over(self.ensemble.networks, residuals))]
            if self._neighbours is not None:
                parts += self._neighbours.shares(X, **self.inputs)
        return _normed(np.sum([_normed(part) for part in parts], axis=0))

    def _checked_inputs(self, X: np.ndarray) -> dict[str, Any]:
        return {**self.inputs, "on_not_finite": partial(self._refuse, X)}


def combined(error: np.ndarray, distance: np.ndarray, remoteness: np.ndarray) -> np.ndarray:
    """(E D R)^(1/3)."""
    return np.asarray(np.cbrt(error) * np.cbrt(distance) * np.cbrt(remoteness))


def sum_over(networks: Sequence[Parameters], function: Callable[[Parameters], np.ndarray]) -> np.ndarray:
    """The sum of function(params) over the networks, in float64."""
    total: Any = 0.0
    for params in networks:
        total = total + function(params).astype(np.float64, copy=False)
    return np.asarray(total)


def _or_infinity(errors: np.ndarray) -> np.ndarray:
    """Infinity for NaN: rows are finite, but some are too large for float32."""
    return np.where(np.isnan(errors), np.inf, errors)


def _normed(parts: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; infinite parts share the whole, and a row of zeros stays one."""
    endless = np.isinf(parts)
    parts = np.where(endless.any(axis=1, keepdims=True), endless.astype(np.float64), parts)
    with np.errstate(over="ignore"):
        largest = parts.max(axis=1, keepdims=True, initial=0.0)
    parts = parts / np.where(largest > 0, largest, 1.0)
    total = parts.sum(axis=1, keepdims=True)
    return np.asarray(parts / np.where(total > 0, total, 1.0))
