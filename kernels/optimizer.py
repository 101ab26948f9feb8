"""SGD and Adam on a stretch or a part of a patch; also: adding up gradients and squares, and the L2 penalty.

No learning rates or state are kept here: the job has them. Arrays are parts of flat buffers, (elements,).

    sgd      v = momentum v - rate g                 p += v     (Nesterov: p += momentum v - rate g)
    adam     u = b1 u + (1 - b1) g    s = b2 s + (1 - b2) g^2
             p -= rate sqrt(1 - b2^t) / (1 - b1^t) u / (sqrt(s) + epsilon)
    decay    before each: p -= rate decay p          (decoupled: Loshchilov and Hutter, 2019)

Padding stays zero: a zero parameter with zero gradient stays zero.
"""

import numpy as np

from fastae.kernels.compiler import callee
from fastae.kernels.job import ADAM, SGD
from fastae.kernels.layout import LINE
from fastae.kernels.simd import vector_kernel


def _write_add_up(words, total, parts, stride, others, lines, factor):  # type: ignore[no-untyped-def]
    """total = factor * (part + the `others` after it, in this order), on `lines` lines.

    total  (lines, lanes)     parts  (1 + others, lines, lanes), `stride` bytes from part to part
    """
    builder, together, scale = words.builder, 4, words.splat(factor)

    def add_lines(count: int):  # type: ignore[no-untyped-def]
        def some_lines(total, parts):  # type: ignore[no-untyped-def]
            def lines_of(part):  # type: ignore[no-untyped-def]
                return [words.load(words.offset(part, i * LINE), aligned=False) for i in range(count)]

            def add(part, *so_far):  # type: ignore[no-untyped-def]
                return [words.offset(part, stride), *map(words.add, so_far, lines_of(part))]

            _, *result = words.loop(others, [words.offset(parts, stride), *lines_of(parts)], add)
            for i, line in enumerate(result):
                words.store(words.mul(line, scale), words.offset(total, i * LINE), aligned=False)
            return [words.offset(place, count * LINE) for place in (total, parts)]

        return some_lines

    places = words.loop(builder.sdiv(lines, words.count(together)), [total, parts], add_lines(together))
    words.loop(builder.srem(lines, words.count(together)), places, add_lines(1))


_add_up = vector_kernel(_write_add_up)


@callee
def add_up(total, parts, count, first, factor):  # type: ignore[no-untyped-def]
    """total = factor * (parts[0] + ... + parts[count - 1]), in this order, on the elements of `parts` from `first` on.

    total   (elements,)        parts   (at least count, n_parameters)
    """
    itemsize, scale = total.itemsize, total.dtype.type(factor)
    lines, stride = total.size * itemsize // LINE, parts.shape[1] * itemsize
    places = total.ctypes.data, parts.ctypes.data + first * itemsize
    _add_up(total, (*places, stride, count - 1, lines, scale))
    # a flat buffer has whole lines only, other arrays may not
    for i in range(lines * LINE // itemsize, total.size):
        total[i] = parts[0, first + i]
        for shard in range(1, count):
            total[i] += parts[shard, first + i]
        total[i] *= scale


def _sums_of_squares(words, sums, lines, places, visit):  # type: ignore[no-untyped-def]
    """sums += the squares of `lines` lines, each in the lane that comes next in turn.

    `places` are addresses that move by a line each time. ``visit(*places)`` returns the address of the line to square,
    and may load and store there before that.

    sums  float64 (8,)
    """
    wide = words.wide()
    parts = words.lanes // wide.lanes  # vectors of float64 that a line becomes

    def add_line(*values):  # type: ignore[no-untyped-def]
        places, totals = values[:-parts], values[-parts:]
        source, added = visit(*places), []
        for part, total in enumerate(totals):
            value = words.load_short(words.offset(source, part * (LINE // parts)), wide.lanes)
            value = wide.convert(value, True)
            added.append(wide.fma(value, value, total))
        return [*(words.offset(place, LINE) for place in places), *added]

    before = [wide.load(sums, aligned=False), *[wide.constant(0.0)] * (parts - 1)]
    total, *others = words.loop(lines, [*places, *before], add_line)[-parts:]
    for other in others:
        total = wide.add(total, other)
    wide.store(total, sums, aligned=False)


def _write_add_squares(words, sums, values, lines):  # type: ignore[no-untyped-def]
    """sums += the squares of `values`, each in the lane that comes next in turn.

    sums  float64 (8,)     values  (lines, lanes)
    """
    _sums_of_squares(words, sums, lines, [values], lambda values: values)


_add_squares = vector_kernel(_write_add_squares)


@callee
def add_squares(sums_at, values):  # type: ignore[no-untyped-def]
    """sums += the squares of `values`, so that the sum of all 8 `sums` grows by the sum of the squares.

    sums_at   float64 (8,)        values   (elements,): whole lines
    """
    _add_squares(values, (sums_at, np.int64(values.ctypes.data), values.size * values.itemsize // LINE))


def _write_add_penalty(words, sums, gradient, weights, lines, factor):  # type: ignore[no-untyped-def]
    """gradient += factor * weights; sums += the squares of `weights`, each in the lane that comes next in turn.

    sums  float64 (8,)     gradient, weights  (lines, lanes)
    """
    scale = words.splat(factor)

    def add_line(gradient, weights):  # type: ignore[no-untyped-def]
        line = words.load(weights, aligned=False)
        line = words.fma(scale, line, words.load(gradient, aligned=False))
        words.store(line, gradient, aligned=False)
        return weights

    _sums_of_squares(words, sums, lines, [gradient, weights], add_line)


_add_penalty = vector_kernel(_write_add_penalty)


@callee
def add_penalty(sums_at, gradient, parameters, plan, first, factor):  # type: ignore[no-untyped-def]
    """gradient += factor W for the weights, not the biases; the sum of all 8 `sums` grows by those of their squares.

    sums_at      float64 (8,)
    gradient     (elements,): those of the flat buffer from `first` on; whole lines, as stretches and patches are
    parameters   (n_parameters,)      plan  LAYER (layers,)
    """
    itemsize, last = gradient.itemsize, first + gradient.size
    scale = gradient.dtype.type(factor)
    for i in range(plan.shape[0]):
        start, end = max(first, plan[i].weight), min(last, plan[i].bias)
        if start < end:
            g = np.int64(gradient.ctypes.data) + (start - first) * itemsize
            w = np.int64(parameters.ctypes.data) + start * itemsize
            _add_penalty(gradient, (sums_at, g, w, (end - start) * itemsize // LINE, scale))


def _write_adam(words, p, g, u, s, lines, *constants):  # type: ignore[no-untyped-def]
    """Adam on whole lines. `constants`: beta_1, 1 - beta_1, beta_2, 1 - beta_2, epsilon, the rate, 1 - decay.

    p, g, u, s   (lines, lanes): parameters, gradient, first and second moment
    """
    beta_1, rest_1, beta_2, rest_2, epsilon, rate, keep = map(words.splat, constants)

    def line(p, g, u, s):  # type: ignore[no-untyped-def]
        slope = words.load(g, aligned=False)
        mean = words.fma(beta_1, words.load(u, aligned=False), words.mul(rest_1, slope))
        square = words.fma(beta_2, words.load(s, aligned=False), words.mul(rest_2, words.mul(slope, slope)))
        words.store(mean, u, aligned=False)
        words.store(square, s, aligned=False)
        move = words.over_root(words.mul(rate, mean), square, epsilon)
        words.store(words.sub(words.mul(keep, words.load(p, aligned=False)), move), p, aligned=False)
        return [words.offset(place, LINE) for place in (p, g, u, s)]

    words.loop(lines, [p, g, u, s], line)


_adam = vector_kernel(_write_adam)


@callee
def update(job, p, g, u, s, rate, step):  # type: ignore[no-untyped-def]
    """Update some parameters by ``job.optimizer``, in place; `step` counts from 0 within the job.

    p, u, s   (elements,): parameters, first and second moment (SGD: u is the momentum); written
    g         (elements,): the gradient
    """
    real = p.dtype.type
    one = real(1)
    if job.optimizer == SGD:
        momentum, learning = real(job.momentum), real(rate)
        keep = one - real(rate * job.weight_decay)
        if job.nesterov != 0:
            for i in range(p.size):
                u[i] = momentum * u[i] - learning * g[i]
                p[i] = keep * p[i] + (momentum * u[i] - learning * g[i])
        else:
            for i in range(p.size):
                u[i] = momentum * u[i] - learning * g[i]
                p[i] = keep * p[i] + u[i]
    elif job.optimizer == ADAM:
        t = float(job.steps_before + step + 1)
        beta_1, beta_2, epsilon = real(job.beta_1), real(job.beta_2), real(job.epsilon)
        learning = real(rate * np.sqrt(1 - job.beta_2**t) / (1 - job.beta_1**t))
        keep = one - real(rate * job.weight_decay)
        lines = p.size * p.itemsize // LINE
        arrays = p.ctypes.data, g.ctypes.data, u.ctypes.data, s.ctypes.data
        constants = beta_1, one - beta_1, beta_2, one - beta_2, epsilon, learning, keep
        _adam(p, (*arrays, lines, *constants))
        # a flat buffer has whole lines only, other arrays may not
        for i in range(lines * LINE // p.itemsize, p.size):
            u[i] = beta_1 * u[i] + (one - beta_1) * g[i]
            s[i] = beta_2 * s[i] + (one - beta_2) * (g[i] * g[i])
            p[i] = keep * p[i] - learning * u[i] / (np.sqrt(s[i]) + epsilon)
