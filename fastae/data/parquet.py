"""Parquet files, read one row group at a time and a chunk ahead of their use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastae.data.arrow import floats
from fastae.data.columns import Selection, index_columns, matrix_shape, refuse
from fastae.data.row_source import Rows

COPIED_BYTES = 1 << 18  # of rows, copied column by column at a time: they stay in the cache


class ParquetRows(Rows):
    """A Parquet file; a piece is a row group. The index of a pandas frame is left out: it is not one of its columns."""

    reads_ahead = True

    def __init__(self, path: str, selection: Selection, chunk_bytes: int) -> None:
        if not os.path.exists(path):
            raise FileNotFoundError(f"no such file: {path}")
        self.name, self.chunk_bytes, self._metadata = path, chunk_bytes, None
        with self._file() as file:
            schema, metadata = file.schema_arrow, file.metadata
            names, index = schema.names, index_columns(schema)
            groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if min(groups, default=0) < 0:
                raise ValueError("a row group has fewer than 0 rows")
            if sum(groups) != metadata.num_rows:
                raise ValueError(f"its row groups have {sum(groups)} rows, but the file {metadata.num_rows}")
        chosen = selection.choose(names, len(names), path)
        columns = [names[place] for place in chosen.features if names[place] not in index]
        types = {column: schema.field(column).type for column in columns}
        refuse({column: str(type_) for column, type_ in types.items() if not _is_number(type_)}, path)
        if selection.keep:
            with self._file() as file:
                self.kept = _plain(file.read(columns=list(dict.fromkeys(selection.keep))))
        self._metadata = metadata
        self.ignored = tuple(column for column in chosen.ignored if column not in index)
        is_single = all(str(type_) in ("float", "halffloat") for type_ in types.values())
        self.bounds = np.cumsum([0, *groups])
        self.shape, self.feature_names = (
            matrix_shape((int(self.bounds[-1]), len(columns)), path),
            tuple(columns),
        )
        self.dtype = np.dtype(np.float32 if is_single else np.float64)

    def read(self, piece: int, out: np.ndarray) -> None:  # noqa: D102
        kind, first = "float" if self.dtype == np.float32 else "double", 0
        columns = list(self.feature_names or ())
        size = max(1, COPIED_BYTES // (len(columns) * self.dtype.itemsize))
        with self._file() as file:
            for batch in file.iter_batches(row_groups=[piece], columns=columns):
                if first + len(batch) > len(out):
                    raise ValueError(f"row group {piece + 1} has more rows than the file says")
                arrays = [  # large integers are rounded
                    floats(batch.column(column).cast(kind, safe=False)) for column in columns
                ]
                for start in range(0, len(batch), size):
                    part = out[first + start : first + min(start + size, len(batch))]
                    for j, array in enumerate(arrays):
                        part[:, j] = array[start : start + size]
                first += len(batch)
            if first < len(out):
                raise ValueError(f"row group {piece + 1} has fewer rows than the file says")

    @contextmanager
    def _file(self) -> Iterator[Any]:
        """The open file; whatever its content raises becomes a ValueError that names it."""
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.name, metadata=self._metadata) as file:
                yield file
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the system: no permission, ...
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.name} is not a readable Parquet file: {reason}") from None


def _plain(table: Any) -> Any:
    """The table with categories as their values, and without pandas' metadata."""
    from pyarrow import types

    for place, field in enumerate(table.schema):
        if types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table[place].cast(field.type.value_type))
    return table.replace_schema_metadata()


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return any(test(kind) for test in tests)
