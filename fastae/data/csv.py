"""CSV files, plain or compressed with gzip, parsed by pyarrow in blocks of text; each block is read once.

What pyarrow refuses is read again cell by cell: true and false, other spellings of missing cells, and errors, which
name the line or the column. Numbers are float64; a spool holds them, so that a large file takes no memory.
"""

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from typing import Any, BinaryIO

import numpy as np

from fastae.data.arrow import floats
from fastae.data.columns import Selection, refuse
from fastae.data.kept import kept_text
from fastae.data.row_source import Rows
from fastae.data.spool import Spool

BLOCK_BYTES = 1 << 22  # of text, parsed at a time
PARSED_BYTES = 1 << 18  # of it, parsed by a thread at a time: with its numbers, they fit in a core's cache
# Text parsed at a time where there are many columns: so much of each, because pyarrow takes microseconds for each one,
# but no more for all of them.
CELL_BYTES, WIDE_BYTES = 1 << 12, 1 << 26
FIRST_BYTES = 1 << 16  # of text, whose first row tells the delimiter
GUESS_ROWS = 100  # that a first line of numbers is compared with
SHOWN = 60  # characters of a cell in a message
YEARS = 1800, 2199  # numbers that may be names of columns

_WORDS = {"": np.nan, "na": np.nan, "nan": np.nan, "null": np.nan, "true": 1.0, "false": 0.0}
_MISSING = ["", "NA", "na", "NaN", "nan", "NULL", "null"]  # to pyarrow; other spellings are read cell by cell


def csv_rows(
    path: str,
    names: tuple[str, ...] | None,
    selection: Selection,
    spool: Spool,
    chunk_bytes: int,
    header: bool | None = None,
) -> Rows:
    """All rows of a CSV file.

    Parameters
    ----------
    path : str
        The file; "-" is standard input.
    names : tuple of str, or None
        Names of the columns, if there is no header.
    selection : Selection
        The columns to read.
    spool : Spool
        Holds the numbers.
    chunk_bytes : int
        As for ``open_rows``.
    header : bool, optional
        Whether the first line that is not blank holds names. None: guess (``_is_header``).
    """
    name = "standard input" if path == "-" else path
    with _opened(path, name) as file:
        blocks = _blocks(file, name)
        delimiter = next(blocks).decode()
        block = next(blocks)
        first, following, header_text = _first_rows(block, delimiter, name)
        guess = ""
        if header is None:
            header = _is_header(first, following, selection.only)
            if any(_is_number(cell) and cell.strip() for cell in first):
                shown = delimiter.join(first[:4]) + "..." * (len(first) > 4)
                read_as = "column names" if header else "data, not as column names"
                guess = f"{name}: the first line, {shown!r}, was read as {read_as}"
        if header and names is not None:
            raise ValueError(f"{name} has column names of its own: feature_names cannot be given")
        chosen = selection.choose(first if header else None, len(first), name)
        columns = _Columns(
            name, delimiter, len(first), first if header else None, chosen.features, chosen.kept
        )
        line = 0
        if header:
            names = tuple(first[place] for place in chosen.features)
            block, line = block[len(header_text) :], _lines(header_text)
        rows = spool.keep(columns.arrays(block, blocks, line), len(chosen.features), name, names, chunk_bytes)
    rows.guess, rows.ignored, rows.kept = guess, chosen.ignored, columns.kept_table()
    return rows


# -- text -------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: str, name: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if its name ends in .gz, or of standard input."""
    if path == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed")
        yield getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode())
    elif path.lower().endswith(".gz"):
        with gzip.open(path, "rb") as file:
            try:
                yield file  # type: ignore[misc]
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{name} is not a complete gzip file: {error}") from None
    else:
        with open(path, "rb") as file:
            yield file


def _blocks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """First the delimiter, then the text without a byte order mark, in blocks of whole rows."""
    text = file.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
    while not text.strip():
        more = file.read(BLOCK_BYTES)
        if not more:
            raise ValueError(f"{name} is empty")
        text += more
    # Cells in quotes may hold delimiters
    bare = re.sub(rb'(?<![^,;\t\r\n])"[^"]*"', b"x", text[:FIRST_BYTES].lstrip(b"\r\n"))
    first = next((line for line in re.split(rb"[\r\n]", bare) if line.strip()), b"")
    delimiter = max((b",", b";", b"\t"), key=first.count)
    yield delimiter
    width = text.lstrip().split(b"\n", 1)[0].count(delimiter) + 1
    size, line = max(BLOCK_BYTES, min(4 * width * CELL_BYTES, WIDE_BYTES)), 0
    while more := file.read(max(size, len(text))):
        end = _end_of_rows(text, delimiter, f"{name}: line {line + 1}")
        if end:
            yield text[:end]
            line += _lines(text[:end])
        text = text[end:] + more
    if text:
        yield text


def _end_of_rows(text: bytes, delimiter: bytes, place: str) -> int:
    """The end of the last line of `text` that is not within quotes; 0 if there is none. `text` begins a row."""
    newline = b"\n" if b"\n" in text else b"\r"
    end = text.rfind(newline, 0, -1) + 1  # a last "\r" may be half of a line's end
    if b'"' not in text:
        return end
    characters = np.frombuffer(text, np.uint8)
    quotes = np.flatnonzero(characters == ord('"'))
    if not _are_regular(characters, quotes, delimiter):
        quotes = _true_quotes(text, quotes, delimiter)
    ends = np.flatnonzero(characters[:-1] == newline[0]) + 1
    ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
    if not ends.size and quotes.size % 2 and len(text) - quotes[-1] > csv.field_size_limit():
        raise ValueError(
            f"{place}: field larger than field limit ({csv.field_size_limit()}): a quote is not closed"
        )
    return int(ends[-1]) if ends.size else 0


def _are_regular(characters: np.ndarray, quotes: np.ndarray, delimiter: bytes) -> bool:
    """Whether all quotes open a cell, close it or are doubled, in turns."""
    around = np.concatenate([[ord("\n")], characters, [ord("\n")]])
    allowed = np.frombuffer(b'\r\n"' + delimiter, np.uint8)
    return bool(
        np.isin(around[quotes[::2]], allowed).all() and np.isin(around[quotes[1::2] + 2], allowed).all()
    )


def _true_quotes(text: bytes, quotes: np.ndarray, delimiter: bytes) -> np.ndarray:
    """The quotes that open and close cells, in turns: not those that are a character of a cell without quotes."""
    true, is_open, last = [], False, -2
    for quote in quotes.tolist():
        if is_open:
            is_open = False
        elif quote == last + 1:  # doubled
            is_open = True
        elif quote == 0 or text[quote - 1 : quote] in (b"\r", b"\n", delimiter):
            is_open = True
        else:
            continue
        true.append(quote)
        last = quote
    return np.array(true, np.int64)


def _lines(text: bytes) -> int:
    """The number of line ends."""
    return text.count(b"\n") or text.count(b"\r")


# -- header -----------------------------------------------------------------------------------------------------------


def _first_rows(block: bytes, delimiter: str, name: str) -> tuple[list[str], list[list[str]], bytes]:
    """The first row that is not blank, the rows that follow, and the text up to the end of the first."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(_decoded(block, name), newline=""):
            taken.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter)
    try:
        first = next((row for row in reader if taken[-1].strip()), None)
        if first is None:
            raise ValueError(f"{name} has no first row: it is blank, or its quote is not closed")
        text = "".join(taken).encode()
        return first, [row for row in islice(reader, GUESS_ROWS) if not _is_blank(row)], text
    except csv.Error as error:
        raise ValueError(f"{name}: line {reader.line_num}: {error}") from None


def _is_header(first: Sequence[str], following: Sequence[Sequence[str]], only: Sequence[str] | None) -> bool:
    """Whether the first line holds names.

    It does if a cell is not a number, if it holds the model's names (`only`), or if it is 0, 1, 2, ... as pandas names
    columns. Two names 0, 1 and years in a row may be numbers too: they are names if the lines that follow are of
    another kind, with a decimal point in every cell or, for years, all outside the range of years.
    """
    if only is not None and set(only) <= set(first):
        return True
    named = first[1:] if first[:1] == [""] else first
    if not all(map(_is_number, first)):
        return True
    if len(named) < 2 or not all(re.fullmatch("[0-9]+", cell) for cell in named):
        return False
    numbers = [int(cell) for cell in named]
    if any(right - left != 1 for left, right in pairwise(numbers)):
        return False
    if list(named) != list(map(str, numbers)):
        return False
    if numbers[0] == 0 and len(numbers) > 2:
        return True
    are_years = YEARS[0] <= numbers[0] and numbers[-1] <= YEARS[1]
    cells = [cell for row in following for cell in row[-len(named) :] if cell.strip()]
    if not cells or not (numbers[0] == 0 or are_years):
        return False
    if all(re.search("[.eE]", cell) for cell in cells):
        return True
    return are_years and not any(_is_number(cell) and YEARS[0] <= _cell(cell) <= YEARS[1] for cell in cells)


# -- cells ------------------------------------------------------------------------------------------------------------


class _Columns:
    """Parses blocks of text: features to arrays, and kept columns to text.

    Parameters
    ----------
    name : str
        Name of the file, for messages.
    delimiter : str
    width : int
        Number of cells of a row.
    names : sequence of str, or None
        The names of all columns.
    features, kept : sequence of int
        The places of these columns.
    """

    def __init__(
        self,
        name: str,
        delimiter: str,
        width: int,
        names: Sequence[str] | None,
        features: Sequence[int],
        kept: Sequence[int],
    ) -> None:
        self.name, self.delimiter, self.width, self.names = name, delimiter, width, names
        self.features, self.kept = list(features), list(kept)
        self.as_text = set(kept)  # places of columns that pyarrow reads as text
        self.kept_parts: list[Any] = []

    def arrays(self, block: bytes, blocks: Iterable[bytes], line: int) -> Iterator[np.ndarray]:
        """The features of all blocks, as arrays of shape (rows, features); the first begins after `line` lines."""
        for text in chain([block], blocks):
            if text:
                yield self._array(text, line)
                line += _lines(text)

    def kept_table(self) -> Any:
        """The kept columns as a pyarrow table of text; None if there are none."""
        import pyarrow

        if not self.kept or not self.names:
            return None
        schema = kept_text([self.names[place] for place in self.kept])
        return (
            pyarrow.concat_tables(self.kept_parts).cast(schema) if self.kept_parts else schema.empty_table()
        )

    def _array(self, text: bytes, line: int) -> np.ndarray:
        table = self._table(text, line)
        if self.kept and self.names:
            part = table.select([str(place) for place in self.kept])
            self.kept_parts.append(part.rename_columns([self.names[place] for place in self.kept]))
        array, refused = np.empty((table.num_rows, len(self.features))), {}
        numbers = {}
        for j, place in enumerate(self.features):
            if table.schema.field(str(place)).type == "double":
                numbers[str(place)] = j
                continue
            try:
                array[:, j], is_plain = _numbers(table[str(place)])
                if not is_plain:
                    self.as_text.add(place)
            except ValueError as error:
                refused[self.names[place] if self.names else f"number {place + 1}"] = repr(error.args[0])
        refuse(refused, self.name)
        first = 0
        for batch in table.select(list(numbers)).to_batches() if numbers else ():
            last = first + batch.num_rows
            for column, j in zip(batch.columns, numbers.values(), strict=True):
                array[first:last, j] = floats(column)
            first = last
        return array

    def _table(self, text: bytes, line: int) -> Any:
        """The features and kept columns of a block as a pyarrow table; their names are their places."""
        import pyarrow

        try:
            return self._parsed(text, self.as_text)
        except pyarrow.ArrowInvalid:
            pass
        try:
            return self._parsed(text, {*self.features, *self.kept})
        except pyarrow.ArrowInvalid:
            return self._read(text, line)

    def _parsed(self, text: bytes, as_text: set[int]) -> Any:
        """The table as pyarrow parses it; an ArrowInvalid where a cell is not a number or a row is too long."""
        import pyarrow
        from pyarrow import csv as arrow_csv

        used = sorted({*self.features, *self.kept})
        types = {str(place): pyarrow.string() if place in as_text else pyarrow.float64() for place in used}
        has_quotes = b'"' in text
        return arrow_csv.read_csv(
            pyarrow.BufferReader(text),
            read_options=arrow_csv.ReadOptions(
                column_names=[str(place) for place in range(self.width)],
                block_size=max(PARSED_BYTES, min(self.width * CELL_BYTES, WIDE_BYTES // 4)),
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=self.delimiter,
                newlines_in_values=has_quotes,
                ignore_empty_lines=self.width > 1,  # in a single column, they are missing cells
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=_MISSING
            ),
        )

    def _read(self, text: bytes, line: int) -> Any:
        """The table as Python's reader reads it, as text; errors name the line."""
        import pyarrow

        reader = csv.reader(io.StringIO(_decoded(text, self.name), newline=""), delimiter=self.delimiter)
        cells: list[list[str]] = []
        try:
            for row in reader:
                if self.width == 1 and not row:
                    row = [""]
                elif _is_blank(row) and self.width > 1:
                    continue
                if len(row) != self.width:
                    raise ValueError(
                        f"{self.name}: line {line + reader.line_num} has {len(row)} cells, "
                        f"the first line {self.width}"
                    )
                cells.append(row)
        except csv.Error as error:
            raise ValueError(f"{self.name}: line {line + reader.line_num}: {error}") from None
        used = sorted({*self.features, *self.kept})
        return pyarrow.table(
            {str(place): pyarrow.array([row[place] for row in cells], pyarrow.string()) for place in used}
        )


def _numbers(column: Any) -> tuple[np.ndarray, bool]:
    """A column of text as float64, and whether it holds only what pyarrow reads as numbers.

    A ValueError holds the first cell that is not a number.
    """
    import pyarrow
    from pyarrow import compute

    try:
        is_missing = compute.is_in(column, value_set=pyarrow.array(_MISSING))
        cells = compute.if_else(is_missing, pyarrow.scalar(None, pyarrow.string()), column)
        return compute.cast(cells, pyarrow.float64()).to_numpy(), True
    except pyarrow.ArrowInvalid:
        pass
    encoded = column.combine_chunks().dictionary_encode()
    values = []
    for text in encoded.dictionary.to_pylist():
        try:
            values.append(_cell(text))
        except ValueError:
            raise ValueError(text if len(text) <= SHOWN else text[:SHOWN] + "...") from None
    return np.array(values)[encoded.indices.to_numpy()], False


def _cell(text: str) -> float:
    """The number that a cell holds; NaN if it is missing. Python's own literals, such as 1_000, are not numbers."""
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    if "_" in word or not word.isascii():
        raise ValueError(text)
    return float(word)


def _is_number(cell: str) -> bool:
    try:
        _cell(cell)
    except ValueError:
        return False
    return True


def _is_blank(row: Sequence[str]) -> bool:
    return len(row) < 2 and not "".join(row).strip()


def _decoded(text: bytes, name: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a CSV file in UTF-8: {error}") from None
