"""The data layout: column blocks, each one cache line wide. Plain NumPy; no kernel is here.

A matrix (rows, columns) is stored as ``(ceil(columns / lanes), padded rows, lanes)``, with 16 lanes in float32 and 8
in float64. The forward, backward and gradient products all read and write this layout, so that no operand is packed.
The rows of a weight matrix are padded to whole blocks as well, so that its transpose has the same layout. Padding
stays zero.
"""

import ctypes
from functools import lru_cache

import numpy as np
import numpy.typing as npt

LINE = 64  # bytes in a cache line: one block of columns
DTYPES = np.dtype(np.float32), np.dtype(np.float64)  # of the lines that products are computed from
ACTIVATIONS = ("sigmoid", "tanh", "relu", "identity")
SIGMOID, TANH, RELU, IDENTITY = range(4)

# One layer of a plan, the table that describes a network to the kernels: columns, activation, and offsets in elements.
# `weight` and `bias` count from the start of the flat buffers, `transposed` from the start of all W', `column_sums`
# from the start of the column sums of all layers. `output` counts per row of a tile, whose input comes first, at 0.
LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            "fan_in",
            "fan_out",
            "activation",
            "weight",
            "bias",
            "transposed",
            "output",
            "column_sums",
        )
    ]
)


def lanes(dtype: npt.DTypeLike) -> int:
    """Elements of `dtype` in a cache line."""
    return LINE // np.dtype(dtype).itemsize


def blocks(columns: int, dtype: npt.DTypeLike) -> int:
    """The number of blocks that hold `columns` columns."""
    return -(-columns // lanes(dtype))


def address(array: np.ndarray) -> int:
    """The address of the array's memory: ``array.ctypes.data`` in a quarter of its time, a microsecond."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, not contiguous, or empty
        return int(array.ctypes.data)


def aligned_zeros(size: int, dtype: npt.DTypeLike) -> np.ndarray:
    """A one-dimensional array of `size` zeros that starts on a cache line."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + LINE, np.uint8)
    start = -address(raw) % LINE
    return raw[start : start + size * dtype.itemsize].view(dtype)


def pack(dense: np.ndarray, out: np.ndarray) -> None:
    """Write a dense (rows, columns) array into `out`, its (blocks, padded rows, lanes); padding is left alone."""
    width = out.shape[2]
    for block in range(out.shape[0]):
        part = dense[:, block * width : (block + 1) * width]
        out[block, : part.shape[0], : part.shape[1]] = part


def unpack(blocked: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The dense array of `shape` (rows, columns) that `blocked` holds, as a new array."""
    rows, columns = shape
    by_rows = np.array(blocked[:, :rows].transpose(1, 0, 2), order="C")  # a copy, even of a single block
    return np.ascontiguousarray(by_rows.reshape(rows, -1)[:, :columns])


@lru_cache(64)
def plan(
    widths: tuple[int, ...], activations: tuple[str, ...], dtype: npt.DTypeLike
) -> tuple[np.ndarray, int, int]:
    """The plan of a network, LAYER (layers,), the size of its flat buffers, and the elements of all W' together.

    The plan is a record array. All callers with the same arguments share it: do not write to it.
    """
    width = lanes(dtype)
    table = np.zeros(len(activations), LAYER).view(np.recarray)
    parameters = transposed = sums = 0
    output = blocks(widths[0], dtype) * width
    for layer, name in enumerate(activations):
        fan_in, fan_out = (blocks(w, dtype) * width for w in widths[layer : layer + 2])
        table[layer] = (
            widths[layer],
            widths[layer + 1],
            ACTIVATIONS.index(name),
            parameters,
            parameters + fan_in * fan_out,
            transposed,
            output,
            sums,
        )
        parameters += fan_in * fan_out + fan_out
        transposed += fan_in * fan_out if layer else 0
        output += fan_out
        sums += fan_out
    return table, parameters, transposed
