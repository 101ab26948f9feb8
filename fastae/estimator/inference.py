"""Inference: codes, reconstructions and errors of arrays by trained parameters. It imports no scikit-learn."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastae.checks import check_count
from fastae.data.columns import difference_of_names
from fastae.data.row_source import Rows
from fastae.network import DType, Parameters

if TYPE_CHECKING:
    from fastae.engine.engine import Engine


class Inference:
    """A model with trained parameters, and with the shift and scale of its input."""

    params_: Parameters
    shift_: np.ndarray | None
    scale_: np.ndarray | None
    missing: Any
    n_threads: int | None
    dtype: DType | Literal["bfloat16"] | None

    @property
    def _in_bfloat16(self) -> bool:
        return isinstance(self.dtype, str) and self.dtype == "bfloat16"

    def _engine(self) -> "Engine":
        """The engine for these parameters; created when first used, and not saved with the model."""
        dtype: Any = "bfloat16" if self._in_bfloat16 else self.params_.dtype
        key = (self.params_.network, self.n_threads, dtype)
        from fastae.engine.engine import Engine  # here, because to look at a model needs none

        if getattr(self, "_engine_key", None) != key:
            self._kept_engine, self._engine_key = Engine(*key), key
        return self._kept_engine

    def _in(self) -> dict[str, Any]:
        return {"shift": self.shift_, "scale": self.scale_, "missing": self.missing is not None}

    def _checked_in(self, X: np.ndarray) -> dict[str, Any]:
        """The same for rows `X` of a user; the engine looks for NaN and infinity while it reads them."""
        return {**self._in(), "on_not_finite": partial(self._refuse_not_finite, X)}

    def _refuse_not_finite(self, X: np.ndarray) -> None:
        """Raise the error for rows that are not finite; here they were checked when they were read."""

    def _encode(self, X: np.ndarray) -> np.ndarray:
        return self._engine().encode(self.params_, X, **self._checked_in(X))

    def _decode(self, code: np.ndarray) -> np.ndarray:
        return self._engine().decode(self.params_, code)

    def _xhat(self, X: np.ndarray) -> np.ndarray:
        """Reconstructions in the scale of the network, of which `_out` makes those in the scale of the data."""
        return self._engine().reconstruct(self.params_, X, **self._checked_in(X))

    def _in_dtype_of(self, X: np.ndarray, result: np.ndarray) -> np.ndarray:
        """`result` in float64 where `X` is not float32 and `dtype` is None, else as it is."""
        wanted = np.float64 if self.dtype is None and X.dtype != np.float32 else result.dtype
        return result.astype(wanted, copy=False)

    def _out(self, xhat: np.ndarray) -> np.ndarray:
        if self.scale_ is not None:
            xhat /= self.scale_
            xhat += self.shift_
        return xhat

    def _reconstruct(self, X: np.ndarray) -> np.ndarray:
        return self._out(self._in_dtype_of(X, self._xhat(X)))

    def _cell_errors(self, X: np.ndarray) -> np.ndarray:
        """Squared error of each cell in float64, in the scale the network sees; 0 for missing ones."""
        xhat = self._xhat(X)
        x = X.astype(np.float64) if self.scale_ is None else (X - self.shift_) * self.scale_
        error: np.ndarray = np.square(xhat - x)
        return np.where(np.isnan(X), 0.0, error) if self.missing else error

    def _errors(self, X: np.ndarray, index: np.ndarray | None, params: Parameters) -> np.ndarray:
        """Sum of squared errors of each row, or each in `index`, in the scale the network sees."""
        return self._engine().errors(params, X, index=index, **self._in())

    def _mean_errors(self, rows: Rows, column_weight: np.ndarray | None = None) -> np.ndarray:
        """Mean over the cells that are not missing of each row's squared error, times `column_weight`."""
        return rows.map_rows(lambda part: self._mean_errors_of(part, column_weight))

    def _mean_errors_of(self, X: np.ndarray, column_weight: np.ndarray | None = None) -> np.ndarray:
        errors = self._engine().errors(self.params_, X, column_weight=column_weight, **self._checked_in(X))
        errors /= cells_of(X, bool(self.missing))
        return errors

    def _errors_and_cells(self, X: np.ndarray) -> np.ndarray:
        """(m, 2): the sum of squared errors of each row, and the number of its cells that are not missing."""
        result = np.empty((len(X), 2))
        result[:, 0] = self._engine().errors(self.params_, X, **self._in())
        result[:, 1] = cells_of(X, bool(self.missing))
        return result

    def _detection_errors(self, X: np.ndarray) -> np.ndarray:
        """(m,): minus the scores."""
        return self._mean_errors_of(X)

    def _errors_and_shares(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m,): minus the scores; (m, n): each feature's share of the error."""
        error = self._cell_errors(X)
        total = error.sum(axis=1, keepdims=True)
        return self._detection_errors(X), np.asarray(error / np.where(total > 0, total, 1))

    def _explain(self, rows: Rows, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Minus the scores, (m,); then see ``AutoencoderDetector.explain``."""
        check_count(top, "top")
        shape = (len(rows), min(int(top), rows.shape[1]))
        errors, features, shares, first = np.empty(len(rows)), np.empty(shape, np.intp), np.empty(shape), 0
        for part in rows.slices():
            here = slice(first, first + len(part))
            errors[here], share = self._errors_and_shares(part)
            worst = np.argsort(-share, axis=1, kind="stable")[:, : int(top)]
            features[here] = worst
            shares[here] = np.take_along_axis(share, worst, axis=1)
            first += len(part)
        names = getattr(self, "feature_names_in_", None)
        return errors, features if names is None else np.asarray(names, object)[features], shares


def cells_of(X: np.ndarray, missing: bool) -> Any:
    """The number of cells of each row that are there, 1 at least: (m,), or n for all rows where none may be missing."""
    return np.maximum((~np.isnan(X)).sum(axis=1), 1) if missing else X.shape[1]


def check_columns(
    model: Any,
    columns: int,
    names: Sequence[str] | None,
    *,
    reset: bool = False,
    name: str = "X",
    source: str = "X",
) -> None:
    """Check or, with `reset`, remember the columns, as scikit-learn's ``validate_data`` does for frames."""
    if reset:
        model.n_features_in_ = columns
        if names is not None:
            model.feature_names_in_ = np.asarray(names, object)
        elif hasattr(model, "feature_names_in_"):
            del model.feature_names_in_
        return
    fitted = getattr(model, "feature_names_in_", None)
    if names is not None and fitted is not None and list(names) != list(fitted):
        raise ValueError(
            f"{source} has other columns than the model was fitted with: "
            f"{difference_of_names(names, list(fitted))}"
        )
    called = name if source == "X" else source
    if columns != model.n_features_in_:
        raise ValueError(
            f"{called} has {columns} features, but the model was fitted with {model.n_features_in_}"
        )
