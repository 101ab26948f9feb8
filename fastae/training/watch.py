"""Watch: what happens after each epoch, or iteration of L-BFGS: validation, the best parameters, when to stop."""

from collections.abc import Callable

import numpy as np

from fastae.network import Parameters
from fastae.training.history import Epoch, History
from fastae.training.options import TrainingOptions


class Watch:
    """Follows the validation loss, or without ``options.validate`` the training loss.

    Attributes
    ----------
    best : float
        The least loss so far.
    best_flat : ndarray or None
        With validation: the parameters of that loss, as ``Parameters.flat``.
    best_epoch : int
        With validation: the epoch of that loss, counted from 1.
    stale : int
        For how many epochs the loss has not beaten its best by ``options.tol``.
    factor : float
        Learning rates are multiplied by it.
    """

    def __init__(
        self, options: TrainingOptions, params: Parameters, history: History, show: Callable[[Epoch], None]
    ) -> None:
        self.options, self.params, self.history, self.show = options, params, history, show
        self.best, self.best_epoch, self.stale, self.factor = np.inf, 0, 0, 1.0
        self.best_flat: np.ndarray | None = None

    def stops_after_epoch(self) -> bool:
        """Look at the last epoch of the history; True, with the history's `stop_reason`, where training must stop."""
        options, history = self.options, self.history
        number, loss, rate = len(history.loss), history.loss[-1], history.learning_rate[-1]
        validation_loss = None
        if options.validate is not None:
            loss = validation_loss = float(options.validate(self.params))
            history.validation_loss.append(loss)
        self.stale = 0 if loss <= self.best - options.tol else self.stale + 1
        if loss < self.best:
            self.best = loss
            if options.validate is not None:
                self.best_flat, self.best_epoch = self.params.flat.copy(), number
        epoch = Epoch(
            number, options.epochs, history.loss[-1], rate, history.seconds, self.params, validation_loss
        )
        self.show(epoch)
        if options.callback is not None and options.callback(epoch):
            history.stop_reason = "callback"
        elif options.patience is not None and self.stale > options.patience:
            self.factor, self.stale = self.factor / 5, 0
            if not options.adaptive or rate <= 1e-6:
                history.stop_reason = "tol"
        return history.stop_reason != "epochs"

    def keep_best(self) -> None:
        """Put the best parameters back, where there was validation."""
        if self.best_flat is not None:
            self.params.flat[:], self.history.best_epoch = self.best_flat, self.best_epoch

    # -- for checkpoints ----------------------------------------------------------------------------------------

    @property
    def stored(self) -> tuple[float, int, int, float]:
        """What a checkpoint stores in addition to `best_flat`."""
        return self.best, self.best_epoch, self.stale, self.factor

    @stored.setter
    def stored(self, values: tuple[float, int, int, float]) -> None:
        self.best, self.best_epoch, self.stale, self.factor = values
