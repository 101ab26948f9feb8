"""Count, mean, spread and range of each column, over blocks of rows, each read once."""

import numpy as np


class ColumnStatistics:
    """What is known of n columns after some blocks of rows; NaN cells do not count.

    Blocks are merged as by Chan, Golub and LeVeque (The American Statistician 37, 1983): in float64, as exact as two
    passes.

    Attributes
    ----------
    count : ndarray of shape (n,)
        Cells that are not NaN.
    mean, square : ndarray of shape (n,), float64
        Their mean, and the sum of their squared distances from it.
    least, most : ndarray of shape (n,), float64
        NaN for a column without cells.
    """

    def __init__(self, columns: int) -> None:
        self.count = np.zeros(columns, np.int64)
        self.mean, self.square = np.zeros(columns), np.zeros(columns)
        self.least, self.most = np.full(columns, np.nan), np.full(columns, np.nan)

    def add(self, block: np.ndarray) -> None:
        """Take in an array of shape (rows, n)."""
        block = np.asarray(block, np.float64)
        count = (~np.isnan(block)).sum(axis=0)
        mean = np.nansum(block, axis=0) / np.maximum(count, 1)
        square = np.nansum(np.square(block - mean), axis=0)
        total = np.maximum(self.count + count, 1)
        apart = mean - self.mean
        self.square += square + np.square(apart) * (self.count * (count / total))
        self.mean += apart * (count / total)
        self.count += count
        self.least = np.fmin(self.least, np.fmin.reduce(block))
        self.most = np.fmax(self.most, np.fmax.reduce(block))
