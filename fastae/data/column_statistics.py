"""Count, mean, spread and range of each column, over blocks of rows, each read once."""

from typing import Self

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

    @classmethod
    def of(cls, block: np.ndarray) -> Self:
        """Those of one array of shape (rows, n)."""
        block = np.asarray(block, np.float64, order="C")  # the same bits in any order
        made = cls(block.shape[1])
        made.count = (~np.isnan(block)).sum(axis=0)
        made.mean = np.nansum(block, axis=0) / np.maximum(made.count, 1)
        made.square = np.nansum(np.square(block - made.mean), axis=0)
        if len(block):
            made.least, made.most = np.fmin.reduce(block), np.fmax.reduce(block)
        return made

    def add(self, block: np.ndarray) -> None:
        """Take in an array of shape (rows, n)."""
        self.merge(self.of(block))

    def merge(self, other: "ColumnStatistics") -> None:
        """Take in what is known of other rows."""
        total = np.maximum(self.count + other.count, 1)
        apart = other.mean - self.mean
        self.square += other.square + np.square(apart) * (self.count * (other.count / total))
        self.mean += apart * (other.count / total)
        self.count += other.count
        self.least = np.fmin(self.least, other.least)
        self.most = np.fmax(self.most, other.most)
