"""Output files, written chunk by chunk: arrays as .npy, scores as CSV, JSON lines or Parquet.

A file appears under its name only once it is complete.
"""

import csv
import json
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import typer

from fastae.data.row_source import Rows
from fastae.storage import written_whole

Table = dict[str, np.ndarray]  # columns of equal length


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


def scores(model: Any, rows: Rows, top: int) -> Iterator[Table]:
    """Yield, chunk by chunk, each row's error, whether it is an outlier, and the `top` features responsible.

    `model` is a fitted AutoencoderDetector; the error is minus its score.
    """
    for part in rows.parts():
        error = -model.score_samples(part)
        table = {"error": error, "outlier": -error < model.offset_}
        features, shares = model.explain(part, top=top)
        for i in range(features.shape[1]):
            table |= {f"feature_{i + 1}": features[:, i], f"share_{i + 1}": shares[:, i]}
        yield table


def save_scores(path: Path, tables: Iterable[Table], *, as_json: bool = False) -> None:
    """Write tables one after another to a .csv or .parquet file, or for "-" to standard output as CSV or JSON lines."""
    if str(path) == "-":
        _write_text(sys.stdout, tables, as_json)
    elif path.suffix.lower() in (".parquet", ".pq"):
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
    """Raise a BadParameter if writing to `path` would overwrite an input: the same file, whatever it is called.

    Links are followed, and hard links are the same file. "-" is the file behind standard input, if there is one.
    """
    written = _identity(path)
    for source in inputs:
        if str(source) == "-":
            same = written is not None and written == _identity(0)
        else:
            same = os.path.realpath(path) == os.path.realpath(source)
            same = same or (written is not None and written == _identity(source))
        if same:
            name = "standard input" if str(source) == "-" else os.fspath(source)
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


def _identity(file: int | str | os.PathLike[str]) -> tuple[int, int] | None:
    """What tells a file apart from all others; None for what does not exist or, like a terminal, is not a file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _write_text(file: TextIO, tables: Iterable[Table], as_json: bool) -> None:
    writer = csv.writer(file, lineterminator="\n")
    for i, table in enumerate(tables):
        columns = {
            name: np.where(column, "true", "false") if column.dtype == bool and not as_json else column
            for name, column in table.items()
        }
        lines = zip(*(column.tolist() for column in columns.values()), strict=True)
        if as_json:
            file.writelines(json_text(dict(zip(columns, line, strict=True))) + "\n" for line in lines)
            continue
        if i == 0:
            writer.writerow(columns)
        writer.writerows(lines)


def _write_parquet(path: Path, tables: Iterable[Table]) -> None:
    import pyarrow
    from pyarrow import parquet

    with ExitStack() as closing:
        writer = None
        for table in tables:
            arrow_table = pyarrow.table(
                {name: pyarrow.array(column.tolist()) for name, column in table.items()}
            )
            writer = writer or closing.enter_context(parquet.ParquetWriter(path, arrow_table.schema))
            writer.write_table(arrow_table)
