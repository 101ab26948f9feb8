"""A stretch of the flat buffers: shards' gradients added up, the optimizer, and W' of the weights that come out."""

import numpy as np
from numba import carray

from fastae.kernels.compiler import ByAddress, callee, kernel
from fastae.kernels.job import (
    ALPHA,
    GRADIENT,
    GRADIENTS,
    JOB,
    LAYERS,
    LOSSES,
    MOMENTS,
    NARROW_AT,
    NARROW_WEIGHTS_AT,
    NONE,
    NORMS,
    OPTIMIZER,
    PARAMETERS,
    PLAN_AT,
    RATES,
    SETTINGS,
    SETTINGS_SIZE,
    SIZE,
    STEPS,
    STRETCHES,
    SUMS,
    WEIGHTS,
    WT,
    WT_SIZE,
)
from fastae.kernels.layout import BIAS, FAN_IN, FAN_OUT, PLAN, TRANSPOSED, WEIGHT
from fastae.kernels.optimizer import add_penalty, add_up, transpose_squares, update
from fastae.kernels.partition import round_up, stretch
from fastae.kernels.simd import array_at, call_at
from fastae.kernels.target import LINE


@callee
def _narrow(job, plan, layer, first, last):  # type: ignore[no-untyped-def]
    """Squares first .. last - 1 of a layer's weights, W and W', as bfloat16; the first layer's W' is not needed."""
    row = plan[layer]
    narrow, turned = job[WEIGHTS] + row[WEIGHT] * 4, job[WT] + row[TRANSPOSED] * 4 if layer > 0 else 0
    source = job[PARAMETERS] + row[WEIGHT] * 4
    call_at(job[NARROW_WEIGHTS_AT], (narrow, turned, source, row[FAN_IN], row[FAN_OUT], first, last))


@kernel
def narrow_all(job):  # type: ignore[no-untyped-def]
    """All weights as bfloat16."""
    plan = array_at(job[PLAN_AT], (job[LAYERS], PLAN), np.int64)
    for i in range(plan.shape[0]):
        _narrow(job, plan, i, 0, (plan[i, BIAS] - plan[i, WEIGHT]) // 256)


@callee
def _transpose(job, plan, parameters, layer, first, last):  # type: ignore[no-untyped-def]
    """W' of squares first .. last - 1 of a layer's weights; the first layer's is not needed. Or both as bfloat16."""
    if job[NARROW_AT] != 0:
        _narrow(job, plan, layer, first, last)
    elif layer > 0:
        row, lanes = plan[layer], LINE // parameters.itemsize
        transposed = array_at(job[WT], (job[WT_SIZE],), parameters.dtype)
        fan_in, fan_out = round_up(row[FAN_IN], lanes), round_up(row[FAN_OUT], lanes)
        target = transposed[row[TRANSPOSED] : row[TRANSPOSED] + fan_in * fan_out]
        transpose_squares(parameters[row[WEIGHT] : row[BIAS]], target, fan_in, fan_out, first, last)


@ByAddress
def transpose_item(out, job_at, item):  # type: ignore[no-untyped-def]
    """W' of stretch `item`'s weights; `out` is the thread's work."""
    job = array_at(job_at, (JOB,), np.int64)
    plan = array_at(job[PLAN_AT], (job[LAYERS], PLAN), np.int64)
    like = carray(out, (1,))
    which, low, high, _, _ = stretch(plan, item, LINE // like.itemsize)
    _transpose(job, plan, array_at(job[PARAMETERS], (job[SIZE],), like.dtype), which, low, high)


@ByAddress
def update_item(out, job_at, item, step, parts):  # type: ignore[no-untyped-def]
    """Stretch `item` of a step: its gradient, then its parameters and, unless it is the last step, their W'.

    `parts` gradients are added up. `out` is the thread's work.
    """
    job = array_at(job_at, (JOB,), np.int64)
    plan = array_at(job[PLAN_AT], (job[LAYERS], PLAN), np.int64)
    work = carray(out, (1,))
    size, steps = job[SIZE], job[STEPS]
    parameters = array_at(job[PARAMETERS], (size,), work.dtype)
    gradients = array_at(job[GRADIENTS], (parts, size), work.dtype)
    moments = array_at(job[MOMENTS], (2, size), work.dtype)
    norms = array_at(job[NORMS], (job[STRETCHES],), np.float64)
    rates = array_at(job[RATES], (steps,), np.float64)
    settings = array_at(job[SETTINGS], (SETTINGS_SIZE,), np.float64)
    losses = array_at(job[LOSSES], (steps, 2), np.float64)
    which, low, high, first, last = stretch(plan, item, LINE // work.itemsize)
    weight = losses[step, 1]
    factor = 1.0 / weight if weight > 0 else 0.0
    if job[SUMS] != 0:
        factor = 1.0
    # Only the last step's gradient is asked for; others stay in this thread's memory, and so in its cache.
    total_at = job[GRADIENT] + first * work.itemsize if step + 1 == steps else np.int64(work.ctypes.data)
    total = array_at(total_at, (last - first,), work.dtype)
    add_up(total, gradients, parts, first, factor)
    if settings[ALPHA] > 0:
        norms[item] = add_penalty(total, parameters, plan, first, settings[ALPHA] * factor)
    if job[OPTIMIZER] != NONE:
        p, u, s = parameters[first:last], moments[0, first:last], moments[1, first:last]
        update(job[OPTIMIZER], p, total, u, s, rates[step], step, settings)
        if step + 1 < steps:
            _transpose(job, plan, parameters, which, low, high)
