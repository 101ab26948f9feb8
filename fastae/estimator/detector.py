"""AutoencoderDetector: outliers are the rows that an autoencoder reconstructs poorly."""

import os
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from fastae.checks import in_units
from fastae.estimator.autoencoder import Autoencoder, goes_by_steps
from fastae.estimator.dask_methods import also_lazily
from fastae.estimator.inputs import check, check_here, check_weight, in_partitions
from fastae.estimator.settings import suggests_names
from fastae.estimator.sklearn_types import OutlierMixin, available_if


@suggests_names
@dataclass(eq=False, repr=False)
class AutoencoderDetector(OutlierMixin, Autoencoder):
    """Flags outliers: rows that an autoencoder reconstructs poorly.

    A row's score is minus its mean squared error over the features, in the network's scale, so that all features count
    alike. Parameters and attributes that are not listed here are those of ``Autoencoder``.

    Parameters
    ----------
    contamination : float, default 0.1
        Share of the training rows to flag as outliers, in (0, 0.5].

    Attributes
    ----------
    offset_ : float
        Threshold: rows that score below it are outliers.
    """

    contamination: float = field(default=0.1, kw_only=True)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Autoencoder._parameter_constraints,
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
    }

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> Self:
        """Train on the rows of `X`, then set the threshold so that a share `contamination` of them is flagged.

        After an error or Ctrl-C, the detector is what it was before the call, as for ``Autoencoder.fit``.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Training data, as for ``Autoencoder.fit``.
        y : None, optional
            Ignored.
        sample_weight : array-like of shape (m,), optional
            Weight of each row, as for ``Autoencoder.fit``; for the threshold, a row of weight 2 counts like two
            (weights with a mean below 1 are multiplied so that it is 1).
        X_val : array-like of shape (m', n) or Rows, optional
            Validation rows, as for ``Autoencoder.fit``.
        checkpoint : path, optional
            File from which an interrupted fit can resume, as for ``Autoencoder.fit``.
        resume : bool, default False
            Resume from `checkpoint`, as for ``Autoencoder.fit``.

        Returns
        -------
        AutoencoderDetector
            The fitted estimator itself.

        Raises
        ------
        ValueError, OSError, DivergenceError
            As ``Autoencoder.fit``.
        """
        return super().fit(X, y, sample_weight, X_val=X_val, checkpoint=checkpoint, resume=resume)

    def _fit(self, X: Any, sample_weight: Any, **options: Any) -> None:
        X = in_partitions(X)  # here, so that a Dask collection is computed once
        super()._fit(X, sample_weight, **options)
        self._set_threshold(self.contamination, X, sample_weight)

    @available_if(goes_by_steps)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on the rows of `X`, then set the threshold by their scores.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Training data of this epoch, as for ``Autoencoder.partial_fit``.
        y : None, optional
            Ignored.
        sample_weight : array-like of shape (m,), optional
            Weight of each row, as for ``fit``.

        Returns
        -------
        AutoencoderDetector
            The estimator itself.

        Raises
        ------
        AttributeError, ValueError, DivergenceError
            As ``Autoencoder.partial_fit``.
        """
        return super().partial_fit(X, y, sample_weight)

    def _partial_fit(self, X: Any, sample_weight: Any) -> None:
        X = in_partitions(X)
        super()._partial_fit(X, sample_weight)
        self._set_threshold(self.contamination, X, sample_weight)

    def set_threshold(
        self,
        error: float | None = None,
        *,
        contamination: float | None = None,
        X: Any | None = None,
    ) -> Self:
        """Set the threshold anew: at a given error, or so that a given share of the rows of `X` is flagged.

        Parameters
        ----------
        error : float, optional
            Mean squared error over the features, in the network's scale, above which a row is an outlier: minus a
            score.
        contamination : float, optional
            Share of the rows of `X` to flag, in (0, 0.5]. Needs `X`; excludes `error`.
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame, optional
            Rows whose scores determine the threshold. Needs `contamination`.

        Returns
        -------
        AutoencoderDetector
            The estimator itself.

        Raises
        ------
        NotFittedError
            The detector has not been fitted.
        TypeError, ValueError
            An argument has the wrong type or is out of range, or the arguments do not go together.
        """
        check_is_fitted(self)
        if (error is None) == (contamination is None):
            raise ValueError("set_threshold needs either error, or contamination with X")
        name, given = ("error", error) if contamination is None else ("contamination", contamination)
        if not isinstance(given, (int, float, np.number)):
            raise TypeError(f"{name} must be a number, got {given!r}")
        if error is not None:
            if not error >= 0 or X is not None:
                raise ValueError(f"error must not be negative, and cannot be combined with X, got {error!r}")
            self.offset_ = -float(error)
            return self
        if X is None or not 0 < given <= 0.5:
            raise ValueError(f"contamination must be in (0, 0.5], and needs X, got {contamination!r}")
        self._set_threshold(float(given), X)
        return self

    def _set_threshold(self, contamination: float, X: Any, sample_weight: Any = None) -> None:
        rows = check(self, X)
        scores = -rows.map_rows(self._model_for(rows)._mean_errors_of)
        weight = check_weight(rows, sample_weight)
        if weight is None:
            self.offset_ = float(np.percentile(scores, 100.0 * contamination))
        else:
            self.offset_ = _percentile_of_repeated(scores, weight, contamination)

    @also_lazily
    def score_samples(self, X: Any) -> np.ndarray:
        """Score each row: minus its mean squared error over the features, in the network's scale.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.

        Returns
        -------
        ndarray of shape (m,), float64
            Scores, at most 0; the lower, the more unusual the row. For a Dask collection, a lazy Dask array.
        """
        scores: np.ndarray = self._mean_errors(check_here(self, X))
        scores *= -1.0
        return scores

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute ``score_samples(X) - offset_``.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.

        Returns
        -------
        ndarray of shape (m,), float64
            Negative for outliers.
        """
        check_is_fitted(self, "offset_")
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Flag each row as an outlier or not.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.

        Returns
        -------
        ndarray of shape (m,), int
            -1 for outliers, 1 for all other rows.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def explain(self, X: Any, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Report which features cause each row's error, the worst first.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame or Rows
            Rows in the scale of the data.
        top : int, default 5
            Number of features to report per row; at most n are.

        Returns
        -------
        features : ndarray of shape (m, top)
            Names of the features where the model was fitted with names, otherwise their column numbers.
        shares : ndarray of shape (m, top), float64
            Each feature's share of the row's error, in [0, 1].

        Raises
        ------
        ValueError
            `top` is not an integer of at least 1.
        """
        rows = check_here(self, X)
        if top < 1 or top % 1:
            raise ValueError(f"top must be an integer of at least 1, got {top!r}")
        shape = (len(rows), min(int(top), rows.shape[1]))
        features, shares, first = np.empty(shape, np.intp), np.empty(shape), 0
        for part in rows.slices():
            error = self._cell_errors(part)
            worst = np.argsort(-error, axis=1, kind="stable")[:, : int(top)]
            total = error.sum(axis=1, keepdims=True)
            here = slice(first, first + len(part))
            features[here] = worst
            shares[here] = np.take_along_axis(error, worst, axis=1) / np.where(total > 0, total, 1)
            first += len(part)
        names = getattr(self, "feature_names_in_", None)
        return (features if names is None else np.asarray(names, object)[features]), shares


def _percentile_of_repeated(values: np.ndarray, counts: np.ndarray, share: float) -> float:
    """The percentile, by linear interpolation, of values that are each repeated `counts` times, fractions allowed.

    Counts with a mean below 1 are relative: they are multiplied so that their mean is 1.
    """
    order = np.argsort(values, kind="stable")
    counts, unit = in_units(counts[order])
    ends = np.cumsum(counts)
    # What counts once; where that is next to nothing, neighbours are the same value
    one = max(min(1 / unit, ends[-1] / np.count_nonzero(counts)), ends[-1] * 1e-12)
    place, fraction = np.divmod(share * (ends[-1] - one), one)
    last = int(np.flatnonzero(counts)[-1])
    places = np.array([place, place + 1]) * one + 1e-9 * one  # `ends` are rounded
    below, above = values[order[np.minimum(np.searchsorted(ends, places, side="right"), last)]]
    return float(below + (above - below) * (fraction / one))
