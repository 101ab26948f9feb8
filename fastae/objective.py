"""Objective: the cost that training minimises, and what is done to its input: noise, missing cells. No arithmetic."""

import math
from dataclasses import dataclass

NOISES = ("gaussian", "mask", "swap")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Options of the cost of a batch of m rows, S = 1/(2m) sum((xhat - x)^2) without any.

    Parameters
    ----------
    alpha : float, default 0
        Adds alpha/(2m) sum(W^2) over the weights, not the biases: scikit-learn's MLPRegressor's penalty.
    noise : "gaussian", "mask" or "swap", optional
        Corrupts the network's input, while its output is still compared with the clean x (denoising: Vincent et al.,
        ICML 2008). Applied after shift and scale: adds a normal deviate, sets cells to 0, or sets cells to those of
        the same column in rows drawn at random. Drawn anew in each epoch by (seed, epoch, row, column) alone.
    noise_level : float, default 0.1
        The deviate's standard deviation, or the probability of a cell to be changed.
    sparsity_weight : float, default 0
        Adds sparsity_weight * sum_j KL(sparsity_target, mean of code unit j over the batch); for a sigmoid code.
    sparsity_target : float in (0, 1), default 0.05
    missing : bool, default False
        Cells of x that are NaN are missing: 0 in the input (after shift and scale) and no part of the error.

    Raises
    ------
    ValueError
        An option out of its range, named.
    """

    alpha: float = 0.0
    noise: str | None = None
    noise_level: float = 0.1
    sparsity_weight: float = 0.0
    sparsity_target: float = 0.05
    missing: bool = False

    def __post_init__(self) -> None:
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
        if not 0 < self.sparsity_target < 1:
            raise ValueError(f"sparsity_target must be in (0, 1), got {self.sparsity_target!r}")


PLAIN = Objective()
