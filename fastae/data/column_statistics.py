"""Count, mean, spread and range of each column, in one pass over the rows."""

from typing import Self

import numpy as np


class ColumnStatistics:
    """Statistics of n columns over the rows added so far; NaN cells do not count.

    Partial results are merged as by Chan, Golub and LeVeque (The American Statistician 37, 1983), in float64, as
    exactly as in two passes.

    Attributes
    ----------
    count : ndarray of shape (n,)
        Cells that are not NaN.
    mean, square : ndarray of shape (n,), float64
        The mean of these cells, and the sum of their squared distances from it.
    least, most : ndarray of shape (n,), float64
        NaN for a column without cells.
    """

    def __init__(self, columns: int) -> None:
        self.count = np.zeros(columns, np.int64)
        self.mean, self.square = np.zeros(columns), np.zeros(columns)
        self.least, self.most = np.full(columns, np.nan), np.full(columns, np.nan)

    @classmethod
    def of(cls, rows: np.ndarray) -> Self:
        """Statistics of one array of shape (rows, n)."""
        rows = np.asarray(rows, np.float64, order="C")  # the same bits for any memory order
        statistics = cls(rows.shape[1])
        statistics.count = (~np.isnan(rows)).sum(axis=0)
        statistics.mean = np.nansum(rows, axis=0) / np.maximum(statistics.count, 1)
        statistics.square = np.nansum(np.square(rows - statistics.mean), axis=0)
        if len(rows):
            statistics.least, statistics.most = np.fmin.reduce(rows), np.fmax.reduce(rows)
        return statistics

    def add(self, rows: np.ndarray) -> None:
        """Include an array of shape (rows, n)."""
        self.merge(self.of(rows))

    def merge(self, other: "ColumnStatistics") -> None:
        """Include the statistics of other rows."""
        total = np.maximum(self.count + other.count, 1)
        apart = other.mean - self.mean
        self.square += other.square + np.square(apart) * (self.count * (other.count / total))
        self.mean += apart * (other.count / total)
        self.count += other.count
        self.least = np.fmin(self.least, other.least)
        self.most = np.fmax(self.most, other.most)
