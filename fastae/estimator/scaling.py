"""The scale in which the network sees the columns."""

from typing import Any, cast

import numpy as np

from fastae.checks import in_units
from fastae.data.row_source import SLICE_ROWS, ArrayRows, RowSource


def shift_and_scale(model: Any, X: RowSource, weight: np.ndarray | None = None) -> tuple[Any, Any]:
    """Shift and scale of each column, by the model's `scale`: the network sees (X - shift) * scale.

    `weight` holds one number per row of the array that `X` are rows of, which must be in memory.
    """
    if model.scale is None:
        return None, None
    if weight is not None:
        array, index = cast(ArrayRows, X).array, cast(ArrayRows, X).index
        counted = np.flatnonzero(weight) if index is None else index[weight[index] > 0]
        X = ArrayRows(array, index=counted)
    statistics = X.column_statistics()
    if model.scale == "minmax":
        shift, spread = statistics.least, statistics.most - statistics.least
    else:
        shift, spread = statistics.mean, statistics.deviation
        if weight is not None:
            shift, spread = _weighted(cast(ArrayRows, X), in_units(weight[counted])[0], statistics.exponent)
            shift = np.where(statistics.least == statistics.most, statistics.least, shift)
        # The spread of a constant column is only rounding; the bound is scikit-learn's.
        spread[spread <= len(X) * np.finfo(np.float64).eps * np.abs(shift)] = 0
    shift, spread = np.nan_to_num(shift), np.nan_to_num(spread)
    return shift, 1 / np.where(spread > 1 / np.finfo(np.float64).max, spread, 1)


def _weighted(X: ArrayRows, weight: np.ndarray, exponent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column, over its cells that are not NaN."""
    firsts = range(0, len(weight), SLICE_ROWS)

    def sums(function: Any) -> Any:
        """Sums over the rows of function(x) * weight; NaN cells do not count."""
        parts = zip(firsts, X.slices(), strict=True)
        return sum(
            np.nansum(
                function(np.ldexp(part.astype(np.float64), -exponent))
                * weight[first : first + SLICE_ROWS, None],
                0,
            )
            for first, part in parts
        )

    total = sums(lambda x: x * 0 + 1)
    total = np.where(total > 0, total, 1)
    mean = sums(lambda x: x) / total
    square = sums(lambda x: np.square(x - mean)) / total
    return np.ldexp(mean, exponent), np.ldexp(np.sqrt(square), exponent)
