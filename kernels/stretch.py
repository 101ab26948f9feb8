"""A stretch of the weights: adds the shards' gradients, applies the optimizer, and prepares W and W' for products.

What a stretch covers is in split.py; a layer's last stretch includes its bias. Buffers are flat: (n_parameters,).
"""

import numpy as np

from fastae.kernels.compiler import ByAddress, callee, carray, kernel
from fastae.kernels.job import JOB, NONE, ROWS
from fastae.kernels.layout import LAYER
from fastae.kernels.optimizer import add_penalty, add_up, update
from fastae.kernels.simd import array_at, call_at, record_at
from fastae.kernels.split import items_of, stretch
from fastae.kernels.target import LINE


@callee
def prepare(job, plan, itemsize, layer, first, last):  # type: ignore[no-untyped-def]
    """Prepare squares first .. last - 1 of a layer's weights as the form reads them: W and, where it is needed, W'."""
    place = plan[layer].weight * itemsize
    transposed = job.transposed + plan[layer].transposed * itemsize if layer > 0 else job.first_transposed
    sizes = plan[layer].fan_in, plan[layer].fan_out
    call_at(
        job.prepare_weights_at, (job.weights + place, transposed, job.parameters + place, *sizes, first, last)
    )


@kernel
def prepare_weights(job_at, itemsize):  # type: ignore[no-untyped-def]
    """Prepare all weights as the form reads them; `itemsize` is the bytes of an element."""
    job = record_at(job_at, JOB)
    plan, lanes = array_at(job.plan, (job.layers,), LAYER), LINE // itemsize
    for i in range(plan.shape[0]):
        prepare(job, plan, itemsize, i, 0, (plan[i].bias - plan[i].weight) // (lanes * lanes))


@ByAddress
def transpose_item(out, job_at, item):  # type: ignore[no-untyped-def]
    """Prepare the weights of stretch `item` as the form reads them.

    out   the thread's memory, of which only the dtype is used        job_at   JOB
    """
    job = record_at(job_at, JOB)
    plan = array_at(job.plan, (job.layers,), LAYER)
    itemsize = carray(out, (1,)).itemsize
    layer, low, high, _, _ = stretch(plan, item, LINE // itemsize)
    prepare(job, plan, itemsize, layer, low, high)


@callee
def gradient_factor(job, step):  # type: ignore[no-untyped-def]
    """What the sum of the rows' gradients is multiplied with: 1 / (the sum of their weights), or 1 for sums."""
    total_weight = array_at(job.losses, (job.steps, 2), np.float64)[step, 1]
    if job.as_sums != 0:
        return 1.0
    return 1.0 / total_weight if total_weight > 0 else 0.0


@callee
def penalise_and_update(job, gradient, first, step, factor):  # type: ignore[no-untyped-def]
    """Add the penalty to the gradient of the elements of the flat buffers from `first` on, and update these.

    `factor` is what the rows' gradients were multiplied with. Returns the sum of the squares of those elements that are
    weights, before the update, or 0 if there is no penalty.
    """
    plan = array_at(job.plan, (job.layers,), LAYER)
    parameters = array_at(job.parameters, (job.n_parameters,), gradient.dtype)
    norm, last = 0.0, first + gradient.size
    if job.alpha > 0:
        norm = add_penalty(gradient, parameters, plan, first, job.alpha * factor)
    if job.optimizer != NONE:
        moments = array_at(job.moments, (2, job.n_parameters), gradient.dtype)
        p, u, s = parameters[first:last], moments[0, first:last], moments[1, first:last]
        update(job, p, gradient, u, s, array_at(job.rates, (job.steps,), np.float64)[step], step)
    return norm


@ByAddress
def update_item(out, job_at, item, step):  # type: ignore[no-untyped-def]
    """Compute the gradient of stretch `item`, update its parameters and, unless this is the last step, W and W'.

    out      the thread's memory, (elements of the stretch,): holds the gradient, unless this is the last step
    job_at   JOB
    """
    job = record_at(job_at, JOB)
    plan = array_at(job.plan, (job.layers,), LAYER)
    work = carray(out, (1,))
    n_parameters, steps = job.n_parameters, job.steps
    n_parts = job.n_parts if job.n_parts != 0 else items_of(job, step, ROWS)
    gradients = array_at(job.gradients, (n_parts, n_parameters), work.dtype)
    layer, low, high, first, last = stretch(plan, item, LINE // work.itemsize)
    factor = gradient_factor(job, step)
    # The caller gets only the last step's gradient. The others stay in this thread's memory, and so in its cache.
    total_at = job.gradient + first * work.itemsize if step + 1 == steps else np.int64(work.ctypes.data)
    total = array_at(total_at, (last - first,), work.dtype)
    add_up(total, gradients, n_parts, first, factor)
    norm = penalise_and_update(job, total, first, step, factor)
    if job.alpha > 0:
        array_at(job.norms, (job.stretches,), np.float64)[item] = norm
    if job.optimizer != NONE and step + 1 < steps:
        prepare(job, plan, work.itemsize, layer, low, high)
