"""Rows with weights: those that count, and the weighted mean and deviation of each column."""

from typing import Any

import numpy as np

from fastae.checks import in_units
from fastae.data.column_statistics import ColumnStatistics
from fastae.data.row_source import SLICE_ROWS, ArrayRows


def counted(X: ArrayRows, weight: np.ndarray) -> tuple[ArrayRows, np.ndarray]:
    """The rows whose weight is not 0, and their weights, in units that have a finite sum.

    `weight` holds one number for each row of the array that `X` are rows of.
    """
    index = np.flatnonzero(weight) if X.index is None else X.index[weight[X.index] > 0]
    return ArrayRows(X.array, index=index), in_units(weight[index])[0]


def weighted_moments(
    X: ArrayRows, weight: np.ndarray, statistics: ColumnStatistics
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column, over its cells that are not NaN.

    Parameters
    ----------
    X, weight
        As ``counted`` returns them.
    statistics : ColumnStatistics
        Of `X`, without weights. The mean of cells that are all alike is exactly their value.
    """
    firsts, exponent = range(0, len(weight), SLICE_ROWS), statistics.exponent

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
    shift = np.where(statistics.least == statistics.most, statistics.least, np.ldexp(mean, exponent))
    return shift, np.ldexp(np.sqrt(square), exponent)
