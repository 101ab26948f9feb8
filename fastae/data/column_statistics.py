"""Count, mean, spread and range of each column, in one pass over the rows."""

from typing import Self

import numpy as np
import numpy.typing as npt

EXPONENT_MOST = 256  # of values whose squares are far from overflow and underflow


class ColumnStatistics:
    """Statistics of n columns over the rows added so far; NaN cells do not count.

    Partial results are merged as by Chan, Golub and LeVeque (The American Statistician 37, 1983), in float64, as
    exactly as in two passes.

    Where the values of a column are so large or small that their squares would overflow or underflow, its mean and
    squares are kept in units of a power of two, which changes no other bit.

    Attributes
    ----------
    count : ndarray of shape (n,)
        Cells that are not NaN.
    exponent : ndarray of shape (n,)
        The unit of each column is 2^exponent: 1 for ordinary columns.
    mean_in_units, square_in_units : ndarray of shape (n,), float64
        The mean of these cells, and the sum of their squared distances from it.
    least, most : ndarray of shape (n,), float64
        NaN for a column without cells.
    """

    def __init__(self, columns: int) -> None:
        self.count = np.zeros(columns, np.int64)
        self.exponent = np.zeros(columns, np.intc)
        self.mean_in_units, self.square_in_units = np.zeros(columns), np.zeros(columns)
        self.least, self.most = np.full(columns, np.nan), np.full(columns, np.nan)

    @classmethod
    def of(cls, rows: np.ndarray) -> Self:
        """Statistics of one array of shape (rows, n)."""
        rows = np.asarray(rows, np.float64, order="C")  # the same bits for any memory order
        statistics = cls(rows.shape[1])
        if len(rows):
            statistics.least, statistics.most = np.fmin.reduce(rows), np.fmax.reduce(rows)
        statistics.count = (~np.isnan(rows)).sum(axis=0)
        statistics.exponent = exponent_of(np.fmax(np.abs(statistics.least), np.abs(statistics.most)))
        if statistics.exponent.any():
            rows = np.ldexp(rows, -statistics.exponent)
        mean = np.nansum(rows, axis=0) / np.maximum(statistics.count, 1)
        statistics.mean_in_units = mean
        statistics.square_in_units = np.nansum(np.square(rows - mean), axis=0)
        return statistics

    def add(self, rows: np.ndarray) -> None:
        """Include an array of shape (rows, n)."""
        self.merge(self.of(rows))

    def merge(self, other: "ColumnStatistics") -> None:
        """Include the statistics of other rows."""
        self.least = np.fmin(self.least, other.least)
        self.most = np.fmax(self.most, other.most)
        exponent = exponent_of(np.fmax(np.abs(self.least), np.abs(self.most)))
        (mean, square), (other_mean, other_square) = self._in(exponent), other._in(exponent)
        total = np.maximum(self.count + other.count, 1)
        apart = other_mean - mean
        square = square + (other_square + np.square(apart) * (self.count * (other.count / total)))
        self.mean_in_units, self.square_in_units = mean + apart * (other.count / total), square
        self.exponent = exponent
        self.count = self.count + other.count

    def _in(self, exponent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and squares in units of 2^exponent."""
        if (exponent == self.exponent).all():
            return self.mean_in_units, self.square_in_units
        by = self.exponent - exponent
        return np.ldexp(self.mean_in_units, by), np.ldexp(self.square_in_units, 2 * by)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each column; of one whose cells are all alike, exactly their value."""
        mean = np.ldexp(self.mean_in_units, self.exponent)
        return np.where(self.least == self.most, self.least, mean)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of each column."""
        return np.ldexp(np.sqrt(self.square_in_units / np.maximum(self.count, 1)), self.exponent)

    def square_times(self, scale: npt.ArrayLike) -> np.ndarray:
        """The sum of squared distances from the mean, times scale^2."""
        return self.square_in_units * np.square(np.ldexp(scale, self.exponent))


def exponent_of(magnitude: np.ndarray) -> np.ndarray:
    """The power of two next to each magnitude, or 0 where squares neither overflow nor underflow."""
    exponent = np.frexp(magnitude)[1]
    return np.where(np.isfinite(magnitude) & (np.abs(exponent) > EXPONENT_MOST), exponent, 0).astype(np.intc)
