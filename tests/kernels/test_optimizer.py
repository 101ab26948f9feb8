"""The kernels of an update, on stretches of any length and place, against the formulas in float64."""

import ctypes

import numpy as np
import pytest
from guard import guarded

from fastae.kernels import job, layout, optimizer
from fastae.kernels.compiler import jitted
from fastae.kernels.intrinsics import record_at

add_up = jitted(optimizer.add_up)


@jitted
def update(job_at, p, g, u, s, rate, step):
    optimizer.update(record_at(job_at, job.JOB), p, g, u, s, rate, step)


@jitted
def add_penalty(sums, gradient, parameters, plan, first, factor):
    optimizer.add_penalty(sums.ctypes.data, gradient, parameters, plan, first, factor)


@jitted
def add_squares(sums, values):
    optimizer.add_squares(sums.ctypes.data, values)


RNG = np.random.default_rng(0)
TOLERANCE = {"float32": 4e-7, "float64": 1e-15}
STRETCHES = [(0, 64), (0, 1), (16, 80), (5, 5), (7, 190), (32, 200)]


def buffers(dtype, count=4, size=200):
    return [RNG.normal(size=size).astype(dtype) for _ in range(count)]


def wanted(p, g, u, s, rate, t, o):
    """The formulas of the module's docstring, in float64."""
    p, g, u, s = (array.astype("f8") for array in (p, g, u, s))
    keep = 1 - rate * o.weight_decay
    if o.optimizer == job.SGD:
        momentum = o.momentum
        u = momentum * u - rate * g
        move = momentum * u - rate * g if o.nesterov else u
        return keep * p + move, u, s
    b1, b2 = o.beta_1, o.beta_2
    u, s = b1 * u + (1 - b1) * g, b2 * s + (1 - b2) * g**2
    correction = np.sqrt(1 - b2**t) / (1 - b1**t)
    return keep * p - rate * correction * u / (np.sqrt(s) + o.epsilon), u, s


CASES = {
    "sgd": job.Job(optimizer=job.SGD),
    "momentum": job.Job(optimizer=job.SGD, momentum=0.9, weight_decay=0.1),
    "nesterov": job.Job(optimizer=job.SGD, momentum=0.9, nesterov=1),
    "adam": job.Job(optimizer=job.ADAM, beta_1=0.9, beta_2=0.999, epsilon=1e-8, steps_before=6),
    "adamw": job.Job(optimizer=job.ADAM, beta_1=0.8, beta_2=0.99, epsilon=1e-3, weight_decay=0.2),
}


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_updates_are_their_formulas_within_a_stretch(dtype, name, stretch):
    o = CASES[name]
    p, g, u, s = buffers(dtype)
    s = np.abs(s)
    before = [array.copy() for array in (p, g, u, s)]
    first, last = stretch
    update(ctypes.addressof(o), *(array[first:last] for array in (p, g, u, s)), 0.05, 3)
    results = wanted(*before, 0.05, o.steps_before + 4, o)
    inside = slice(first, last)
    for found, old, new in zip((p, u, s), (before[0], before[2], before[3]), results, strict=True):
        np.testing.assert_allclose(
            found[inside], new[inside], rtol=4 * TOLERANCE[dtype], atol=4 * TOLERANCE[dtype]
        )
        outside = np.ones(200, bool)
        outside[inside] = False
        assert np.array_equal(found[outside], old[outside])
    assert np.array_equal(g, before[1])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_adam_moves_by_the_rate_however_small_the_gradient(dtype):
    for size in (1e-12, 1e-6, 1.0, 1e6, 1e15) if dtype == "float32" else (1e-22, 1e-12, 1.0, 1e15, 1e150):
        p, u, s = np.zeros(32, dtype), np.zeros(32, dtype), np.zeros(32, dtype)
        g = np.full(32, size, dtype)
        o = job.Job(optimizer=job.ADAM, beta_1=0.9, beta_2=0.999, epsilon=1e-30)
        update(ctypes.addressof(o), p, g, u, s, 0.01, 0)
        np.testing.assert_allclose(p, -0.01, rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_parameters_stay_finite_where_adams_second_moment_overflows(dtype):
    p, g, u, s = buffers(dtype)
    before = p.copy()
    s[:] = np.inf
    o = job.Job(optimizer=job.ADAM, beta_1=0.9, beta_2=0.999, epsilon=1e-8)
    update(ctypes.addressof(o), p, g, u, s, 0.01, 0)
    np.testing.assert_array_equal(p, before)


@pytest.mark.parametrize("name", CASES)
def test_padding_stays_zero(name):
    o = CASES[name]
    p, g, u, s = (np.zeros(64, "f4") for _ in range(4))
    for step in range(3):
        update(ctypes.addressof(o), p, g, u, s, 0.1, step)
    assert not any(array.any() for array in (p, u, s))


@pytest.mark.parametrize("lines", [1, 2, 7, 128])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_squares_are_added_up_in_float64(dtype, lines):
    values = guarded((RNG.normal(size=lines * layout.lanes(dtype)) * 1e25).astype(dtype))
    sums = guarded(RNG.random(8))
    wanted = sums.sum() + (values.astype("f8") ** 2).sum()  # beyond the range of float32
    add_squares(sums, values)
    np.testing.assert_allclose(sums.sum(), wanted, rtol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_shards_are_added_up_in_order(dtype, count):
    parts = RNG.normal(size=(6, 100)).astype(dtype)
    total = np.full(100, 7, dtype)
    add_up(total[13:90], parts, count, 13, 0.25)
    running = parts[0].copy()
    for i in range(1, count):
        running += parts[i]
    assert np.array_equal(total[13:90], running[13:90] * np.asarray(0.25, dtype))
    assert (total[:13] == 7).all()
    assert (total[90:] == 7).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_penalty_is_on_weights_alone(dtype):
    plan, size, _ = layout.plan((20, 7, 20), ("sigmoid", "identity"), dtype)
    p, g = (guarded(array) for array in RNG.normal(size=(2, size)).astype(dtype))
    mask = np.zeros(size, bool)
    for row in plan:
        mask[row.weight : row.bias] = True
    line = layout.lanes(dtype)
    for first, last in [(0, size), (line, 24 * line), (size - line, size), (4 * line, 4 * line)]:
        after, sums = guarded(g), guarded(RNG.random(8))
        wanted = sums.sum() + np.square(p[first:last][mask[first:last]], dtype=np.float64).sum()
        add_penalty(sums, after[first:last], p, np.asarray(plan), first, 0.3)
        inside = mask & (np.arange(size) >= first) & (np.arange(size) < last)
        np.testing.assert_allclose(
            after, g + 0.3 * p * inside, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps
        )
        assert sums.sum() == pytest.approx(wanted, rel=1e-13)
