"""What training reports: each epoch, the whole run, and a divergence."""

from dataclasses import dataclass, field

from fastae.network import Parameters
from fastae.optimizers import State


class DivergenceError(ArithmeticError):
    """The loss was no longer finite. The parameters are back at the last finite loss."""


@dataclass(frozen=True)
class Epoch:
    """What a callback receives after each epoch.

    Attributes
    ----------
    number : int
        Counted from 1.
    epochs : int
        The number of epochs that training was asked for.
    loss : float
        Mean over the epoch's rows of half the squared error; each batch is evaluated before its step.
    learning_rate : float
        The learning rate of the epoch's last step.
    seconds : float
        Time since training began.
    params : Parameters
        The parameters being trained, after this epoch.
    validation_loss : float or None
        The validation loss after this epoch, if there is one.
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
    """How a training run went.

    Attributes
    ----------
    loss : list of float
        By epoch: mean over its rows of half the squared error; each batch is evaluated before its step.
    validation_loss : list of float
        By epoch, after it; empty without validation.
    learning_rate : list of float
        By epoch: the learning rate of its last step.
    best_epoch : int
        The epoch of the final parameters: that of the least validation loss, or the last; counted from 1.
    seconds : float
        Duration of the run.
    rows : int
        Rows processed: m times the number of epochs.
    state : State
        The state of the optimizer, to continue from.
    stop_reason : str
        "epochs": all were done. "callback": it returned True. "tol": no improvement for `patience` epochs.
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
