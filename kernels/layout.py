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

# One layer of a plan, the table that tells a kernel the network. Places count elements: those of `weight` and `bias`
# from the beginning of the flat buffers, `transposed` from that of W', `output` per row of a tile, `column_sums` per
# tile. A tile's input comes before all outputs, at 0.
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
    """The plan of a network: the table of layers, the elements of its parameters, those of its transposed weights.

    The table is a record array, shared by all who ask for the same one: not to be written.
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
