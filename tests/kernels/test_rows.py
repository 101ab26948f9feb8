"""Rows of any dtype and stride into a tile, and back out; nothing beyond a matrix is touched."""

import os

import numpy as np
import pytest
from guard import guarded

from fastae.bench.stages import layer_times
from fastae.kernels import job, layout, rows
from fastae.kernels.compiler import jitted

posix = pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
KINDS = [np.dtype(name) for name in ("f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
REAL = ["float32", "float64"]


@jitted
def _load(tile, x, strides, dtype_id, columns, index, first, count, shift, scale, spare):
    source = rows.Source(x, columns, strides[0], strides[1], dtype_id, index, shift, scale)
    rows.load_rows(
        tile, np.int64(tile.ctypes.data), tile.shape[1], source, first, count, np.int64(spare.ctypes.data)
    )


def load(X, dtype, *, index=None, first=0, count=None, shift=None, scale=None):
    """Rows of X through the kernel, as a dense array; padding lanes must be zero."""
    available = len(X) if index is None else len(index)
    count = available - first if count is None else count
    height, lanes = count + 3, layout.lanes(dtype)
    blocks = layout.blocks(X.shape[1], dtype)
    tile = layout.aligned_zeros(blocks * height * lanes, dtype).reshape(blocks, height, lanes)
    tile[...] = 77
    padded = [np.pad(np.asarray(v, "f8"), (0, -len(v) % lanes)) for v in (shift, scale) if v is not None]
    addresses = [v.ctypes.data for v in padded] or [0, 0]
    at = 0 if index is None else index.ctypes.data
    dtype_id = job.DTYPE_IDS[X.dtype]
    strides = np.array(X.strides, "i8")
    if X.shape[1] == 1:
        strides[1] = X.itemsize
    _load(tile, X.ctypes.data, strides, dtype_id, X.shape[1], at, first, count, *addresses, np.zeros(16))
    assert (tile[:, count:] == 77).all(), "rows below are left alone"
    flat = tile.transpose(1, 0, 2).reshape(height, -1)
    assert not flat[:count, X.shape[1] :].any(), "padding is not zero"
    return flat[:count, : X.shape[1]]


def matrix(kind, shape):
    rng = np.random.default_rng(3)
    if kind.kind == "f":
        return rng.normal(size=shape).astype(kind) * kind.type(3)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_dtype_and_width_up_to_a_guard_page(kind, dtype, end):
    for columns in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33):
        X = guarded(matrix(kind, (5, columns)), end)
        np.testing.assert_array_equal(load(X, dtype), X.astype(dtype))
        F = guarded(np.ascontiguousarray(X.T), end).T  # Fortran order
        np.testing.assert_array_equal(load(F, dtype), X.astype(dtype))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_any_strides(kind, dtype):
    X = matrix(kind, (12, 40))
    for view in (X[::2], X[::-1], X[:, ::3], X[::-2, ::-1], X[2:9, 5:23], np.broadcast_to(X[0], (6, 40))):
        np.testing.assert_array_equal(load(view, dtype), view.astype(dtype))


@pytest.mark.parametrize("dtype", REAL)
def test_halves_are_exact(dtype):
    """Every half: subnormal, infinite and NaN ones too."""
    X = np.arange(1 << 16, dtype=np.uint16).view("f2").reshape(-1, 32)
    np.testing.assert_array_equal(load(X, dtype), X.astype(dtype))


@pytest.mark.parametrize("dtype", REAL)
def test_an_index_gathers(dtype):
    X = matrix(np.dtype("f4"), (50, 19))
    index = np.array([49, 0, 7, 7, 23, 1, 48], "i8")
    np.testing.assert_array_equal(load(X, dtype, index=index), X[index])
    np.testing.assert_array_equal(load(X, dtype, index=index, first=2, count=3), X[index[2:5]])
    np.testing.assert_array_equal(load(X, dtype, first=10, count=4), X[10:14])


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_shift_and_scale_are_in_float64_and_rounded_once(kind, dtype):
    X = matrix(kind, (9, 21))
    rng = np.random.default_rng(1)
    shift, scale = rng.normal(size=21) * 100, rng.random(21) + 0.1
    wanted = ((X.astype("f8") - shift) * scale).astype(dtype)
    np.testing.assert_array_equal(load(X, dtype, shift=shift, scale=scale), wanted)
    np.testing.assert_array_equal(load(X[:, ::-1], dtype, shift=shift, scale=scale)[:, :3],
                                  ((X[:, ::-1].astype("f8") - shift) * scale).astype(dtype)[:, :3])  # fmt: skip


def test_shift_keeps_what_float32_could_not():
    X = np.array([[1e9 + 0.25, 1e9 - 0.5]])
    assert load(X, "float32", shift=[1e9, 1e9], scale=[1, 1]).tolist() == [[0.25, -0.5]]


@posix
@pytest.mark.parametrize("dtype", REAL)
def test_rows_are_stored_up_to_a_guard_page(dtype):
    lanes = layout.lanes(dtype)
    for columns in (1, 7, 8, 16, 17, 33):
        dense = np.random.default_rng(0).random((6, columns)).astype(dtype)
        blocks = layout.blocks(columns, dtype)
        tile = layout.aligned_zeros(blocks * 9 * lanes, dtype).reshape(blocks, 9, lanes)
        layout.pack(dense, tile)
        out = guarded(np.zeros((6, columns), dtype))
        arguments = out.ctypes.data, out.strides[0], tile.ctypes.data, columns, 6, tile.shape[1]
        layer_times(1, rows.store_rows.address(dtype), arguments)
        np.testing.assert_array_equal(out, dense)
