"""X, as users pass it to an estimator: checked as scikit-learn does, and made a RowSource."""

from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import _check_feature_names, check_array, check_is_fitted, validate_data

from fastae.checks import check_weights, is_masked, refuse_paths
from fastae.data.columns import refuse_columns
from fastae.data.row_source import ArrayRows, NanError, Rows, RowSource
from fastae.distributed.partitions import is_dask
from fastae.estimator.inference import check_columns


def check(
    model: Any, X: Any, *, reset: bool = False, name: str = "X", finite_later: bool = False
) -> RowSource:
    """`X` as rows with the features that the model was fitted with; with `reset`, the model takes them from `X`.

    Arrays and frames become float arrays, and are not copied if they already are. With `finite_later`, the cells of an
    array or frame are not checked for NaN and infinity here, but by ``refuse_not_finite`` once the engine has met one.
    """
    if finite_later and _needs_no_check(model, X):
        return ArrayRows(X)
    checks: dict[str, Any] = {"dtype": (np.float64, np.float32), "ensure_all_finite": False}
    if is_masked(X):
        raise TypeError(f"{name} is a masked array: pass {name}.filled(np.nan), with missing='mask'")
    refuse_paths(X, name)
    X = in_partitions(X)
    if isinstance(X, RowSource):
        check_columns(model, X.shape[1], X.feature_names, reset=reset, name=name, source=X.name)
        X.check_not_empty(name)
        rows = X.checked(allow_nan=model.missing is not None)
        if not rows.in_memory:
            return rows
        array = check_array(rows.resident(), input_name=name, **checks)
        refuse_not_finite(model, array, name)
        return ArrayRows(array)
    refuse_columns(X, name)
    if name == "X":
        array = validate_data(model, X, reset=reset, **checks)
    else:
        _check_feature_names(model, X, reset=False)
        array = check_array(X, input_name=name, **checks)
    if not finite_later:
        refuse_not_finite(model, array, name)
    if name != "X" and array.shape[1] != model.n_features_in_:
        raise ValueError(f"{name} has {array.shape[1]} features, but X has {model.n_features_in_}")
    return ArrayRows(array, name)


def _needs_no_check(model: Any, X: Any) -> bool:
    """Whether scikit-learn's checks, which take longer than the engine on few rows, have nothing to object to."""
    return (
        type(X) is np.ndarray
        and X.dtype in (np.float32, np.float64)
        and X.ndim == 2
        and len(X) > 0
        and X.shape[1] == model.n_features_in_
        and not hasattr(model, "feature_names_in_")
    )


def refuse_not_finite(model: Any, X: np.ndarray, name: str = "X") -> None:
    """Raise a ValueError if an array of floats holds infinity or, unless cells may be missing, NaN."""
    try:
        assert_all_finite(X, allow_nan=model.missing is not None, input_name=name)
    except ValueError:
        if model.missing is None and np.isnan(X).any():
            raise NanError(f"Input {name} contains NaN") from None
        raise


def check_weight(rows: RowSource, sample_weight: Any) -> np.ndarray | None:
    """`sample_weight` as an array of float64, one weight for each of the rows; None stays None."""
    if sample_weight is None:
        return None
    if not isinstance(rows, ArrayRows):
        raise ValueError("sample_weight needs X in memory, on this machine")
    weight = np.asarray(sample_weight)
    weight = check_weights(weight if weight.ndim else np.full(len(rows), weight), len(rows))
    if not weight.any():
        raise ValueError("sample_weight is zero in every row")
    return weight


def in_partitions(X: Any) -> Any:
    """A Dask array or DataFrame as Partitions, on its workers; anything else as it is."""
    if not is_dask(X):
        return X
    from fastae.distributed import DaskPartitions, find_client

    return DaskPartitions(find_client(), X)


def check_here(model: Any, X: Any) -> Rows:
    """`X` for a fitted model, to be checked by ``FittedModel._checked_in``; a TypeError if its rows are elsewhere."""
    check_is_fitted(model)
    if is_dask(X) or not getattr(X, "is_local", True):
        raise TypeError("X must be on this machine: pass its partitions one by one, as arrays")
    rows: Any = check(model, X, finite_later=True)
    return rows  # type: ignore[no-any-return]
