"""RowSource: an array and a file that is read chunk by chunk answer alike what training and models ask."""

import pickle

import numpy as np
import pytest

from fastae import open_rows
from fastae.data.column_statistics import ColumnStatistics
from fastae.data.row_source import ArrayRows, NanError

X = np.random.default_rng(0).normal(size=(5000, 3))
NUMBERED = np.arange(5000.0).repeat(3).reshape(5000, 3)


def source(kind, tmp_path, array=X):
    if kind == "array":
        return ArrayRows(array)
    if kind == "index":
        wide = np.full((len(array) * 2, 3), np.nan)
        index = np.sort(np.random.default_rng(1).permutation(len(wide))[: len(array)])
        wide[index] = array
        return ArrayRows(wide, index=index)
    np.save(tmp_path / "x.npy", array)
    return open_rows(tmp_path / "x.npy", chunk_bytes=700 * 24)


KINDS = pytest.mark.parametrize("kind", ["array", "index", "file"])


@KINDS
def test_every_kind_has_the_same_rows_statistics_and_means(kind, tmp_path):
    rows = source(kind, tmp_path)
    assert (rows.shape, len(rows), rows.dtype, rows.default_batch_size) == ((5000, 3), 5000, np.float64, 128)
    assert (rows.is_local, rows.in_memory) == (True, kind != "file")
    np.testing.assert_array_equal(np.concatenate([part.copy() for part in rows]), X)
    np.testing.assert_array_equal(np.concatenate([part.copy() for part in rows.slices()]), X)
    np.testing.assert_array_equal(np.asarray(rows), X)
    np.testing.assert_array_equal(rows.map_rows(lambda part: part.sum(axis=1)), X.sum(axis=1))
    for name, value in vars(ColumnStatistics.of(X)).items():
        np.testing.assert_allclose(getattr(rows.column_statistics(), name), value, rtol=1e-11, atol=1e-12)

    def first_column(part, index):
        return part[:, 0] if index is None else part[index, 0]

    assert rows.mean_over_rows(first_column) == pytest.approx(X[:, 0].mean(), rel=1e-12)


@KINDS
def test_a_split_holds_every_row_once(kind, tmp_path):
    training, validation = source(kind, tmp_path, NUMBERED).split(0.1, seed=3)
    assert 400 < len(validation) < 600
    numbers = [np.asarray(part)[:, 0] for part in (training, validation)]
    assert np.array_equal(np.sort(np.concatenate(numbers)), np.arange(5000))
    for part, own in zip((training, validation), numbers, strict=True):
        np.testing.assert_array_equal(part.of_array(getattr(part, "array", NUMBERED)[:, 0]), own)
    again = source(kind, tmp_path, NUMBERED).split(0.1, seed=3)[1]
    assert np.array_equal(np.asarray(again)[:, 0], numbers[1])


@KINDS
def test_checked_rows_are_refused_for_what_is_not_finite(kind, tmp_path):
    holed = X.copy()
    holed[4900, 1] = np.nan
    rows = source(kind, tmp_path, holed)
    assert len(list(rows.checked(allow_nan=True))) >= 1
    with pytest.raises(
        NanError, match=r"contains NaN in column 2: missing='mask' allows missing cells$"
    ) as caught:
        list(rows.checked(allow_nan=False))
    travelled = pickle.loads(pickle.dumps(caught.value))  # as from a Dask worker
    assert (type(travelled), str(travelled)) == (NanError, str(caught.value))


def test_an_array_is_never_copied_nor_are_its_parts():
    rows = ArrayRows(X[::2])
    training, validation = rows.split(0.3, seed=0)
    for part in (rows, rows.loaded(), training, validation):
        assert np.shares_memory(part.array, X)
    assert next(training.chunks()).rows is training.array
