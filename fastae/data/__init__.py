"""Where rows come from: files, frames and arrays, read a chunk at a time where they do not fit in memory.

open.py                                 open_rows, the public function: picks the reader that a source needs
npy.py csv.py parquet.py frames.py      readers, one file per format
joined.py                               several files as one matrix
spool.py                                numbers of CSV, in memory or in a temporary file
arrow.py                                pyarrow's arrays to and from NumPy
kept.py                                 columns that are carried along with the rows
read_ahead.py                           the next chunk is read while one is in use
row_source.py                           RowSource, what training and models ask of any rows; Rows, read by this process
columns.py                              columns by name: kept, dropped, refused, compared
weighted.py                             rows with weights: those that count, weighted mean and deviation
column_statistics.py                    mean, spread and range of each column, in one pass
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; at run time __getattr__ loads each name when it is first used
    from fastae.data.open import open_rows as open_rows
    from fastae.data.row_source import Rows as Rows
    from fastae.data.row_source import RowSource as RowSource

_HOME = {"RowSource": "row_source", "Rows": "row_source", "open_rows": "open"}
__all__ = ["RowSource", "Rows", "open_rows"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fastae.data' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"fastae.data.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
