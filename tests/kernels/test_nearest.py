"""The nearest of many points, by the unit with the least output: against NumPy, on edges of every size."""

import os

import numpy as np
import pytest
from guard import guard_buffers, guarded

from fastae.engine.nearest import HEIGHT, Units
from fastae.kernels.gemm import ROW_MULTIPLE

posix = pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
# Columns, units, members and groups: units that fill no block, a block and more; groups that do, and do not
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 3, 1),
    (3, 16, 4, 4),
    (7, 17, 4, 4),
    (8, 64, 4, 16),
    (9, 69, 4, 17),
    (16, 100, 2, 33),
    (17, 300, 4, 64),
    (40, 1000, 4, 64),
]


def least(X, W, b, members, groups, own=None):
    """(outputs, the least of each row, the least of each group), in float64."""
    outputs = X.astype("f8") @ W + b
    if own is not None:
        outputs[np.arange(len(X)), own] = np.inf
    of_groups = outputs[:, : members * groups].reshape(len(X), members, groups).min(axis=1)
    return outputs, outputs.min(axis=1), of_groups


def draw(rows, columns, units, seed=0):
    rng = np.random.default_rng([seed, rows, columns, units])
    sizes = (rows, columns), (columns, units), units
    return [rng.normal(size=size).astype("f4") for size in sizes]


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_least_outputs_up_to_a_guard_page(shape, end, monkeypatch):
    columns, units, members, groups = shape
    guard_buffers(monkeypatch, end)
    for rows in (1, 2, 31, HEIGHT - 1, HEIGHT, HEIGHT + 1, 3 * HEIGHT + 5):
        X, W, b = draw(rows, columns, units)
        X = guarded(X, end)
        for own in (None, np.random.default_rng(rows).integers(units, size=rows)):
            if own is not None and units == 1:
                continue
            found, of_groups = Units(W, b, members, groups).least(X, own)
            outputs, wanted, of_groups_wanted = least(X, W, b, members, groups, own)
            np.testing.assert_allclose(outputs[np.arange(rows), found], wanted, atol=1e-5 * columns)
            np.testing.assert_allclose(of_groups, of_groups_wanted, atol=1e-5 * columns)


def test_a_tile_holds_whole_register_tiles():
    assert HEIGHT % ROW_MULTIPLE == 0


def test_all_units_may_be_the_nearest():
    """One point per row, and the row is that point: each unit is found, whichever slot it has."""
    points = np.random.default_rng(1).normal(size=(333, 5)).astype("f4")
    units = Units(-2 * points.T, np.square(points).sum(axis=1), 4, 64)
    found, _ = units.least(points)
    assert np.array_equal(found, np.arange(333))
    found, of_groups = units.least(points, np.arange(333))
    distances = np.square(points[:, None].astype("f8") - points).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.array_equal(found, distances.argmin(axis=1))
    squares = np.square(points).sum(axis=1, keepdims=True)
    wanted = distances[:, :256].reshape(333, 4, 64).min(axis=1) - squares
    np.testing.assert_allclose(of_groups, wanted, atol=1e-5)


def test_a_row_has_the_same_bits_whatever_the_rows_beside():
    X, W, b = draw(200, 11, 150)
    units = Units(W, b, 4, 30)
    found, of_groups = units.least(X)
    for first in (0, 1, 77, 199):
        alone = units.least(X[first : first + 1].copy())
        assert alone[0] == found[first]
        assert np.array_equal(alone[1][0], of_groups[first])


def test_rows_of_any_order_and_dtype():
    X, W, b = draw(200, 11, 150)
    units = Units(W, b, 4, 30)
    found, of_groups = units.least(X)
    for same in (np.asfortranarray(X), X.astype("f8"), np.repeat(X, 2, axis=1)[:, ::2], X[::-1][::-1]):
        again = units.least(same)
        assert np.array_equal(again[0], found)
        assert np.array_equal(again[1], of_groups)


def test_outputs_that_are_not_numbers_do_not_count():
    X, W, b = draw(4, 3, 40)
    X[0, 0], X[1, 0], X[2, 0] = np.nan, np.inf, -np.inf
    found, of_groups = Units(W, b, 4, 10).least(X)
    outputs = np.where(np.isnan(X[:, :1]), np.inf, X[:, :1] * W[:1])  # which decides where it is infinite
    assert found[0] == 0
    assert np.isposinf(of_groups[0]).all()
    for row in (1, 2):
        assert np.isneginf(outputs[row, found[row]])
        wanted = outputs[row, :40].reshape(4, 10).min(axis=0)
        assert np.array_equal(of_groups[row], wanted)
    assert np.isfinite(of_groups[3]).all()


def test_equal_outputs_are_those_of_one_of_their_units():
    W, b = np.zeros((2, 50), "f4"), np.ones(50, "f4")
    b[[7, 23, 49]] = -1
    found, of_groups = Units(W, b, 2, 20).least(np.ones((100, 2), "f4"))
    assert np.isin(found, [7, 23, 49]).all()
    assert (of_groups == np.where(np.isin(np.arange(20), [3, 7]), -1, 1)).all()
