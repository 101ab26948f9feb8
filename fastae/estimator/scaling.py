"""The scale in which the network sees the columns."""

from typing import Any

import numpy as np

from fastae.data.row_source import RowSource


def shift_and_scale(model: Any, X: RowSource) -> tuple[Any, Any]:
    """Shift and scale of each column, by the model's `scale`: the network sees (X - shift) * scale."""
    if model.scale is None:
        return None, None
    statistics = X.column_statistics()
    if model.scale == "minmax":
        shift, spread = statistics.least, statistics.most - statistics.least
    else:
        shift, spread = statistics.mean, np.sqrt(statistics.square / np.maximum(statistics.count, 1))
        # The spread of a constant column is only rounding; the bound is scikit-learn's.
        spread[spread <= len(X) * np.finfo(np.float64).eps * np.abs(shift)] = 0
    shift = np.nan_to_num(shift)
    return shift, 1 / np.where(np.nan_to_num(spread) > 0, np.nan_to_num(spread), 1)
