"""The one data layout: column blocks of one cache line. Plain NumPy; no kernel lives here.

A matrix of (rows, columns) is stored as ``(ceil(columns / lanes), padded rows, lanes)`` with 16 lanes in float32 and 8
in float64. Every operand of the three GEMM forms streams through it, so nothing is packed. A weight matrix pads
its rows to whole blocks too, so that its transpose is one as well. Padding stays zero.
"""

import ctypes
from functools import lru_cache

import numpy as np
import numpy.typing as npt

DTYPES = np.dtype(np.float32), np.dtype(np.float64)  # of the lines that products are computed from
ACTIVATIONS = ("sigmoid", "tanh", "relu", "identity")
SIGMOID, TANH, RELU, IDENTITY = range(4)

# The columns of a plan, the int64 table (layers, PLAN) that tells a kernel the network; offsets count elements.
FAN_IN, FAN_OUT, ACTIVATION, WEIGHT, BIAS, TRANSPOSED, OUTPUT, COLUMN_SUMS, PLAN = range(9)


def lanes(dtype: npt.DTypeLike) -> int:
    """Elements in a cache line."""
    return 64 // np.dtype(dtype).itemsize


def blocks(columns: int, dtype: npt.DTypeLike) -> int:
    """Cache lines that `columns` elements take."""
    return -(-columns // lanes(dtype))


def address(array: np.ndarray) -> int:
    """Where its memory begins: ``array.ctypes.data``, in a quarter of a microsecond where that takes a whole one."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, not contiguous, or empty
        return int(array.ctypes.data)


def aligned_zeros(size: int, dtype: npt.DTypeLike) -> np.ndarray:
    """A one-dimensional array of zeros that starts on a cache line."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + 64, np.uint8)
    start = -address(raw) % 64
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
    """The plan of a network: the table, the elements of its parameters, the elements of its transposed weights.

    OUTPUT and COLUMN_SUMS are per row of a tile and per tile; the tile's input comes before them, at 0. The table is
    shared by all who ask for the same one: not to be written.
    """
    codes = [ACTIVATIONS.index(name) for name in activations]
    width = lanes(dtype)
    table = np.zeros((len(codes), PLAN), np.int64)
    parameters = transposed = sums = 0
    output = blocks(widths[0], dtype) * width
    for layer, code in enumerate(codes):
        fan_in, fan_out = (blocks(w, dtype) * width for w in widths[layer : layer + 2])
        table[layer] = (
            widths[layer],
            widths[layer + 1],
            code,
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
