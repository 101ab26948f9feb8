"""The check that a flat buffer's padding is zero: every element of it, every value, and nothing else."""

import os

import numpy as np
import pytest
from guard import guarded

import fastae
from fastae.kernels import array_header, layout, padding

CHECKS = ["objects", "addresses"]
WIDTHS = [(1, 1), (5, 2, 5), (16, 8, 16), (17, 33, 9, 17), (30, 8, 30, 30)]


@pytest.fixture(params=CHECKS)
def is_dirty(request, monkeypatch):
    if request.param == "addresses":
        monkeypatch.setattr(array_header, "_facts_of_process", None)
    padding.checker.cache_clear()
    yield padding.checker()
    padding.checker.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("widths", WIDTHS)
def test_every_element_of_the_padding_counts_and_no_other(widths, dtype, is_dirty):
    activations = ("tanh",) * (len(widths) - 1)
    params = fastae.Parameters.random(fastae.Network(widths, activations), dtype=dtype)
    params.flat[~params.padding] = np.nan
    assert is_dirty(params.flat, params.plan) is False
    values = [1, -1e-30, np.nan, np.inf, np.finfo(dtype).smallest_subnormal]
    for number, place in enumerate(np.flatnonzero(params.padding)):
        params.flat[place] = values[number % len(values)]
        assert is_dirty(params.flat, params.plan) is True
        params.flat[place] = -0.0
    assert is_dirty(params.flat, params.plan) is False


@pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_beside_the_buffer_is_read(dtype, end, is_dirty):
    for widths in WIDTHS:
        plan, size, _ = layout.plan(widths, ("relu",) * (len(widths) - 1), np.dtype(dtype))
        flat = guarded(np.zeros(size, dtype), end)
        assert is_dirty(flat, plan) is False
