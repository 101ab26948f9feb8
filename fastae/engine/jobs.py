"""What the kernels are told: optimizers and objectives as the numbers of ``kernels/job.py``. No arithmetic."""

import numpy as np
import numpy.typing as npt

from fastae.kernels import job as fields
from fastae.objective import Objective
from fastae.optimizers import SGD, Adam, Optimizer, State


def optimizer_settings(
    optimizer: Optimizer | None, state: State | None
) -> tuple[int, npt.NDArray[np.float64]]:
    """The id of an optimizer, and its settings from the step on that `state` has come to."""
    settings = np.zeros(fields.SETTINGS_SIZE)
    if optimizer is None:
        return fields.NONE, settings
    if state is None:
        raise TypeError("state is needed with an optimizer, got None")
    settings[fields.DECAY], settings[fields.STEPS_BEFORE] = optimizer.weight_decay, state.steps
    if isinstance(optimizer, SGD):
        settings[fields.MOMENTUM], settings[fields.NESTEROV] = optimizer.momentum, optimizer.nesterov
        return fields.SGD, settings
    if isinstance(optimizer, Adam):
        settings[fields.BETA_1], settings[fields.BETA_2] = optimizer.beta_1, optimizer.beta_2
        settings[fields.EPSILON] = optimizer.epsilon
        return fields.ADAM, settings
    raise TypeError(f"optimizer must be SGD, Adam or AdamW, got {optimizer!r}")


def noise_id(objective: Objective) -> int:
    """The id of the noise that an objective asks for."""
    return {None: fields.NO_NOISE, "gaussian": fields.GAUSSIAN, "mask": fields.MASK, "swap": fields.SWAP}[
        objective.noise
    ]
