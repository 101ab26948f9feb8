"""A stretch of the weights: adds the shards' gradients, applies the optimizer, and prepares W and W' for products.

What a stretch covers is in split.py; a layer's last stretch includes its bias. Buffers are flat: (n_parameters,).
"""

import numpy as np

from fastae.kernels.compiler import ByAddress, callee, carray, kernel
from fastae.kernels.intrinsics import array_at, call_at, record_at
from fastae.kernels.job import JOB, NONE, ROWS
from fastae.kernels.layout import LAYER, LINE
from fastae.kernels.lines import zero_lines
from fastae.kernels.optimizer import add_penalty, add_squares, add_up, update
from fastae.kernels.rounding import round_up
from fastae.kernels.split import items_of, step_of, stretch


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
def _parts(job):  # type: ignore[no-untyped-def]
    """How many parts of the flat buffers have a rate of their own: every W and b, or if none has, the buffers."""
    return 2 * job.layers if job.rate_factors != 0 else 1


@callee
def _part(job, plan, number, first, last, itemsize):  # type: ignore[no-untyped-def]
    """Part `number`, within elements first .. last - 1: (first element, last element + 1, factor of its rate)."""
    if job.rate_factors == 0:
        return first, last, 1.0
    layer = plan[number // 2]
    start, end = layer.weight, layer.bias
    if number % 2 == 1:
        start, end = end, end + round_up(layer.fan_out, LINE // itemsize)
    return (
        max(first, start),
        min(last, end),
        array_at(job.rate_factors, (2 * job.layers,), np.float64)[number],
    )


@ByAddress
def update_parts(out, job_at, first, count, step, squares_at):  # type: ignore[no-untyped-def]
    """Update elements first .. first + count - 1 of the flat buffers, except frozen ones, each part at its own rate.

    With `squares_at`, add the squares of their gradient there instead. This is a function by itself so that the code of
    steps without rates of their own stays as it is.

    out          (count,): the gradient of these elements; only read
    job_at       JOB
    squares_at   float64 (8,), or 0
    """
    job = record_at(job_at, JOB)
    plan = array_at(job.plan, (job.layers,), LAYER)
    gradient = carray(out, (count,))
    rate = array_at(job.rates, (job.steps,), np.float64)[step]
    parameters = array_at(job.parameters, (job.n_parameters,), gradient.dtype)
    moments = array_at(job.moments, (2, job.n_parameters), gradient.dtype)
    for number in range(_parts(job)):
        start, end, factor = _part(job, plan, number, first, first + count, gradient.itemsize)
        if start < end and factor != 0:
            g = gradient[start - first : end - first]
            if squares_at != 0:
                add_squares(squares_at, g)
            else:
                p, u, s = parameters[start:end], moments[0, start:end], moments[1, start:end]
                update(job, p, g, u, s, rate * factor, step)


@callee
def gradient_squares_of(job, item):  # type: ignore[no-untyped-def]
    """The address of the sums of squares of the gradient of stretch or patch `item`."""
    return job.gradient_squares + (1 + item) * LINE


@callee
def weight_squares_of(job, item):  # type: ignore[no-untyped-def]
    """The address of the sums of the squared weights of stretch or patch `item`."""
    return job.weight_squares + item * LINE


@callee
def zero_sums(job, like, item):  # type: ignore[no-untyped-def]
    """Clear the sums of stretch or patch `item` that this step needs; `like` is an array of the dtype."""
    if job.clip_norm > 0:
        zero_lines(like, (gradient_squares_of(job, item), 1))
    if job.alpha > 0:
        zero_lines(like, (weight_squares_of(job, item), 1))


@callee
def penalise_and_update(job, job_at, gradient, first, step, factor, item):  # type: ignore[no-untyped-def]
    """Add the penalty to the gradient of the elements of the flat buffers from `first` on, and update these.

    If the gradient is to be clipped, add its squares to those of stretch or patch `item` instead of the update; frozen
    elements do not count. `factor` is what the rows' gradients were multiplied with.
    """
    plan = array_at(job.plan, (job.layers,), LAYER)
    parameters = array_at(job.parameters, (job.n_parameters,), gradient.dtype)
    last = first + gradient.size
    if job.alpha > 0:
        add_penalty(weight_squares_of(job, item), gradient, parameters, plan, first, job.alpha * factor)
    if job.clip_norm > 0 or job.rate_factors != 0:
        squares_at = gradient_squares_of(job, item) if job.clip_norm > 0 else np.int64(0)
        place = np.int64(gradient.ctypes.data)
        call_at(job.update_parts_at, (place, job_at, first, gradient.size, step, squares_at))
    elif job.optimizer != NONE:
        moments = array_at(job.moments, (2, job.n_parameters), gradient.dtype)
        p, u, s = parameters[first:last], moments[0, first:last], moments[1, first:last]
        update(job, p, gradient, u, s, array_at(job.rates, (job.steps,), np.float64)[step], step)


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
    # The caller gets only the last step's gradient. The others stay in this thread's memory, and so in its cache,
    # unless they have to be complete before they can be clipped.
    in_place, clipped = step + 1 == steps, job.clip_norm > 0
    total_at = job.gradient + first * work.itemsize if in_place or clipped else np.int64(work.ctypes.data)
    total = array_at(total_at, (last - first,), work.dtype)
    add_up(total, gradients, n_parts, first, factor)
    zero_sums(job, work, item)
    penalise_and_update(job, job_at, total, first, step, factor, item)
    if job.optimizer != NONE and not clipped and step + 1 < steps:
        prepare(job, plan, work.itemsize, layer, low, high)


@callee
def close_gradient(job, items):  # type: ignore[no-untyped-def]
    """After the phase WEIGHTS, if the gradient is to be clipped: set the factor that does so, from its norm.

    `items` is the number of stretches or patches, in whose order their squares are added up.
    """
    squares, total = array_at(job.gradient_squares, (1 + items, 8), np.float64), 0.0
    for item in range(items):
        for lane in range(8):
            total += squares[1 + item, lane]
    norm = np.sqrt(total)
    squares[0, 0] = job.clip_norm / norm if norm > job.clip_norm else 1.0


@ByAddress
def clip_item(out, job_at, item, round_):  # type: ignore[no-untyped-def]
    """Clip the gradient of stretch `item`, update its parameters and, unless this is the last step, W and W'.

    out   the thread's memory, of which only the dtype is used        job_at   JOB
    """
    job = record_at(job_at, JOB)
    plan = array_at(job.plan, (job.layers,), LAYER)
    work, step = carray(out, (1,)), step_of(job, round_)
    layer, low, high, first, last = stretch(plan, item, LINE // work.itemsize)
    gradient = array_at(job.gradient + first * work.itemsize, (last - first,), work.dtype)
    factor = array_at(job.gradient_squares, (1,), np.float64)[0]
    if factor != 1:
        add_up(
            gradient, array_at(np.int64(gradient.ctypes.data), (1, last - first), work.dtype), 1, 0, factor
        )
    place = np.int64(gradient.ctypes.data)
    call_at(job.update_parts_at, (place, job_at, first, last - first, step, np.int64(0)))
    if step + 1 < job.steps:
        prepare(job, plan, work.itemsize, layer, low, high)
