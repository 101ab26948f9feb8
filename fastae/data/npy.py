"""NumPy files: .npy, read a chunk at a time, and .npz, read whole.

Files are read, not memory-mapped, so that no more than a chunk is ever resident.
"""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastae.data.columns import matrix_shape, numeric
from fastae.data.row_source import ArrayRows, Rows

# Large enough for a disk to read fast, small enough that a chunk mixes rows from all over the file
PIECE_BYTES = 1 << 20


class NpyRows(Rows):
    """An .npy file, stored by rows or (Fortran order) by columns; a piece is up to 1 MiB of rows."""

    def __init__(self, path: Path, feature_names: tuple[str, ...] | None, chunk_bytes: int) -> None:
        self.path, self.name = path, str(path)
        self.feature_names, self.chunk_bytes = feature_names, chunk_bytes
        with open(path, "rb") as file:
            shape, self.by_columns, self.stored = _header(file, path)
            self.offset = file.tell()
            size = file.seek(0, os.SEEK_END)
        self.shape, self.dtype = matrix_shape(shape, self.name), numeric(self.stored, self.name)
        row_bytes = self.shape[1] * self.dtype.itemsize
        if size < self.offset + self.shape[0] * row_bytes:
            raise ValueError(f"{path} ends early: it has {size} bytes, but {shape} {self.dtype} needs more")
        self.bounds = bounds_of_pieces(self.shape[0], row_bytes, chunk_bytes)

    def read(self, piece: int, out: np.ndarray) -> None:  # noqa: D102
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


def _header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order (True: by columns) and dtype of an .npy file; a ValueError that names it if it is damaged."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        elif version in ((2, 0), (3, 0)):  # 3.0 differs in the encoding of field names: a matrix has none
            header = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version[0]}.{version[1]} of the format is not known")
        for length in header[0]:
            if isinstance(length, bool) or not 0 <= length < 1 << 63:
                raise ValueError(f"its shape is {header[0]}")
    except OSError:
        raise
    except Exception as error:  # of Python's parser, too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable .npy file: {reason}") from None
    return header


def bounds_of_pieces(rows: int, row_bytes: int, chunk_bytes: int) -> np.ndarray:
    """The first row of each piece, and the number of rows."""
    size = max(1, min(PIECE_BYTES, chunk_bytes // 64) // row_bytes)
    return np.append(np.arange(0, rows, size), rows)


def npz_rows(path: str, feature_names: tuple[str, ...] | None) -> Rows:
    """The only array of an .npz file, or the one named X."""
    return ArrayRows(_npz_array(path), path, feature_names)


def _npz_array(path: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files
            name = names[0] if len(names) == 1 else "X"
            if name not in names:
                raise ValueError(
                    f"it must hold a single array, or one named X, but it holds {', '.join(names) or 'nothing'}"
                )
            return np.asarray(arrays[name])
    except Exception as error:  # zipfile.BadZipFile, and whatever a damaged member raises
        if isinstance(error, OSError) and error.filename is not None:  # no such file, no permission, ...
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable .npz file: {reason}") from None
