"""TrainingOptions: how long to train, in what batches, when to stop, callback and progress."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastae.checks import check_count, check_flag, check_number, check_seed
from fastae.network import Parameters
from fastae.objective import Objective
from fastae.optimizers import Optimizer
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import Epoch


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options that every kind of training has; each is described in ``fastae.train``.

    They are checked here, before anything runs: a TypeError or ValueError names the option.
    """

    epochs: int = 100
    batch_size: int | None = None
    shuffle: bool = True
    seed: int | np.random.Generator = 0
    validate: Callable[[Parameters], float] | None = None
    patience: int | None = None
    tol: float = 0.0
    adaptive: bool = False
    callback: Callable[[Epoch], bool | None] | None = None
    progress: bool = False
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None
    resume: bool = False
    tied: tuple[tuple[str, str], ...] = ()
    restores: bool = True  # whether `params` and `state` are restored after a divergence

    def __post_init__(self) -> None:
        check_count(self.epochs, "epochs")
        for name in ("batch_size", "patience"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name)
        check_seed(self.seed)
        check_number(self.tol, "tol")
        if not (self.tol >= 0 and math.isfinite(self.tol)):
            raise ValueError(f"tol must be finite and not negative, got {self.tol!r}")
        for name in ("validate", "callback"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} must be callable or None, got {getattr(self, name)!r}")
        for name in ("shuffle", "adaptive", "progress", "resume"):
            check_flag(getattr(self, name), name)

    @property
    def decides(self) -> bool:
        """Whether anything is computed or decided between two epochs."""
        return self.callback is not None or self.validate is not None or self.patience is not None

    def open_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to write, holding the run to resume if `resume` is set."""
        return Checkpoint.at(self.checkpoint, self.resume)

    def settings(self, params: Parameters, optimizer: Optimizer, objective: Objective) -> dict[str, Any]:
        """What a checkpoint records of a run, so that it is resumed only with the same options."""
        return {
            "network": params.network,
            "dtype": params.dtype,
            "objective": objective,
            "optimizer": optimizer,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "patience": self.patience,
            "tol": self.tol,
            "adaptive": self.adaptive,
            "validate": self.validate is not None,
            "tied": self.tied,
        }
