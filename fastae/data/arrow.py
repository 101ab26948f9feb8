"""Arrays of pyarrow to and from NumPy. pyarrow's own conversions import pandas where it is installed: half a second."""

from typing import Any

import numpy as np


def floats(array: Any) -> np.ndarray:
    """A pyarrow array of float or double as NumPy's, without a copy unless it has nulls, which become NaN."""
    validity, values = array.buffers()
    dtype: Any = np.float32 if array.type == "float" else np.float64
    if not len(array):
        return np.empty(0, dtype)
    end = array.offset + len(array)
    numbers = np.frombuffer(values, dtype, end)[array.offset :]
    if not array.null_count:
        return numbers
    is_valid = np.unpackbits(np.frombuffer(validity, np.uint8), count=end, bitorder="little")[array.offset :]
    return np.where(is_valid, numbers, dtype(np.nan))


def arrow(column: np.ndarray) -> Any:
    """A NumPy vector of bools, numbers or texts (dtype object) as a pyarrow array of that type."""
    import pyarrow

    buffers: list[Any]
    if column.dtype == object:
        texts = [text.encode() for text in column]
        ends = np.cumsum([0, *map(len, texts)])
        kind, offset = (
            (pyarrow.string(), np.int32) if ends[-1] < 2**31 else (pyarrow.large_string(), np.int64)
        )
        buffers = [pyarrow.py_buffer(ends.astype(offset)), pyarrow.py_buffer(b"".join(texts))]
    elif column.dtype == bool:
        kind, buffers = pyarrow.bool_(), [pyarrow.py_buffer(np.packbits(column, bitorder="little"))]
    else:
        kind = pyarrow.from_numpy_dtype(column.dtype)
        buffers = [pyarrow.py_buffer(np.ascontiguousarray(column))]
    return pyarrow.Array.from_buffers(kind, len(column), [None, *buffers])
