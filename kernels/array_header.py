"""Kernels that Python calls with NumPy arrays themselves, not with their addresses: a call then takes 50 ns.

To look at two arrays in Python and to ask for their addresses takes 1 us, longer than a kernel needs for 2000 elements.
So here a kernel is made a built-in function of CPython, which gets the addresses of its arguments' objects, and reads
the fields that it needs. These are those of PyArrayObject_fields in NumPy's ndarraytypes.h, on which every extension
module relies that is compiled against NumPy. Before any kernel does, ``_facts`` compares them with what NumPy says of
some arrays. Where they differ, and with other interpreters, the caller checks arrays in Python.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fastae.kernels.compiler import callee
from fastae.kernels.intrinsics import call_for_int64, load_int64, record_at
from fastae.kernels.layout import DTYPES

HEAD = 16  # bytes of the head of an object, which ends with the address of its type
HEADER = np.dtype(
    {
        "names": ["type", "data", "ndim", "shape", "dtype", "flags"],
        "formats": ["i8", "i8", "i4", "i8", "i8", "i4"],
        "offsets": [HEAD - 8, HEAD, HEAD + 8, HEAD + 16, HEAD + 40, HEAD + 48],
        "itemsize": HEAD + 56,
    }
)
FACTS = np.dtype([(name, np.int64) for name in ("array_type", "float32", "float64", "bool_from_int")])
C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x0001, 0x0100, 0x0400  # bits of `flags`
NEEDED = C_CONTIGUOUS | ALIGNED
SMALL = 1 << 16  # bytes of an array up to which a kernel may run with the GIL held: a few us


@callee
def facts_of(self_at):  # type: ignore[no-untyped-def]
    """FACTS, the array that built-in functions have as their ``self``."""
    return record_at(record_at(self_at, HEADER).data, FACTS)


@callee
def size_of(object_at, facts):  # type: ignore[no-untyped-def]
    """The elements of a small, aligned, C-contiguous array of float32 or float64; -1 of any other object."""
    header = record_at(object_at, HEADER)
    if header.type != facts.array_type:
        return -1
    if header.dtype != facts.float32 and header.dtype != facts.float64:
        return -1
    if header.flags & NEEDED != NEEDED:
        return -1
    size = 1
    for i in range(header.ndim):
        size *= load_int64(header.shape + 8 * i)
    return size if size * (4 if header.dtype == facts.float32 else 8) <= SMALL else -1


@callee
def is_output(object_at, like_at, facts):  # type: ignore[no-untyped-def]
    """Whether an object is a writeable array of the dtype and shape of the array at `like_at`, and as contiguous."""
    header, like = record_at(object_at, HEADER), record_at(like_at, HEADER)
    if header.type != facts.array_type or header.dtype != like.dtype or header.ndim != like.ndim:
        return False
    if header.flags & (NEEDED | WRITEABLE) != (NEEDED | WRITEABLE):
        return False
    for i in range(header.ndim):
        if load_int64(header.shape + 8 * i) != load_int64(like.shape + 8 * i):
            return False
    return True


@callee
def returned(done, facts):  # type: ignore[no-untyped-def]
    """What a built-in function returns for True or False: the address of that object, with a reference to it."""
    return call_for_int64(facts.bool_from_int, np.int64(done))


def _facts() -> np.ndarray | None:
    """FACTS (1,): the addresses of what kernels compare with and call. None if arrays are not as HEADER says."""
    if (
        sys.implementation.name != "cpython"
        or ctypes.sizeof(ctypes.c_void_p) != 8
        or object.__basicsize__ != HEAD
    ):
        return None
    read_only = np.zeros((0, 5))
    read_only.flags.writeable = False
    for array in (np.zeros((3, 4), np.float32), np.zeros((3, 4))[:, 1:], np.zeros(()), read_only):
        memory: Any = (ctypes.c_char * HEADER.itemsize).from_address(id(array))
        header = np.frombuffer(memory, HEADER)[0]
        found = [int(header[name]) for name in ("type", "data", "ndim", "dtype")]
        if found != [id(np.ndarray), array.ctypes.data, array.ndim, id(array.dtype)]:
            return None
        if (
            array.ndim
            and tuple((ctypes.c_int64 * array.ndim).from_address(int(header["shape"]))) != array.shape
        ):
            return None
        bits = {C_CONTIGUOUS: "c_contiguous", ALIGNED: "aligned", WRITEABLE: "writeable"}
        if any(bool(header["flags"] & bit) != getattr(array.flags, name) for bit, name in bits.items()):
            return None
    bool_from_int = ctypes.cast(ctypes.pythonapi.PyBool_FromLong, ctypes.c_void_p).value
    return np.array([(id(np.ndarray), *map(id, DTYPES), bool_from_int)], FACTS)


class _Method(ctypes.Structure):
    """PyMethodDef of CPython's methodobject.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


# METH_FASTCALL: the function gets self, the address of an array of arguments, and their number
_FASTCALL = 0x80
_facts_of_process = _facts()


def have_headers() -> bool:
    """Whether kernels can read the headers of arrays in this process."""
    return _facts_of_process is not None


def builtin(kernel: Any) -> Callable[..., bool]:
    """A kernel (self, arguments, count) that returns what ``returned`` does, as a built-in function.

    `arguments` is the address of an array of `count` addresses of objects. The function has the GIL as long as it
    runs. Where kernels cannot read objects, the result is a function that returns False.
    """
    if _facts_of_process is None:
        return lambda *_: False
    method = _Method(kernel.function.__name__.encode(), kernel.address, _FASTCALL, None)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(method))  # never freed, as the function points to it
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
        ("PyCFunction_NewEx", ctypes.pythonapi)
    )
    function: Callable[..., bool] = make(ctypes.addressof(method), _facts_of_process, None)
    return function
