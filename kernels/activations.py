"""Activations and their derivatives: on one line inside other kernels, and as public kernels on arrays of any shape.

Derivatives are computed from h = g(z), not from z: sigmoid h (1 - h), tanh 1 - h^2, relu [h > 0], identity 1.
"""

import numpy as np

from fastae.kernels.compiler import ByAddress, carray
from fastae.kernels.layout import DTYPES, RELU, SIGMOID, TANH, address
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import LINE


def activate(words: Words, activation_id: int, z: Value, one: Value) -> Value:
    """g(z) of a line; 0 in padding lanes, where `one` and z are 0."""
    if activation_id == SIGMOID:
        return words.sigmoid(z, one)
    if activation_id == TANH:
        return words.tanh(z)
    return words.relu(z) if activation_id == RELU else z


def times_derivative(words: Words, activation_id: int, delta: Value, h: Value) -> Value:
    """delta * g'(z) of a line, given h = g(z): the elementwise product of the chain rule."""
    if activation_id == SIGMOID:
        return words.mul(delta, words.fma(words.negative(h), h, h))
    if activation_id == TANH:
        return words.mul(delta, words.fma(words.negative(h), h, words.constant(1.0)))
    return words.mul(delta, words.positive(h)) if activation_id == RELU else delta


def _elementwise(write_line):  # type: ignore[no-untyped-def]
    """A vector kernel over (outputs..., input, count), each (count,): whole lines, then the lanes that are left.

    write_line(words, line) returns one line for each output.
    """

    def write(words: Words, *arguments: Value) -> None:
        *addresses, count = arguments
        b = words.builder
        whole_lines = b.sdiv(count, words.count(words.lanes))

        def line(*places: Value) -> list[Value]:
            results = write_line(words, words.load(places[-1], aligned=False))
            for result, place in zip(results, places[:-1], strict=True):
                words.store(result, place, aligned=False)
            return [words.offset(place, LINE) for place in places]

        places = words.loop(whole_lines, addresses, line)
        left = b.srem(count, words.count(words.lanes))
        results = write_line(words, words.load_first(places[-1], left))
        for result, place in zip(results, places[:-1], strict=True):
            words.store_first(result, place, left)

    return vector_kernel(write)


def _sigmoid_and_derivative(words: Words, z: Value) -> tuple[Value, Value]:
    """h = g(z) and h (1 - h) of a line."""
    h = words.sigmoid(z)
    return h, words.fma(words.negative(h), h, h)


_sigmoid_with_derivative_words = _elementwise(_sigmoid_and_derivative)
_exp_words = _elementwise(lambda words, x: (words.exp(x),))
_tanh_words = _elementwise(lambda words, x: (words.tanh(x),))


_OVERLAPS = ("", "h and dh overlap", "z and h overlap", "z and dh overlap", "x and out overlap")


# Arrays are (size,), of one dtype; others than the first are addresses. Each kernel returns 0, or, having written
# nothing, the place in _OVERLAPS of what is wrong: in Python, to look costs 1 us.
# An output may be the input itself; one that begins elsewhere in it would overwrite what is still to be read.
@ByAddress
def _sigmoid_with_derivative(z, h_at, dh_at, size) -> int:  # type: ignore[no-untyped-def]
    like = carray(z, (1,))
    z_at, extent = np.int64(like.ctypes.data), size * like.itemsize
    if abs(h_at - dh_at) < extent:
        return 1
    if 0 < abs(z_at - h_at) < extent:
        return 2
    if 0 < abs(z_at - dh_at) < extent:
        return 3
    _sigmoid_with_derivative_words(like, (h_at, dh_at, z_at, size))
    return 0


@ByAddress
def _exp(x, out_at, size) -> int:  # type: ignore[no-untyped-def]
    like = carray(x, (1,))
    x_at = np.int64(like.ctypes.data)
    if 0 < abs(x_at - out_at) < size * like.itemsize:
        return 4
    _exp_words(like, (out_at, x_at, size))
    return 0


@ByAddress
def _tanh(x, out_at, size) -> int:  # type: ignore[no-untyped-def]
    like = carray(x, (1,))
    x_at = np.int64(like.ctypes.data)
    if 0 < abs(x_at - out_at) < size * like.itemsize:
        return 4
    _tanh_words(like, (out_at, x_at, size))
    return 0


def _run(elementwise: ByAddress, **arrays: np.ndarray) -> None:
    """Call one of the above, after checking that it may run on these arrays: the first is read, the others written."""
    (first_name, first), *_ = arrays.items()
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
        flags = array.flags
        if array.dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {array.dtype}, but float32 or float64 is needed")
        if not flags.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous")
        if not flags.aligned:
            raise ValueError(f"{name} must be aligned to its items")
        if array.dtype != first.dtype or array.shape != first.shape:
            raise ValueError(
                f"{name} is {array.shape} {array.dtype}, but {first_name} is {first.shape} {first.dtype}"
            )
        if name is not first_name and not flags.writeable:
            raise ValueError(f"{name} is read-only")
    wrong = elementwise.call(first.dtype)(*map(address, arrays.values()), first.size)
    if wrong:
        raise ValueError(_OVERLAPS[wrong])


def sigmoid_with_derivative(z: np.ndarray, h: np.ndarray, dh: np.ndarray) -> None:
    """Write h = 1 / (1 + exp(-z)) and dh = h (1 - h), in place.

    Parameters
    ----------
    z : ndarray of float32 or float64, C-contiguous, any shape
        The pre-activation.
    h : ndarray of the shape and dtype of `z`
        Written: the sigmoid of `z`. May be `z` itself.
    dh : ndarray of the shape and dtype of `z`
        Written: the derivative of the sigmoid at `z`. May be `z` itself.

    Raises
    ------
    TypeError
        An argument is not a NumPy array of float32 or float64. The error names the argument.
    ValueError
        An array has another shape or dtype than `z`, is not C-contiguous or not aligned to its items; an output is
        read-only; `h` and `dh` overlap, or one of them overlaps `z` but does not begin where `z` does. The error names
        the argument. Nothing is written.

    Notes
    -----
    h is within 2.5 ulp in float32 and 3 ulp in float64, subnormal results included; +-inf give exactly 1 and 0.
    """
    _run(_sigmoid_with_derivative, z=z, h=h, dh=dh)


def exp(x: np.ndarray, out: np.ndarray) -> None:
    """Write exp(x), in place.

    Parameters
    ----------
    x : ndarray of float32 or float64, C-contiguous, any shape
        The argument.
    out : ndarray of the shape and dtype of `x`
        Written. May be `x` itself.

    Raises
    ------
    TypeError, ValueError
        As ``sigmoid_with_derivative``. Nothing is written.

    Notes
    -----
    The result is within 1 ulp in float32 and 1.5 ulp in float64, subnormal results included.
    """
    _run(_exp, x=x, out=out)


def tanh(x: np.ndarray, out: np.ndarray) -> None:
    """Write tanh(x) into `out`, in place: shapes, dtypes and errors as ``exp``."""
    _run(_tanh, x=x, out=out)
