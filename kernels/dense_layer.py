"""One dense layer, forward and backward, in place on arrays of the caller; and the arrays: made, packed, unpacked.

    empty_rows  empty_weights  empty_bias       buffers in the blocked layout (layout.py), zero
    pack  unpack                                a dense array into a buffer, and back out
    layer_forward                               h = g(a W + b)
    layer_gradient                              dW = a' delta, db = sum over rows of delta
    layer_backward                              both, and a becomes delta of the layer below

Nothing else in the package calls these: the engine takes tiles of rows through all layers, with the same products
(gemm.py). Here a call computes one layer on one thread, allocates no arrays and runs without the GIL. With 16 `lanes`
in float32 and 8 in float64, and ``blocks(n)`` = ceil(n / lanes), the shapes are

    rows (m, n)          (blocks(n), height, lanes)            height: m rounded up to a multiple of ROW_MULTIPLE
    weights (n, k)       (blocks(k), blocks(n) lanes, lanes)
    bias (n,)            (blocks(n) lanes,)
"""

import operator
import threading
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastae.kernels import layout
from fastae.kernels.compiler import ByAddress, carray
from fastae.kernels.gemm import ROW_MULTIPLE, backward, forward, gradient, prepare_weights
from fastae.kernels.layout import ACTIVATIONS, DTYPES, LINE, address, aligned_zeros, blocks, lanes
from fastae.kernels.rounding import round_up
from fastae.kernels.simd import Words, vector_kernel

Activation = Literal["sigmoid", "tanh", "relu", "identity"]


# -- buffers ----------------------------------------------------------------------------------------------------------


def empty_rows(rows: int, columns: int, dtype: npt.DTypeLike = "float32") -> np.ndarray:
    """A buffer for a layer's input, output or delta: `rows` rows of `columns` columns, all zero.

    Parameters
    ----------
    rows : int
        The most rows that the buffer has to hold.
    columns : int
        The buffer's columns.
    dtype : "float32" or "float64", default "float32"
        Of the buffer's elements.

    Returns
    -------
    ndarray of shape (blocks, height, lanes)
        Starts on a cache line. `lanes` is 16 in float32 and 8 in float64, `blocks` is columns / lanes rounded up, and
        `height` is `rows` rounded up to the multiple that the kernels compute at a time. Row i, column j is
        ``buffer[j // lanes, i, j % lanes]``.

    Raises
    ------
    TypeError
        A size is not an integer.
    ValueError
        A size is less than 1, or `dtype` is neither float32 nor float64.
    """
    dtype = _check_dtype(dtype)
    rows, columns = _check_size("rows", rows), _check_size("columns", columns)
    shape = blocks(columns, dtype), -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE, lanes(dtype)
    return aligned_zeros(shape[0] * shape[1] * shape[2], dtype).reshape(shape)


def empty_weights(fan_in: int, fan_out: int, dtype: npt.DTypeLike = "float32") -> np.ndarray:
    """A buffer for a weight matrix, its gradient or (sizes swapped) its transpose, all zero.

    Parameters
    ----------
    fan_in : int
        Rows of the matrix: inputs of the layer.
    fan_out : int
        Columns of the matrix: outputs of the layer.
    dtype : "float32" or "float64", default "float32"
        Of the buffer's elements.

    Returns
    -------
    ndarray of shape (ceil(fan_out / lanes), ceil(fan_in / lanes) * lanes, lanes)
        Starts on a cache line. `lanes` is 16 in float32 and 8 in float64. Entry (i, j) of the matrix is
        ``buffer[j // lanes, i, j % lanes]``. The rest is padding and must stay zero.

    Raises
    ------
    TypeError, ValueError
        As ``empty_rows``.
    """
    dtype = _check_dtype(dtype)
    width = lanes(dtype)
    into = blocks(_check_size("fan_in", fan_in), dtype)
    out = blocks(_check_size("fan_out", fan_out), dtype)
    return aligned_zeros(out * into * width * width, dtype).reshape(out, into * width, width)


def empty_bias(columns: int, dtype: npt.DTypeLike = "float32") -> np.ndarray:
    """A buffer for a bias vector or its gradient, all zero.

    Parameters
    ----------
    columns : int
        The layer's outputs, its `fan_out`.
    dtype : "float32" or "float64", default "float32"
        Of the buffer's elements.

    Returns
    -------
    ndarray of shape (ceil(columns / lanes) * lanes,)
        Starts on a cache line. `lanes` is 16 in float32 and 8 in float64. What follows the first `columns` entries is
        padding and must stay zero.

    Raises
    ------
    TypeError, ValueError
        As ``empty_rows``.
    """
    dtype = _check_dtype(dtype)
    return aligned_zeros(blocks(_check_size("columns", columns), dtype) * lanes(dtype), dtype)


def pack(dense: npt.ArrayLike, out: np.ndarray) -> None:
    """Write a dense array into a buffer, and zeros into the rest of the buffer.

    Parameters
    ----------
    dense : array-like of real numbers, of shape (rows, columns) or (columns,)
        A matrix for a buffer of ``empty_rows`` or ``empty_weights``, a vector for one of ``empty_bias``. It may have
        fewer rows than the buffer, but fills all of its blocks of columns. Converted to the buffer's dtype.
    out : ndarray of float32 or float64, of shape (blocks, height, lanes) or (blocks * lanes,)
        Written.

    Raises
    ------
    TypeError
        `dense` is not of real numbers, or `out` is not a float32 or float64 array.
    ValueError
        `dense` does not fit into `out`, the two overlap, or `out` is read-only. Nothing is written then.
    """
    _check_buffer("out", out)
    dense = np.asarray(dense)
    if dense.dtype.kind not in "fiub":
        raise TypeError(f"dense has dtype {dense.dtype}, but real numbers are needed")
    _check_dense_shape("dense", dense.shape, "out", out)
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if np.may_share_memory(dense, out):
        raise ValueError("dense and out overlap")
    if out.ndim == 1:
        out[: dense.size] = dense
        out[dense.size :] = 0
        return
    rows, columns = dense.shape
    layout.pack(dense, out)
    out[:, rows:] = 0
    out[-1, :rows, columns - (out.shape[0] - 1) * out.shape[2] :] = 0


def unpack(blocked: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The dense array that a buffer holds.

    Parameters
    ----------
    blocked : ndarray of float32 or float64, of shape (blocks, height, lanes) or (blocks * lanes,)
        A buffer of ``empty_rows``, ``empty_weights`` or ``empty_bias``.
    shape : tuple of int
        (rows, columns) of the dense matrix, or (columns,) of the dense vector.

    Returns
    -------
    ndarray of `shape`, of the dtype of `blocked`
        A new array.

    Raises
    ------
    TypeError
        `blocked` is not a float32 or float64 array, or `shape` is not a tuple of integers.
    ValueError
        A buffer of this shape does not hold an array of that one.
    """
    _check_buffer("blocked", blocked)
    if not isinstance(shape, tuple):
        raise TypeError(f"shape must be a tuple of integers, got {shape!r}")
    sizes = tuple(_check_size(f"shape[{i}]", size) for i, size in enumerate(shape))
    _check_dense_shape("shape", sizes, "blocked", blocked)
    if len(sizes) == 1:
        return blocked[: sizes[0]].copy()
    return layout.unpack(blocked, (sizes[0], sizes[1]))


# -- one layer --------------------------------------------------------------------------------------------------------


def layer_forward(
    h: np.ndarray,
    a: np.ndarray,
    W: np.ndarray,
    b: np.ndarray,
    *,
    activation: Activation,
    fan_in: int,
    fan_out: int,
    rows: int | None = None,
) -> None:
    """Write h = g(a W + b), in place: the forward pass of one layer.

    Parameters
    ----------
    h : ndarray of shape (ceil(fan_out / lanes), height, lanes)
        Written: the layer's output. Padding columns become zero.
    a : ndarray of shape (ceil(fan_in / lanes), height, lanes)
        The layer's input.
    W : ndarray of shape (ceil(fan_out / lanes), ceil(fan_in / lanes) * lanes, lanes)
        The weights.
    b : ndarray of shape (ceil(fan_out / lanes) * lanes,)
        The bias.
    activation : "sigmoid", "tanh", "relu" or "identity"
        g, the activation of this layer.
    fan_in : int
        Columns of `a` in use.
    fan_out : int
        Columns of `h` in use.
    rows : int, optional
        Rows of `a` in use: the first ones. The rows of `h` after them may be written too. All by default.

    Raises
    ------
    TypeError
        An array is not a NumPy array of float32 or float64, its dtype differs from that of `h`, or a size is not an
        integer. The error names the argument.
    ValueError
        An array has another shape, does not start on a cache line or is not C-contiguous; `h` is read-only or overlaps
        an input; a size or the activation is out of range. The error names the argument. Nothing is written.

    Notes
    -----
    Arrays are buffers in the blocked layout, as ``empty_rows``, ``empty_weights`` and ``empty_bias`` make them. All
    have one dtype, float32 (16 lanes) or float64 (8 lanes), and `h` and `a` have one height, a multiple of
    ``dense_layer.ROW_MULTIPLE``. `W` and `b` are zero in their padding. Threads may share inputs, but not `h`.
    """
    arrays = {"h": h, "a": a, "W": W, "b": b}
    dtype, activation_id, rows, fan_in, fan_out = _check(arrays, 1, activation, rows, fan_in, fan_out)
    places = map(address, (h, a, W, b, _ones(fan_out, dtype)))
    computed = round_up(rows, ROW_MULTIPLE)
    forward.call(dtype)(*places, activation_id, 1, computed, a.shape[1], fan_in, fan_out)


def layer_gradient(
    dW: np.ndarray,
    db: np.ndarray,
    a: np.ndarray,
    delta: np.ndarray,
    *,
    fan_in: int,
    fan_out: int,
    rows: int | None = None,
    accumulate: bool = False,
) -> None:
    """Write the gradient of one layer's weights and bias, in place, and leave the layer's input as it is.

        dW = a' delta      db = sum over rows of delta

    This is all that the first layer of a network needs: no layer below it wants a delta.

    Parameters
    ----------
    dW : ndarray of shape (ceil(fan_out / lanes), ceil(fan_in / lanes) * lanes, lanes)
        Zero in its padding. Written, or with `accumulate` added to: dS/dW.
    db : ndarray of shape (ceil(fan_out / lanes) * lanes,)
        Zero in its padding. Written, or with `accumulate` added to: dS/db.
    a : ndarray of shape (ceil(fan_in / lanes), height, lanes)
        The layer's input.
    delta : ndarray of shape (ceil(fan_out / lanes), height, lanes)
        Zero in its padding columns: dS/dz of this layer, z = a W + b.
    fan_in : int
        Columns of `a` in use.
    fan_out : int
        Columns of `delta` in use.
    rows : int, optional
        Rows in use: the first ones. Only these count. All by default.
    accumulate : bool, default False
        Add to `dW` and `db` instead of overwriting them.

    Raises
    ------
    TypeError, ValueError
        As ``layer_forward``, `dW` and `db` being the outputs. Nothing is written.

    Notes
    -----
    Buffers as in ``layer_forward``.
    """
    arrays = {"dW": dW, "db": db, "a": a, "delta": delta}
    _, _, rows, fan_in, fan_out = _check(arrays, 2, "identity", rows, fan_in, fan_out, accumulate)
    _gradient(dW, db, a, delta, rows, fan_in, fan_out, bool(accumulate))


def layer_backward(
    dW: np.ndarray,
    db: np.ndarray,
    a: np.ndarray,
    WT: np.ndarray,
    delta: np.ndarray,
    W: np.ndarray,
    *,
    activation: Activation,
    fan_in: int,
    fan_out: int,
    rows: int | None = None,
    accumulate: bool = False,
) -> None:
    """The backward pass through one layer, in place: from delta = dS/dz of this layer to that of the layer below.

        dW = a' delta      db = sum over rows of delta      a = (delta W') * g'(z), z of the layer below

    The last is the elementwise product of the chain rule. g is the activation that made `a`, and g'(z) is computed from
    `a` = g(z): sigmoid a (1 - a), tanh 1 - a^2, relu [a > 0], identity 1.

    Parameters
    ----------
    dW : ndarray of shape (ceil(fan_out / lanes), ceil(fan_in / lanes) * lanes, lanes)
        Zero in its padding. Written, or with `accumulate` added to: dS/dW.
    db : ndarray of shape (ceil(fan_out / lanes) * lanes,)
        Zero in its padding. Written, or with `accumulate` added to: dS/db.
    a : ndarray of shape (ceil(fan_in / lanes), height, lanes)
        The layer's input, which is the output of the layer below. Becomes dS/dz of the layer below.
    WT : ndarray of shape (ceil(fan_in / lanes), ceil(fan_out / lanes) * lanes, lanes)
        Workspace: written with W'.
    delta : ndarray of shape (ceil(fan_out / lanes), height, lanes)
        Zero in its padding columns: dS/dz of this layer.
    W : ndarray of shape (ceil(fan_out / lanes), ceil(fan_in / lanes) * lanes, lanes)
        The weights.
    activation : "sigmoid", "tanh", "relu" or "identity"
        g, the activation of the layer *below*. For the first layer of a network, call ``layer_gradient`` instead.
    fan_in : int
        Columns of `a` in use.
    fan_out : int
        Columns of `delta` in use.
    rows : int, optional
        Rows in use: the first ones. Only these count in `dW` and `db`; the rows of `a` after them may be written too.
        All by default.
    accumulate : bool, default False
        Add to `dW` and `db` instead of overwriting them.

    Raises
    ------
    TypeError, ValueError
        As ``layer_forward``, `dW`, `db`, `a` and `WT` being the outputs. Nothing is written.

    Notes
    -----
    Buffers as in ``layer_forward``.
    """
    arrays = {"dW": dW, "db": db, "a": a, "WT": WT, "delta": delta, "W": W}
    dtype, activation_id, rows, fan_in, fan_out = _check(
        arrays, 4, activation, rows, fan_in, fan_out, accumulate
    )
    _gradient(dW, db, a, delta, rows, fan_in, fan_out, bool(accumulate))
    w, wt = address(W), address(WT)
    prepare_weights.call(dtype)(w, wt, w, fan_in, fan_out, 0, WT.shape[0] * delta.shape[0])
    sums = _scratch.lines(a.shape[0], dtype)
    sums[:] = 0
    sizes = round_up(rows, ROW_MULTIPLE), a.shape[1], fan_in, fan_out
    h = address(a)
    backward.call(dtype)(h, h, address(delta), wt, address(sums), activation_id, *sizes)


# -- what they check --------------------------------------------------------------------------------------------------


def _check_dtype(dtype: npt.DTypeLike | None) -> np.dtype:
    try:
        return DTYPES[DTYPES.index(np.dtype("V" if dtype is None else dtype))]
    except (TypeError, ValueError):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}") from None


def _check_size(name: str, size: Any, most: int | None = None) -> int:
    """The size as a Python int, if it is an integer of 1 or more, and of no more than `most`."""
    if isinstance(size, (bool, np.ndarray)) or not hasattr(size, "__index__"):
        raise TypeError(f"{name} must be an integer, got {size!r}")
    size = operator.index(size)
    if size < 1 or (most is not None and size > most):
        wanted = "at least 1" if most is None else f"within 1 .. {most}"
        raise ValueError(f"{name} must be {wanted}, got {size}")
    return size


def _check_buffer(name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray) or array.dtype not in DTYPES:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} must be a float32 or float64 array, got {kind}")
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, but its mask would be ignored")


def _check_dense_shape(name: str, shape: tuple[int, ...], buffer_name: str, buffer: np.ndarray) -> None:
    """Check that a dense array of `shape` fits into `buffer` and fills all its blocks of columns."""
    width = lanes(buffer.dtype)
    if buffer.ndim == 1:
        fits = len(shape) == 1 and blocks(shape[0], buffer.dtype) * width == buffer.size
    elif buffer.ndim == 3 and buffer.shape[2] == width and buffer.size:
        fits = len(shape) == 2 and blocks(shape[1], buffer.dtype) == buffer.shape[0]
        fits = fits and shape[0] <= buffer.shape[1]
    else:
        raise ValueError(
            f"{buffer_name} has shape {buffer.shape}, but (blocks, height, {width}) or (blocks * {width},) is needed"
        )
    if not fits:
        what = "is" if name == "shape" else "has shape"
        raise ValueError(
            f"{name} {what} {shape}, which does not fit {buffer_name}, a buffer of shape {buffer.shape}"
        )


def _check(
    arrays: dict[str, np.ndarray],
    outputs: int,
    activation: Any,
    rows: int | None,
    fan_in: int,
    fan_out: int,
    accumulate: Any = False,
) -> tuple[np.dtype, int, int, int, int]:
    """The dtype, the activation's id and the sizes, after checking that the kernels may run on these arrays.

    The first `outputs` of `arrays` are written.
    """
    first = next(iter(arrays))
    for name, array in arrays.items():
        _check_buffer(name, array)
        if array.dtype != arrays[first].dtype:
            raise TypeError(f"{name} is {array.dtype}, but {first} is {arrays[first].dtype}")
    dtype = arrays[first].dtype
    fan_in, fan_out = _check_size("fan_in", fan_in), _check_size("fan_out", fan_out)
    width, into, out = lanes(dtype), blocks(fan_in, dtype), blocks(fan_out, dtype)
    if arrays["a"].ndim != 3:
        raise ValueError(f"a has shape {arrays['a'].shape}, but ({into}, height, {width}) is needed")
    height = arrays["a"].shape[1]
    shapes = {
        "a": (into, height, width),
        "h": (out, height, width),
        "delta": (out, height, width),
        "W": (out, into * width, width),
        "dW": (out, into * width, width),
        "WT": (into, out * width, width),
        "b": (out * width,),
        "db": (out * width,),
    }
    spans: list[tuple[str, int, int]] = []
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            raise ValueError(f"{name} has shape {array.shape}, but {shapes[name]} is needed")
        start = address(array)
        if start % LINE or not array.flags.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous and start on a cache line ({LINE} bytes)")
        if len(spans) < outputs and not array.flags.writeable:
            raise ValueError(f"{name} is read-only")
        end = start + array.nbytes
        for other, begins, ends in spans[:outputs]:
            if start < ends and begins < end:
                raise ValueError(f"{other} and {name} overlap")
        spans.append((name, start, end))
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be among {', '.join(ACTIVATIONS)}, got {activation!r}")
    if height % ROW_MULTIPLE or height == 0:
        raise ValueError(f"a is {height} rows high, but a multiple of {ROW_MULTIPLE} is needed")
    if not isinstance(accumulate, (bool, np.bool_)):
        raise TypeError(f"accumulate must be True or False, got {accumulate!r}")
    rows = height if rows is None else _check_size("rows", rows, height)
    return dtype, ACTIVATIONS.index(activation), rows, fan_in, fan_out


# -- what they run ----------------------------------------------------------------------------------------------------


@lru_cache(64)
def _ones(columns: int, dtype: np.dtype) -> np.ndarray:
    """A row of ones, zero in padding columns: the kernels only read it, so that all threads share it."""
    ones = aligned_zeros(blocks(columns, dtype) * lanes(dtype), dtype)
    ones[:columns] = 1
    return ones


class _Scratch(threading.local):
    """Column sums that the backward product writes and nothing here reads: a buffer for each thread and dtype.

    Threads that wrote to one buffer would wait for each other's cache lines.
    """

    def __init__(self) -> None:  # once in each thread
        self._buffers: dict[Any, np.ndarray] = {}

    def lines(self, count: int, dtype: np.dtype) -> np.ndarray:
        """A buffer of `count` lines or more, allocated only when it has to grow."""
        buffer = self._buffers.get(dtype)
        if buffer is None or buffer.size < count * lanes(dtype):
            buffer = self._buffers[dtype] = aligned_zeros(count * lanes(dtype), dtype)
        return buffer


_scratch = _Scratch()


def _write_sum_rows(words: Words, sums, delta, rows, accumulate):  # type: ignore[no-untyped-def]
    """sums (+)= the sum over rows of delta, on one block of columns.

    sums  (lanes,)     delta  (rows, lanes)
    """
    for add in (0, 1):
        with words.when(accumulate, "==", add):

            def row(delta, total):  # type: ignore[no-untyped-def]
                return [words.offset(delta, LINE), words.add(total, words.load(delta))]

            *_, total = words.loop(rows, [delta, words.load(sums) if add else words.constant(0.0)], row)
            words.store(total, sums)


_sum_rows = vector_kernel(_write_sum_rows)


@ByAddress
def _add_rows(out, delta, accumulate, rows, height, blocks):  # type: ignore[no-untyped-def]
    """sums (+)= the sum over rows of delta.

    out   (blocks, lanes): sums        delta  blocked (blocks, height, lanes)
    """
    sums = carray(out, (1,))
    for j in range(blocks):
        _sum_rows(sums, (sums.ctypes.data + j * LINE, delta + j * height * LINE, rows, accumulate))


def _gradient(
    dW: np.ndarray,
    db: np.ndarray,
    a: np.ndarray,
    delta: np.ndarray,
    rows: int,
    fan_in: int,
    fan_out: int,
    accumulate: bool,
) -> None:
    """``layer_gradient``, on arrays that were checked."""
    height, dtype = delta.shape[1], dW.dtype
    _add_rows.call(dtype)(address(db), address(delta), accumulate, rows, height, delta.shape[0])
    places = map(address, (dW, a, delta))
    gradient.call(dtype)(*places, accumulate, rows, height, dW.shape[1], fan_in, fan_out)
