"""Spool: numbers that are expensive to read, kept in memory up to a limit and beyond it in a temporary file."""

import os
import tempfile
import threading
from collections.abc import Iterable
from typing import IO

import numpy as np

from fastae.data.npy import bounds_of_pieces
from fastae.data.row_source import ArrayRows, Rows


class Spool:
    """Keeps the rows of one or several sources, which are added one after another.

    The file has no name (on Windows, a hidden one) and goes with the last of its rows. It lies in the directory of
    temporary files, which TMPDIR names.

    Parameters
    ----------
    memory : int
        Maximum number of bytes of all sources that stay in memory.
    """

    def __init__(self, memory: int) -> None:
        self.memory, self.size = memory, 0
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()

    def keep(
        self,
        arrays: Iterable[np.ndarray],
        columns: int,
        name: str,
        feature_names: tuple[str, ...] | None,
        chunk_bytes: int,
    ) -> Rows:
        """The rows of the arrays, each of float64 and shape (any, columns), one after another."""
        held: list[np.ndarray] = []
        held_bytes, rows, start = 0, 0, self.size
        for array in arrays:
            rows += len(array)
            held.append(array)
            held_bytes += array.nbytes
            if held_bytes > self.memory or self.size > start:
                self._write(held)
                held.clear()
        if self.size > start:
            self._write(held)
            return SpooledRows(self, start, (rows, columns), name, feature_names, chunk_bytes)
        self.memory -= held_bytes
        array = held[0] if len(held) == 1 else np.concatenate([np.empty((0, columns)), *held])
        return ArrayRows(array, name, feature_names)

    def _write(self, arrays: Iterable[np.ndarray]) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="fastae-", buffering=0)
            for array in arrays:
                data = array.reshape(-1).view(np.uint8).data
                while data:
                    count = self._file.write(data)
                    self.size, data = self.size + count, data[count:]
        except OSError as error:
            error.filename = tempfile.gettempdir()
            raise

    def read(self, place: int, out: np.ndarray) -> None:
        """Fill `out`, a contiguous array, with the bytes from `place` on."""
        assert self._file is not None
        data = out.reshape(-1).view(np.uint8).data
        while data:
            if hasattr(os, "pread"):  # processes after a fork share the file's position
                part = os.pread(self._file.fileno(), len(data), place)
            else:
                with self._lock:
                    self._file.seek(place)
                    part = self._file.read(len(data))
            data[: len(part)] = part
            place, data = place + len(part), data[len(part) :]


class SpooledRows(Rows):
    """Rows in a spool's file, in float64; a piece is up to 1 MiB of them."""

    def __init__(
        self,
        spool: Spool,
        start: int,
        shape: tuple[int, int],
        name: str,
        feature_names: tuple[str, ...] | None,
        chunk_bytes: int,
    ) -> None:
        self.spool, self.start, self.shape, self.dtype = spool, start, shape, np.dtype(np.float64)
        self.name, self.feature_names, self.chunk_bytes = name, feature_names, chunk_bytes
        self.bounds = bounds_of_pieces(shape[0], shape[1] * self.dtype.itemsize, chunk_bytes)

    def read(self, piece: int, out: np.ndarray) -> None:  # noqa: D102
        self.spool.read(self.start + int(self.bounds[piece]) * self.shape[1] * self.dtype.itemsize, out)
