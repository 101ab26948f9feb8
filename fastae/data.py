"""Rows: matrices that are read a block of rows at a time, from files that need not fit in memory.

``open_rows`` makes one from a file, a frame or an array. A file too large for one block is never held whole: a block is
read into a buffer that is used again for the next one. Files are read, not mapped, so that what is resident is the
buffer alone. CSV and .npz files, frames and arrays are in memory, and one block.
"""

import csv
import glob
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

BLOCK_BYTES = 1 << 26
PIECE_BYTES = (
    1 << 20
)  # of one read: large enough for a disk, small enough that a block mixes many places of a file


@dataclass(frozen=True)
class Block:
    """Rows read together.

    Attributes
    ----------
    rows : ndarray of shape (held, n)
        Valid until the next block is asked for.
    order : ndarray of int64, or None
        Which of `rows` belong to this block, and in which order; None: all, as they are.
    first : int
        The number of `rows`' first row, in the file or, where rows are shuffled, in this going through it.
    """

    rows: np.ndarray
    order: np.ndarray | None
    first: int


class Rows(ABC):
    """A matrix of m rows and n features, read a block of rows at a time.

    Iterating gives it in order, as arrays of shape (rows, n), each valid until the next.

    Attributes
    ----------
    name : str
        Of the file, for messages.
    shape : (m, n)
    dtype : dtype
        Of the blocks: a float, integer or bool type of native byte order.
    feature_names : tuple of str, or None
    block_bytes : int
        What a block takes at most; a Parquet file's largest row group, where that is more.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    feature_names: tuple[str, ...] | None
    block_bytes: int
    bounds: np.ndarray  # first row of each piece, the least that is read at a time, and m

    @abstractmethod
    def read(self, piece: int, out: np.ndarray) -> None:
        """The rows of one piece into `out`."""

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (block.rows for block in self.blocks())

    def __repr__(self) -> str:
        return f"<Rows of {self.name}: {self.shape[0]} x {self.shape[1]} {self.dtype}>"

    @property
    def block_rows(self) -> int:
        """Rows that fit in a block."""
        return max(1, self.block_bytes // (self.shape[1] * self.dtype.itemsize))

    def resident(self) -> "np.ndarray | Rows":
        """The whole matrix as an array where it fits in a block, else itself."""
        if len(self) > self.block_rows:
            return self
        return next(iter(self), np.empty(self.shape, self.dtype))

    def blocks(self, generator: np.random.Generator | None = None, multiple: int = 1) -> Iterator[Block]:
        """All rows, once each, in blocks.

        Parameters
        ----------
        generator : numpy.random.Generator, optional
            Shuffles the pieces of the file, then the rows of each block of pieces; without one, all is in order.
        multiple : int, default 1
            Each block but the last holds a multiple of this many rows, at most `block_rows`.
        """
        sizes = np.diff(self.bounds)
        pieces = np.arange(sizes.size) if generator is None else generator.permutation(sizes.size)
        capacity = max(self.block_rows, int(sizes.max(initial=0)) + multiple - 1)
        buffer = np.empty((min(capacity, len(self)), self.shape[1]), self.dtype)
        held = first = 0
        for piece in pieces:
            if held + sizes[piece] > capacity:
                use = held - held % multiple
                rest: slice | np.ndarray
                if generator is None:
                    yield Block(buffer[:use], None, first)
                    rest, first = slice(use, held), first + use
                else:
                    order = generator.permutation(held)
                    yield Block(buffer[:held], order[:use], first)
                    rest, first = order[use:], first + held
                buffer[: held - use] = buffer[rest]
                held -= use
            self.read(int(piece), buffer[held : held + sizes[piece]])
            held += int(sizes[piece])
        if held:
            yield Block(buffer[:held], None if generator is None else generator.permutation(held), first)

    def parts(self) -> "Iterator[Rows]":
        """The blocks in order, each as Rows with the same names: valid until the next."""
        return (ArrayRows(block.rows, self.name, self.feature_names) for block in self.blocks())

    def split(self, fraction: float, seed: int) -> tuple["Rows", "Rows"]:
        """Two parts: about 1 - `fraction` of the rows, drawn at random from each piece of the file, and the others."""
        parts = _Part(self, fraction, seed, True), _Part(self, fraction, seed, False)
        if not all(map(len, parts)):
            raise ValueError(f"{self.name} is in too few pieces to set {fraction} of its rows aside")
        return parts


class ArrayRows(Rows):
    """An array, as one block."""

    def __init__(self, array: np.ndarray, name: str, feature_names: tuple[str, ...] | None) -> None:
        self.array, self.name, self.feature_names = array, name, feature_names
        self.shape, self.dtype = _matrix_shape(array.shape, name), _numeric(array.dtype, name)
        self.array = array.astype(self.dtype, copy=False)  # where bytes were swapped
        self.bounds = np.array([0, len(array)])
        self.block_bytes = max(array.nbytes, 1)

    def read(self, piece: int, out: np.ndarray) -> None:  # noqa: D102
        out[:] = self.array

    def resident(self) -> np.ndarray:  # noqa: D102
        return self.array

    def blocks(self, generator: np.random.Generator | None = None, multiple: int = 1) -> Iterator[Block]:  # noqa: D102
        if len(self):
            yield Block(self.array, None if generator is None else generator.permutation(len(self)), 0)


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
        self.shape, self.dtype = _matrix_shape(shape, self.name), _numeric(self.stored, self.name)
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
                columns = _kept(schema.names, drop, name)
            _check_same_columns(
                [column for column in schema.names if column not in drop], columns, path, paths[0]
            )
            types = {column: schema.field(column).type for column in columns}
            _refuse({column: str(type_) for column, type_ in types.items() if not _is_number(type_)}, path)
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
            for batch in file.iter_batches(row_groups=[group], columns=columns, use_threads=False):
                for j, column in enumerate(columns):
                    values = batch.column(column).cast(kind)
                    out[at : at + len(batch), j] = values.to_numpy(zero_copy_only=False)  # null: NaN
                at += len(batch)


class _Part(Rows):
    """Some rows of each piece of other rows."""

    def __init__(self, whole: Rows, fraction: float, seed: int, most: bool) -> None:
        self.whole, self.fraction, self.seed, self.most = whole, fraction, seed, most
        self.name, self.dtype, self.feature_names = whole.name, whole.dtype, whole.feature_names
        self.block_bytes = whole.block_bytes
        sizes = [len(self._drawn(piece, int(size))) for piece, size in enumerate(np.diff(whole.bounds))]
        self.bounds = np.cumsum([0, *sizes])
        self.shape = (int(self.bounds[-1]), whole.shape[1])

    def _drawn(self, piece: int, size: int) -> np.ndarray:
        """The part's rows of a piece of `size`; the number of the others is rounded up or down by chance."""
        generator = np.random.default_rng([self.seed, piece])
        less = int(self.fraction * size + generator.random())
        order = generator.permutation(size)
        return np.sort(order[less:] if self.most else order[:less])

    def read(self, piece: int, out: np.ndarray) -> None:
        size = int(self.whole.bounds[piece + 1] - self.whole.bounds[piece])
        rows = np.empty((size, self.shape[1]), self.dtype)
        self.whole.read(piece, rows)
        np.take(rows, self._drawn(piece, size), axis=0, out=out)


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
    elif _is_frame(source):
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
        return _csv_rows(path, names, drop)
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


# -- CSV ------------------------------------------------------------------------------------------------------------

_WORDS = {"": np.nan, "na": np.nan, "nan": np.nan, "null": np.nan, "true": 1.0, "false": 0.0}


def _cell(text: str) -> float:
    word = text.strip().lower()
    return _WORDS[word] if word in _WORDS else float(word)


def _csv_rows(path: str, names: tuple[str, ...] | None, drop: tuple[str, ...]) -> Rows:
    """All of a CSV file, in float64; its first line is the header unless it holds numbers alone."""
    name = "standard input" if path == "-" else path
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a CSV file in UTF-8: {error}") from None
    lines = text.splitlines(keepends=True)
    if not text.strip():
        raise ValueError(f"{name} is empty")
    delimiter = max(",;\t", key=lines[0].count)
    first = next(csv.reader(lines[:1], delimiter=delimiter))
    header = True
    try:
        header = not all([cell.strip() and np.isfinite(_cell(cell)) for cell in first])
    except ValueError:
        pass
    if header:
        kept = _kept(first, drop, name)
        if names is not None:
            raise ValueError(f"{name} has names for its columns: feature_names cannot be given")
        names = tuple(kept)
    places = [first.index(column) for column in names] if header and names else list(range(len(first)))
    try:  # numbers alone: NumPy's reader, in C
        array = np.empty((0, len(first)))
        if lines[header:]:
            array = np.loadtxt(lines[header:], delimiter=delimiter, ndmin=2, comments=None)
        if array.shape[1] != len(first):
            raise ValueError
        array = array[:, places] if drop else array
    except ValueError:
        array = _csv_cells(lines, delimiter, header, first, places, name)
    return ArrayRows(array, name, names)


def _csv_cells(
    lines: list[str], delimiter: str, header: bool, first: list[str], places: list[int], name: str
) -> np.ndarray:
    """Cell by cell: for missing ones, true and false, quotes, and to say which column is not numeric."""
    reader = csv.reader(lines, delimiter=delimiter)
    cells: list[list[str]] = []
    for row in reader:
        if row and len(row) != len(first):
            raise ValueError(
                f"{name}: line {reader.line_num} has {len(row)} cells, the first line {len(first)}"
            )
        if row:
            cells.append(row)
    cells = cells[header:]
    array = np.empty((len(cells), len(places)))
    refused = {}
    for j, place in enumerate(places):
        try:
            for i, row in enumerate(cells):
                array[i, j] = _cell(row[place])
        except ValueError:
            refused[first[place] if header else f"number {place + 1}"] = repr(row[place])
    _refuse(refused, name)
    return array


# -- frames and Parquet ---------------------------------------------------------------------------------------------


def refuse_columns(frame: Any, name: str = "X") -> None:
    """Raise a TypeError that names the columns of a frame that are not numeric; anything else passes."""
    if isinstance(frame, np.ndarray) or not _is_frame(frame):
        return
    import narwhals as nw

    table = nw.from_native(frame, eager_only=True, pass_through=True)
    if isinstance(table, nw.DataFrame):
        _refuse_types(table, name)


def _is_frame(source: Any) -> bool:
    return hasattr(source, "columns") or hasattr(source, "column_names")


def _refuse_types(table: Any, name: str) -> None:
    import narwhals as nw

    types = table.schema.items()
    _refuse({name: str(kind) for name, kind in types if not (kind.is_numeric() or kind == nw.Boolean)}, name)


def _frame_rows(frame: Any, drop: tuple[str, ...]) -> Rows:
    import narwhals as nw

    table = nw.from_native(frame, eager_only=True)
    columns = _kept(table.columns, drop, "X")
    table = table.select(columns)
    _refuse_types(table, "X")
    narrow = all(kind == nw.Float32 for kind in table.schema.values())
    array = np.empty((len(table), len(columns)), np.float32 if narrow else np.float64)
    for j, column in enumerate(columns):
        values = table[column].cast(nw.Float32 if narrow else nw.Float64)
        array[:, j] = values.to_numpy()
    return ArrayRows(array, "X", tuple(map(str, columns)))


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


# -- checks ---------------------------------------------------------------------------------------------------------


def _kept(columns: Sequence[str], drop: Sequence[str], name: str) -> list[str]:
    missing = [column for column in drop if column not in columns]
    if missing:
        raise ValueError(f"{name} has no column {missing[0]!r} to drop")
    twice = [column for i, column in enumerate(columns) if column in columns[:i]]
    if twice:
        raise ValueError(f"{name} has more than one column {twice[0]!r}")
    return [column for column in columns if column not in drop]


def _refuse(columns: dict[str, str], name: str) -> None:
    if columns:
        listed = ", ".join(f"{column!r} ({kind})" for column, kind in columns.items())
        raise TypeError(f"{name}: not numeric: column{'s' * (len(columns) > 1)} {listed}")


def _check_same_columns(columns: Sequence[str], wanted: Sequence[str], name: str, where: str) -> None:
    difference = difference_of_names(columns, wanted)
    if difference and sorted(columns) != sorted(wanted):
        raise ValueError(f"{name} has other columns than {where}: {difference}")


def difference_of_names(names: Sequence[str], wanted: Sequence[str]) -> str:
    """In words, what `names` lack, have besides or have in another order than `wanted`; empty where they are equal."""
    lacking = [name for name in wanted if name not in names]
    besides = [name for name in names if name not in wanted]
    said = [
        f"{what} {', '.join(map(repr, listed[:5]))}{', ...' if len(listed) > 5 else ''}"
        for what, listed in (("it lacks", lacking), ("it has besides", besides))
        if listed
    ]
    if not said and list(names) != list(wanted):
        first = next(i for i, name in enumerate(names) if name != wanted[i])
        said = [f"column {first + 1} is {names[first]!r}, not {wanted[first]!r}"]
    return "; ".join(said)


def _matrix_shape(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"{name} must be two-dimensional (rows, features), got shape {shape}")
    if shape[1] == 0:
        raise ValueError(f"{name} has no columns")
    return shape[0], shape[1]


def _numeric(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise TypeError(f"{name} has dtype {dtype}, but floats, integers or bools are needed")
    return dtype.newbyteorder("=")
