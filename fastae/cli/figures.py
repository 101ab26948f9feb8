"""Figures that the command writes: displays of ``fastae.plots`` side by side, in a file of their own."""

from pathlib import Path
from typing import Any

import numpy as np

from fastae.data.row_source import Rows
from fastae.storage import check_place, written_whole

POINTS = 5000  # codes drawn at most


def check(path: Path) -> None:
    """Raise, before anything takes its time, what drawing to `path` would: no matplotlib, no directory, no format."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "fastae[plot]"') from None
    check_place(path)
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(known)}, got {path.suffix!r}")


def save_training(path: Path, model: Any, rows: Rows) -> None:
    """Loss curves, some rows beside their reconstructions and, for a code of two units or more, the codes."""
    from matplotlib.figure import Figure

    from fastae.plots import CodeDisplay, LossCurveDisplay, ReconstructionDisplay

    plane = model.network_.widths[model.network_.code_layer] > 1
    figure = Figure(figsize=(12, 10), layout="constrained")
    axes = figure.subplot_mosaic([["loss", "code" if plane else "loss"], ["rows", "rows"]])
    LossCurveDisplay.from_estimator(model, ax=axes["loss"])
    ReconstructionDisplay.from_estimator(model, rows, ax=axes["rows"])
    if plane:
        spread = np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).astype(np.int64)
        CodeDisplay.from_estimator(model, rows.take(spread), ax=axes["code"])
    _save(figure, path)


def save_scoring(path: Path, detector: Any, rows: Rows) -> None:
    """The histogram of errors with the threshold, and the worst rows with the features that make them so."""
    from matplotlib.figure import Figure

    from fastae.plots import ErrorHistogramDisplay, WorstRowsDisplay

    figure = Figure(figsize=(14, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ErrorHistogramDisplay.from_estimator(detector, rows, ax=left)
    WorstRowsDisplay.from_estimator(detector, rows, ax=right)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with written_whole(path) as made:
        figure.savefig(made, dpi=120)
