"""Describes a call of the engine to the kernels: fills a job's record from arrays, optimizer and objective.

On the Python side, only this file knows the ids of optimizers and noises (``kernels/job.py``). No arithmetic is here.
"""

import ctypes
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastae.checks import check_finite_vector
from fastae.kernels import job as fields
from fastae.kernels import layout
from fastae.kernels.job import Job
from fastae.kernels.layout import address
from fastae.network import Network, Parameters
from fastae.objective import Objective
from fastae.optimizers import SGD, Adam, InKernels, Optimizer, State

_LOSSES = {
    "squared_error": fields.SQUARED_ERROR,
    "huber": fields.HUBER,
    "bernoulli": fields.BERNOULLI,
}
_NOISES = {None: fields.NO_NOISE, "gaussian": fields.GAUSSIAN, "mask": fields.MASK, "swap": fields.SWAP}


def padded(vector: npt.ArrayLike, columns: int, dtype: npt.DTypeLike) -> np.ndarray:
    """A float64 vector, padded with zeros to whole blocks of `dtype`, which is how kernels read it."""
    result = np.zeros(layout.blocks(columns, dtype) * layout.lanes(dtype))
    result[:columns] = vector
    return result


def line_address(params: Parameters) -> int:
    """The address of the buffer of `params`; a ValueError if it does not start on a cache line."""
    place = address(params.flat)
    if place % layout.LINE:
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
    job.x, (job.row_stride, job.column_stride) = address(X), _strides(X)
    columns = X.shape[1]
    job.dtype_id, job.rows = fields.DTYPE_IDS[X.dtype], X.shape[0]
    alive = [X]
    if index is not None:
        alive.append(index)
        job.index, job.rows, job.orders = address(index), index.shape[-1], index.size // index.shape[-1]
    if shift is not None or scale is not None:
        alive += _padded_scale(columns, dtype, shift=shift, scale=scale)
        job.shift, job.scale = map(address, alive[-2:])
    return alive


def _padded_scale(columns: int, dtype: npt.DTypeLike, **vectors: npt.ArrayLike | None) -> list[np.ndarray]:
    """The shift and the scale of columns, given by the names of the arguments, as kernels read them."""
    return [
        padded(
            float(default) if vector is None else check_finite_vector(vector, columns, name), columns, dtype
        )
        for default, (name, vector) in enumerate(vectors.items())
    ]


def set_target(
    job: Job,
    Y: np.ndarray,
    dtype: npt.DTypeLike,
    *,
    shift: npt.ArrayLike | None = None,
    scale: npt.ArrayLike | None = None,
) -> list[np.ndarray]:
    """Set Y, which has X's row numbers; returns the arrays that must outlive the job."""
    job.y, job.y_dtype_id = address(Y), fields.DTYPE_IDS[Y.dtype]
    job.y_row_stride, job.y_column_stride = _strides(Y)
    alive = [Y]
    if shift is not None or scale is not None:
        alive += _padded_scale(Y.shape[1], dtype, target_shift=shift, target_scale=scale)
        job.y_shift, job.y_scale = map(address, alive[-2:])
    return alive


def set_given(
    job: Job,
    d_xhat: np.ndarray,
    d_code: np.ndarray | None,
    dtype: npt.DTypeLike,
) -> list[np.ndarray]:
    """The derivatives to go on from, instead of an objective; returns the arrays that must outlive the job."""
    job.loss, job.as_sums = fields.GIVEN, 1
    alive = set_target(job, d_xhat, dtype)
    if d_code is not None:
        alive.append(d_code)
        job.given_code, job.given_dtype_id = address(d_code), fields.DTYPE_IDS[d_code.dtype]
        job.given_row_stride, job.given_column_stride = _strides(d_code)
    return alive


def _strides(matrix: np.ndarray) -> tuple[int, int]:
    """The strides of a matrix, in bytes; that of a single column, which NumPy leaves open, is an element."""
    rows, columns = matrix.strides
    return rows, matrix.itemsize if matrix.shape[1] == 1 else columns


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
    job.moments, job.steps_before = address(state.moments), state.steps
    job.weight_decay, job.clip_norm = optimizer.weight_decay, optimizer.clip_norm or 0.0
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


def set_objective(
    job: Job, objective: Objective, network: Network, dtype: npt.DTypeLike, unit: float
) -> list[np.ndarray]:
    """Set what a job minimises, with weights in `unit`, and the noise and missing cells of its input.

    Returns the arrays that must outlive the job.
    """
    check_loss(objective, network)
    job.loss = _LOSSES[objective.loss]
    alive = []
    if job.loss == fields.HUBER:
        info, bound = np.finfo(np.dtype(dtype)), float(objective.huber_delta)
        if bound < float(info.tiny):
            raise ValueError(f"huber_delta must be at least {info.tiny} in {info.dtype}, got {bound!r}")
        alive.append(np.array([min(bound, float(info.max))], dtype))  # no finite residual is beyond `max`
        job.huber_delta = address(alive[0])
    job.alpha, job.missing = objective.alpha / unit, objective.missing
    if not np.isfinite(job.alpha):
        raise ValueError(f"sample_weight is too small: alpha divided by weights of {unit:.0e} is infinite")
    job.noise, job.noise_level = _NOISES[objective.noise], objective.noise_level
    job.sparsity_target, job.sparsity_weight = objective.sparsity_target, objective.sparsity_weight
    job.sparse = objective.sparsity_weight > 0
    layer = network.code_layer
    if job.sparse and (layer == network.n_layers or network.activations[layer - 1] != "sigmoid"):
        raise ValueError("sparsity_weight needs a code of sigmoid units, below the last layer")
    return alive


def check_loss(objective: Objective, network: Network) -> None:
    """Raise a ValueError if the loss is not for this network."""
    if objective.loss == "bernoulli" and network.activations[-1] != "sigmoid":
        raise ValueError(
            "loss 'bernoulli' needs a network whose last activation is 'sigmoid', "
            f"but it is {network.activations[-1]!r}"
        )


class OutsideRange:
    """Where kernels note that a target is outside [0, 1], which the loss "bernoulli" needs it to be in.

    Parameters
    ----------
    name : str
        The argument that holds the targets.
    """

    def __init__(self, name: str) -> None:
        self._name, self._noted = name, ctypes.c_int64()

    @property
    def address(self) -> int:
        """Of the int64 that kernels set to 1."""
        return ctypes.addressof(self._noted)

    def refuse(self) -> None:
        """Raise a ValueError if any was noted."""
        if self._noted.value:
            self._noted.value = 0
            raise outside_range(self._name)


def outside_range(name: str) -> ValueError:
    """The error about targets, the argument `name`, that the loss "bernoulli" cannot take."""
    return ValueError(
        f"{name} has cells outside [0, 1], as they are scaled, but the loss 'bernoulli' needs targets in [0, 1]"
    )


class PreparedSteps(NamedTuple):
    """A job of steps that is ready to be run, any number of times."""

    job: Job
    form: Any  # of its products
    batch: int  # rows of a step at most
    losses: np.ndarray  # (steps, 2): what the job writes its losses to
    alive: list[np.ndarray]  # other arrays that it points to
    outside: OutsideRange
    unit: float  # in which the weights of rows are measured


def kind_of(job: Job, steps: int, rows: int) -> tuple[Any, ...]:
    """What jobs whose steps take equally long have in common: they share a thread count."""
    layers = job.first_layer, job.last_layer
    features = job.task, job.optimizer, job.clip_norm > 0, job.loss, job.target_in_form
    return steps, rows, *features, *layers
