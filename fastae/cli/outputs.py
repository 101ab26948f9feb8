"""Output files, written chunk by chunk: arrays as .npy, tables as CSV, JSON lines or Parquet.

A file appears under its name only once it is complete.
"""

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import typer

from fastae.data.arrow import arrow
from fastae.data.kept import typed
from fastae.data.row_source import Rows
from fastae.storage import overwritten_input, written_whole

Columns = dict[str, np.ndarray]  # of equal length, by name

PARQUET = (".parquet", ".pq")
TABLES = (".csv", *PARQUET)


def save_chunks(path: Path, chunks: Iterable[np.ndarray], rows: int) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Write an .npy file of `rows` rows, one chunk in memory at a time; return its shape and dtype."""
    shape, dtype = (rows, 0), np.dtype(np.float32)
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        for chunk in chunks:
            if not shape[1]:
                shape, dtype = (rows, chunk.shape[1]), chunk.dtype
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(chunk).data)
    return shape, dtype


def scores(model: Any, part: Rows, top: int) -> Columns:
    """Each row's error, whether it is an outlier, its p-value if there are several networks, and the `top` features.

    `model` is a StoredModel that detects; the error is minus its score.
    """
    error, features, shares = model.errors_and_explanation(part, top)
    columns = _judged(model, error)
    for i in range(features.shape[1]):
        columns |= {f"feature_{i + 1}": features[:, i], f"share_{i + 1}": shares[:, i]}
    return columns


def scores_of_training(model: Any, rows: Any) -> Any:
    """A pyarrow table of the training rows, as ``fit_predict`` sees them: by out-of-bag scores, if there are any.

    `model` is an AutoencoderDetector that was fitted to these rows.
    """
    import pyarrow

    score = model.oob_scores_ if len(model.all_params_) > 1 else model.score_samples(rows)
    return pyarrow.table({name: arrow(column) for name, column in _judged(model, -score).items()})


def _judged(model: Any, error: np.ndarray) -> Columns:
    """Errors, which of them are outliers', and their p-values if there are several networks."""
    columns = {"error": error, "outlier": -error < model.offset_}
    if len(model.all_params_) > 1:
        columns["p_value"] = model._calibration().p_values(error)
    return columns


def tables(
    rows: Rows, columns_of: Callable[[Rows], Columns], keep: Sequence[str] = (), *, as_text: bool
) -> Iterator[Any]:
    """Yield, chunk by chunk, a pyarrow table of the columns `keep` of the rows, then of columns_of(chunk).

    What is kept of CSV has types unless it is written `as_text`.
    """
    import pyarrow

    kept_table = rows.kept if as_text or not keep else typed(rows.kept)
    first = 0
    for part in rows.parts():
        columns = columns_of(part)
        twice = [name for name in keep if name in columns]
        if twice:
            raise ValueError(
                f"{rows.name}: column {twice[0]!r} cannot be kept: the output has one of that name"
            )
        kept = {name: kept_table[name].slice(first, len(part)) for name in keep}
        arrays = {name: arrow(column) for name, column in columns.items()}
        yield pyarrow.table(kept | arrays)
        first += len(part)


def save_tables(path: Path, tables: Iterable[Any], *, as_json: bool = False) -> None:
    """Write pyarrow tables one after another to a .csv or .parquet file, or for "-" to standard output.

    There, they are CSV or JSON lines.
    """
    if str(path) == "-":
        _write_text(sys.stdout, tables, as_json)
    elif path.suffix.lower() in PARQUET:
        with written_whole(path) as temporary:
            _write_parquet(temporary, tables)
    else:
        with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            _write_text(file, tables, as_json=False)


def json_text(value: Any) -> str:
    """Format a value as one line of JSON; NaN and infinite numbers, which JSON lacks, become null."""
    try:
        return json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(value), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise a ValueError unless the file's suffix is one of `suffixes`."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the suffix must be {' or '.join(suffixes)}, got {path.suffix!r}")


def check_not_input(option: str, path: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise a BadParameter if writing to `path` would overwrite an input: the same file, whatever it is called."""
    if name := overwritten_input(path, inputs):
        raise typer.BadParameter(
            f"{path} is the same file as the input {name}, which would be lost", param_hint=option
        )


def check_distinct(places: Mapping[str, Path | None]) -> None:
    """Raise a BadParameter if two options name the same file to write; `places` maps options to paths."""
    earlier: dict[str, str] = {}
    for option, path in places.items():
        if path is not None:
            other = earlier.setdefault(os.path.realpath(path), option)
            if other != option:
                raise typer.BadParameter(f"{path} is also the file of {other}", param_hint=option)


def _write_text(file: TextIO, tables: Iterable[Any], as_json: bool) -> None:
    import pyarrow
    from pyarrow import csv as arrow_csv

    for i, table in enumerate(tables):
        if as_json:
            file.writelines(json_text(row) + "\n" for row in table.to_pylist())
            continue
        text = pyarrow.BufferOutputStream()
        try:
            arrow_csv.write_csv(
                table, text, arrow_csv.WriteOptions(include_header=False, quoting_style="needed")
            )
        except pyarrow.ArrowInvalid as error:  # a list, for example
            names = [repr(field.name) for field in table.schema if str(error).endswith(str(field.type))]
            raise ValueError(f"column {', '.join(names)} cannot be kept in CSV: {error}") from None
        if i == 0:
            csv.writer(file, lineterminator="\n").writerow(table.column_names)
        file.write(text.getvalue().to_pybytes().decode())


def _write_parquet(path: Path, tables: Iterable[Any]) -> None:
    from pyarrow import parquet

    with ExitStack() as closing:
        writer = None
        for table in tables:
            writer = writer or closing.enter_context(parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)
