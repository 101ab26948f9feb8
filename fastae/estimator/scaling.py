"""The scale that the network sees columns in."""

from typing import Any

import numpy as np

from fastae.data.column_statistics import ColumnStatistics
from fastae.distributed.partitions import Blocks
from fastae.estimator.inputs import Data, parts


def shift_and_scale(model: Any, X: Data, index: np.ndarray | None) -> tuple[Any, Any]:
    """By the model's `scale`, of each column over the rows in `index`: the network sees (X - shift) * scale."""
    if model.scale is None:
        return None, None
    seen = ColumnStatistics(X.shape[1])
    if isinstance(X, Blocks):
        for some in X.each(ColumnStatistics.of):
            seen.merge(some)
    else:
        for block in parts(model, X, index):
            seen.add(block)
    if model.scale == "minmax":
        shift, spread = seen.least, seen.most - seen.least
    else:
        shift, spread = seen.mean, np.sqrt(seen.square / np.maximum(seen.count, 1))
        # A column of one value has a spread of nothing but rounding; the bound is scikit-learn's.
        rows = len(X) if index is None else len(index)
        spread[spread <= rows * np.finfo(np.float64).eps * np.abs(shift)] = 0
    shift = np.nan_to_num(shift)
    return shift, 1 / np.where(np.nan_to_num(spread) > 0, np.nan_to_num(spread), 1)
