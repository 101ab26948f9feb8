"""FittedModel: encodes, reconstructs and scores rows with trained parameters."""

import copy
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_array, check_is_fitted

from fastae.data.column_statistics import ColumnStatistics
from fastae.data.row_source import RowSource
from fastae.estimator.dask_methods import also_lazily
from fastae.estimator.inference import Inference
from fastae.estimator.inputs import check_here, refuse_not_finite
from fastae.estimator.settings import Settings
from fastae.estimator.sklearn_types import ClassNamePrefixFeaturesOutMixin, TransformerMixin


class FittedModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Inference, Settings):
    """An estimator with trained parameters, and with the shift and scale of its input."""

    n_features_in_: int  # set by scikit-learn, as the next one is
    feature_names_in_: np.ndarray
    _n_features_out: int

    @also_lazily
    def transform(self, X: Any) -> np.ndarray:
        """Compute the code of each row.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.

        Returns
        -------
        ndarray of shape (m, k)
            Codes, in the dtype of `X`, or in `dtype` where it is set; k is the number of code units. For a Dask
            collection, a lazy Dask array.
        """
        return check_here(self, X).map_rows(lambda rows: self._in_dtype_of(rows, self._encode(rows)))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Reconstruct rows from their codes.

        Parameters
        ----------
        X : array-like of shape (m, k)
            Codes, as ``transform`` returns them.

        Returns
        -------
        ndarray of shape (m, n)
            Rows in the scale of the data, in the dtype of `X`, or in `dtype` where it is set.

        Raises
        ------
        ValueError
            `X` does not have k columns.
        """
        check_is_fitted(self)
        X = check_array(X, dtype=(np.float64, np.float32), input_name="X")
        if X.shape[1] != self._n_features_out:
            raise ValueError(f"X has {X.shape[1]} features, but the code has {self._n_features_out}")
        return self._out(self._in_dtype_of(X, self._decode(X)))

    @also_lazily
    def reconstruct(self, X: Any) -> np.ndarray:
        """Reconstruct each row: run it through the whole network.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.

        Returns
        -------
        ndarray of shape (m, n)
            Reconstructions in the scale of the data, in the dtype of `X`, or in `dtype` where it is set. Missing cells
            are filled in. For a Dask collection, a lazy Dask array.
        """
        return check_here(self, X).map_rows(self._reconstruct)

    @also_lazily
    def reconstruction_error(self, X: Any, *, per_feature: bool = False) -> np.ndarray:
        """Compute each row's mean squared error, in the squared units of the data.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.
        per_feature : bool, default False
            Return the squared error of each cell, not the mean over features.

        Returns
        -------
        ndarray of shape (m,), float64, or with `per_feature` of shape (m, n)
            Errors. Missing cells have an error of 0 and do not count in the mean. For a Dask collection, a lazy Dask
            array.
        """
        rows = check_here(self, X)
        weight = None if self.scale_ is None else 1 / np.square(self.scale_)
        if per_feature:
            cell = 1 if weight is None else weight
            return rows.map_rows(lambda part: self._cell_errors(part) * cell)
        return self._mean_errors(rows, weight)

    def score(self, X: Any, y: Any = None) -> float:
        """Compute R^2 of the reconstruction, averaged over features.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame or Rows
            Rows in the scale of the data.
        y : None, optional
            Ignored.

        Returns
        -------
        float
            1 for a perfect reconstruction; 0 for one no better than each feature's mean. A feature that is constant in
            `X` counts as 1 if it is reconstructed exactly and as 0 otherwise, as in scikit-learn's ``r2_score``; by
            1 - `error_over_mean_`, features count by their variance.
        """
        rows = check_here(self, X)
        statistics, error = ColumnStatistics(rows.shape[1]), np.zeros(rows.shape[1])
        for part in rows.slices():
            error += self._cell_errors(part).sum(axis=0)  # first, because it refuses NaN and infinity
            statistics.add(part)
        spread = statistics.square_times(1.0 if self.scale_ is None else self.scale_)
        # A spread too small for float64, such as that of 5e-320 and 1e-319, counts as none, as it does for `scale`.
        varies = (statistics.most > statistics.least) & (spread > 0)
        if self.scale_ is not None:
            varies &= statistics.most - statistics.least > 1 / np.finfo(np.float64).max
        return float(np.mean(np.where(varies, 1 - error / np.where(varies, spread, 1), error == 0)))

    # -- within -----------------------------------------------------------------------------------------------

    def for_one_thread(self) -> Self:
        """A copy that uses one thread, to apply to partitions, arrays without names, by many threads at once."""
        model: Self = copy.copy(self)
        model.n_threads, model.callback = 1, None
        for name in ("_kept_engine", "_engine_key", "feature_names_in_"):
            model.__dict__.pop(name, None)
        return model

    def _model_for(self, rows: RowSource) -> Self:
        """The model to apply to these rows: to rows elsewhere, partition by partition, the one for one thread."""
        return self if rows.is_local else self.for_one_thread()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        for name in ("_kept_engine", "_engine_key"):
            state.pop(name, None)
        return state

    def _refuse_not_finite(self, X: np.ndarray) -> None:
        """Rows of arrays and frames are not checked before the engine reads them."""
        refuse_not_finite(self, X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"] if self.dtype is None else []
        return tags
