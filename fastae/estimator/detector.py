"""AutoencoderDetector: outliers are the rows that an autoencoder reconstructs poorly."""

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
        """Train on the rows of `X`, as ``Autoencoder.fit``, and set the threshold by `contamination`."""
        X = in_partitions(X)  # here, so that a Dask collection is computed once
        super().fit(X, y, X_val=X_val, checkpoint=checkpoint, resume=resume)
        return self.set_threshold(contamination=self.contamination, X=X)

    @available_if(goes_by_steps)
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """As ``Autoencoder.partial_fit``; the threshold is computed from the scores of this call's rows."""
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
        """Set the threshold: outliers have an error above `error`, or belong to the worst share of the rows of `X`.

        Parameters
        ----------
        error : float, optional
            Mean over features of the squared error, in the scale the network sees: the negative of a score.
        contamination : float in (0, 0.5], optional
            The share of the rows of `X` to flag as outliers; needs `X`.
        X : array-like of shape (m, n), optional
            Rows to compute the threshold from; needs `contamination`.
        """
        check_is_fitted(self)
        if (error is None) == (contamination is None):
            raise ValueError("set_threshold needs either error, or contamination with X")
        if error is not None:
            if not error >= 0 or X is not None:
                raise ValueError(f"error must not be negative, and cannot be combined with X, got {error!r}")
            self.offset_ = -float(error)
            return self
        if X is None or not 0 < float(contamination or 0) <= 0.5:
            raise ValueError(f"contamination must be in (0, 0.5], and needs X, got {contamination!r}")
        rows = check(self, X)
        errors = rows.map_rows(self._model_for(rows)._mean_errors_of)
        self.offset_ = float(np.percentile(-errors, 100.0 * float(contamination or 0)))
        return self

    @also_lazily
    def score_samples(self, X: Any) -> np.ndarray:
        """The negative mean over features of each row's squared error, in the scale the network sees: (m,) float64."""
        return -self._mean_errors(check_here(self, X))

    def decision_function(self, X: Any) -> np.ndarray:
        """score_samples(X) - offset_: negative for outliers."""
        check_is_fitted(self, "offset_")
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """-1 for outliers, 1 for inliers."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def explain(self, X: Any, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Which features contribute most to each row's error, in descending order.

        Returns
        -------
        features : ndarray of shape (m, top)
            Feature names if the model was fitted with names, else column numbers.
        shares : ndarray of shape (m, top), float64
            Their share of the row's error, in [0, 1].
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
