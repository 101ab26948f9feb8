"""Objective: the cost that training minimises, and what is done to its input: noise, missing cells. No arithmetic."""

import math
from dataclasses import dataclass
from typing import Literal

from fastae.checks import check_number

NOISES = ("gaussian", "mask", "swap")

Noise = Literal["gaussian", "mask", "swap"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised over a batch of m rows; without options S = 1/(2m) sum((xhat - x)^2).

    Parameters
    ----------
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

    alpha: float = 0.0
    noise: Noise | None = None
    noise_level: float = 0.1
    sparsity_weight: float = 0.0
    sparsity_target: float = 0.05
    missing: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha", "sparsity_weight", "noise_level", "sparsity_target"):
            check_number(name, getattr(self, name))
        for name in ("alpha", "sparsity_weight", "noise_level"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
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
