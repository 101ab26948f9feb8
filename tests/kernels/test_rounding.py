"""Numbers rounded up to whole blocks."""

from hypothesis import given
from hypothesis import strategies as st

from fastae.kernels import rounding


@given(st.integers(0, 10**9), st.integers(1, 4096))
def test_rounding_up_gives_the_least_multiple_that_is_enough(count, multiple):
    rounded = rounding.round_up(count, multiple)
    assert rounded % multiple == 0
    assert count <= rounded < count + multiple


@given(st.integers(0, 10**6), st.sampled_from([8, 16]))
def test_blocks_hold_all_columns_and_none_is_empty(columns, lanes):
    blocks = rounding.in_blocks(columns, lanes)
    assert (blocks - 1) * lanes < columns <= blocks * lanes or columns == blocks == 0
