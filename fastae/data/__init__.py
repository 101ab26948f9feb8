"""Where rows come from: files, frames and arrays, read a chunk at a time where they do not fit in memory.

open_rows.py          the public function: which reader a source needs
row_source.py         Rows: what every source offers to training and to models
csv.py parquet.py     readers of one file format each
columns.py            columns by name: kept, dropped, refused, compared
column_statistics.py  mean, variance and range of each column, in one pass
"""

from fastae.data.open import open_rows
from fastae.data.row_source import Rows

__all__ = ["Rows", "open_rows"]
