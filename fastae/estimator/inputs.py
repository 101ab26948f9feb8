"""What estimators take for X: checked as scikit-learn does, and gone through block by block."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import _check_feature_names, check_array, check_is_fitted, validate_data

from fastae.data.columns import difference_of_names, refuse_columns
from fastae.data.row_source import Rows
from fastae.distributed.partitions import Blocks, is_dask

BLOCK = 4096  # rows that statistics are taken of at a time
Here = np.ndarray | Rows  # checked, and on this machine
Data = Here | Blocks


def check(model: Any, X: Any, *, reset: bool = False, name: str = "X") -> Data:
    """`X`, of floats and of the features that the model was fitted with; with `reset` these are taken from it."""
    checks: dict[str, Any] = {
        "dtype": (np.float64, np.float32),
        "ensure_all_finite": "allow-nan" if model.missing else True,
    }
    checked: np.ndarray
    if np.ma.isMaskedArray(X):
        raise TypeError(f"{name} is a masked array: pass {name}.filled(np.nan), with missing='mask'")
    X = in_blocks(X)
    if isinstance(X, (Blocks, Rows)):
        check_columns(model, X.shape[1], X.feature_names, reset=reset, name=name, source=X.name)
    if isinstance(X, Blocks):
        if 0 in X.shape:
            raise ValueError(f"{name} has shape {X.shape}: rows and columns are needed")
        X.each(_check_finite, model.missing is not None)
        return X
    if isinstance(X, Rows):
        X.check_not_empty()
        data = X.resident()
        if isinstance(data, Rows):
            return data
        X.check_finite(data, allow_nan=model.missing is not None)
        checked = check_array(data, input_name=name, **checks)
        return checked
    refuse_columns(X, name)
    if name != "X":
        _check_feature_names(model, X, reset=False)
        checked = check_array(X, input_name=name, **checks)
        if checked.shape[1] != model.n_features_in_:
            raise ValueError(f"{name} has {checked.shape[1]} features, but X has {model.n_features_in_}")
        return checked
    checked = validate_data(model, X, reset=reset, **checks)
    return checked


def in_blocks(X: Any) -> Any:
    """A Dask array or DataFrame as Blocks, on its workers; anything else as it is."""
    if not is_dask(X):
        return X
    from fastae.distributed import DaskBlocks, find_client

    return DaskBlocks(find_client(), X)


def check_columns(
    model: Any,
    columns: int,
    names: Sequence[str] | None,
    *,
    reset: bool = False,
    name: str = "X",
    source: str = "X",
) -> None:
    """What scikit-learn's ``validate_data`` does with the columns of a frame, for other data."""
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


def check_here(model: Any, X: Any) -> Here:
    """`X` for a fitted model, on this machine."""
    check_is_fitted(model)
    if is_dask(X) or isinstance(X, Blocks):
        raise TypeError("X must be on this machine here; give it as an array, block by block")
    checked = check(model, X)
    assert not isinstance(checked, Blocks)
    return checked


def _read(model: Any, X: Rows) -> Iterator[np.ndarray]:
    """The blocks of Rows, checked as arrays are."""
    for block in X:
        X.check_finite(block, allow_nan=model.missing is not None)
        yield block


def parts(model: Any, X: Here, index: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """A few rows at a time of `X`, or of its rows in `index`."""
    for block in _read(model, X) if isinstance(X, Rows) else [X]:
        rows = len(block) if index is None else len(index)
        for first in range(0, rows, BLOCK):
            part = slice(first, first + BLOCK)
            yield block[part] if index is None else block[index[part]]


def over(model: Any, X: Here, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """function(X), for Rows block by block."""
    if not isinstance(X, Rows):
        return function(X)
    made, first = np.empty(0), 0
    for block in _read(model, X):
        some = function(block)
        if not first:
            made = np.empty((len(X), *some.shape[1:]), some.dtype)
        made[first : first + len(some)] = some
        first += len(some)
    return made


def _check_finite(block: np.ndarray, allow_nan: bool) -> None:
    assert_all_finite(block, allow_nan=allow_nan, input_name="X")
