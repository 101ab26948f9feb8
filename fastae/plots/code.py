"""CodeDisplay: the codes of rows, as points in the plane."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from fastae.estimator import Autoencoder
from fastae.plots.display import BLUE, Display, check_fitted, classes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 20  # labels with more different numbers than this are a scale, not classes


class CodeDisplay(Display):
    """Codes as points in the plane, coloured by labels.

    Parameters
    ----------
    code : array-like of shape (m, k), k >= 2
        Codes, as ``Autoencoder.transform`` returns them. Codes of two units are drawn as they are, longer ones by
        their first two principal components.
    labels : array-like of shape (m,), optional
        Classes or numbers. More than 20 different numbers are drawn on a colour scale.
    units : tuple of two int, optional
        Two units of the code to draw instead, counted from 0.

    Attributes
    ----------
    points : ndarray of shape (m, 2)
        Coordinates of the points.
    axis_names : tuple of two str
        Labels of the axes.
    ax_ : matplotlib Axes
        The axes of the last ``plot``.
    figure_ : matplotlib Figure
        Their figure.
    scatters_ : dict of PathCollection
        The points of each class, by class; under None if there are no classes.
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
        estimator: Autoencoder,
        X: Any,
        labels: npt.ArrayLike | None = None,
        *,
        units: tuple[int, int] | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw the codes of the rows of `X`.

        Parameters
        ----------
        estimator : Autoencoder
            A fitted model.
        X : array-like of shape (m, n), data frame or Rows
            Rows in the scale of the data.
        labels : array-like of shape (m,), optional
            Classes or numbers, as for the class.
        units : tuple of two int, optional
            Two units of the code to draw, as for the class.
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        CodeDisplay
            The display, drawn.
        """
        check_fitted(estimator)
        return cls(estimator.transform(X), labels, units=units).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        CodeDisplay
            The display itself.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
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
            for i, (name, (colour, marker)) in enumerate(classes(self.labels)):
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
