"""Activations and their derivatives: on one line inside other kernels, and as public kernels on arrays of any shape.

Derivatives are computed from h = g(z), not from z: sigmoid h (1 - h), tanh 1 - h^2, relu [h > 0], identity 1.
"""

from typing import Any

import numpy as np

from fastae.kernels import elementary
from fastae.kernels.array_header import HEADER, builtin, facts_of, is_output, returned, size_of
from fastae.kernels.compiler import ByAddress, callee, carray, kernel
from fastae.kernels.intrinsics import array_at, load_int64, record_at
from fastae.kernels.layout import DTYPES, LINE, RELU, SIGMOID, TANH, address
from fastae.kernels.simd import Value, Words, vector_kernel


def activate(words: Words, activation_id: int, z: Value, one: Value) -> Value:
    """g(z) of a line; 0 in padding lanes, where `one` and z are 0."""
    if activation_id == SIGMOID:
        return elementary.sigmoid(words, z, one)
    if activation_id == TANH:
        return elementary.tanh(words, z)
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
    h = elementary.sigmoid(words, z)
    return h, words.fma(words.negative(h), h, h)


_sigmoid_with_derivative_words = _elementwise(_sigmoid_and_derivative)
_exp_words = _elementwise(lambda words, x: (elementary.exp(words, x),))


_OVERLAPS = ("", "h and dh overlap", "z and h overlap", "z and dh overlap", "x and out overlap")


@callee
def overlap_of_one(x_at, out_at, extent):  # type: ignore[no-untyped-def]
    """The place in _OVERLAPS of what is wrong, or 0. Each array takes `extent` bytes.

    An output may be the input itself; one that begins elsewhere in it would overwrite what is still to be read.
    """
    return 4 if 0 < abs(x_at - out_at) < extent else 0


@callee
def overlap_of_two(z_at, h_at, dh_at, extent):  # type: ignore[no-untyped-def]
    """The same for two outputs, which may not overlap each other."""
    if abs(h_at - dh_at) < extent:
        return 1
    if 0 < abs(z_at - h_at) < extent:
        return 2
    return 3 if 0 < abs(z_at - dh_at) < extent else 0


# Arrays are (size,), of one dtype; others than the first are addresses. Each kernel returns 0, or, having written
# nothing, the place in _OVERLAPS of what is wrong.
@ByAddress
def _sigmoid_with_derivative(z, h_at, dh_at, size) -> int:  # type: ignore[no-untyped-def]
    like = carray(z, (1,))
    z_at = np.int64(like.ctypes.data)
    wrong = overlap_of_two(z_at, h_at, dh_at, size * like.itemsize)
    if wrong == 0:
        _sigmoid_with_derivative_words(like, (h_at, dh_at, z_at, size))
    return wrong


@ByAddress
def _exp(x, out_at, size) -> int:  # type: ignore[no-untyped-def]
    like = carray(x, (1,))
    x_at = np.int64(like.ctypes.data)
    wrong = overlap_of_one(x_at, out_at, size * like.itemsize)
    if wrong == 0:
        _exp_words(like, (out_at, x_at, size))
    return wrong


# The same for small arrays, as built-in functions (array_header.py), in a fifth of the time of ``_run``. Each returns
# False if the arrays are not of the kind that such a function takes, or overlap; it has written nothing then.
@kernel
def _sigmoid_with_derivative_of_objects(self, arguments, count) -> int:  # type: ignore[no-untyped-def]
    facts = facts_of(self)
    z, h, dh = load_int64(arguments), load_int64(arguments + 8), load_int64(arguments + 16)
    size = size_of(z, facts)
    if size < 0 or not is_output(h, z, facts) or not is_output(dh, z, facts):
        return returned(False, facts)
    places = record_at(h, HEADER).data, record_at(dh, HEADER).data, record_at(z, HEADER).data
    double = record_at(z, HEADER).dtype == facts.float64
    if overlap_of_two(places[2], places[0], places[1], size * (8 if double else 4)) != 0:
        return returned(False, facts)
    if double:
        _sigmoid_with_derivative_words(
            array_at(places[2], (1,), np.float64), (places[0], places[1], places[2], size)
        )
    else:
        _sigmoid_with_derivative_words(
            array_at(places[2], (1,), np.float32), (places[0], places[1], places[2], size)
        )
    return returned(True, facts)


@kernel
def _exp_of_objects(self, arguments, count) -> int:  # type: ignore[no-untyped-def]
    facts = facts_of(self)
    x, out = load_int64(arguments), load_int64(arguments + 8)
    size = size_of(x, facts)
    if size < 0 or not is_output(out, x, facts):
        return returned(False, facts)
    out_at, x_at = record_at(out, HEADER).data, record_at(x, HEADER).data
    double = record_at(x, HEADER).dtype == facts.float64
    if overlap_of_one(x_at, out_at, size * (8 if double else 4)) != 0:
        return returned(False, facts)
    if double:
        _exp_words(array_at(x_at, (1,), np.float64), (out_at, x_at, size))
    else:
        _exp_words(array_at(x_at, (1,), np.float32), (out_at, x_at, size))
    return returned(True, facts)


def _run(elementwise: ByAddress, **arrays: np.ndarray) -> None:
    """Call one of the above, after checking that it may run on these arrays: the first is read, the others written."""
    (first_name, first), *_ = arrays.items()
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
        if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, but its mask would be ignored")
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


# Each replaces itself by the built-in function when it is first called, which loads or compiles that.
def _small_sigmoid_with_derivative(*arguments: Any) -> bool:
    global _small_sigmoid_with_derivative
    _small_sigmoid_with_derivative = builtin(_sigmoid_with_derivative_of_objects)
    return _small_sigmoid_with_derivative(*arguments)


def _small_exp(*arguments: Any) -> bool:
    global _small_exp
    _small_exp = builtin(_exp_of_objects)
    return _small_exp(*arguments)


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
    h is within 3.25 ulp in float32 and 3 ulp in float64, subnormal results included; +-inf give exactly 1 and 0.
    """
    if not _small_sigmoid_with_derivative(z, h, dh):
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
    The result is within 1 ulp in float32 (1.25 without FMA) and 1.5 ulp in float64, subnormal results included.
    """
    if not _small_exp(x, out):
        _run(_exp, x=x, out=out)
