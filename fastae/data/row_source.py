"""Rows: matrices that are read a block of rows at a time, and need not fit in memory.

A block is read into a buffer that is used again for the next one. What kinds there are is known to ``data.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastae.data.columns import check_same_columns


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
    block_bytes : int
        Maximum size of a chunk in bytes; the largest row group of a Parquet file, if that is larger.
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

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.resident()
        if isinstance(array, Rows):
            array = np.concatenate([block.copy() for block in self])
        return np.array(array, dtype, copy=copy)

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

    def take(self, numbers: np.ndarray) -> "Rows":
        """The rows of these numbers, in their order, in memory: all else is read once, and forgotten."""
        made, first = np.empty((len(numbers), self.shape[1]), self.dtype), 0
        for block in self:
            here = (numbers >= first) & (numbers < first + len(block))
            made[here] = block[numbers[here] - first]
            first += len(block)
            if first > max(numbers, default=0):
                break
        return ArrayRows(made, self.name, self.feature_names)

    def parts(self) -> "Iterator[Rows]":
        """The blocks in order, each as Rows with the same names: valid until the next; an error where there is none."""
        self.check_not_empty()
        for block in self.blocks():
            yield ArrayRows(block.rows, self.name, self.feature_names)

    def check_not_empty(self) -> None:
        """Raise a ValueError if there are no rows."""
        if not len(self):
            raise ValueError(f"{self.name} has no rows")

    def check_finite(self, block: np.ndarray, *, allow_nan: bool) -> None:
        """Raise a ValueError for infinity or, unless allowed, NaN in some rows of these: it names the first column."""
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(block.sum()):
                return
        bad = np.isinf(block) if allow_nan else ~np.isfinite(block)
        if not bad.any():
            return
        column = int(bad.any(axis=0).argmax())
        what = "NaN" if np.isnan(block[bad[:, column], column]).any() else "infinity"
        called = column + 1 if self.feature_names is None else repr(self.feature_names[column])
        raise ValueError(f"{self.name} contains {what} in column {called}")

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
        self.shape, self.dtype = matrix_shape(array.shape, name), numeric(array.dtype, name)
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


class JoinedRows(Rows):
    """Several files, one after another: of the same columns, by name in any order or, without names, by number."""

    def __init__(self, files: Sequence[Rows]) -> None:
        first = files[0]
        self.name, self.feature_names = f"{first.name} and {len(files) - 1} more", first.feature_names
        self.shape = (sum(map(len, files)), first.shape[1])
        self.dtype = np.result_type(*(rows.dtype for rows in files))
        in_memory = sum(len(rows) for rows in files if isinstance(rows, ArrayRows))
        self.block_bytes = max(
            in_memory * self.shape[1] * self.dtype.itemsize,
            *(rows.block_bytes for rows in files),
        )
        self.pieces = [
            (rows, piece, order)
            for rows, order in [(rows, _order_of_columns(rows, first)) for rows in files]
            for piece in range(len(rows.bounds) - 1)
        ]
        self.bounds = np.cumsum([0, *(size for rows in files for size in np.diff(rows.bounds))])

    def read(self, piece: int, out: np.ndarray) -> None:  # noqa: D102
        rows, within, order = self.pieces[piece]
        if order is None and rows.dtype == self.dtype:
            rows.read(within, out)
            return
        some = np.empty(out.shape, rows.dtype)
        rows.read(within, some)
        out[:] = some if order is None else some[:, order]


def _order_of_columns(rows: Rows, first: Rows) -> list[int] | None:
    """Where the columns of `first` are in `rows`; None: in the same places."""
    names, wanted = rows.feature_names, first.feature_names
    if names is None or wanted is None:
        if names is not wanted:
            has, lacks = (rows, first) if wanted is None else (first, rows)
            raise ValueError(f"{has.name} has names for its columns, but {lacks.name} has none")
        if rows.shape[1] != first.shape[1]:
            raise ValueError(
                f"{rows.name} has {rows.shape[1]} columns, but {first.name} has {first.shape[1]}"
            )
        return None
    check_same_columns(names, wanted, rows.name, first.name)
    return None if names == wanted else [names.index(name) for name in wanted]


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


def matrix_shape(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """`shape`, if it is a matrix's with columns; else a ValueError."""
    if len(shape) != 2:
        raise ValueError(f"{name} must be two-dimensional (rows, features), got shape {shape}")
    if shape[1] == 0:
        raise ValueError(f"{name} has no columns")
    return shape[0], shape[1]


def numeric(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The dtype in native byte order, if the engine reads such numbers; else a TypeError."""
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise TypeError(f"{name} has dtype {dtype}, but floats, integers or bools are needed")
    return dtype.newbyteorder("=")
