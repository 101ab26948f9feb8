"""Parquet files (extra ``parquet``), read one row group at a time."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastae.data.columns import index_columns, kept_columns, refuse
from fastae.data.row_source import Rows


class ParquetRows(Rows):
    """A Parquet file; a piece is a row group. The index of a pandas frame is left out: it is not one of its columns."""

    def __init__(self, path: str, drop: Sequence[str], chunk_bytes: int) -> None:
        if not os.path.exists(path):
            raise FileNotFoundError(f"no such file: {path}")
        self.name, self.chunk_bytes = path, chunk_bytes
        with self._open() as file:
            schema, metadata = file.schema_arrow, file.metadata
        index = index_columns(schema)
        columns = [column for column in kept_columns(schema.names, drop, path) if column not in index]
        types = {column: schema.field(column).type for column in columns}
        refuse({column: str(type_) for column, type_ in types.items() if not _is_number(type_)}, path)
        is_single = all(str(type_) in ("float", "halffloat") for type_ in types.values())
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.bounds = np.cumsum([0, *groups])
        self.shape, self.feature_names = (int(self.bounds[-1]), len(columns)), tuple(columns)
        self.dtype = np.dtype(np.float32 if is_single else np.float64)

    def read(self, piece: int, out: np.ndarray) -> None:  # noqa: D102
        kind, at = "float" if self.dtype == np.float32 else "double", 0
        columns = list(self.feature_names or ())
        with self._open() as file:
            for batch in file.iter_batches(row_groups=[piece], columns=columns):
                for j, column in enumerate(columns):
                    values = batch.column(column).cast(kind, safe=False)  # rounds large integers
                    out[at : at + len(batch), j] = values.to_numpy(zero_copy_only=False)  # null becomes NaN
                at += len(batch)

    def _open(self) -> Any:
        parquet = parquet_module()
        import pyarrow

        try:
            return parquet.ParquetFile(self.name)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{self.name} is not a readable Parquet file: {error}") from None


def parquet_module() -> Any:
    """The module ``pyarrow.parquet``."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ImportError('Parquet files need pyarrow: pip install "fastae[parquet]"') from None
    return parquet


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return any(test(kind) for test in tests)
