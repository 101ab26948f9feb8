"""The transpose of W, part by part."""

import numpy as np
import pytest

from fastae.kernels import layout, transpose
from fastae.kernels.compiler import jitted


@jitted
def transpose_squares(target, source, fan_in, fan_out, first, last):
    transpose.transpose_squares(source, target.ctypes.data, source.ctypes.data, fan_in, fan_out, first, last)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squares_are_transposed(dtype):
    lanes = layout.lanes(dtype)
    W = np.random.default_rng(0).normal(size=(2 * lanes, 3 * lanes)).astype(dtype)
    source = layout.aligned_zeros(6 * lanes * lanes, dtype).reshape(3, 2 * lanes, lanes)
    layout.pack(W, source)
    target = layout.aligned_zeros(6 * lanes * lanes, dtype).reshape(2, 3 * lanes, lanes)
    for first, last in [(0, 1), (1, 3), (3, 6)]:
        transpose_squares(target, source, 2 * lanes, 3 * lanes, first, last)
    assert np.array_equal(layout.unpack(target, W.T.shape), W.T)
