"""RowSource: what training and models ask of rows, wherever they are. Rows: those that this process can read.

``Rows`` are read a chunk at a time and need not fit in memory; an array is ``ArrayRows``, one chunk. How gradient steps
are taken on a source is known to ``fastae.training`` and, for rows on several machines, to ``fastae.distributed``.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from fastae.data.column_statistics import ColumnStatistics
from fastae.data.columns import matrix_shape, numeric
from fastae.data.read_ahead import ahead

SLICE_ROWS = 4096  # rows that statistics are computed from at a time


class NanError(ValueError):
    """Rows hold NaN where cells may not be missing; its one argument says where, and its message how to allow it."""

    def __str__(self) -> str:
        return f"{self.args[0]}: missing='mask' allows missing cells"


class RowSource(ABC):
    """A matrix of m rows and n features, wherever its rows are.

    Attributes
    ----------
    name : str
        The file, or "X", for messages.
    shape : (m, n)
    dtype : dtype
        A float, integer or bool type of native byte order.
    feature_names : sequence of str, or None
    is_local : bool
        Whether this process can read the rows.
    files : tuple of str
        The files that the rows come from, which no result may overwrite.
    guess : str
        How a CSV file's first line was read, where it could have been read in another way; else empty.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    feature_names: Sequence[str] | None
    is_local: bool
    files: tuple[str, ...] = ()
    guess: str = ""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether all rows are, or fit, in one array of this process."""

    @property
    @abstractmethod
    def default_batch_size(self) -> int:
        """Rows per step where the user gives no number."""

    def resident(self) -> "np.ndarray | RowSource":
        """The whole matrix as an array where it is in memory, else these rows."""
        return self

    def called(self, argument: str) -> str:
        """The name to use in messages about the rows, passed as `argument`."""
        return argument if self.name == "X" else self.name

    @abstractmethod
    def check_not_empty(self, argument: str = "X") -> None:
        """Raise a ValueError if there are no rows."""

    @abstractmethod
    def checked(self, *, allow_nan: bool) -> Self:
        """The same rows, checked for infinity and, unless allowed, NaN: now, or whenever they are read for a model.

        Raises
        ------
        ValueError
            A row holds such a value.
        """

    @abstractmethod
    def column_statistics(self) -> ColumnStatistics:
        """Count, mean, spread and range of each column."""

    @abstractmethod
    def split(self, fraction: float, seed: int) -> "tuple[RowSource, RowSource]":
        """Training rows and validation rows: about `fraction` of the rows, drawn at random, are the latter."""

    @abstractmethod
    def map_rows(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """function(X), with one output row per row; `function` is called with arrays of consecutive rows."""

    def of_array(self, values: np.ndarray) -> np.ndarray:
        """Those of `values`, one for each row of the data, that belong to these rows, which may be a part of them."""
        return values

    @abstractmethod
    def mean_over_rows(self, function: Callable[[np.ndarray, np.ndarray | None], np.ndarray]) -> float:
        """Mean over all rows of function(rows, index), an array with one number per row.

        `rows` is an array, and `index` numbers the rows of it to use; None: all.
        """


@dataclass(frozen=True)
class Chunk:
    """Rows that are in memory together.

    Attributes
    ----------
    rows : ndarray of shape (held, n)
        Valid until the next chunk is asked for.
    order : ndarray of int64, or None
        The numbers, within `rows`, of the rows that belong to this chunk, in order; None: all of them.
    first : int
        The number of `rows`' first row, in the file or, where rows are shuffled, in this pass over it.
    """

    rows: np.ndarray
    order: np.ndarray | None
    first: int


class Rows(RowSource):
    """A matrix of m rows and n features that is read chunk by chunk and need not fit in memory.

    ``fastae.open_rows`` makes one. Iterating yields the chunks in order, as arrays of shape (rows, n); each is valid
    until the next one is requested.

    Attributes
    ----------
    name : str
        Name of the file, for messages.
    shape : tuple of int
        (m, n).
    dtype : numpy.dtype
        Type of the elements: float, integer or bool, in native byte order.
    feature_names : tuple of str, or None
        Names of the columns, if they have any.
    chunk_bytes : int
        Maximum size of a chunk in bytes; the largest row group of a Parquet file, if that is larger.
    ignored : tuple of str
        Columns of the file that are neither features of the model nor kept.
    kept : pyarrow.Table or None
        Columns that are carried along with the rows.
    """

    feature_names: tuple[str, ...] | None
    chunk_bytes: int
    bounds: np.ndarray  # first row of each piece, the least that is read at once, and m
    is_local = True
    ignored: tuple[str, ...] = ()
    kept: Any = None
    # Whether the next chunk is read while one is in use: reading takes time, and twice the memory
    reads_ahead = False
    _allow_nan: bool | None = None  # what iterating checks the rows for; None: nothing

    @abstractmethod
    def read(self, piece: int, out: np.ndarray) -> None:
        """Read the rows of one piece into `out`."""

    def __iter__(self) -> Iterator[np.ndarray]:
        for chunk in self.chunks():
            rows = chunk.rows if chunk.order is None else chunk.rows[chunk.order]
            if self._allow_nan is not None:
                self.check_finite(rows, allow_nan=self._allow_nan)
            yield rows

    def __repr__(self) -> str:
        return f"<Rows of {self.name}: {self.shape[0]} x {self.shape[1]} {self.dtype}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.in_memory:
            return np.array(self.resident(), dtype, copy=copy)
        return np.array(np.concatenate([rows.copy() for rows in self]), dtype, copy=copy)

    @property
    def chunk_rows(self) -> int:
        """Rows that fit in a chunk."""
        return max(1, self.chunk_bytes // (self.shape[1] * self.dtype.itemsize))

    @property
    def in_memory(self) -> bool:
        """Whether all rows fit in one chunk."""
        return len(self) <= self.chunk_rows

    @property
    def default_batch_size(self) -> int:
        """128, or all rows."""
        return min(128, len(self))

    def resident(self) -> "np.ndarray | Rows":
        """The whole matrix as an array where it fits in a chunk, else these rows."""
        if not self.in_memory:
            return self
        return next(iter(self), np.empty(self.shape, self.dtype))

    def loaded(self) -> "Rows":
        """These rows, loaded into an array where they fit in a chunk."""
        array = self.resident()
        return self if isinstance(array, Rows) else ArrayRows(array, self.name, self.feature_names)

    def settings(self) -> dict[str, Any]:
        """What a checkpoint records, so that a run is resumed only on such rows; the names are those of its file."""
        return {"X.shape": self.shape, "index": None, "X.block_bytes": self.chunk_bytes}

    def chunks(self, generator: np.random.Generator | None = None, multiple: int = 1) -> Iterator[Chunk]:
        """All rows, once each, in chunks.

        Parameters
        ----------
        generator : numpy.random.Generator, optional
            Shuffles the pieces of the file, then the rows of each chunk of pieces; without one, all is in order.
        multiple : int, default 1
            Each chunk but the last holds a multiple of this many rows, at most `chunk_rows`.
        """
        chunks = self._chunks(generator, multiple)
        return ahead(chunks) if self.reads_ahead and not self.in_memory else chunks

    def _chunks(self, generator: np.random.Generator | None, multiple: int) -> Iterator[Chunk]:
        """The chunks of ``chunks``, in one buffer; with `reads_ahead`, in two by turns."""
        sizes = np.diff(self.bounds)
        pieces = np.arange(sizes.size) if generator is None else generator.permutation(sizes.size)
        capacity = max(self.chunk_rows, int(sizes.max(initial=0)) + multiple - 1)
        buffers = [
            np.empty((min(capacity, len(self)), self.shape[1]), self.dtype)
            for _ in range(1 + self.reads_ahead)
        ]
        buffer = buffers[0]
        held = first = 0
        for piece in pieces:
            if held + sizes[piece] > capacity:
                use = held - held % multiple
                rest: slice | np.ndarray
                if generator is None:
                    yield Chunk(buffer[:use], None, first)
                    rest, first = slice(use, held), first + use
                else:
                    order = generator.permutation(held)
                    yield Chunk(buffer[:held], order[:use], first)
                    rest, first = order[use:], first + held
                buffers.reverse()
                buffers[0][: held - use] = buffer[rest]
                buffer = buffers[0]
                held -= use
            self.read(int(piece), buffer[held : held + sizes[piece]])
            held += int(sizes[piece])
        if held:
            yield Chunk(buffer[:held], None if generator is None else generator.permutation(held), first)

    def slices(self) -> Iterator[np.ndarray]:
        """All rows in order, as arrays of a few thousand rows."""
        for rows in self:
            for first in range(0, len(rows), SLICE_ROWS):
                yield rows[first : first + SLICE_ROWS]

    def read_pieces(self, first: int, last: int) -> np.ndarray:
        """Pieces `first` .. `last` - 1, as one array."""
        start = int(self.bounds[first])
        out = np.empty((int(self.bounds[last]) - start, self.shape[1]), self.dtype)
        for piece in range(first, last):
            self.read(piece, out[self.bounds[piece] - start : self.bounds[piece + 1] - start])
        return out

    def take(self, numbers: np.ndarray) -> "Rows":
        """The rows with these numbers, in that order, in memory; each chunk is read once."""
        taken, first = np.empty((len(numbers), self.shape[1]), self.dtype), 0
        for rows in self:
            here = (numbers >= first) & (numbers < first + len(rows))
            taken[here] = rows[numbers[here] - first]
            first += len(rows)
            if first > numbers.max(initial=0):
                break
        return ArrayRows(taken, self.name, self.feature_names)

    def parts(self) -> "Iterator[Rows]":
        """The chunks in order, as Rows with the same names, each valid until the next; a ValueError if no rows."""
        self.check_not_empty()
        for rows in self:
            yield ArrayRows(rows, self.name, self.feature_names)

    def check_not_empty(self, argument: str = "X") -> None:
        """Raise a ValueError if there are no rows."""
        if not len(self):
            raise ValueError(f"{self.called(argument)} has no rows")

    def check_finite(self, rows: np.ndarray, *, allow_nan: bool) -> None:
        """Raise a ValueError that names the first column of `rows` with infinity or, unless allowed, NaN."""
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(rows.sum()):
                return
        bad = np.isinf(rows) if allow_nan else ~np.isfinite(rows)
        if not bad.any():
            return
        column = int(bad.any(axis=0).argmax())
        is_nan = np.isnan(rows[bad[:, column], column]).any()
        column_name = column + 1 if self.feature_names is None else repr(self.feature_names[column])
        error, value = (NanError, "NaN") if is_nan else (ValueError, "infinity")
        raise error(f"{self.name} contains {value} in column {column_name}")

    def checked(self, *, allow_nan: bool) -> Self:
        """The same rows; iterating over them raises a ValueError for infinity or, unless allowed, NaN."""
        rows = copy.copy(self)
        rows._allow_nan = allow_nan
        return rows

    def column_statistics(self) -> ColumnStatistics:
        """Count, mean, spread and range of each column, in one pass."""
        statistics = ColumnStatistics(self.shape[1])
        for rows in self.slices():
            statistics.add(rows)
        return statistics

    def split(self, fraction: float, seed: int) -> "tuple[Rows, Rows]":
        """Training rows and validation rows: about `fraction` of each piece of the file, drawn at random."""
        parts = _Part(self, fraction, seed, True), _Part(self, fraction, seed, False)
        if not all(map(len, parts)):
            raise ValueError(f"{self.name} has too few pieces to set {fraction} of its rows aside")
        return parts

    def map_rows(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """function(X), chunk by chunk."""
        results, first = np.empty(0), 0
        for rows in self:
            result = function(rows)
            if not first:
                results = np.empty((len(self), *result.shape[1:]), result.dtype)
            results[first : first + len(result)] = result
            first += len(result)
        return results

    def mean_over_rows(self, function: Callable[[np.ndarray, np.ndarray | None], np.ndarray]) -> float:
        """Mean over all rows of function(rows, None), chunk by chunk."""
        return float(self.map_rows(lambda rows: function(rows, None)).mean())


class ArrayRows(Rows):
    """The rows of an array, or some of them, as one chunk. The array is not copied.

    Parameters
    ----------
    array : ndarray of shape (m, n)
    name : str
    feature_names : tuple of str, optional
    index : ndarray of int64, optional
        The numbers of the rows to use, in order; all by default.
    """

    in_memory = True

    def __init__(
        self,
        array: np.ndarray,
        name: str = "X",
        feature_names: tuple[str, ...] | None = None,
        index: np.ndarray | None = None,
    ) -> None:
        self.name, self.feature_names, self.index = name, feature_names, index
        self.shape, self.dtype = matrix_shape(array.shape, name), numeric(array.dtype, name)
        self.array = array.astype(self.dtype, copy=False)  # where bytes were swapped
        if index is not None:
            self.shape = len(index), self.shape[1]
        self.bounds = np.array([0, len(self)])
        self.chunk_bytes = max(len(self) * self.shape[1] * self.dtype.itemsize, 1)

    def of_array(self, values: np.ndarray) -> np.ndarray:  # noqa: D102
        return values if self.index is None else values[self.index]

    def read(self, piece: int, out: np.ndarray) -> None:  # noqa: D102
        out[:] = self.resident()

    def resident(self) -> np.ndarray:  # noqa: D102
        return self.array if self.index is None else self.array[self.index]

    def loaded(self) -> "Rows":  # noqa: D102
        return self

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"X.shape": self.array.shape, "index": self.index, "X.block_bytes": None}

    def chunks(self, generator: np.random.Generator | None = None, multiple: int = 1) -> Iterator[Chunk]:  # noqa: D102
        if len(self):
            order = self.index
            if generator is not None:
                drawn = generator.permutation(len(self))
                order = drawn if order is None else order[drawn]
            yield Chunk(self.array, order, 0)

    def slices(self) -> Iterator[np.ndarray]:  # noqa: D102
        for first in range(0, len(self), SLICE_ROWS):
            part = slice(first, first + SLICE_ROWS)
            yield self.array[part if self.index is None else self.index[part]]

    def checked(self, *, allow_nan: bool) -> Self:
        """These rows, checked now."""
        self.check_finite(self.resident(), allow_nan=allow_nan)
        return self

    def split(self, fraction: float, seed: int) -> "tuple[Rows, Rows]":
        """Training rows and validation rows of the same array: ceil(fraction m) of them, at random, are the latter."""
        held_out = int(np.ceil(fraction * len(self)))
        if held_out >= len(self):
            raise ValueError(
                f"{self.name} has too few rows to set {fraction} of them aside: n_samples = {len(self)}"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        numbers = np.sort(order[held_out:]), np.sort(order[:held_out])
        if self.index is not None:
            numbers = self.index[numbers[0]], self.index[numbers[1]]
        training, validation = (
            ArrayRows(self.array, self.name, self.feature_names, index) for index in numbers
        )
        return training, validation

    def map_rows(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """function(X), in one call."""
        return function(self.resident())

    def mean_over_rows(self, function: Callable[[np.ndarray, np.ndarray | None], np.ndarray]) -> float:
        """Mean over all rows of function(array, index), in one call."""
        return float(function(self.array, self.index).mean())


class _Part(Rows):
    """Some rows of each piece of other rows."""

    def __init__(self, whole: Rows, fraction: float, seed: int, most: bool) -> None:
        self.whole, self.fraction, self.seed, self.most = whole, fraction, seed, most
        self.name, self.dtype, self.feature_names = whole.name, whole.dtype, whole.feature_names
        self.chunk_bytes, self._allow_nan = whole.chunk_bytes, whole._allow_nan
        self.reads_ahead = whole.reads_ahead
        sizes = [len(self._drawn(piece, int(size))) for piece, size in enumerate(np.diff(whole.bounds))]
        self.bounds = np.cumsum([0, *sizes])
        self.shape = (int(self.bounds[-1]), whole.shape[1])

    def _drawn(self, piece: int, size: int) -> np.ndarray:
        """The part's rows of a piece of `size` rows; the size of the smaller part is rounded up or down by chance."""
        generator = np.random.default_rng([self.seed, piece])
        less = int(self.fraction * size + generator.random())
        order = generator.permutation(size)
        return np.sort(order[less:] if self.most else order[:less])

    def of_array(self, values: np.ndarray) -> np.ndarray:
        bounds = self.whole.bounds
        return np.concatenate(
            [
                values[first:last][self._drawn(piece, int(last - first))]
                for piece, (first, last) in enumerate(pairwise(bounds))
            ]
        )

    def read(self, piece: int, out: np.ndarray) -> None:
        size = int(self.whole.bounds[piece + 1] - self.whole.bounds[piece])
        rows = np.empty((size, self.shape[1]), self.dtype)
        self.whole.read(piece, rows)
        np.take(rows, self._drawn(piece, size), axis=0, out=out)
