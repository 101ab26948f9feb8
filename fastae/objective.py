"""Objective: the cost that training minimises, and what is done to its input: noise, missing cells. No arithmetic."""

import math
from dataclasses import dataclass
from typing import Literal

from fastae.checks import check_number

LOSSES = ("squared_error", "huber", "bernoulli")
NOISES = ("gaussian", "mask", "swap")

Loss = Literal["squared_error", "huber", "bernoulli"]
Noise = Literal["gaussian", "mask", "swap"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised over a batch of m rows; without options S = 1/(2m) sum((xhat - x)^2).

    Parameters
    ----------
    loss : "squared_error", "huber" or "bernoulli", default "squared_error"
        Cost of a cell with target x; S is the sum of all cells' costs, divided by m. "squared_error": r^2 / 2, where
        r = xhat - x. "huber": the same where |r| <= d = `huber_delta`, and d (|r| - d / 2) beyond, so that a
        residual's gradient is at most d (Huber, 1964). "bernoulli": the cross-entropy -(x log xhat + (1 - x)
        log(1 - xhat)), for targets in [0, 1] and networks whose last activation is "sigmoid". It is computed from the
        last layer's z, so loss and gradient stay accurate where xhat rounds to 0 or 1.
    huber_delta : float, default 1.0
        The residual d at which "huber" turns linear, in the scale that the network sees.
    alpha : float, default 0.0
        Weight of an L2 penalty as in scikit-learn's MLPRegressor: adds alpha/(2m) sum(W^2) over the weights, not the
        biases.
    noise : "gaussian", "mask", "swap" or None, default None
        Corrupt the network's input while its output is still compared with the clean x (denoising: Vincent et al.,
        ICML 2008). Noise is applied after shift and scale. "gaussian" adds a normal deviate, "mask" sets cells to 0,
        and "swap" replaces cells by those of the same column in random rows. It depends on (seed, epoch, row, column)
        alone, and differs in each epoch.
    noise_level : float, default 0.1
        Standard deviation for "gaussian"; probability that a cell is changed for "mask" and "swap".
    sparsity_weight : float, default 0.0
        Weight of a sparsity penalty on a sigmoid code: adds sparsity_weight * sum_j KL(sparsity_target, mean of code
        unit j over the batch).
    sparsity_target : float, default 0.05
        Mean value of a code unit at which that penalty is 0, in (0, 1).
    missing : bool, default False
        Treat cells of x that are NaN as missing: 0 in the input, after shift and scale, and not part of the error.

    Raises
    ------
    TypeError, ValueError
        An option has the wrong type or is out of range. The message names it.
    """

    loss: Loss = "squared_error"
    huber_delta: float = 1.0
    alpha: float = 0.0
    noise: Noise | None = None
    noise_level: float = 0.1
    sparsity_weight: float = 0.0
    sparsity_target: float = 0.05
    missing: bool = False

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be among {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("huber_delta", "alpha", "sparsity_weight", "noise_level", "sparsity_target"):
            check_number(getattr(self, name), name)
        for name in ("alpha", "sparsity_weight", "noise_level"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        if not (self.huber_delta > 0 and math.isfinite(self.huber_delta)):
            raise ValueError(f"huber_delta must be finite and positive, got {self.huber_delta!r}")
        if self.noise is not None and self.noise not in NOISES:
            raise ValueError(f"noise must be among {', '.join(NOISES)} or None, got {self.noise!r}")
        if self.noise in ("mask", "swap") and self.noise_level > 1:
            raise ValueError(
                f"noise_level must be a probability for {self.noise!r}, got {self.noise_level!r}"
            )
        if not isinstance(self.missing, bool):
            raise TypeError(f"missing must be True or False, got {self.missing!r}")
        if not 0 < self.sparsity_target < 1:
            raise ValueError(f"sparsity_target must be in (0, 1), got {self.sparsity_target!r}")


PLAIN = Objective()
