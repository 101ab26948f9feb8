"""``open_rows``: rows to train on out of files, frames and arrays.

An .npy or Parquet file too large for one block is never held whole. Files are read, not mapped, so that what is
resident is a block alone. CSV and .npz files, frames and arrays are in memory, and one block.
"""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastae.data.columns import index_columns, is_frame, kept_columns, refuse_types
from fastae.data.csv import csv_rows
from fastae.data.parquet import ParquetRows
from fastae.data.row_source import ArrayRows, JoinedRows, Rows, matrix_shape, numeric

BLOCK_BYTES = 1 << 26
PIECE_BYTES = 1 << 20  # of one read: large for a disk, small enough that a block mixes many places of a file


def open_rows(
    source: Any,
    *,
    feature_names: Iterable[str] | None = None,
    drop: Iterable[str] = (),
    block_bytes: int = BLOCK_BYTES,
) -> Rows:
    """Open data to train on, or to run a model over, chunk by chunk.

    Parameters
    ----------
    source : path, list of paths, data frame or array
        One or several .npy, .npz, .csv, .tsv or Parquet files, by name or by pattern (``"part-*.parquet"``); "-" for
        CSV on standard input; a pandas, polars or pyarrow table; or an array of shape (m, n). All files must have the
        same columns; named columns may be in any order. An .npz file must hold one array, or one named X. Missing
        cells become NaN.
    feature_names : iterable of str, optional
        Names of the columns, if `source` has none.
    drop : iterable of str, default ()
        Names of columns to leave out.
    block_bytes : int, default 67108864
        Memory for one chunk of an .npy or Parquet file, in bytes (64 MiB by default). With more of it, mini-batches
        mix rows from more places of the file.

    Returns
    -------
    Rows
        A row source that ``fastae.train`` and the estimators' methods accept as X.

    Raises
    ------
    OSError
        A file cannot be read.
    TypeError
        A column is not numeric. The message names it.
    ValueError
        A file is damaged, a column to drop does not exist, or the names do not match the columns.
    ImportError
        A Parquet file needs pyarrow: ``pip install "fastae[parquet]"``.
    """
    names = None if feature_names is None else tuple(map(str, feature_names))
    drop = tuple(drop)
    if block_bytes < 1:
        raise ValueError(f"block_bytes must be at least 1, got {block_bytes!r}")
    rows: Rows
    if paths := paths_of(source):
        files = [_open_path(path, names, drop, block_bytes) for path in paths]
        rows = files[0] if len(files) == 1 else JoinedRows(files)
    elif is_frame(source):
        rows = _frame_rows(source, drop)
    elif np.ma.isMaskedArray(source):
        raise TypeError("X is a masked array: pass X.filled(np.nan)")
    else:
        rows = ArrayRows(np.asarray(source), "X", names)
    if names is not None:
        if rows.feature_names is not names:
            raise ValueError(f"{rows.name} has names for its columns: feature_names cannot be given")
        if len(names) != rows.shape[1]:
            raise ValueError(
                f"feature_names has {len(names)} names, but {rows.name} has {rows.shape[1]} columns"
            )
    if drop and rows.feature_names is names:  # no reader of named columns has been through them
        if names is None:
            raise ValueError(f"{rows.name} has no names of columns to drop {drop[0]!r} by")
        raise ValueError("drop does not go with feature_names")
    return rows


def paths_of(source: Any) -> list[str]:
    """The files that a path, a pattern, or a list or tuple of these stands for; none where `source` is no such."""
    paths = source if isinstance(source, (list, tuple)) else [source]
    if not all(isinstance(path, (str, os.PathLike)) for path in paths):
        return []
    found: list[str] = []
    for path in map(os.fspath, paths):
        exact = path == "-" or os.path.exists(path)
        found += [path] if exact else sorted(glob.glob(path, recursive=True)) or [path]
    return found


def _open_path(path: str, names: tuple[str, ...] | None, drop: tuple[str, ...], block_bytes: int) -> Rows:
    suffix = ".csv" if path == "-" else Path(path).suffix.lower()
    if suffix == ".npy":
        return _NpyRows(Path(path), names, block_bytes)
    if suffix == ".npz":
        return ArrayRows(_npz_array(path), path, names)
    if suffix in (".csv", ".tsv"):
        return csv_rows(path, names, drop)
    if suffix in (".parquet", ".pq"):
        return ParquetRows(path, drop, block_bytes)
    raise ValueError(f"{path}: the suffix must be .npy, .npz, .csv, .tsv or .parquet, got {suffix!r}")


def _npz_array(path: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as held:
            names = held.files
            name = names[0] if len(names) == 1 else "X"
            if name not in names:
                raise ValueError(
                    f"it holds {', '.join(names) or 'nothing'}: one array, or one named X, is wanted"
                )
            return np.asarray(held[name])
    except (ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not an .npz file that can be read: {error}") from None
    except OSError:
        raise
    except Exception as error:  # zipfile.BadZipFile and what a damaged member raises
        raise ValueError(f"{path} is not an .npz file that can be read: {error}") from None


class _NpyRows(Rows):
    """An .npy file, of rows or (Fortran order) of columns."""

    def __init__(self, path: Path, feature_names: tuple[str, ...] | None, block_bytes: int) -> None:
        self.path, self.name, self.feature_names, self.block_bytes = (
            path,
            str(path),
            feature_names,
            block_bytes,
        )
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        with open(path, "rb") as file:
            try:
                shape, self.by_columns, self.stored = headers[np.lib.format.read_magic(file)](file)
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path} is not an .npy file that can be read: {error}") from None
            self.offset = file.tell()
            size = file.seek(0, os.SEEK_END)
        self.shape, self.dtype = matrix_shape(shape, self.name), numeric(self.stored, self.name)
        row_bytes = self.shape[1] * self.dtype.itemsize
        if size < self.offset + self.shape[0] * row_bytes:
            raise ValueError(f"{path} ends early: {size} bytes, but {shape} {self.dtype} takes more")
        rows = max(1, min(PIECE_BYTES, block_bytes // 64) // row_bytes)
        self.bounds = np.append(np.arange(0, self.shape[0], rows), self.shape[0])

    def read(self, piece: int, out: np.ndarray) -> None:
        first, item = int(self.bounds[piece]), self.dtype.itemsize
        with open(self.path, "rb") as file:
            if not self.by_columns:
                self._read(file, first * self.shape[1] * item, out)
                return
            column = np.empty(len(out), self.dtype)
            for j in range(self.shape[1]):
                self._read(file, (j * self.shape[0] + first) * item, column)
                out[:, j] = column

    def _read(self, file: BinaryIO, place: int, out: np.ndarray) -> None:
        file.seek(self.offset + place)
        if file.readinto(out.data.cast("B")) < out.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"{self.path} ends early: it was changed while being read")
        if not self.stored.isnative:
            out.byteswap(inplace=True)


def _frame_rows(frame: Any, drop: tuple[str, ...]) -> Rows:
    import narwhals as nw

    names = list(frame.column_names if hasattr(frame, "column_names") else frame.columns)
    index = index_columns(getattr(frame, "schema", None))
    kept = [name for name in kept_columns(names, drop, "X") if name not in index]
    try:
        table = nw.from_native(frame, eager_only=True)
    except TypeError:
        raise TypeError(f"X must be a frame in memory, got a {type(frame).__qualname__}") from None
    table = table[:, [names.index(name) for name in kept]]  # names may be numbers
    refuse_types(table, "X")
    narrow = all(kind == nw.Float32 for kind in table.schema.values())
    array = np.empty(table.shape, np.float32 if narrow else np.float64)
    for j, column in enumerate(table.iter_columns()):
        array[:, j] = column.cast(nw.Float32 if narrow else nw.Float64).to_numpy()
    named = any(isinstance(name, str) for name in kept)  # those without are numbered, as scikit-learn has it
    return ArrayRows(array, "X", tuple(map(str, kept)) if named else None)
