"""``open_rows``: which reader a file, frame or array needs.

A file that is larger than a chunk is never held whole: .npy and Parquet are read in every pass, CSV is parsed once into
a temporary file. .npz files, frames and arrays are in memory, as one chunk.
"""

import glob
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastae.checks import check_count, is_masked
from fastae.data.columns import Selection, is_frame
from fastae.data.csv import csv_rows
from fastae.data.frames import frame_rows
from fastae.data.joined import JoinedRows
from fastae.data.npy import NpyRows, npz_rows
from fastae.data.parquet import ParquetRows
from fastae.data.row_source import ArrayRows, Rows, RowSource
from fastae.data.spool import Spool

CHUNK_BYTES = 1 << 26


def open_rows(
    source: Any,
    *,
    feature_names: Iterable[str] | None = None,
    drop: Iterable[str] = (),
    chunk_bytes: int = CHUNK_BYTES,
    header: bool | None = None,
    block_bytes: int | None = None,
) -> Rows:
    """Open data to train on, or to run a model over, chunk by chunk.

    Parameters
    ----------
    source : path, list of paths, data frame or array
        One or several .npy, .npz, .csv, .tsv, .csv.gz, .tsv.gz or Parquet files, by name or by pattern
        (``"part-*.parquet"``); "-" for CSV on standard input; a pandas, polars or pyarrow table; or an array of shape
        (m, n). All files must have the same columns; named columns may be in any order. An .npz file must hold one
        array, or one named X. Missing cells become NaN.
    feature_names : iterable of str, optional
        Names of the columns, if `source` has none.
    drop : str or iterable of str, default ()
        Name or names of columns to leave out.
    chunk_bytes : int, default 67108864
        Memory for one chunk of a file, in bytes (64 MiB by default); a Parquet file takes two, since the next chunk
        is read while one is in use. With more of it, mini-batches mix rows from more places of the file.
    header : bool, optional
        Whether the first line of a CSV file holds column names. By default, it does unless it holds only numbers; and
        numbers are names if they are 0, 1, 2, ..., or if they are 0, 1 or years in a row and unlike all other lines.
    block_bytes : int, optional
        Deprecated: the former name of `chunk_bytes`.

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
    """
    if block_bytes is not None:
        warnings.warn("block_bytes is now called chunk_bytes", DeprecationWarning, stacklevel=2)
        chunk_bytes = block_bytes
    dropped = (drop,) if isinstance(drop, str) else tuple(drop)
    return open_selected(source, Selection(drop=dropped), feature_names, chunk_bytes, header)


def open_selected(
    source: Any,
    selection: Selection,
    feature_names: Iterable[str] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    header: bool | None = None,
) -> Rows:
    """``open_rows`` for a selection of columns; those that `selection` keeps are the rows' `kept`."""
    names = None if feature_names is None else tuple(map(str, feature_names))
    drop = selection.drop
    check_count(chunk_bytes, "chunk_bytes")
    rows: Rows
    if paths := paths_of(source):
        spool = Spool(chunk_bytes)
        files = [_open_path(path, names, selection, spool, chunk_bytes, header) for path in paths]
        rows = files[0] if len(files) == 1 else JoinedRows(files)
    elif is_frame(source):
        rows = frame_rows(source, drop)
    elif is_masked(source):
        raise TypeError("X is a masked array: pass X.filled(np.nan)")
    elif hasattr(source, "toarray"):
        raise TypeError("X is a sparse matrix, but dense rows are needed: pass X.toarray()")
    else:
        rows = ArrayRows(np.asarray(source), "X", names)
    rows.files = tuple(paths)
    if names is not None:
        if rows.feature_names is not names:
            raise ValueError(f"{rows.name} has column names of its own: feature_names cannot be given")
        if len(names) != rows.shape[1]:
            raise ValueError(
                f"feature_names has {len(names)} names, but {rows.name} has {rows.shape[1]} columns"
            )
    if drop and rows.feature_names is names:  # `source` has no names, so its reader dropped nothing
        if names is None:
            raise ValueError(f"{rows.name} has no column names: {drop[0]!r} cannot be dropped")
        raise ValueError("drop and feature_names cannot be combined")
    return rows


def paths_of(source: Any) -> list[str]:
    """The files that a path, a pattern, or a list or tuple of these stands for; none if `source` is something else."""
    paths = source if isinstance(source, (list, tuple)) else [source]
    if not all(isinstance(path, (str, os.PathLike)) for path in paths):
        return []
    files: list[str] = []
    for path in map(os.fspath, paths):
        exact = path == "-" or os.path.exists(path)
        files += [path] if exact else sorted(glob.glob(path, recursive=True)) or [path]
    return files


def files_of(X: Any) -> tuple[str, ...]:
    """The files that `X`, as users pass it to a model, is read from."""
    if isinstance(X, np.memmap):
        return () if X.filename is None else (os.fspath(X.filename),)
    return X.files if isinstance(X, RowSource) else ()


def _open_path(
    path: str,
    names: tuple[str, ...] | None,
    selection: Selection,
    spool: Spool,
    chunk_bytes: int,
    header: bool | None,
) -> Rows:
    suffixes = [".csv"] if path == "-" else [suffix.lower() for suffix in Path(path).suffixes]
    suffix = "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])
    if suffix in (".csv", ".tsv", ".csv.gz", ".tsv.gz"):
        return csv_rows(path, names, selection, spool, chunk_bytes, header)
    if suffix in (".parquet", ".pq"):
        return ParquetRows(path, selection, chunk_bytes)
    if suffix in (".npy", ".npz"):
        selection.choose(None, 0, path)
        return NpyRows(Path(path), names, chunk_bytes) if suffix == ".npy" else npz_rows(path, names)
    raise ValueError(
        f"{path}: the suffix must be .npy, .npz, .csv, .tsv, .csv.gz, .tsv.gz or .parquet, got {suffix!r}"
    )
