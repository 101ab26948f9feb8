"""Describes a call of the engine to the kernels: fills a job's record from arrays, optimizer and objective.

On the Python side, only this file knows the ids of optimizers and noises (``kernels/job.py``). No arithmetic is here.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.checks import check_vector
from fastae.kernels import job as fields
from fastae.kernels import layout
from fastae.kernels.job import Job
from fastae.kernels.layout import address
from fastae.network import Network, Parameters
from fastae.objective import Objective
from fastae.optimizers import SGD, Adam, InKernels, Optimizer, State

_NOISES = {None: fields.NO_NOISE, "gaussian": fields.GAUSSIAN, "mask": fields.MASK, "swap": fields.SWAP}


def padded(vector: npt.ArrayLike, columns: int, dtype: npt.DTypeLike) -> np.ndarray:
    """A float64 vector, padded with zeros to whole blocks of `dtype`, which is how kernels read it."""
    result = np.zeros(layout.blocks(columns, dtype) * layout.lanes(dtype))
    result[:columns] = vector
    return result


def _finite(vector: npt.ArrayLike, columns: int, name: str) -> np.ndarray:
    """A float64 vector of one finite number per column, or an error that names it."""
    checked = check_vector(vector, columns, name)
    if not np.isfinite(checked).all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    return checked


def line_address(params: Parameters) -> int:
    """The address of the buffer of `params`; a ValueError if it does not start on a cache line."""
    place = address(params.flat)
    if place % 64:
        raise ValueError(
            "params.flat does not start on a cache line: it is not the array that params were made with"
        )
    return place


def set_matrix(
    job: Job,
    X: np.ndarray,
    dtype: npt.DTypeLike,
    *,
    index: npt.NDArray[np.int64] | None,
    shift: npt.ArrayLike | None,
    scale: npt.ArrayLike | None,
) -> list[np.ndarray]:
    """The rows that a job is about, with checked row numbers; returns the arrays that must outlive the job."""
    job.x, (job.row_stride, job.column_stride) = address(X), X.strides
    columns = X.shape[1]
    if columns == 1:
        job.column_stride = X.itemsize
    job.kind, job.rows = fields.KINDS[X.dtype], X.shape[0]
    alive = [X]
    if index is not None:
        alive.append(index)
        job.index, job.rows, job.orders = address(index), index.shape[-1], index.size // index.shape[-1]
    if shift is not None or scale is not None:
        shifts = padded(0.0 if shift is None else _finite(shift, columns, "shift"), columns, dtype)
        scales = padded(1.0 if scale is None else _finite(scale, columns, "scale"), columns, dtype)
        alive += shifts, scales
        job.shift, job.scale = address(shifts), address(scales)
    return alive


def set_steps(
    job: Job,
    params: Parameters,
    gradient: Parameters,
    optimizer: Optimizer | None,
    state: State | None,
    rates: np.ndarray,
    losses: np.ndarray,
) -> list[np.ndarray]:
    """Set the steps of a job and the arrays they write to; `rates` (steps,) and `losses` (steps, 2) are float64.

    Returns the arrays that must outlive the job.
    """
    if rates.ndim != 1 or rates.size == 0:
        raise ValueError(f"rates must contain one learning rate per step, got shape {rates.shape}")
    job.task, job.steps = fields.STEPS_TASK, rates.size
    job.parameters, job.gradient = line_address(params), line_address(gradient)
    job.rates, job.losses = address(rates), address(losses)
    if optimizer is None:
        return []
    if not isinstance(optimizer, InKernels):
        raise TypeError(f"optimizer must be SGD, Adam or AdamW, got {optimizer!r}")
    if state is None:
        raise TypeError("state must be given with an optimizer, got None")
    state.check(params)
    job.moments, job.steps_before, job.decay = address(state.moments), state.steps, optimizer.weight_decay
    job.clip_norm = optimizer.clip_norm or 0.0
    factors = optimizer.factors(params.network)
    if factors is not None:
        job.rate_factors = address(factors)
    if isinstance(optimizer, SGD):
        job.optimizer = fields.SGD
        job.momentum, job.nesterov = optimizer.momentum, optimizer.nesterov
    elif isinstance(optimizer, Adam):
        job.optimizer = fields.ADAM
        job.beta_1, job.beta_2, job.epsilon = optimizer.beta_1, optimizer.beta_2, optimizer.epsilon
    else:
        raise TypeError(f"optimizer must be SGD, Adam or AdamW, got {optimizer!r}")
    return [] if factors is None else [factors]


def set_objective(job: Job, objective: Objective, network: Network, unit: float) -> None:
    """Set what a job minimises, with weights in `unit`, and the noise and missing cells of its input."""
    job.alpha, job.missing = objective.alpha / unit, objective.missing
    if not np.isfinite(job.alpha):
        raise ValueError(f"sample_weight is too small: alpha divided by weights of {unit:.0e} is infinite")
    job.noise, job.noise_level = _NOISES[objective.noise], objective.noise_level
    job.sparsity_target, job.sparsity_weight = objective.sparsity_target, objective.sparsity_weight
    job.sparse = objective.sparsity_weight > 0
    layer = network.code_layer
    if job.sparse and (layer == network.n_layers or network.activations[layer - 1] != "sigmoid"):
        raise ValueError("sparsity_weight needs a code of sigmoid units, below the last layer")


def kind_of(job: Job, steps: int, rows: int) -> tuple[Any, ...]:
    """What jobs whose steps take equally long have in common: they share a thread count."""
    layers = job.first_layer, job.last_layer
    return steps, rows, job.task, job.optimizer, job.clip_norm > 0, job.target_in_form, *layers
