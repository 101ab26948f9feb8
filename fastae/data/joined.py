"""JoinedRows: several files, one after another, as one matrix."""

from collections.abc import Sequence

import numpy as np

from fastae.data.columns import check_same_columns
from fastae.data.kept import joined_tables
from fastae.data.row_source import ArrayRows, Rows


class JoinedRows(Rows):
    """Several files, one after another. Columns match by name, in any order, or by position if they have no names."""

    def __init__(self, files: Sequence[Rows]) -> None:
        first = files[0]
        self.name, self.feature_names = f"{first.name} and {len(files) - 1} more", first.feature_names
        self.shape = (sum(map(len, files)), first.shape[1])
        self.dtype = np.result_type(*(rows.dtype for rows in files))
        held = sum(len(rows) for rows in files if isinstance(rows, ArrayRows))  # in memory already
        self.chunk_bytes = max(
            held * self.shape[1] * self.dtype.itemsize, *(rows.chunk_bytes for rows in files)
        )
        self.pieces = [
            (rows, piece, order)
            for rows, order in [(rows, _order_of_columns(rows, first)) for rows in files]
            for piece in range(len(rows.bounds) - 1)
        ]
        guesses = [rows.guess for rows in files if rows.guess]
        self.guess = (
            guesses[0] + f" (and {len(guesses) - 1} more files)" * (len(guesses) > 1) if guesses else ""
        )
        self.ignored = tuple(dict.fromkeys(column for rows in files for column in rows.ignored))
        self.kept = joined_tables([rows.kept for rows in files if rows.kept is not None])
        self.reads_ahead = any(rows.reads_ahead for rows in files)
        self.bounds = np.cumsum([0, *(size for rows in files for size in np.diff(rows.bounds))])

    def read(self, piece: int, out: np.ndarray) -> None:  # noqa: D102
        rows, within, order = self.pieces[piece]
        if order is None and rows.dtype == self.dtype:
            rows.read(within, out)
            return
        stored = np.empty(out.shape, rows.dtype)
        rows.read(within, stored)
        out[:] = stored if order is None else stored[:, order]


def _order_of_columns(rows: Rows, first: Rows) -> list[int] | None:
    """The position in `rows` of each column of `first`; None where the positions are the same."""
    names, wanted = rows.feature_names, first.feature_names
    if names is None or wanted is None:
        if names is not wanted:
            named, unnamed = (rows, first) if wanted is None else (first, rows)
            raise ValueError(f"{named.name} has column names, but {unnamed.name} has none")
        if rows.shape[1] != first.shape[1]:
            raise ValueError(
                f"{rows.name} has {rows.shape[1]} columns, but {first.name} has {first.shape[1]}"
            )
        return None
    check_same_columns(names, wanted, rows.name, first.name)
    return None if names == wanted else [names.index(name) for name in wanted]
