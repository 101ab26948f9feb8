"""``score --label``: how well errors tell known outliers from all other rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_VALUES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def labels_of(column: Any, label: str, name: str) -> np.ndarray:
    """A pyarrow column of 1 or true for outliers, 0 or false for other rows, as bools; else a ValueError."""
    values = [_VALUES.get(str(value).strip().lower()) for value in column.to_pylist()]
    if None in values:
        value = column[values.index(None)].as_py()
        shown = "an empty cell" if value in (None, "") else value
        raise ValueError(
            f"{name}: the label {label!r} must be 1 for outliers and 0 for other rows, got {shown}"
        )
    labels = np.array(values, bool)
    if labels.all() or not labels.any():
        raise ValueError(f"{name}: the label {label!r} must be 1 for some rows and 0 for others")
    return labels


def detection_quality(labels: np.ndarray, errors: Sequence[np.ndarray]) -> dict[str, float]:
    """AUROC and average precision of the errors, which may be infinite, as scores of outliers."""
    from scipy.stats import rankdata
    from sklearn.metrics import average_precision_score, roc_auc_score

    ranks = rankdata(np.concatenate(errors))
    return {
        "AUROC": float(roc_auc_score(labels, ranks)),
        "average_precision": float(average_precision_score(labels, ranks)),
    }
