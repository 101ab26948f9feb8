"""What the settings that are "auto" stand for, by the number of rows and the widths of the network.

The figures were chosen on 24 real data sets; docs/choosing.md has the tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, sqrt
from typing import Any, Literal

import numpy as np

from fastae.training.pca import PrincipalComponents

STEPS = 10_000  # of a network of up to WIDTH columns
STEPS_MOST = 50_000
STEPS_LEAST = 200
STEPS_PER_ROW, STEPS_PER_ROW_MOST = 5, 20  # few rows are soon learned by heart
CELLS_PER_PARAMETER = 14  # from which on rows bear more than the fewest steps
WIDTH = 64
ROWS_PER_STEP = 128
ITERATIONS = 1000  # of L-BFGS
# Of Adam, by the activation of the hidden layers: the rate, and the share of it in the first layer, whose changes all
# later layers pass on
RATES = {
    "sigmoid": (0.06, 0.125),
    "logistic": (0.06, 0.125),
    "tanh": (0.03, 0.5),
    "relu": (0.03, 1.0),
    "identity": (0.03, 1.0),
}
SGD_RATE = 0.01
LAYERS = 3  # for these rates; in deeper networks, a step changes more layers at once
ENOUGH_STEPS = 1000  # for these rates, from a start that is worth keeping
UNENDING = 0.1  # share of these rates where a cosine has no end to fall to
CODE_VARIANCE = 0.9  # share of the variance that as many components as an automatic code has units hold
CODE_MOST = 256  # units of an automatic code
# Of each network of a detector's ensemble; docs/detection.md has the tables
# Steps where there are up to ENSEMBLE_WIDTH columns; where there are more, fewer by their number, and at least so many
ENSEMBLE_STEPS, ENSEMBLE_STEPS_LEAST = 3000, 200
ENSEMBLE_WIDTH = 40
ENSEMBLE_ROWS_PER_STEP = 200
ENSEMBLE_RATE = 0.03
ENSEMBLE_UNITS_MOST = 1024
FLOAT32_ROWS = 1000  # rows from which float32 is fast enough to matter, and what it rounds does not

Start = Literal["pca", "random", "warm"]
_CAUTION: dict[Start, float] = {"pca": 1, "random": 0, "warm": 0.5}  # how the rate falls with fewer steps


@dataclass(frozen=True)
class Budget:
    """How long to train, in what batches, at what rate.

    Attributes
    ----------
    rows : int
        m.
    steps : int
        Steps that training should take; whole epochs come close.
    batch_size : int
    epochs : int
        Epochs, or iterations of L-BFGS.
    rate : float
        The learning rate of the first step.
    rate_factors : dict
        What the rates of single arrays of parameters are multiplied with, by their names.
    """

    rows: int
    steps: int
    batch_size: int
    epochs: int
    rate: float
    rate_factors: dict[str, float] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold all rows."""
        return ceil(self.rows / self.batch_size)


def budget_of(
    model: Any,
    rows: int,
    widths: Sequence[int],
    default_batch: int,
    *,
    start: Start = "pca",
    ends: bool = True,
    unit: float = 1.0,
) -> Budget:
    """The budget of a fit of `model`, whose own settings come first.

    Parameters
    ----------
    rows : int
        m.
    widths : sequence of int
        Of the network: n, and the units of each layer.
    default_batch : int
        Rows per step that suit where the rows are.
    start : "pca", "random" or "warm", default "pca"
        The parameters to start from: those of PCA, random ones, or those of the last fit.
    ends : bool, default True
        Whether the end of training is known. If not, this is the budget of the next epoch.
    unit : float, default 1.0
        What ``unit_of`` says of the rows.
    """
    # Narrow layers take little time; in wide ones, a step changes more weights at once
    narrowing, layers = WIDTH / max(widths), len(widths) - 1
    most = max(min(round(STEPS * (narrowing if narrowing > 1 else sqrt(narrowing))), STEPS_MOST), 1)
    batch = model.batch_size
    if batch == "auto":
        batch = max(default_batch, ceil(rows / most))
    batch = min(int(batch), rows)
    parameters = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))
    cells_per_parameter = rows * widths[0] / parameters
    steps_per_row = STEPS_PER_ROW * max(cells_per_parameter / CELLS_PER_PARAMETER, 1)
    # Larger batches have gradients of less noise, and need fewer steps
    steps = most * min(1.0, sqrt(ROWS_PER_STEP / batch))
    steps = max(round(min(steps, rows * min(steps_per_row, STEPS_PER_ROW_MOST))), STEPS_LEAST)
    epochs = model.max_iter if ends else 1
    if epochs == "auto":
        epochs = ITERATIONS if model.solver == "lbfgs" else max(round(steps / ceil(rows / batch)), 1)
    rate, factors = model.learning_rate_init, {}
    if rate == "auto":
        rate = SGD_RATE
        if model.solver in ("adam", "adamw"):
            rate, first = RATES[model.activation]
            factors = _rate_factors(model, first, unit, layers)
        rate *= min(narrowing, 1.0) ** (2 / 3) * min(LAYERS / layers, 1.0) ** 2
        if model.learning_rate == "cosine" and not ends:
            rate *= UNENDING  # it will not fall
        elif model.learning_rate == "cosine":
            # A few large steps would only lead away from PCA, or from a good model, though not from a poor one
            rate *= min(epochs * ceil(rows / batch) / ENOUGH_STEPS, 1.0) ** _CAUTION[start]
        rate = float(f"{rate:.2g}")
    return Budget(rows, steps, batch, int(epochs), float(rate), factors)


def _rate_factors(model: Any, first: float, unit: float, layers: int) -> dict[str, float]:
    """What Adam's rates are multiplied with, where it is not 1; the first layer takes a share `first`.

    Adam's steps have the length of the rate, whatever the gradient is. So the last layer's change in the columns' unit,
    and those of the first layer's weights in its inverse, but not faster than at a unit of 1: beside small gradients,
    the L2 penalty would take them to 0. AdamW's decay is multiplied as well, and may only be lowered.
    """
    if model.solver == "adamw":
        unit = 1.0
    last = 1.0 if model.loss == "bernoulli" else unit  # whose last layer puts out log odds
    factors = {"W1": first / max(unit, 1.0), "b1": first, f"W{layers}": last, f"b{layers}": last}
    return {name: factor for name, factor in factors.items() if factor != 1}


def unit_of(model: Any, deviation: np.ndarray | None) -> float:
    """The largest standard deviation of a column, to two digits, of rows as the network sees them.

    1 where columns are standardised, where all rows are alike, or where `deviation`, (n,), is not known.
    """
    largest = 1.0 if deviation is None or model.scale == "standard" else float(deviation.max())
    return float(f"{largest:.2g}") or 1.0


def ensemble_budget_of(model: Any, rows: int, columns: int, *, ends: bool = True) -> Budget:
    """The budget of a network of an ensemble that has so many rows to train on; its own settings come first.

    Where neither `batch_size` nor `max_iter` is given, these are at most the rows of that many steps.
    """
    steps = max(round(ENSEMBLE_STEPS * min(ENSEMBLE_WIDTH / columns, 1.0)), ENSEMBLE_STEPS_LEAST)
    batch = ENSEMBLE_ROWS_PER_STEP if model.batch_size == "auto" else int(model.batch_size)
    batch = min(batch, rows)
    if ends and model.max_iter == "auto":
        rows = min(rows, steps * batch)
    epochs = model.max_iter if ends else 1
    if epochs == "auto":
        epochs = ITERATIONS if model.solver == "lbfgs" else ceil(steps / ceil(rows / batch))
    rate = model.learning_rate_init
    if rate == "auto":
        rate = SGD_RATE if model.solver == "sgd" else ENSEMBLE_RATE
        if model.learning_rate == "cosine" and not ends:
            rate *= UNENDING
        rate = float(f"{rate:.2g}")
    return Budget(rows, steps, batch, int(epochs), float(rate))


def automatic_code(columns: int, components: PrincipalComponents | None) -> int:
    """Units of a code for such rows: of half the columns at most."""
    wanted = columns // 4 if components is None else components.components_for(CODE_VARIANCE)
    return max(min(wanted, columns // 2, CODE_MOST), 1)


def patience(model: Any, epochs: int, *, validates: bool) -> int | None:
    """Epochs without improvement after which training stops; None: it does not.

    With validation rows, only `early_stopping` stops it; and L-BFGS, whose loss always improves, only with them.
    """
    if not model.early_stopping and (validates or model.solver == "lbfgs"):
        return None
    if model.n_iter_no_change == "auto":
        if model.early_stopping:
            return max(10, epochs // 10)
        return None if model.learning_rate == "cosine" else 10
    return int(model.n_iter_no_change) if model.n_iter_no_change < np.inf else None
