"""``open_rows``: rows to train on out of files, frames and arrays.

An .npy or Parquet file too large for one block is never held whole. Files are read, not mapped, so that what is
resident is a block alone. CSV and .npz files, frames and arrays are in memory, and one block.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastae.columns import check_same_columns, is_frame, kept_columns, refuse, refuse_types
from fastae.csv_files import csv_rows
from fastae.rows import ArrayRows, Rows, matrix_shape, numeric

BLOCK_BYTES = 1 << 26
PIECE_BYTES = 1 << 20  # of one read: large for a disk, small enough that a block mixes many places of a file


def open_rows(
    source: Any,
    *,
    feature_names: Iterable[str] | None = None,
    drop: Iterable[str] = (),
    block_bytes: int = BLOCK_BYTES,
) -> Rows:
    """Rows to train on, or to run a model over, a block at a time.

    Parameters
    ----------
    source : path, frame or array
        An .npy, .npz, .csv or Parquet file; a pattern of Parquet files (``"part-*.parquet"``); "-", CSV on standard
        input; a pandas, polars or pyarrow table; or an array of shape (m, n). An .npz file holds one array, or one
        named X. A missing cell is NaN.
    feature_names : iterable of str, optional
        Names of the columns, where `source` has none.
    drop : iterable of str, optional
        Columns to leave out.
    block_bytes : int, default 64 MiB
        Memory for one block of an .npy or Parquet file. More of it mixes mini-batches better.

    Returns
    -------
    Rows
        For ``fastae.train`` and for the estimators' methods in place of X.

    Raises
    ------
    OSError
        A file cannot be read.
    TypeError
        A column is not numeric: it is named.
    ValueError
        A file is damaged, a column to drop is not there, or names do not match the columns.
    ImportError
        Parquet without pyarrow: ``pip install "fastae[parquet]"``.
    """
    names = None if feature_names is None else tuple(map(str, feature_names))
    drop = tuple(drop)
    if block_bytes < 1:
        raise ValueError(f"block_bytes must be at least 1, got {block_bytes!r}")
    rows: Rows
    if isinstance(source, (str, os.PathLike)):
        rows = _open_path(os.fspath(source), names, drop, block_bytes)
    elif is_frame(source):
        rows = _frame_rows(source, drop)
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


def _open_path(path: str, names: tuple[str, ...] | None, drop: tuple[str, ...], block_bytes: int) -> Rows:
    suffix = ".csv" if path == "-" else Path(path).suffix.lower()
    if suffix == ".npy":
        return _NpyRows(Path(path), names, block_bytes)
    if suffix == ".npz":
        return ArrayRows(_npz_array(path), path, names)
    if suffix in (".csv", ".tsv"):
        return csv_rows(path, names, drop)
    if suffix in (".parquet", ".pq"):
        paths = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not paths:
            raise FileNotFoundError(f"no such file: {path}")
        return _ParquetRows(paths, path, drop, block_bytes)
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


class _ParquetRows(Rows):
    """Parquet files, one after another; a piece is a row group."""

    def __init__(
        self,
        paths: list[str],
        name: str,
        drop: Sequence[str],
        block_bytes: int,
    ) -> None:
        parquet = _parquet()
        self.name, self.block_bytes = name, block_bytes
        self.groups: list[tuple[str, int]] = []
        sizes, wide = [], False
        columns: list[str] = []
        for path in paths:
            with _parquet_file(parquet, path) as file:
                schema, metadata = file.schema_arrow, file.metadata
            if path == paths[0]:
                columns = kept_columns(schema.names, drop, name)
            check_same_columns(
                [column for column in schema.names if column not in drop], columns, path, paths[0]
            )
            types = {column: schema.field(column).type for column in columns}
            refuse({column: str(type_) for column, type_ in types.items() if not _is_number(type_)}, path)
            wide = wide or any(str(type_) not in ("float", "halffloat") for type_ in types.values())
            groups = range(metadata.num_row_groups)
            self.groups += [(path, group) for group in groups]
            sizes += [metadata.row_group(group).num_rows for group in groups]
        self.bounds = np.cumsum([0, *sizes])
        self.shape, self.feature_names = (int(self.bounds[-1]), len(columns)), tuple(columns)
        self.dtype = np.dtype(np.float64 if wide else np.float32)

    def read(self, piece: int, out: np.ndarray) -> None:
        path, group = self.groups[piece]
        kind = "double" if self.dtype == np.float64 else "float"
        at = 0
        with _parquet_file(_parquet(), path) as file:
            columns = list(self.feature_names or ())
            for batch in file.iter_batches(row_groups=[group], columns=columns):
                for j, column in enumerate(columns):
                    values = batch.column(column).cast(kind)
                    out[at : at + len(batch), j] = values.to_numpy(zero_copy_only=False)  # null: NaN
                at += len(batch)


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError('Parquet files need pyarrow: pip install "fastae[parquet]"') from None
    return pyarrow.parquet


def _parquet_file(parquet: Any, path: str) -> Any:
    import pyarrow

    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from None


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return any(test(kind) for test in tests)


def _frame_rows(frame: Any, drop: tuple[str, ...]) -> Rows:
    import narwhals as nw

    table = nw.from_native(frame, eager_only=True)
    columns = kept_columns(table.columns, drop, "X")
    table = table.select(columns)
    refuse_types(table, "X")
    narrow = all(kind == nw.Float32 for kind in table.schema.values())
    array = np.empty((len(table), len(columns)), np.float32 if narrow else np.float64)
    for j, column in enumerate(columns):
        values = table[column].cast(nw.Float32 if narrow else nw.Float64)
        array[:, j] = values.to_numpy()
    return ArrayRows(array, "X", tuple(map(str, columns)))
