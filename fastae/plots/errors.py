"""ErrorHistogramDisplay and WorstRowsDisplay: the rows' errors, and the features that cause the largest ones."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from fastae.checks import check_count
from fastae.estimator import AutoencoderDetector
from fastae.plots.display import Display, check_detector, classes, label_logarithmic, rows_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HATCHES = ("", "////", "....", "xxxx", "----", "++++", "oooo")
VISIBLE = 0.01  # the smallest share that is drawn as a number


class ErrorHistogramDisplay(Display):
    """Histogram of the rows' errors, with the threshold above which a row is an outlier.

    Parameters
    ----------
    error : array-like of shape (m,)
        Error of each row, in the network's scale: minus ``score_samples``.
    threshold : float
        Threshold for the error: ``threshold_``.
    labels : array-like of shape (m,), optional
        Known classes; each is drawn as a histogram of its own.

    Attributes
    ----------
    bin_edges : ndarray
        Edges of the bins; one of them is the threshold. They are evenly spaced on a logarithmic scale if all errors
        are positive, otherwise on a linear one.
    ax_ : matplotlib Axes
        The axes of the last ``plot``.
    figure_ : matplotlib Figure
        Their figure.
    counts_ : dict of str to ndarray
        Number of rows in each bin, by class; without labels, under "inlier" and "outlier".
    threshold_line_ : matplotlib Line2D
        The line at the threshold.
    """

    def __init__(
        self, error: npt.ArrayLike, threshold: float, *, labels: npt.ArrayLike | None = None
    ) -> None:
        self.error, self.threshold = np.asarray(error, np.float64), float(threshold)
        self.labels = None if labels is None else np.asarray(labels)
        if self.error.ndim != 1 or not self.error.size:
            raise ValueError(f"error must contain one number per row, got shape {self.error.shape}")
        if self.labels is not None and self.labels.shape != self.error.shape:
            raise ValueError(f"labels has shape {self.labels.shape}, but error has {self.error.size} rows")
        ends = np.array([*self.error, self.threshold])
        self._log = bool(ends.min() > 0)
        ends = np.log(ends) if self._log else ends
        low, high, middle = ends.min(), ends.max(), ends[-1]
        width = (high - low or 1.0) / 50
        below, above = np.ceil((middle - low) / width), np.ceil((high - middle) / width)
        edges = middle + width * np.arange(-max(below, 1), max(above, 1) + 1)
        self.bin_edges = np.exp(edges) if self._log else edges
        self.bin_edges[int(max(below, 1))] = self.threshold

    @classmethod
    def from_estimator(
        cls,
        estimator: AutoencoderDetector,
        X: Any,
        *,
        labels: npt.ArrayLike | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw the errors of the rows of `X`.

        Parameters
        ----------
        estimator : AutoencoderDetector
            A fitted detector.
        X : array-like of shape (m, n), data frame or Rows
            Rows in the scale of the data.
        labels : array-like of shape (m,), optional
            Known classes, as for the class.
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        ErrorHistogramDisplay
            The display, drawn.
        """
        check_detector(estimator)
        return cls(-estimator.score_samples(X), -estimator.offset_, labels=labels).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        ErrorHistogramDisplay
            The display itself.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        ax = self._open(ax, (6.5, 4))
        from matplotlib.ticker import MaxNLocator

        out = self.error > self.threshold
        kinds, word = self.labels, "rows above"
        if kinds is None:
            kinds, word = np.where(out, "outlier", "inlier"), "rows"
        self.counts_: dict[Any, Any] = {}
        for i, (name, (colour, _)) in enumerate(classes(kinds)):
            of = kinds == name
            part = f"{of.sum()} of {of.size}" if self.labels is None else f"{(of & out).sum()} of {of.sum()}"
            self.counts_[name], _, _ = ax.hist(
                self.error[of],
                bins=self.bin_edges,
                histtype="stepfilled",
                facecolor=(colour, 0.35),
                edgecolor=colour,
                hatch=HATCHES[i % len(HATCHES)],
                label=f"{name}: {part} {word}",
            )
        self.threshold_line_ = ax.axvline(
            self.threshold, color="black", linestyle="--", label=f"threshold {short(self.threshold)}"
        )
        if self._log:
            ax.set_xscale("log")
            label_logarithmic(ax.xaxis, self.bin_edges[0], self.bin_edges[-1])
        ax.set(xlabel="error, in the network's scale", ylabel="rows")
        ax.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize="small")
        return self


class WorstRowsDisplay(Display):
    """The rows with the largest errors, worst first, and each feature's share of the error.

    Parameters
    ----------
    rows : array-like of shape (r,)
        Names or numbers of the rows.
    error : array-like of shape (r,)
        Their errors, as for ``ErrorHistogramDisplay``.
    features : sequence of f str or int
        Names or numbers of the features.
    shares : array-like of shape (r, f)
        Each feature's share of the row's error, in [0, 1].

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes of the last ``plot``.
    figure_ : matplotlib Figure
        Their figure.
    image_ : matplotlib AxesImage
        The shares in percent, of shape (f, r).
    """

    def __init__(
        self, rows: npt.ArrayLike, error: npt.ArrayLike, features: Any, shares: npt.ArrayLike
    ) -> None:
        self.rows, self.error, self.features = np.asarray(rows), np.asarray(error), np.asarray(features)
        self.shares = np.asarray(shares, np.float64)
        wanted = (self.rows.size, self.features.size)
        if self.shares.shape != wanted or self.error.shape != wanted[:1] or not self.shares.size:
            raise ValueError(
                f"shares must be of shape (rows, features), with one error per row, got shares {self.shares.shape}, "
                f"rows {self.rows.shape}, error {self.error.shape} and features {self.features.shape}"
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: AutoencoderDetector,
        X: Any,
        *,
        count: int = 10,
        top: int = 3,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw the rows of `X` with the largest errors.

        Parameters
        ----------
        estimator : AutoencoderDetector
            A fitted detector.
        X : array-like of shape (m, n), data frame or Rows
            Rows in the scale of the data.
        count : int, default 10
            Number of rows to draw.
        top : int, default 3
            A feature is shown if it is among the `top` worst of any of these rows, with at least 1% of the row's error
            (or, where no share is as large, whatever its share). Features with the largest shares come first.
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        WorstRowsDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            `count` or `top` is not an integer of at least 1.
        """
        check_detector(estimator)
        check_count(count, "count")
        check_count(top, "top")
        error = -estimator.score_samples(X)
        rows = np.argsort(-error, kind="stable")[:count]
        names, shares = estimator.explain(rows_of(X, rows), top=estimator.n_features_in_)
        shown = list(dict.fromkeys(names[:, :top].ravel().tolist()))
        by_name = [dict(zip(*pair, strict=True)) for pair in zip(names.tolist(), shares, strict=True)]
        table = np.array([[row[name] for name in shown] for row in by_name])
        order = np.argsort(-table.sum(axis=0), kind="stable")
        visible = table.max(axis=0)[order] >= VISIBLE
        order = order[visible] if visible.any() else order
        return cls(rows, error[rows], np.array(shown)[order], table[:, order]).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        WorstRowsDisplay
            The display itself.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        r, f = self.rows.size, self.features.size
        ax = self._open(ax, (3 + 0.55 * r, 1.6 + 0.3 * f))
        percent = 100 * self.shares.T
        self.image_ = ax.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for j, i in zip(*np.nonzero(self.shares.T >= VISIBLE), strict=True):
            colour = "white" if percent[j, i] > 60 else "black"
            ax.text(i, j, f"{percent[j, i]:.0f}", color=colour, ha="center", va="center", fontsize="small")
        labels = [f"{row}\n{short(error)}" for row, error in zip(self.rows, self.error, strict=True)]
        wide: dict[str, Any] = (
            {"rotation": 90, "linespacing": 1, "fontsize": "small"} if self._too_wide(labels) else {}
        )
        ax.set_xticks(range(r), labels, **wide)
        ax.set_yticks(range(f), [str(name) for name in self.features])
        ax.tick_params(length=0)
        ax.set(xlabel="row, with its error in the network's scale", ylabel="feature")
        self.figure_.colorbar(self.image_, ax=ax, label="share of the row's error (%)")
        return self

    def _too_wide(self, labels: list[str]) -> bool:
        """Whether such labels, side by side, would run into each other."""
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import TextPath

        font = FontProperties(size=self.ax_.xaxis.get_major_ticks(1)[0].label1.get_fontsize())
        widest = max(
            TextPath((0, 0), line, prop=font).get_extents().width
            for label in labels
            for line in label.split()
        )
        figure = self.figure_.get_figure(root=True)
        points = self.ax_.get_window_extent().width * 72 / figure.dpi
        return widest > 0.6 * points / len(labels)  # the layout takes up to a third of the points
