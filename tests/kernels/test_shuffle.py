"""Orders of rows are those that NumPy's generators draw."""

import numpy as np
import pytest

from fastae.kernels.shuffle import orders


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 1000, 70_001])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_orders_are_those_of_numpy(rows, seed):
    ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
    for count in (1, 3):
        drawn = orders(ours, None, rows, count)
        assert (drawn == [theirs.permutation(rows) for _ in range(count)]).all()
        assert ours.bit_generator.state == theirs.bit_generator.state  # with and without 32 bits left
        assert ours.integers(1 << 31, dtype=np.int32) == theirs.integers(1 << 31, dtype=np.int32)


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937])
def test_any_generator_may_be_given_and_rows_may_be_numbered(bits):
    ours, theirs = np.random.Generator(bits(7)), np.random.Generator(bits(7))
    numbers = np.arange(500, 0, -2)[::-1]
    drawn = orders(ours, numbers, 250, 2)
    assert (drawn == [numbers[theirs.permutation(250)] for _ in range(2)]).all()
