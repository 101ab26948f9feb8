"""What training tells: each epoch, the whole run, and that it diverged."""

from dataclasses import dataclass, field

from fastae.network import Parameters
from fastae.optimizers import State


class DivergenceError(ArithmeticError):
    """The loss was no longer finite. The parameters are those of the last finite loss kept."""


@dataclass(frozen=True)
class Epoch:
    """What a callback is told after each epoch.

    Attributes
    ----------
    number : int
        Counted from 1.
    epochs : int
        How many were asked for.
    loss : float
        Mean over the epoch's rows of half the squared error, each batch's before its step.
    learning_rate : float
        Of the epoch's last step.
    seconds : float
        Since training began.
    params : Parameters
        The ones being trained, after this epoch.
    validation_loss : float or None
        After this epoch, where it is asked for.
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
        By epoch: mean over its rows of half the squared error, each batch's before its step.
    validation_loss : list of float
        By epoch, after it; empty unless asked for.
    learning_rate : list of float
        By epoch: that of its last step.
    best_epoch : int
        Whose parameters are kept: that of the least validation loss, or the last; counted from 1.
    seconds : float
        What the run took.
    rows : int
        Rows gone through: m times the epochs.
    state : State
        The optimizer's, to go on from.
    stop_reason : str
        "epochs" (all done), "callback", or "tol": no better for `patience` epochs.
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
        """Rows gone through per second."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0
