"""What training reports: each epoch, the whole run, and a divergence."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from fastae.network import Parameters
from fastae.optimizers import State

LOWER_RATE = "lower the learning rate"  # the advice of a DivergenceError, where it may help


class DivergenceError(ArithmeticError):
    """The loss became infinite or NaN.

    ``fastae.train`` restores the parameters to those of the last finite loss; an estimator is as before its fit.

    Attributes
    ----------
    history : History or None
        Of ``fastae.train``: the run up to the divergence. Its last loss is infinite, and the losses before are those of
        the epochs that were complete. `stop_reason` is "divergence".
    """

    history: "History | None" = None


def naming_rate(error: DivergenceError, setting: str) -> DivergenceError:
    """The same error without `history`; its advice calls the learning rate by the name of the user's setting."""
    return DivergenceError(str(error).replace(LOWER_RATE, f"lower {setting}"))


@dataclass(frozen=True)
class Epoch:
    """What a callback receives after each epoch.

    Attributes
    ----------
    number : int
        Number of the epoch, counted from 1.
    epochs : int
        Number of epochs that were requested.
    loss : float
        What training minimises, the loss with its penalties: mean over the epoch's rows, each batch's before its step.
    learning_rate : float
        Learning rate of the epoch's last step.
    seconds : float
        Time since training began.
    params : Parameters
        The parameters in training, after this epoch. Copy them to keep them.
    validation_loss : float or None
        Validation loss after this epoch, if there is one.
    """

    number: int
    epochs: int
    loss: float
    learning_rate: float
    seconds: float
    params: Parameters = field(repr=False)
    validation_loss: float | None = None


@dataclass
class History:
    """What training reports when it ends.

    Attributes
    ----------
    state : State
        The optimizer's state, with which training can continue.
    loss : list of float
        By epoch, what training minimises, the loss with its penalties (``fastae.Objective``): mean over the epoch's
        rows by their weights, each batch's before its step. By iteration of "lbfgs": that of all rows after it.
    validation_loss : list of float
        By epoch: validation loss after it. Empty if there is none.
    best_epoch : int
        Number, counted from 1, of the epoch whose parameters were kept: the one with the lowest validation loss, or
        the last.
    learning_rate : list of float
        By epoch: learning rate of its last step.
    seconds : float
        Duration of the run.
    rows : int
        Number of rows processed: m times the number of epochs.
    stop_reason : str
        "epochs": all epochs are done. "callback": the callback stopped training. "tol": no improvement for `patience`
        epochs. "divergence": the loss became infinite or NaN (``fastae.train_many``).
    """

    state: State
    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0
    learning_rate: list[float] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0
    stop_reason: str = "epochs"

    @property
    def rows_per_second(self) -> float:
        """Rows processed per second."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0


# What a checkpoint stores of a History: all but its state; with examples of each kind for ``storage.check_like``
STORED: dict[str, Any] = {
    own.name: [0.0] if own.default is MISSING else own.default
    for own in fields(History)
    if own.name != "state"
}


def stored_history(history: History) -> dict[str, Any]:
    """What a checkpoint stores of a History, by name."""
    return {name: getattr(history, name) for name in STORED}
