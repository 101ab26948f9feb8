"""Methods of a fitted model on Dask collections: lazy Dask arrays, computed on the workers partition by partition."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fastae.distributed.partitions import is_dask
from fastae.estimator.inference import check_columns

_Method = TypeVar("_Method", bound=Callable[..., Any])


def also_lazily(method: _Method) -> _Method:
    """For a Dask array or DataFrame, return a lazy Dask array of the method's results."""

    @wraps(method)
    def call(self: Any, X: Any, **options: Any) -> Any:
        if not is_dask(X):
            return method(self, X, **options)
        check_is_fitted(self)
        return _map_rows(self, method.__name__, X, **options)

    return cast(_Method, call)


def _map_rows(model: Any, method: str, X: Any, **options: Any) -> Any:
    """A lazy Dask array of the results of a fitted model's method, partition by partition."""
    from fastae.distributed.dask.partitions import in_rows, names_of

    check_columns(model, X.shape[1], names_of(X))
    array = in_rows(X)
    apply = partial(_apply, model.for_one_thread(), method, options=options)
    like = apply(np.zeros((1, array.shape[1]), array.dtype))
    if like.ndim == 1:
        return array.map_blocks(apply, dtype=like.dtype, drop_axis=1, meta=like[:0])
    return array.map_blocks(
        apply, dtype=like.dtype, chunks=(array.chunks[0], (like.shape[1],)), meta=like[:0]
    )


def _apply(model: Any, method: str, rows: np.ndarray, options: dict[str, Any]) -> Any:
    if not len(rows):
        return _apply(model, method, np.zeros((1, rows.shape[1]), rows.dtype), options)[:0]
    return getattr(model.for_one_thread(), method)(rows, **options)
