"""Where rows come from: files, frames and arrays, read a chunk at a time where they do not fit in memory.

open.py                                 open_rows, the public function: picks the reader that a source needs
npy.py csv.py parquet.py frames.py      readers, one file per format
joined.py                               several files as one matrix
spool.py                                numbers of CSV, in memory or in a temporary file
kept.py                                 columns that are carried along with the rows
read_ahead.py                           the next chunk is read while one is in use
row_source.py                           RowSource, what training and models ask of any rows; Rows, read by this process
columns.py                              columns by name: kept, dropped, refused, compared
weighted.py                             rows with weights: those that count, weighted mean and deviation
column_statistics.py                    mean, spread and range of each column, in one pass
"""

from fastae.data.open import open_rows
from fastae.data.row_source import Rows, RowSource

__all__ = ["RowSource", "Rows", "open_rows"]
