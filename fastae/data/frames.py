"""pandas, polars and pyarrow tables, copied to an array (through narwhals)."""

from typing import Any

import numpy as np

from fastae.data.columns import index_columns, kept_columns, refuse_types
from fastae.data.row_source import ArrayRows, Rows


def frame_rows(frame: Any, drop: tuple[str, ...]) -> Rows:
    """The rows of a table, without the columns in `drop`; float32 if all columns are, else float64."""
    import narwhals as nw

    names = list(frame.column_names if hasattr(frame, "column_names") else frame.columns)
    index = index_columns(getattr(frame, "schema", None))
    kept = [name for name in kept_columns(names, drop, "X") if name not in index]
    try:
        table = nw.from_native(frame, eager_only=True)
    except TypeError:
        raise TypeError(f"X must be a frame in memory, got a {type(frame).__qualname__}") from None
    table = table[:, [names.index(name) for name in kept]]  # by position: names may be numbers
    refuse_types(table, "X")
    all_float32 = all(kind == nw.Float32 for kind in table.schema.values())
    array = np.empty(table.shape, np.float32 if all_float32 else np.float64)
    for j, column in enumerate(table.iter_columns()):
        array[:, j] = column.cast(nw.Float32 if all_float32 else nw.Float64).to_numpy()
    # As in scikit-learn: other columns have numbers, not names
    named = any(isinstance(name, str) for name in kept)
    return ArrayRows(array, "X", tuple(map(str, kept)) if named else None)
