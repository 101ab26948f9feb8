"""CSV files, read whole, in float64."""

import csv
import io
import sys

import numpy as np

from fastae.data.columns import kept_columns, refuse
from fastae.data.row_source import ArrayRows, Rows

_WORDS = {"": np.nan, "na": np.nan, "nan": np.nan, "null": np.nan, "true": 1.0, "false": 0.0}


def _cell(text: str) -> float:
    word = text.strip().lower()
    return _WORDS[word] if word in _WORDS else float(word)


def _is_header(cells: list[str]) -> bool:
    """Whether the cells are names: one is not a number, or they are pandas' default names 0, 1, 2, ..."""
    named = cells[1:] if cells[:1] == [""] else cells
    if len(named) > 2 and named == [str(number) for number in range(len(named))]:
        return True
    try:
        for cell in cells:
            _cell(cell)
    except ValueError:
        return True
    return False


def csv_rows(path: str, names: tuple[str, ...] | None, drop: tuple[str, ...]) -> Rows:
    """All rows of a CSV file; its first line is a header unless it holds only values (``_is_header``)."""
    name = "standard input" if path == "-" else path
    if path == "-" and sys.stdin is None:
        raise ValueError("standard input is closed")
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8", newline="") as file:
                text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a CSV file in UTF-8: {error}") from None
    lines = list(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    start = next((number for number, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise ValueError(f"{name} is empty")
    delimiter = max(",;\t", key=lines[start].count)
    try:
        first = next(csv.reader(lines[start:], delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"{name}: line {start + 1}: {error}") from None
    places = list(range(len(first)))
    header = _is_header(first)
    if header:
        if names is not None:
            raise ValueError(f"{name} has column names of its own: feature_names cannot be given")
        names = tuple(kept_columns(first, drop, name))
        places = [first.index(column) for column in names]
    try:  # only numbers: NumPy's reader, in C
        array = np.empty((0, len(first)))
        if rest := lines[start + header :]:
            array = np.loadtxt(rest, delimiter=delimiter, ndmin=2, comments=None)
        if array.shape[1] != len(first):
            raise ValueError
        array = array[:, places] if drop else array
    except ValueError:
        array = _csv_cells(lines, delimiter, header, first, places, name)
    return ArrayRows(array, name, names)


def _csv_cells(
    lines: list[str], delimiter: str, header: bool, first: list[str], places: list[int], name: str
) -> np.ndarray:
    """Parse cell by cell: missing cells, true and false, quotes; a TypeError names the columns that are not numeric."""
    reader = csv.reader(lines, delimiter=delimiter)
    cells: list[list[str]] = []
    try:
        for row in reader:
            if len(row) < 2 and not "".join(row).strip():  # a blank line
                continue
            if len(row) != len(first):
                raise ValueError(
                    f"{name}: line {reader.line_num} has {len(row)} cells, the first line {len(first)}"
                )
            cells.append(row)
    except csv.Error as error:
        raise ValueError(f"{name}: line {reader.line_num}: {error}") from None
    cells = cells[header:]
    array = np.empty((len(cells), len(places)))
    refused = {}
    for j, place in enumerate(places):
        try:
            for i, row in enumerate(cells):
                array[i, j] = _cell(row[place])
        except ValueError:
            refused[first[place] if header else f"number {place + 1}"] = repr(row[place])
    refuse(refused, name)
    return array
