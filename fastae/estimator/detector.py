"""AutoencoderDetector: outliers are the rows that an autoencoder gives back badly."""

import os
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from fastae.estimator.autoencoder import Autoencoder, goes_by_steps
from fastae.estimator.inputs import check, check_here, in_partitions
from fastae.estimator.lazily import also_lazily


@dataclass(eq=False, repr=False)
class AutoencoderDetector(OutlierMixin, Autoencoder):
    """Finds outliers: rows that an autoencoder of the rest gives back badly.

    A row's score is minus the mean over features of its squared error, in the scale the network sees, so that all
    features count alike.

    Parameters
    ----------
    hidden_layer_sizes and all others
        As for ``Autoencoder``.
    contamination : float in (0, 0.5], default 0.1
        Share of the training rows to be called outliers.

    Attributes
    ----------
    offset_ : float
        Rows that score below it are outliers.
    All of ``Autoencoder``'s.
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
        *,
        X_val: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> Self:
        """Train on the rows of `X`, as ``Autoencoder.fit``, and put the threshold where `contamination` says."""
        X = in_partitions(X)  # here, so that it is loaded once
        super().fit(X, y, X_val=X_val, checkpoint=checkpoint, resume=resume)
        return self.set_threshold(contamination=self.contamination, X=X)

    @available_if(goes_by_steps)
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """As ``Autoencoder.partial_fit``; the threshold follows from the scores of this call's rows."""
        X = in_partitions(X)
        super().partial_fit(X, y)
        return self.set_threshold(contamination=self.contamination, X=X)

    def set_threshold(
        self,
        error: float | None = None,
        *,
        contamination: float | None = None,
        X: Any | None = None,
    ) -> Self:
        """Decide anew which rows are outliers: those of more than `error`, or the worst share of the rows of `X`.

        Parameters
        ----------
        error : float, optional
            Mean over features of the squared error, in the scale the network sees: minus a score.
        contamination : float in (0, 0.5], with X : array-like of shape (m, n), optional
            The share of `X` that is to be called outliers.
        """
        check_is_fitted(self)
        if (error is None) == (contamination is None):
            raise ValueError("set_threshold takes either error, or contamination with X")
        if error is not None:
            if not error >= 0 or X is not None:
                raise ValueError(f"error must not be negative, and comes without X, got {error!r}")
            self.offset_ = -float(error)
            return self
        if X is None or not 0 < float(contamination or 0) <= 0.5:
            raise ValueError(f"contamination must be in (0, 0.5] and come with X, got {contamination!r}")
        rows = check(self, X)
        errors = rows.map_rows(self._model_for(rows)._mean_errors_of)
        self.offset_ = float(np.percentile(-errors, 100.0 * float(contamination or 0)))
        return self

    @also_lazily
    def score_samples(self, X: Any) -> np.ndarray:
        """Minus the mean over features of each row's squared error, in the scale the network sees: (m,) float64."""
        return -self._mean_errors(check_here(self, X))

    def decision_function(self, X: Any) -> np.ndarray:
        """score_samples(X) - offset_: below 0 for outliers."""
        check_is_fitted(self, "offset_")
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """-1 for outliers, 1 for the others."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def explain(self, X: Any, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Which features make up a row's error, the worst first.

        Returns
        -------
        features : ndarray of shape (m, top)
            Their names where the model was fitted with names, else their columns' numbers.
        shares : ndarray of shape (m, top), float64
            Their part of the row's error, in [0, 1].
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
