"""The blocked layout: there and back, padding, alignment, and a plan whose parts do not overlap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastae.kernels import layout

SIZES = st.integers(1, 70)
REAL = st.sampled_from(["float32", "float64"])


@given(SIZES, SIZES, REAL)
def test_there_and_back(rows, columns, dtype):
    dense = np.random.default_rng(rows).normal(size=(rows, columns)).astype(dtype)
    lanes = layout.lanes(dtype)
    blocked = np.zeros((layout.blocks(columns, dtype), rows + 2, lanes), dtype)
    layout.pack(dense, blocked)
    assert np.array_equal(layout.unpack(blocked, dense.shape), dense)
    for i in (0, rows - 1):
        for j in (0, columns - 1):
            assert blocked[j // lanes, i, j % lanes] == dense[i, j]
    assert np.count_nonzero(blocked) == np.count_nonzero(dense)


@given(SIZES, SIZES, REAL)
def test_what_is_unpacked_is_a_copy(rows, columns, dtype):
    blocked = np.ones((layout.blocks(columns, dtype), rows, layout.lanes(dtype)), dtype)
    dense = layout.unpack(blocked, (rows, columns))
    assert dense.flags.c_contiguous
    dense[...] = 2
    assert (blocked == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_whole_block_is_copied_too(dtype):
    """Its dense array lies in memory as it does itself."""
    lanes = layout.lanes(dtype)
    blocked = np.ones((1, 5, lanes), dtype)
    assert not np.may_share_memory(layout.unpack(blocked, (5, lanes)), blocked)


@given(st.integers(0, 1000), REAL)
def test_buffers_start_on_a_cache_line(size, dtype):
    buffer = layout.aligned_zeros(size, dtype)
    assert buffer.shape == (size,)
    assert buffer.dtype == dtype
    assert buffer.ctypes.data % 64 == 0 or size == 0
    assert not buffer.any()


@given(st.lists(SIZES, min_size=2, max_size=5), REAL)
def test_no_two_parts_of_a_plan_overlap(widths, dtype):
    table, size, transposed = layout.plan(tuple(widths), ("relu",) * (len(widths) - 1), dtype)
    lanes = layout.lanes(dtype)

    def padded(width):
        return layout.blocks(width, dtype) * lanes

    parameters, wt, outputs, sums = 0, 0, padded(widths[0]), 0
    for i, row in enumerate(table):
        fan_in, fan_out = padded(widths[i]), padded(widths[i + 1])
        assert [row.fan_in, row.fan_out] == widths[i : i + 2]
        assert row.weight == parameters
        assert row.bias == parameters + fan_in * fan_out
        assert row.output == outputs
        assert row.column_sums == sums
        if i:
            assert row.transposed == wt
            wt += fan_in * fan_out
        parameters += (fan_in + 1) * fan_out
        outputs += fan_out
        sums += fan_out
    assert (size, transposed) == (parameters, wt)


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 16), ("float64", 8)])
def test_a_block_is_a_cache_line(dtype, lanes):
    assert layout.lanes(dtype) == lanes
    assert [layout.blocks(n, dtype) for n in (1, lanes, lanes + 1)] == [1, 1, 2]
