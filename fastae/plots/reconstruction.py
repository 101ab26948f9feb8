"""ReconstructionDisplay: rows beside their reconstructions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from fastae.estimator import Autoencoder
from fastae.plots.display import BLUE, ORANGE, Display, check_fitted, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS_PER_INCH = 5  # of vertical text, side by side

# Label of the values in the network's scale, by the estimator's `scale`
VALUE = {
    "standard": "value, in standard deviations from the column's mean",
    "minmax": "value, 0 to 1 over the column's range in training",
    None: "value",
}


class ReconstructionDisplay(Display):
    """Rows beside their reconstructions: as images above one another, or as profiles over the features.

    Parameters
    ----------
    X : array-like of shape (m, n)
        The rows to draw; only a few.
    xhat : array-like of shape (m, n)
        Their reconstructions.
    image_shape : tuple of two int, optional
        Draw rows as images of this (height, width), height * width = n. Default: profiles.
    feature_names : sequence of n str, optional
        Tick labels of profiles; of many features, every second, third, ... is labelled. Default: their numbers.
    row_names : sequence of m str or int, optional
        Names of the rows. Default: their numbers.
    value : str, default "value"
        What the values are, for the axis label.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes of the last ``plot``.
    figure_ : matplotlib Figure
        Their figure.
    axes_ : list of matplotlib Axes
        For profiles, one per row, within `ax_`; empty for images.
    images_ : list of tuple of AxesImage
        For images, each row's image and its reconstruction; empty for profiles.
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
                f"X and xhat must have the same two-dimensional shape, got {self.X.shape} and {self.xhat.shape}"
            )
        m, n = self.X.shape
        if image_shape is not None and image_shape[0] * image_shape[1] != n:
            raise ValueError(f"image_shape must have {n} cells, one per feature of X, got {image_shape}")
        self.image_shape = image_shape
        self.feature_names = np.arange(n) if feature_names is None else np.asarray(feature_names)
        self.row_names = np.arange(m) if row_names is None else np.asarray(row_names)
        for name, names, count in (("feature", self.feature_names, n), ("row", self.row_names, m)):
            if names.shape != (count,):
                raise ValueError(f"{name}_names must contain {count} names, got {names.size}")

    @classmethod
    def from_estimator(
        cls,
        estimator: Autoencoder,
        X: Any,
        *,
        rows: Any = None,
        image_shape: tuple[int, int] | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw rows of `X` and their reconstructions.

        Parameters
        ----------
        estimator : Autoencoder
            A fitted model.
        X : array-like of shape (m, n), data frame or Rows
            Rows in the scale of the data.
        rows : int or sequence of int, optional
            How many of the first rows to draw, or the numbers of the rows. Default: 10 images or 3 profiles.
        image_shape : tuple of two int, optional
            Draw rows as images of this (height, width), in the scale of the data. Default: profiles, in the network's
            scale, which is the same for all features.
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        ReconstructionDisplay
            The display, drawn.
        """
        check_fitted(estimator)
        if rows is None:
            rows = 10 if image_shape is not None else 3
        chosen = np.arange(min(int(rows), len(X))) if np.ndim(rows) == 0 else np.asarray(rows)
        part = rows_of(X, chosen)
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
        """Draw on `ax`, or on a new figure.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        ReconstructionDisplay
            The display itself.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
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
            images = [
                ax.imshow(
                    np.reshape(image, self.image_shape),
                    cmap="gray_r",
                    vmin=low,
                    vmax=high,
                    extent=(left, left + width, bottom, bottom + height),
                )
                for image, bottom in zip(pair, (height + gap, 0), strict=True)
            ]
            self.images_.append((images[0], images[1]))
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
            room = max(1, int(LABELS_PER_INCH * self.figure_.get_figure(root=True).get_figwidth()))
            every = -(-places.size // room)
            for panel in self.axes_:
                panel.set_xticks(places[::every], self.feature_names[::every], rotation=90)
        self.axes_[-1].set_xlabel("feature")
        self.axes_[0].set_title(self.value, fontsize="small", loc="left")
        self.axes_[0].legend(
            loc="lower right", bbox_to_anchor=(1.01, 0.97), ncols=3, frameon=False, fontsize="small"
        )


def save_reconstructions(
    path: str | Path, X: np.ndarray, xhat: np.ndarray, *, shape: tuple[int, int], count: int = 10
) -> None:
    """Draw the first `count` rows of `X` as images above their reconstructions, into a file.

    Parameters
    ----------
    path : path
        File to write; its suffix determines the format.
    X : ndarray of shape (m, n)
        Rows to draw.
    xhat : ndarray of shape (m, n)
        Their reconstructions.
    shape : tuple of two int
        (height, width) of an image; height * width = n.
    count : int, default 10
        Number of rows to draw.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    OSError
        The file cannot be written.
    """
    from matplotlib.figure import Figure

    display = ReconstructionDisplay(X[:count], xhat[:count], image_shape=shape)
    figure = Figure(figsize=(1 + 0.8 * len(display.X), 2), layout="constrained")
    display.plot(figure.subplots())
    figure.savefig(path, dpi=150)
