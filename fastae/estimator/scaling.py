"""The scale in which the network sees the columns."""

from typing import Any, cast

import numpy as np

from fastae.data.row_source import ArrayRows, RowSource
from fastae.data.weighted import counted, weighted_moments


def shift_and_scale(model: Any, X: RowSource, weight: np.ndarray | None = None) -> tuple[Any, Any]:
    """Shift and scale of each column, by the model's `scale`: the network sees (X - shift) * scale.

    `weight` holds one number per row of the array that `X` are rows of, which must be in memory.
    """
    if model.scale is None:
        return None, None
    if weight is not None:
        X, weight = counted(cast(ArrayRows, X), weight)
    statistics = X.column_statistics()
    if model.scale == "minmax":
        shift, spread = statistics.least, statistics.most - statistics.least
    else:
        shift, spread = statistics.mean, statistics.deviation
        if weight is not None:
            shift, spread = weighted_moments(cast(ArrayRows, X), weight, statistics)
        # The spread of a constant column is only rounding; the bound is scikit-learn's.
        spread[spread <= len(X) * np.finfo(np.float64).eps * np.abs(shift)] = 0
    shift, spread = np.nan_to_num(shift), np.nan_to_num(spread)
    return shift, 1 / np.where(spread > 1 / np.finfo(np.float64).max, spread, 1)
