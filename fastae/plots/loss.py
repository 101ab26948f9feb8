"""LossCurveDisplay: the loss by epoch."""

from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from fastae.estimator import Autoencoder
from fastae.plots.display import BLUE, ORANGE, Display, check_fitted, label_logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LossCurveDisplay(Display):
    """The loss of each epoch, the validation loss beside it, and the epoch whose parameters were kept.

    Parameters
    ----------
    loss : array-like of shape (epochs,)
        ``Autoencoder.loss_curve_`` or ``History.loss``.
    validation_loss : array-like of shape (epochs,), optional
        ``Autoencoder.validation_loss_curve_`` or ``History.validation_loss``; an empty one counts as None.

    Attributes
    ----------
    best_epoch : int or None
        Number, counted from 1, of the epoch with the lowest validation loss.
    ax_ : matplotlib Axes
        The axes of the last ``plot``.
    figure_ : matplotlib Figure
        Their figure.
    line_ : matplotlib Line2D
        The loss.
    validation_line_ : matplotlib Line2D or None
        The validation loss, if there is one.
    best_ : matplotlib Line2D or None
        The mark at the best epoch, if there is a validation loss.
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
    def from_estimator(cls, estimator: Autoencoder, *, ax: "Axes | None" = None) -> Self:
        """Draw the loss curves of a fitted model.

        Parameters
        ----------
        estimator : Autoencoder
            A fitted model.
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        LossCurveDisplay
            The display, drawn.
        """
        check_fitted(estimator)
        return cls(estimator.loss_curve_, estimator.validation_loss_curve_).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw on. Default: those of a new figure.

        Returns
        -------
        LossCurveDisplay
            The display itself.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        ax = self._open(ax, (6, 4))
        from matplotlib.ticker import MaxNLocator

        epochs = np.arange(1, self.loss.size + 1)
        marker = "." if self.loss.size == 1 else ""
        (self.line_,) = ax.plot(epochs, self.loss, color=BLUE, marker=marker, label="training")
        self.validation_line_ = self.best_ = None
        if self.validation_loss is not None and self.best_epoch is not None:
            (self.validation_line_,) = ax.plot(
                epochs, self.validation_loss, color=ORANGE, linestyle="--", marker=marker, label="validation"
            )
            lowest = self.validation_loss[self.best_epoch - 1]
            (self.best_,) = ax.plot(
                *([self.best_epoch], [lowest]),
                color=ORANGE,
                marker="o",
                linestyle="none",
                label=f"best, kept: {lowest:.4g} in epoch {self.best_epoch}",
            )
        ax.set(xlabel="epoch", ylabel="loss")
        shown = self.loss if self.validation_loss is None else np.append(self.loss, self.validation_loss)
        if shown.min() > 0 and self.loss.max() > 3 * self.loss.min():
            ax.set_yscale("log")
            label_logarithmic(ax.yaxis, shown.min(), shown.max())
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
        ax.legend()
        return self
