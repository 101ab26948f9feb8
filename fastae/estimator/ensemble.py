"""Ensemble: several trained networks, and training rows as these reconstruct them, that score rows together.

The error of a row x is the larger of (E D R)^(1/3) and M, in units of squared error per feature, in the scale of the
network:

    E   the mean over the networks i of e_i c / c_i:  e_i is the mean squared error of x, and c_i the median of that of
        the training rows that network i left out; c is the geometric mean of the c_i
    D   the squared distance to the nearest of up to 4096 training rows, as the networks together reconstruct them,
        divided by n
    R   the remoteness: the geometric mean, over 64 groups of four of those training rows, of the squared distance to
        the nearest of the group, divided by n
    M   the mean over the networks of the squared Mahalanobis length of the residual xhat - x, divided by n: it counts a
        direction the more, the smaller the residuals of rows that networks left out are in it. It is multiplied by a
        constant, so that out of bag, a share SHARE of the rows is beyond the same error by each of the two. Of a row
        with missing cells, it is 0

The first is large for rows that are unlike all training rows, the second for rows that break a relation between
features that all training rows keep to, however little. The constants were chosen on development sets;
docs/detection.md has the tables.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from fastae.engine.engine import Engine
from fastae.engine.many import check_threads
from fastae.engine.side_by_side import rows_side_by_side
from fastae.estimator.inference import cells_of
from fastae.estimator.linear import Linear, OwnEngine
from fastae.estimator.neighbours import FLOOR, Neighbours, out_of_range
from fastae.network import DType, Parameters

CHUNK = 8192  # rows whose reconstructions are in memory together
# Rows that a thread takes through all networks at a time: at least so many, or the rows of so many FLOPs, for which it
# is worth to wake another thread
ROWS_LEAST, FLOPS_LEAST, ROWS_MOST = 1024, 100_000_000, 2048
SHARE = 0.05  # of rows like those of the training, beyond an error that (E D R)^(1/3) and M have in common
# What is added to the mean square of residuals in each direction, as a share of the mean over the directions
RIDGE = 0.01
# Features up to which residuals are whitened by a matrix; beyond, each feature by itself
WHITENED_MOST = 2048


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
    moments : ndarray of shape (n, n) or, of many features, (n,), float32
        The second moments of residuals out of bag, or their diagonal; zero where no row had all cells.
    factor : float
        What the squared Mahalanobis length is multiplied by.
    """

    networks: tuple[Parameters, ...]
    typical: np.ndarray
    kept: np.ndarray
    represented: int
    moments: np.ndarray
    factor: float

    @property
    def balance(self) -> np.ndarray:
        """c / c_i, by network."""
        return np.asarray(np.exp(np.log(self.typical).mean()) / self.typical)

    def whitening(self) -> np.ndarray:
        """A, (n, n) or (n,), float32: M is the mean over the networks of |r A|^2 / n, of residuals r."""
        return np.asarray(np.sqrt(self.factor) * whitening_of(self.moments), np.float32)


class EnsembleModel:
    """What an ensemble says of rows, with the shift, scale and threads of an estimator.

    Parameters
    ----------
    ensemble : Ensemble
    engine : Engine
        Of the networks.
    dtype : "float32", "float64" or "bfloat16"
        That of the engine.
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
        dtype: DType | Literal["bfloat16"],
        n_threads: int | None,
        inputs: dict[str, Any],
        refuse: Callable[[np.ndarray], None],
    ) -> None:
        self.ensemble, self.engine, self.inputs, self._refuse = ensemble, engine, inputs, refuse
        self._neighbours = Neighbours(ensemble.kept, n_threads) if len(ensemble.kept) else None
        self._own_engine, self._threads = OwnEngine(engine.network, dtype), check_threads(n_threads)
        self._whitening = ensemble.whitening()
        self._linear = Linear(self._whitening, engine.dtype) if self._whitening.ndim == 2 else None

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

    def network_errors(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m, T) each, float32: the mean over the cells that are there of r^2, plus a floor; and of (r A)^2."""
        shape = len(X), len(self.ensemble.networks)
        errors, lengths = np.empty(shape, np.float32), np.empty(shape, np.float32)

        def measure(here: slice) -> None:
            with out_of_range():
                errors[here], lengths[here] = self._network_errors(X, here)

        self._side_by_side(measure, X)
        return errors, lengths

    def _network_errors(
        self, X: np.ndarray, here: slice, look: Callable[[int, np.ndarray], None] = lambda *_: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """``network_errors`` of some rows, float64; each network's residuals are looked at by the way."""
        cells = cells_of(X[here], self.inputs["missing"])
        shape = len(X[here]), len(self.ensemble.networks)
        errors, lengths = np.empty(shape), np.empty(shape)
        for i, residual in enumerate(self.residuals(X, here)):
            errors[:, i] = _sums_of_squares(residual) / cells + FLOOR
            lengths[:, i] = np.where(
                cells == X.shape[1], _sums_of_squares(self.whitened(residual)) / X.shape[1], 0
            )
            look(i, residual)
        return _or_infinity(errors), _or_infinity(lengths)

    def _side_by_side(self, task: Callable[[slice], None], X: np.ndarray) -> None:
        """Call `task` with some rows of `X` after others, on all threads."""
        flops = 2 * self.ensemble.networks[0].flat.size * len(self.ensemble.networks)  # of a row
        least = max(1, min(ROWS_LEAST, FLOPS_LEAST // flops))
        rows_side_by_side(task, len(X), self._threads, least, ROWS_MOST)

    def residuals(self, X: np.ndarray, here: slice) -> Iterator[np.ndarray]:
        """xhat - x of some rows, (rows, n), network by network: one array that is used again; 0 in missing cells."""
        shift, scale, missing = (self.inputs[name] for name in ("shift", "scale", "missing"))
        engine = self._own_engine.get()
        scaled = X[here] if scale is None else (X[here] - shift) * scale
        z = np.ascontiguousarray(scaled, self.engine.dtype)
        holes, residual = np.isnan(z) if missing else None, np.empty_like(z)
        for params in self.ensemble.networks:
            engine.reconstruct(
                params, z, missing=missing, on_not_finite=partial(self._refuse, X), out=residual
            )
            residual -= z
            if holes is not None:
                residual[holes] = 0
            yield residual

    def whitened(self, residual: np.ndarray) -> np.ndarray:
        """(rows, n): r A."""
        return residual * self._whitening if self._linear is None else self._linear(residual)

    def distances(self, X: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """D and R of each row, (m,) and (m,); with `own`, without the kept row of that number."""
        if self._neighbours is None or (own is not None and len(self.ensemble.kept) == 1):
            return np.ones(len(X)), np.ones(len(X))
        return self._neighbours.distances(X, own=own, **self.inputs)

    def errors(self, X: np.ndarray) -> np.ndarray:
        """(m,), float64: the error of each row."""
        error, length = self._means(X)
        return combined(error, *self.distances(X), length)

    def _means(
        self, X: np.ndarray, look: Callable[[slice, int, np.ndarray], None] = lambda *_: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """E and M of each row, (m,) each; `look` is called with rows, the number of a network and its residuals."""
        error, length = np.empty(len(X)), np.empty(len(X))
        balance, networks = self.ensemble.balance, len(self.ensemble.networks)

        def measure(here: slice) -> None:
            with out_of_range():
                errors, lengths = self._network_errors(X, here, partial(look, here))
            # Without BLAS, whose last bits would depend on the rows beside
            error[here] = np.einsum("ij,j->i", errors, balance) / networks
            length[here] = lengths.mean(axis=1)

        self._side_by_side(measure, X)
        return error, length

    def errors_and_shares(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The error of each row, (m,), and each feature's share of it, (m, n), float64.

        The shares of a row add up to 1, or are all 0. They are those of (E D R)^(1/3), a third each of E, D and R, and
        those of M, what it would fall by if a feature's mean residual were what the others lead to expect; each counts
        by its size.
        """
        parts = [self._errors_and_shares(X[first : first + CHUNK]) for first in range(0, len(X), CHUNK)]
        errors, shares = zip(*parts, strict=True)
        return np.concatenate(errors), np.concatenate(shares)

    def _errors_and_shares(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        networks, balance = len(self.ensemble.networks), self.ensemble.balance
        squares, mean = np.zeros(X.shape), np.zeros(X.shape)

        def look(here: slice, i: int, residual: np.ndarray) -> None:
            squares[here] += np.square(residual, dtype=np.float64) * balance[i]
            mean[here] += residual

        error, length = self._means(X, look)
        nearest, remoteness, parts = np.ones(len(X)), np.ones(len(X)), [_or_infinity(squares)]
        if self._neighbours is not None:
            nearest, remoteness, *shares = self._neighbours.distances_and_shares(X, **self.inputs)
            parts += shares
        first = geometric_mean(error, nearest, remoteness)
        with out_of_range():
            of_first = _normed(np.sum([_normed(part) for part in parts], axis=0))
            of_second = _normed(_or_infinity(self._falls(mean / networks)))
            weight = 1 / (1 + np.nan_to_num(length / first, nan=1.0)[:, None])
        return np.maximum(first, length), _normed(weight * of_first + (1 - weight) * of_second)

    def _falls(self, residual: np.ndarray) -> np.ndarray:
        """(m, n): what |r A|^2 falls by if one feature's residual is what minimises it: (r P)_j^2 / P_jj, P = A A'."""
        if self._linear is None:
            return np.asarray(np.square(residual * self._whitening))
        of_precision, diagonal = self._precision
        return np.asarray(np.square(of_precision(residual)) / diagonal)

    @cached_property
    def _precision(self) -> tuple[Linear, np.ndarray]:
        """P = A A', and its diagonal."""
        whitening = self._whitening.astype(np.float64)
        precision = whitening @ whitening.T
        return Linear(precision, "float64"), np.maximum(np.diag(precision), np.finfo(float).tiny)

    def _checked_inputs(self, X: np.ndarray) -> dict[str, Any]:
        return {**self.inputs, "on_not_finite": partial(self._refuse, X)}


def geometric_mean(error: np.ndarray, distance: np.ndarray, remoteness: np.ndarray) -> np.ndarray:
    """(E D R)^(1/3)."""
    return np.asarray(np.cbrt(error) * np.cbrt(distance) * np.cbrt(remoteness))


def combined(
    error: np.ndarray, distance: np.ndarray, remoteness: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """The larger of (E D R)^(1/3) and M."""
    return np.asarray(np.maximum(geometric_mean(error, distance, remoteness), length))


def moments_shape(columns: int) -> tuple[int, ...]:
    """The shape of the second moments of so many features."""
    return (columns, columns) if columns <= WHITENED_MOST else (columns,)


def whitening_of(second_moments: np.ndarray) -> np.ndarray:
    """A: |r A|^2 is r' C^-1 r, where C is the second moments of residuals, (n, n) or their diagonal, plus a ridge.

    Zero where all moments are.
    """
    second_moments = second_moments.astype(np.float64)
    squares = second_moments if second_moments.ndim == 1 else np.diag(second_moments)
    if not squares.any():
        return np.zeros(second_moments.shape)
    ridge = RIDGE * max(float(squares.mean()), FLOOR)
    if second_moments.ndim == 1:
        return np.asarray(1 / np.sqrt(squares + ridge))
    factor = np.linalg.cholesky(second_moments + ridge * np.eye(len(squares)))
    return np.asarray(np.linalg.inv(factor).T)


def sum_over(networks: Sequence[Parameters], function: Callable[[Parameters], np.ndarray]) -> np.ndarray:
    """The sum of function(params) over the networks, in float64."""
    total: Any = 0.0
    for params in networks:
        total = total + function(params).astype(np.float64, copy=False)
    return np.asarray(total)


def _sums_of_squares(x: np.ndarray) -> np.ndarray:
    """(rows,): of each row."""
    return np.asarray(np.einsum("ij,ij->i", x, x))


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
