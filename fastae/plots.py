"""Pictures in scikit-learn's Display style: ``XDisplay.from_estimator(...)`` computes and draws, ``plot`` draws again.

matplotlib (the ``plot`` extra) is imported when one is drawn. Every ``plot`` takes the axes to draw on; without them
it makes a figure with pyplot, as scikit-learn does. To write a file from a program, give it axes of its own, which
need no display and leave pyplot alone::

    figure = matplotlib.figure.Figure(layout="constrained")
    LossCurveDisplay.from_estimator(model, ax=figure.subplots())
    figure.savefig("loss.png")

Colours are those of Okabe and Ito, which the colour-blind can tell apart; nothing is said by colour alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from fastae.estimator import Autoencoder, AutoencoderDetector
from fastae.rows import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "CodeDisplay",
    "ErrorHistogramDisplay",
    "LossCurveDisplay",
    "ReconstructionDisplay",
    "WorstRowsDisplay",
]

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, "#E69F00", "#000000")
MARKERS = "osD^vPX"
HATCHES = ("", "////", "....", "xxxx", "----", "++++", "oooo")
MANY = 20  # so many different numbers among the labels are a scale, not classes
# What a value means in the scale the network sees, by the estimator's `scale`
VALUE = {
    "standard": "value, in standard deviations from the column's mean",
    "minmax": "value, 0 to 1 over the column's range in training",
    None: "value",
}


class _Display:
    """A figure and the axes that it was drawn on."""

    figure_: "Figure | SubFigure"
    ax_: "Axes"

    def _open(self, ax: "Axes | None", size: tuple[float, float]) -> "Axes":
        if ax is None:
            try:
                import matplotlib.pyplot as plt
            except ImportError:
                raise ImportError('pictures need matplotlib: pip install "fastae[plot]"') from None
            _, ax = plt.subplots(figsize=size, layout="constrained")
        self.ax_ = ax
        self.figure_ = ax.figure
        return ax


class LossCurveDisplay(_Display):
    """The loss by epoch, that of the validation rows beside it, and the epoch whose parameters were kept.

    Parameters
    ----------
    loss : array-like of shape (epochs,)
        ``loss_curve_``, or ``History.loss``.
    validation_loss : array-like of shape (epochs,), optional
        ``validation_loss_curve_``, or ``History.validation_loss``; empty is as good as None.

    Attributes
    ----------
    best_epoch : int or None
        That of the least validation loss, counted from 1.
    ax_, figure_ : matplotlib Axes and Figure
    line_, validation_line_, best_ : matplotlib Line2D
        The last two are None without validation rows.
    """

    def __init__(self, loss: npt.ArrayLike, validation_loss: npt.ArrayLike | None = None) -> None:
        self.loss = np.asarray(loss, np.float64)
        self.validation_loss, self.best_epoch = None, None
        if validation_loss is not None and np.size(validation_loss):
            self.validation_loss = np.asarray(validation_loss, np.float64)
            if self.validation_loss.shape != self.loss.shape:
                raise ValueError(
                    f"validation_loss has {self.validation_loss.size} epochs, but loss has {self.loss.size}"
                )
            self.best_epoch = 1 + int(np.argmin(self.validation_loss))

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: "Axes | None" = None) -> Self:
        """Draw the curves of a fitted ``Autoencoder``."""
        _check_fitted(estimator)
        return cls(estimator.loss_curve_, estimator.validation_loss_curve_).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure."""
        ax = self._open(ax, (6, 4))
        from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

        epochs = np.arange(1, self.loss.size + 1)
        marker = "." if self.loss.size == 1 else ""
        (self.line_,) = ax.plot(epochs, self.loss, color=BLUE, marker=marker, label="training")
        self.validation_line_ = self.best_ = None
        if self.validation_loss is not None and self.best_epoch is not None:
            (self.validation_line_,) = ax.plot(
                epochs, self.validation_loss, color=ORANGE, linestyle="--", marker=marker, label="validation"
            )
            least = self.validation_loss[self.best_epoch - 1]
            (self.best_,) = ax.plot(
                *([self.best_epoch], [least]),
                color=ORANGE,
                marker="o",
                linestyle="none",
                label=f"best, kept: {least:.4g} in epoch {self.best_epoch}",
            )
        ax.set(xlabel="epoch", ylabel="loss: half the squared error of a row, mean")
        if self.loss.min() > 0 and self.loss.max() > 3 * self.loss.min():
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend()
        return self


class ReconstructionDisplay(_Display):
    """Rows beside what the network makes of them: images above one another, or profiles over the features.

    Parameters
    ----------
    X, xhat : array-like of shape (m, n)
        The rows to draw, few, and their reconstructions.
    image_shape : (height, width), optional
        Draw rows as images, height * width = n. Profiles by default.
    feature_names : sequence of n names, optional
        Profiles' ticks; numbers by default.
    row_names : sequence of m names, optional
        What each row is called; its number by default.
    value : str, default "value"
        What is measured, for the axis.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
    axes_ : list of Axes
        Profiles: one for each row, within `ax_`. Empty for images.
    images_ : list of pairs of AxesImage
        Each row's image and its reconstruction. Empty for profiles.
    """

    def __init__(
        self,
        X: npt.ArrayLike,
        xhat: npt.ArrayLike,
        *,
        image_shape: tuple[int, int] | None = None,
        feature_names: Any = None,
        row_names: Any = None,
        value: str = "value",
    ) -> None:
        self.X, self.xhat, self.value = np.asarray(X), np.asarray(xhat), value
        if self.X.ndim != 2 or self.X.shape != self.xhat.shape or not self.X.size:
            raise ValueError(
                f"X and xhat must be rows of one shape, got shapes {self.X.shape} and {self.xhat.shape}"
            )
        m, n = self.X.shape
        if image_shape is not None and image_shape[0] * image_shape[1] != n:
            raise ValueError(f"image_shape must have {n} cells, as X has features, got {image_shape}")
        self.image_shape = image_shape
        self.feature_names = np.arange(n) if feature_names is None else np.asarray(feature_names)
        self.row_names = np.arange(m) if row_names is None else np.asarray(row_names)
        for name, names, count in (("feature", self.feature_names, n), ("row", self.row_names, m)):
            if names.shape != (count,):
                raise ValueError(f"{name}_names must be {count}, got {names.size}")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        rows: Any = None,
        image_shape: tuple[int, int] | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw rows of `X` and what a fitted ``Autoencoder`` makes of them.

        Parameters
        ----------
        estimator : Autoencoder
        X : array-like of shape (m, n), or Rows
        rows : int or sequence of int, optional
            How many of the first rows, or which; 10 images or 3 profiles by default.
        image_shape : (height, width), optional
            Images show values as they are in `X`. Profiles, by default, are in the scale the network sees: one for
            all features.
        ax : matplotlib Axes, optional
        """
        _check_fitted(estimator)
        if rows is None:
            rows = 10 if image_shape is not None else 3
        chosen = np.arange(min(int(rows), len(X))) if np.ndim(rows) == 0 else np.asarray(rows)
        part = _rows_of(X, chosen)
        xhat, part = estimator.reconstruct(part), np.asarray(part)
        value = "value"
        if image_shape is None:
            value = VALUE[estimator.scale]
            if estimator.scale_ is not None:
                part, xhat = ((a - estimator.shift_) * estimator.scale_ for a in (part, xhat))
        names = getattr(estimator, "feature_names_in_", None)
        return cls(
            part, xhat, image_shape=image_shape, feature_names=names, row_names=chosen, value=value
        ).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure."""
        self.axes_: list[Axes] = []
        self.images_: list[tuple[Any, Any]] = []
        if self.image_shape is None:
            self._profiles(self._open(ax, (8, 1 + 1.6 * len(self.X))))
        else:
            height, width = self.image_shape
            self._images(self._open(ax, (1 + 0.8 * len(self.X), 0.4 + 1.7 * height / width)))
        return self

    def _images(self, ax: "Axes") -> None:
        assert self.image_shape is not None
        height, width = self.image_shape
        gap = 0.1 * max(height, width)
        low, high = float(np.nanmin(self.X)), float(np.nanmax(self.X))
        places = np.arange(len(self.X)) * (width + gap)
        for left, *pair in zip(places, self.X, self.xhat, strict=True):
            drawn = [
                ax.imshow(
                    np.reshape(image, self.image_shape),
                    cmap="gray_r",
                    vmin=low,
                    vmax=high,
                    extent=(left, left + width, bottom, bottom + height),
                )
                for image, bottom in zip(pair, (height + gap, 0), strict=True)
            ]
            self.images_.append((drawn[0], drawn[1]))
        ax.set(xlim=(-gap / 2, places[-1] + width + gap / 2), ylim=(-gap / 2, 2 * height + 1.5 * gap))
        ax.set_xticks(places + width / 2, [str(name) for name in self.row_names])
        ax.set_yticks([height / 2, 1.5 * height + gap], ["reconstruction", "original"])
        ax.tick_params(length=0)
        ax.set_xlabel("row")
        ax.spines[:].set_visible(False)
        beside = ax.inset_axes((1.01, 0, 0.012, 1))
        self.figure_.colorbar(self.images_[0][0], cax=beside, label=self.value)

    def _profiles(self, ax: "Axes") -> None:
        ax.set_axis_off()
        count, places = len(self.X), np.arange(self.X.shape[1])
        each = 1 / count
        for i, (x, xhat) in enumerate(zip(self.X, self.xhat, strict=True)):
            panel = ax.inset_axes((0, 1 - (i + 1) * each, 1, 0.88 * each))
            panel.vlines(places, x, xhat, color="0.7", linewidth=2, label="difference")
            panel.plot(places, x, "o", color=BLUE, markersize=5, label="original")
            panel.plot(places, xhat, "x", color=ORANGE, markersize=6, label="reconstruction")
            panel.set(xlim=(-0.5, places[-1] + 0.5), ylabel=f"row {self.row_names[i]}")
            panel.grid(alpha=0.3)
            panel.tick_params(labelbottom=i == count - 1)
            self.axes_.append(panel)
        if not np.issubdtype(self.feature_names.dtype, np.number):
            for panel in self.axes_:
                panel.set_xticks(places, self.feature_names, rotation=90)
        self.axes_[-1].set_xlabel("feature")
        self.axes_[0].set_title(self.value, fontsize="small", loc="left")
        self.axes_[0].legend(
            loc="lower right", bbox_to_anchor=(1.01, 0.97), ncols=3, frameon=False, fontsize="small"
        )


class CodeDisplay(_Display):
    """Codes as points in the plane, coloured by labels.

    Parameters
    ----------
    code : array-like of shape (m, k), k >= 2
        Two units are drawn as they are, more by their first two principal components.
    labels : array-like of shape (m,), optional
        Classes, or numbers: more than 20 different ones are drawn as a scale.
    units : (int, int), optional
        Two units of the code to draw instead, counted from 0.

    Attributes
    ----------
    points : ndarray of shape (m, 2)
    axis_names : (str, str)
    ax_, figure_ : matplotlib Axes and Figure
    scatters_ : dict of PathCollection
        By class; under None where there are no classes.
    """

    def __init__(
        self,
        code: npt.ArrayLike,
        labels: npt.ArrayLike | None = None,
        *,
        units: tuple[int, int] | None = None,
    ) -> None:
        code = np.asarray(code)
        if code.ndim != 2 or code.shape[1] < 2:
            raise ValueError(f"code must have 2 units or more, got shape {code.shape}")
        self.labels = None if labels is None else np.asarray(labels)
        if self.labels is not None and self.labels.shape != code.shape[:1]:
            raise ValueError(f"labels has shape {self.labels.shape}, but code has {len(code)} rows")
        if units is None and code.shape[1] == 2:
            units = (0, 1)
        if units is not None:
            self.points = code[:, list(units)]
            self.axis_names = (f"unit {units[0]} of the code", f"unit {units[1]} of the code")
        else:
            from sklearn.decomposition import PCA

            pca = PCA(2, svd_solver="full")
            self.points = pca.fit_transform(code)
            first, second = pca.explained_variance_ratio_
            self.axis_names = (
                f"first principal component of the code ({first:.0%} of its variance)",
                f"second ({second:.0%})",
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        labels: npt.ArrayLike | None = None,
        *,
        units: tuple[int, int] | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw the codes that a fitted ``Autoencoder`` gives the rows of `X`; see the class for the rest."""
        _check_fitted(estimator)
        return cls(estimator.transform(X), labels, units=units).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure."""
        ax = self._open(ax, (6.5, 5))
        look: dict[str, Any] = {"s": 14, "alpha": 0.8, "linewidths": 0}
        self.scatters_: dict[Any, Any] = {}
        x, y = self.points.T
        if self.labels is None:
            self.scatters_[None] = ax.scatter(x, y, color=BLUE, **look)
        elif self.labels.dtype.kind in "fiu" and np.unique(self.labels).size > MANY:
            self.scatters_[None] = ax.scatter(x, y, c=self.labels, cmap="viridis", **look)
            self.figure_.colorbar(self.scatters_[None], ax=ax, label="label")
        else:
            for i, (name, (colour, marker)) in enumerate(_classes(self.labels)):
                of = self.labels == name
                self.scatters_[name] = ax.scatter(
                    x[of], y[of], color=colour, marker=marker, label=str(name), zorder=2 + i / 100, **look
                )
            ax.legend(
                title="label", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=1.8
            )
        ax.set(xlabel=self.axis_names[0], ylabel=self.axis_names[1])
        ax.grid(alpha=0.3)
        return self


class ErrorHistogramDisplay(_Display):
    """How the rows' errors are spread, and the threshold above which a row is an outlier.

    Parameters
    ----------
    error : array-like of shape (m,)
        Minus ``score_samples``: the mean over features of a row's squared error, in the scale the network sees.
    threshold : float
        Minus ``offset_``.
    labels : array-like of shape (m,), optional
        Known classes, each drawn as a histogram of its own.

    Attributes
    ----------
    bin_edges : ndarray
        The threshold is one. Evenly spaced in the logarithm where all errors are positive.
    ax_, figure_ : matplotlib Axes and Figure
    counts_ : dict of ndarray
        Rows by bin: by class, or under "inlier" and "outlier".
    threshold_line_ : matplotlib Line2D
    """

    def __init__(
        self, error: npt.ArrayLike, threshold: float, *, labels: npt.ArrayLike | None = None
    ) -> None:
        self.error, self.threshold = np.asarray(error, np.float64), float(threshold)
        self.labels = None if labels is None else np.asarray(labels)
        if self.error.ndim != 1 or not self.error.size:
            raise ValueError(f"error must hold one number a row, got shape {self.error.shape}")
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
        cls, estimator: Any, X: Any, *, labels: npt.ArrayLike | None = None, ax: "Axes | None" = None
    ) -> Self:
        """Draw the errors of the rows of `X` by a fitted ``AutoencoderDetector``."""
        _check_detector(estimator)
        return cls(-estimator.score_samples(X), -estimator.offset_, labels=labels).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure."""
        ax = self._open(ax, (6.5, 4))
        out = self.error > self.threshold
        kinds, word = self.labels, "rows above"
        if kinds is None:
            kinds, word = np.where(out, "outlier", "inlier"), "rows"
        self.counts_: dict[Any, Any] = {}
        for i, (name, (colour, _)) in enumerate(_classes(kinds)):
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
            self.threshold, color="black", linestyle="--", label=f"threshold {self.threshold:.3g}"
        )
        if self._log:
            ax.set_xscale("log")
        ax.set(
            xlabel="error of a row: squared error in the network's scale, mean over features", ylabel="rows"
        )
        ax.grid(alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize="small")
        return self


class WorstRowsDisplay(_Display):
    """The rows of the largest error, worst first, and what part of it each feature makes.

    Parameters
    ----------
    rows : array-like of shape (r,)
        Names or numbers of the rows.
    error : array-like of shape (r,)
        As for ``ErrorHistogramDisplay``.
    features : sequence of f names
    shares : array-like of shape (r, f)
        Each feature's part of the row's error, in [0, 1].

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
    image_ : matplotlib AxesImage
        Of `shares`, in percent, features by rows.
    """

    def __init__(
        self, rows: npt.ArrayLike, error: npt.ArrayLike, features: Any, shares: npt.ArrayLike
    ) -> None:
        self.rows, self.error, self.features = np.asarray(rows), np.asarray(error), np.asarray(features)
        self.shares = np.asarray(shares, np.float64)
        wanted = (self.rows.size, self.features.size)
        if self.shares.shape != wanted or self.error.shape != wanted[:1] or not self.shares.size:
            raise ValueError(
                f"shares must have a row for each of rows and error and a column for each of features, got shapes "
                f"{self.shares.shape}, {self.rows.shape}, {self.error.shape} and {self.features.shape}"
            )

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, *, count: int = 10, top: int = 3, ax: "Axes | None" = None
    ) -> Self:
        """Draw the rows of `X` of the largest error by a fitted ``AutoencoderDetector``.

        Parameters
        ----------
        estimator : AutoencoderDetector
        X : array-like of shape (m, n), or Rows
        count : int, default 10
            How many rows.
        top : int, default 3
            Features that are among the `top` worst of any of these rows are shown, those of the largest shares first.
        ax : matplotlib Axes, optional
        """
        _check_detector(estimator)
        for name, number in (("count", count), ("top", top)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number!r}")
        error = -estimator.score_samples(X)
        rows = np.argsort(-error, kind="stable")[:count]
        names, shares = estimator.explain(_rows_of(X, rows), top=estimator.n_features_in_)
        shown = list(dict.fromkeys(names[:, :top].ravel().tolist()))
        by_name = [dict(zip(*pair, strict=True)) for pair in zip(names.tolist(), shares, strict=True)]
        table = np.array([[row[name] for name in shown] for row in by_name])
        order = np.argsort(-table.sum(axis=0), kind="stable")
        return cls(rows, error[rows], np.array(shown)[order], table[:, order]).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure."""
        r, f = self.rows.size, self.features.size
        ax = self._open(ax, (3 + 0.55 * r, 1.6 + 0.3 * f))
        percent = 100 * self.shares.T
        self.image_ = ax.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for j, i in zip(*np.nonzero(percent >= 1), strict=True):
            colour = "white" if percent[j, i] > 60 else "black"
            ax.text(i, j, f"{percent[j, i]:.0f}", color=colour, ha="center", va="center", fontsize="small")
        ax.set_xticks(
            range(r), [f"{row}\n{error:.3g}" for row, error in zip(self.rows, self.error, strict=True)]
        )
        ax.set_yticks(range(f), [str(name) for name in self.features])
        ax.tick_params(length=0)
        ax.set(xlabel="row, and below it its error in the network's scale", ylabel="feature")
        self.figure_.colorbar(self.image_, ax=ax, label="share of the row's error (%)")
        return self


def save_reconstructions(
    path: str | Path, X: np.ndarray, xhat: np.ndarray, *, shape: tuple[int, int], count: int = 10
) -> None:
    """Draw the first `count` rows of `X` as images above their reconstructions, into a file.

    Parameters
    ----------
    path : path
        Its suffix chooses the format.
    X, xhat : arrays of shape (m, n)
    shape : (height, width)
        Of one image: height * width = n.
    count : int, default 10

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    display = ReconstructionDisplay(X[:count], xhat[:count], image_shape=shape)
    figure = Figure(figsize=(1 + 0.8 * len(display.X), 2), layout="constrained")
    display.plot(figure.subplots())
    figure.savefig(path, dpi=150)


def _classes(labels: np.ndarray) -> list[tuple[Any, tuple[str, str]]]:
    """Each class, and its colour and marker: no two classes have both."""
    names = np.unique(labels)
    looks = len(COLOURS)
    if names.size > looks * len(MARKERS):
        raise ValueError(f"labels has {names.size} classes, but {looks * len(MARKERS)} can be told apart")
    return [(name, (COLOURS[i % looks], MARKERS[(i + i // looks) % looks])) for i, name in enumerate(names)]


def _rows_of(X: Any, numbers: np.ndarray) -> Any:
    return X.take(numbers) if isinstance(X, Rows) else _safe_indexing(X, numbers)


def _check_fitted(estimator: Any) -> None:
    if not isinstance(estimator, Autoencoder):
        raise TypeError(f"estimator must be an Autoencoder, got {type(estimator).__name__}")
    check_is_fitted(estimator)


def _check_detector(estimator: Any) -> None:
    if not isinstance(estimator, AutoencoderDetector):
        raise TypeError(f"estimator must be an AutoencoderDetector, got {type(estimator).__name__}")
    check_is_fitted(estimator)
