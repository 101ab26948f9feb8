"""From errors to alarms: p-values, thresholds and false discoveries. All functions work on arrays."""

import numpy as np

from fastae.checks import in_units


class Calibration:
    """Errors of rows that were not trained on, against which those of new rows are ranked.

    Parameters
    ----------
    error : ndarray of shape (m,), float64
        Out-of-bag errors; NaN ones do not count.
    weight : ndarray of shape (m,), optional
        A row of weight 2 counts like two; weights with a mean below 1 are multiplied so that it is 1.
    """

    def __init__(self, error: np.ndarray, weight: np.ndarray | None = None) -> None:
        known = np.isfinite(error) | np.isinf(error)
        weight = np.ones(len(error)) if weight is None else weight
        error, weight = error[known], weight[known]
        weight, unit = in_units(weight)
        weight = weight * max(min(unit, 2.0**60), np.count_nonzero(weight) / weight.sum())
        order = np.argsort(error, kind="stable")
        self.error = error[order]
        # Rows with this error or a larger one
        self.above = np.append(np.cumsum(weight[order][::-1])[::-1], 0.0)
        self.rows = float(self.above[0])

    def p_values(self, error: np.ndarray) -> np.ndarray:
        """(1 + the number of rows with this error or a larger one) / (1 + the number of rows), for each error.

        Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005.
        """
        return np.asarray((1 + self.above[np.searchsorted(self.error, error)]) / (1 + self.rows))

    def threshold(self, share: float) -> float:
        """The error that so large a share of new rows of the same kind exceeds."""
        wanted = share * (self.rows + 1)
        last = int(np.searchsorted(-self.above[:-1], -wanted, side="right")) - 1
        # From error[last] up are at least `wanted` rows, from the next one up fewer
        if last + 1 >= len(self.error) or not np.isfinite(self.error[last + 1]):
            return float(self.error[last])
        fewer, more = self.above[last + 1], self.above[last]
        low, high = self.error[last], self.error[last + 1]
        return float(low + (high - low) * (more - wanted) / (more - fewer))


def false_discoveries_limited(p_values: np.ndarray, fdr: float) -> np.ndarray:
    """Which rows are discoveries: of these, at most a share `fdr` is false, in expectation.

    Source: Benjamini and Hochberg, Journal of the Royal Statistical Society B 57, 1995. Conformal p-values of the same
    calibration meet its conditions (Bates et al., Annals of Statistics 51, 2023).
    """
    order = np.sort(p_values)
    below = np.flatnonzero(order <= fdr * np.arange(1, len(order) + 1) / max(len(order), 1))
    return np.asarray(p_values <= (order[below[-1]] if below.size else -1.0))


def percentile_of_repeated(values: np.ndarray, counts: np.ndarray, share: float) -> float:
    """The percentile, by linear interpolation, of values that are each repeated `counts` times, fractions allowed.

    Counts with a mean below 1 are relative: they are multiplied so that their mean is 1.
    """
    order = np.argsort(values, kind="stable")
    counts, unit = in_units(counts[order])
    ends = np.cumsum(counts)
    # What counts once; where that is next to nothing, neighbours are the same value
    one = max(min(1 / unit, ends[-1] / np.count_nonzero(counts)), ends[-1] * 1e-12)
    place, fraction = np.divmod(share * (ends[-1] - one), one)
    last = int(np.flatnonzero(counts)[-1])
    places = np.array([place, place + 1]) * one + 1e-9 * one  # `ends` are rounded
    below, above = values[order[np.minimum(np.searchsorted(ends, places, side="right"), last)]]
    return float(below + (above - below) * (fraction / one))
