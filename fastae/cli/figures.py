"""The figures of ``train --plot`` and ``score --plot``: displays of ``fastae.plots`` side by side in one file."""

from pathlib import Path
from typing import Any

import numpy as np

from fastae.data.row_source import Rows
from fastae.storage import check_place, written_whole

POINTS = 5000  # maximum number of codes drawn
LOOKED_AT = 500  # rows from which it is decided whether rows are images
SMALLEST = 8  # pixels on a side


def check(path: Path) -> None:
    """Raise early what drawing to `path` would: matplotlib or the directory is missing, or the format is unknown."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise ImportError('plots need matplotlib: pip install "fastae[plot]"') from None
    check_place(path)
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(formats)}, got {path.suffix!r}")


def save_training(path: Path, model: Any, rows: Rows) -> None:
    """Draw the loss curves, some rows beside their reconstructions and, if a code has two units or more, the codes.

    Rows that are square images are drawn as such (`image_shape`), others as profiles over the features.
    """
    from matplotlib.figure import Figure

    from fastae.plots import CodeDisplay, LossCurveDisplay, ReconstructionDisplay

    has_plane = model._n_features_out > 1
    shape = image_shape(_spread(rows, LOOKED_AT))
    figure = Figure(figsize=(12, 7.5 if shape else 10), layout="constrained")
    axes = figure.subplot_mosaic(
        [["loss", "code" if has_plane else "loss"], ["rows", "rows"]],
        height_ratios=(2, 1) if shape else (1, 1),
    )
    LossCurveDisplay.from_estimator(model, ax=axes["loss"])
    ReconstructionDisplay.from_estimator(model, rows, image_shape=shape, ax=axes["rows"])
    if has_plane:
        CodeDisplay.from_estimator(model, _spread(rows, POINTS), ax=axes["code"])
    _save(figure, path)


def image_shape(rows: Rows) -> tuple[int, int] | None:
    """Return the (height, width) of rows that are square images, such as digits, or None if they are not.

    They are if the number of features is a square, 64 or more, no feature has a name without a number, and features one
    image row apart differ far less than those half of one apart: less than half as much, in the mean square. In columns
    that are in no order, all differ alike; in a series, those farther apart differ more.
    """
    side = int(np.sqrt(rows.shape[1]))
    if side < SMALLEST or side * side != rows.shape[1]:
        return None
    if not all(name[-1:].isdigit() for name in rows.feature_names or ()):
        return None
    X = np.asarray(rows, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        next_to, half, below = (np.nanmean(np.square(X[:, k:] - X[:, :-k])) for k in (1, side // 2, side))
    return (side, side) if below < 0.5 * half and next_to < 0.7 * half else None


def _spread(rows: Rows, count: int) -> Rows:
    """`count` rows, evenly spaced, or all."""
    return rows.take(np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(np.int64))


def save_scoring(path: Path, detector: Any, rows: Rows) -> None:
    """Draw the histogram of errors with the threshold, and the worst rows with the features responsible."""
    from matplotlib.figure import Figure

    from fastae.plots import ErrorHistogramDisplay, WorstRowsDisplay

    figure = Figure(figsize=(14, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ErrorHistogramDisplay.from_estimator(detector, rows, ax=left)
    WorstRowsDisplay.from_estimator(detector, rows, ax=right)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)
