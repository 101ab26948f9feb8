"""What all displays share: axes, colours and shapes, and checks of their arguments."""

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from fastae.data.row_source import Rows
from fastae.estimator import Autoencoder, AutoencoderDetector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, "#E69F00", "#000000")
MARKERS = "osD^vPX"


class Display:
    """A figure and the axes that it was drawn on."""

    figure_: "Figure | SubFigure"
    ax_: "Axes"

    def _open(self, ax: "Axes | None", size: tuple[float, float]) -> "Axes":
        if ax is None:
            try:
                import matplotlib.pyplot as plt
            except ImportError:
                raise ImportError('plots need matplotlib: pip install "fastae[plot]"') from None
            _, ax = plt.subplots(figsize=size, layout="constrained")
        self.ax_ = ax
        self.figure_ = ax.figure
        return ax


def classes(labels: np.ndarray) -> list[tuple[Any, tuple[str, str]]]:
    """List each class with its colour and marker; no two classes have the same pair."""
    names = np.unique(labels)
    looks = len(COLOURS)
    if names.size > looks * len(MARKERS):
        raise ValueError(f"labels has {names.size} classes, but {looks * len(MARKERS)} can be told apart")
    return [(name, (COLOURS[i % looks], MARKERS[(i + i // looks) % looks])) for i, name in enumerate(names)]


def short(number: float) -> str:
    """Write a number in three significant digits, up to a million without an exponent: 3220, 0.00012, 1.7e8."""
    text = f"{number:.3g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{float(text):.0f}" if 0 <= int(exponent) < 6 else f"{mantissa}e{int(exponent)}"


def label_logarithmic(axis: "Axis", low: float, high: float) -> None:
    """Give a logarithmic axis that shows `low` to `high` several labels, however short the range, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if high < 10 * low:  # less than a decade: the steps of a linear axis
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda number, _: short(number)))
    axis.set_minor_formatter(NullFormatter())


def rows_of(X: Any, numbers: np.ndarray) -> Any:
    """The rows of `X` with these numbers: of the same type as `X`, or Rows in memory."""
    return X.take(numbers) if isinstance(X, Rows) else _safe_indexing(X, numbers)


def check_fitted(estimator: Any) -> None:
    """Raise an error unless `estimator` is a fitted ``Autoencoder``."""
    if not isinstance(estimator, Autoencoder):
        raise TypeError(f"estimator must be an Autoencoder, got {type(estimator).__name__}")
    check_is_fitted(estimator)


def check_detector(estimator: Any) -> None:
    """Raise an error unless `estimator` is a fitted ``AutoencoderDetector``."""
    if not isinstance(estimator, AutoencoderDetector):
        raise TypeError(f"estimator must be an AutoencoderDetector, got {type(estimator).__name__}")
    check_is_fitted(estimator)
