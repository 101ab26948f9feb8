"""Activations and their derivatives: on one line inside other kernels, and as public kernels on arrays of any shape.

Derivatives are computed from h = g(z), not from z: sigmoid h (1 - h), tanh 1 - h^2, relu [h > 0], identity 1.
"""

import numpy as np

from fastae.kernels.compiler import kernel
from fastae.kernels.layout import RELU, SIGMOID, TANH
from fastae.kernels.simd import Value, Words, vector_kernel
from fastae.kernels.target import LINE


def activate(words: Words, activation: int, z: Value, one: Value) -> Value:
    """g(z) of a line; 0 in padding lanes, where `one` and z are 0."""
    if activation == SIGMOID:
        return words.sigmoid(z, one)
    if activation == TANH:
        return words.tanh(z)
    return words.relu(z) if activation == RELU else z


def times_derivative(words: Words, activation: int, delta: Value, h: Value) -> Value:
    """delta * g'(z) of a line, given h = g(z): the elementwise product of the chain rule."""
    if activation == SIGMOID:
        return words.mul(delta, words.fma(words.negative(h), h, h))
    if activation == TANH:
        return words.mul(delta, words.fma(words.negative(h), h, words.constant(1.0)))
    return words.mul(delta, words.positive(h)) if activation == RELU else delta


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
        mask = words.first_lanes(b.srem(count, words.count(words.lanes)))
        results = write_line(words, words.load_first(places[-1], mask))
        for result, place in zip(results, places[:-1], strict=True):
            words.store_first(result, place, mask)

    return vector_kernel(write)


def _sigmoid_and_derivative(words: Words, z: Value) -> tuple[Value, Value]:
    """h = g(z) and h (1 - h) of a line."""
    h = words.sigmoid(z)
    return h, words.fma(words.negative(h), h, h)


_sigmoid_with_derivative_words = _elementwise(_sigmoid_and_derivative)
_exp_words = _elementwise(lambda words, x: (words.exp(x),))
_tanh_words = _elementwise(lambda words, x: (words.tanh(x),))


@kernel
def _sigmoid_with_derivative(z, h, dh):  # type: ignore[no-untyped-def]
    _sigmoid_with_derivative_words(z, (h.ctypes.data, dh.ctypes.data, z.ctypes.data, z.size))


@kernel
def _exp(x, out):  # type: ignore[no-untyped-def]
    _exp_words(x, (out.ctypes.data, x.ctypes.data, x.size))


@kernel
def _tanh(x, out):  # type: ignore[no-untyped-def]
    _tanh_words(x, (out.ctypes.data, x.ctypes.data, x.size))


def _flat(**arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays as one-dimensional views, after checking that a kernel may run on them."""
    (first_name, first), *rest = arrays.items()
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} has dtype {array.dtype}, but float32 or float64 is needed")
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous")
        if not array.flags.aligned:
            raise ValueError(f"{name} must be aligned to its items")
    for name, array in rest:
        if array.dtype != first.dtype or array.shape != first.shape:
            raise ValueError(
                f"{name} is {array.shape} {array.dtype}, but {first_name} is {first.shape} {first.dtype}"
            )
        if not array.flags.writeable:
            raise ValueError(f"{name} is read-only")
    return [array.reshape(-1) for array in arrays.values()]


def sigmoid_with_derivative(z: np.ndarray, h: np.ndarray, dh: np.ndarray) -> None:
    """Write h = 1 / (1 + exp(-z)) and dh = h (1 - h), in place.

    Parameters
    ----------
    z : ndarray of float32 or float64, C-contiguous, any shape
        Pre-activation; read only.
    h, dh : ndarray of the shape and dtype of `z`
        Written. Either may be `z` itself.

    Raises
    ------
    TypeError, ValueError
        An array of another dtype, shape or memory order, named; nothing is written then.

    Notes
    -----
    h is within 2.5 ulp in float32 and 3 ulp in float64, subnormal results included; +-inf give exactly 1 and 0.
    """
    flat = _flat(z=z, h=h, dh=dh)
    if np.may_share_memory(h, dh):
        raise ValueError("h and dh overlap")
    _sigmoid_with_derivative(*flat)


def exp(x: np.ndarray, out: np.ndarray) -> None:
    """Write exp(x) into `out`, an array of the same shape and dtype (float32 or float64); within 1 ulp in float32."""
    _exp(*_flat(x=x, out=out))


def tanh(x: np.ndarray, out: np.ndarray) -> None:
    """Write tanh(x) into `out`, an array of the same shape and dtype (float32 or float64)."""
    _tanh(*_flat(x=x, out=out))
