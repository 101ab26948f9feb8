"""The figures of ``train --plot`` and ``score --plot``: displays of ``fastae.plots`` side by side in one file."""

from pathlib import Path
from typing import Any

import numpy as np

from fastae.data.row_source import Rows
from fastae.storage import check_place, written_whole

POINTS = 5000  # maximum number of codes drawn


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
    """Draw the loss curves, some rows beside their reconstructions and, if a code has two units or more, the codes."""
    from matplotlib.figure import Figure

    from fastae.plots import CodeDisplay, LossCurveDisplay, ReconstructionDisplay

    has_plane = model.network_.widths[model.network_.code_layer] > 1
    figure = Figure(figsize=(12, 10), layout="constrained")
    axes = figure.subplot_mosaic([["loss", "code" if has_plane else "loss"], ["rows", "rows"]])
    LossCurveDisplay.from_estimator(model, ax=axes["loss"])
    ReconstructionDisplay.from_estimator(model, rows, ax=axes["rows"])
    if has_plane:
        spread = np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).astype(np.int64)
        CodeDisplay.from_estimator(model, rows.take(spread), ax=axes["code"])
    _save(figure, path)


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
