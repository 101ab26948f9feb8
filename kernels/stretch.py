"""A stretch of the flat buffers: shards' gradients added up, the optimizer, and the weights prepared for products."""

import numpy as np
from numba import carray

from fastae.kernels.compiler import ByAddress, callee, kernel
from fastae.kernels.job import JOB, NONE
from fastae.kernels.layout import LAYER
from fastae.kernels.optimizer import add_penalty, add_up, update
from fastae.kernels.partition import stretch
from fastae.kernels.simd import array_at, call_at, record_at
from fastae.kernels.target import LINE


@callee
def _prepare(job, plan, size, layer, first, last):  # type: ignore[no-untyped-def]
    """Squares first .. last - 1 of a layer's weights as the form reads them; W' of the first layer is not needed."""
    place = plan[layer].weight * size
    transposed = job.transposed + plan[layer].transposed * size if layer > 0 else 0
    sizes = plan[layer].fan_in, plan[layer].fan_out
    call_at(
        job.prepare_weights_at, (job.weights + place, transposed, job.parameters + place, *sizes, first, last)
    )


@kernel
def prepare_weights(job_at, size):  # type: ignore[no-untyped-def]
    """All weights as the form reads them; `size` is the bytes of an element."""
    job = record_at(job_at, JOB)
    plan, lanes = array_at(job.plan, (job.layers,), LAYER), LINE // size
    for i in range(plan.shape[0]):
        _prepare(job, plan, size, i, 0, (plan[i].bias - plan[i].weight) // (lanes * lanes))


@ByAddress
def transpose_item(out, job_at, item):  # type: ignore[no-untyped-def]
    """Stretch `item`'s weights as the form reads them; `out` is the thread's work."""
    job = record_at(job_at, JOB)
    plan = array_at(job.plan, (job.layers,), LAYER)
    size = carray(out, (1,)).itemsize
    layer, low, high, _, _ = stretch(plan, item, LINE // size)
    _prepare(job, plan, size, layer, low, high)


@ByAddress
def update_item(out, job_at, item, step, parts):  # type: ignore[no-untyped-def]
    """Stretch `item` of a step: its gradient, then its parameters and, unless it is the last step, W and W'.

    `parts` gradients are added up. `out` is the thread's work.
    """
    job = record_at(job_at, JOB)
    plan = array_at(job.plan, (job.layers,), LAYER)
    work = carray(out, (1,))
    size, steps = job.size, job.steps
    parameters = array_at(job.parameters, (size,), work.dtype)
    gradients = array_at(job.gradients, (parts, size), work.dtype)
    moments = array_at(job.moments, (2, size), work.dtype)
    norms = array_at(job.norms, (job.stretches,), np.float64)
    rates = array_at(job.rates, (steps,), np.float64)
    losses = array_at(job.losses, (steps, 2), np.float64)
    layer, low, high, first, last = stretch(plan, item, LINE // work.itemsize)
    weight = losses[step, 1]
    factor = 1.0 / weight if weight > 0 else 0.0
    if job.sums != 0:
        factor = 1.0
    # Only the last step's gradient is asked for; others stay in this thread's memory, and so in its cache.
    total_at = job.gradient + first * work.itemsize if step + 1 == steps else np.int64(work.ctypes.data)
    total = array_at(total_at, (last - first,), work.dtype)
    add_up(total, gradients, parts, first, factor)
    if job.alpha > 0:
        norms[item] = add_penalty(total, parameters, plan, first, job.alpha * factor)
    if job.optimizer != NONE:
        p, u, s = parameters[first:last], moments[0, first:last], moments[1, first:last]
        update(job, p, total, u, s, rates[step], step)
        if step + 1 < steps:
            _prepare(job, plan, work.itemsize, layer, low, high)
