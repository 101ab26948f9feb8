"""The decorators of jitted functions, and the boundary through which Python calls them. Importing it imports no Numba.

Kernels are C functions of integers: addresses, sizes, options. They come from the object files that the package was
built with (``prebuilt.py``), or are compiled when they are first needed (``in_place.py``).

    kernel       called from Python
    ByAddress    the same for each dtype; kernels call it through its address
    callee       called by jitted functions, compiled together with them
    inlined      the same, but its code is copied into the caller
    intrinsic    emits LLVM IR
    jitted       called from Python with any arguments: Numba compiles it on first use

The last three are Numba's own decorators. What ``inlined`` and ``intrinsic`` return is made when Numba first asks for
it; ``jitted`` imports Numba and makes its dispatcher at once.
"""

import ctypes
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.kernels import fork, prebuilt

OPTIONS = {"error_model": "numpy", "nogil": True}  # divide as IEEE does; without the GIL
callees: list[Callable[..., Any]] = []  # that Numba has not been told of yet
registry: list["_Kernel | ByAddress"] = []


def _in_place() -> Any:
    """The module that compiles; the first call imports Numba."""
    module = sys.modules.get("fastae.kernels.in_place")
    if getattr(module, "ready", False):
        return module  # without the lock: whoever calls this may hold Numba's
    with fork.importing:
        return import_module("fastae.kernels.in_place")


class _Once:
    """Like ``functools.cached_property``, whose lock in Python 3.11 stays locked in a child of a fork meanwhile."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return instance.__dict__.setdefault(self._name, self._make(instance))


class Deferred:
    """A thing of Numba's, made when it is first used."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @_Once
    def _made(self) -> Any:
        _in_place()
        return self._make()

    @_Once
    def _type(self) -> Any:
        return _in_place().type_of(self._made)

    def __getattr__(self, name: str) -> Any:
        if name == "_numba_type_":  # which Numba asks of what a jitted function calls
            return self._type
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._made, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._made(*args, **kwargs)


def of_numba(path: str) -> Any:
    """What the dotted path leads to, imported when it is first used."""
    module, name = path.rsplit(".", 1)
    return Deferred(lambda: getattr(import_module(module), name))


carray = of_numba("numba.carray")


class _CFunction:
    """The C function of a jitted function for one dtype, or for none: where it lies, and how Python calls it.

    All arguments are integers. A function that is annotated ``-> int`` returns an int64; any other returns None.
    """

    def __init__(self, function: Callable[..., Any], element: str | None) -> None:
        place = prebuilt.address(name_of(function), element)
        if place is None:
            self._compiled = _in_place().c_function(function, element)
            place = self._compiled.address
        self.address = int(place)
        integers, returns = shape_of(function)
        kind = ctypes.CFUNCTYPE(ctypes.c_int64 if returns else None, *[ctypes.c_int64] * integers)
        self.call: Callable[..., Any] = kind(self.address)  # releases the GIL


def shape_of(function: Callable[..., Any]) -> tuple[int, bool]:
    """How many arguments a C function has, and whether it returns an int64."""
    declared = signature(function)
    return len(declared.parameters), declared.return_annotation is int


def name_of(function: Callable[..., Any]) -> str:
    """The name of a kernel among all kernels."""
    return f"{function.__module__.removeprefix('fastae.kernels.')}.{function.__name__}"


class _Kernel(Deferred):
    """A function for Python to call, whose arguments are integers. Jitted functions call it as a callee."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(lambda: import_module("numba").njit(**OPTIONS)(function))
        self.function = function
        registry.append(self)

    def loaded(self) -> Callable[..., Any]:
        """The C function, loaded or compiled now. No signal is handled before it, since a call runs no Python code."""
        return self._c.call

    @property
    def address(self) -> int:
        """Where the C function lies, loaded or compiled now."""
        return self._c.address

    @_Once
    def _c(self) -> _CFunction:
        return _CFunction(self.function, None)

    def __call__(self, *integers: int) -> Any:
        return self._c.call(*integers)


def kernel(function: Callable[..., Any]) -> Any:
    """A function for Python to call, run without the GIL. Its arguments are integers: see ``_CFunction``."""
    return _Kernel(function)


class ByAddress:
    """A function that kernels call by its address (``call_at``): compiled once per dtype, not into each caller.

    Its first argument is a pointer to elements of the dtype, the others are int64. Only if it is annotated ``-> int``,
    it returns an int64.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._compiled: dict[Any, _CFunction] = {}  # by dtype, in each way that it was named
        registry.append(self)

    def address(self, dtype: npt.DTypeLike) -> int:
        """The address of the function for `dtype`; the first call loads or compiles it."""
        return self._for(dtype).address

    def call(self, dtype: npt.DTypeLike) -> Callable[..., Any]:
        """The function for `dtype`, for Python to call: an address, then integers."""
        return self._for(dtype).call

    def _for(self, dtype: npt.DTypeLike) -> _CFunction:
        found = self._compiled.get(dtype)
        if found is None:
            element = np.dtype(dtype).name
            found = self._compiled.get(element) or _CFunction(self.function, element)
            self._compiled[dtype] = self._compiled[element] = found
        return found


def expect(kernels: list[Any], dtype: npt.DTypeLike) -> None:
    """Say that all of these will be needed, for `dtype` where it matters: to compile them together is quicker."""
    element = np.dtype(dtype).name
    pairs = [(each.function, element if isinstance(each, ByAddress) else None) for each in kernels]
    if any(prebuilt.address(name_of(function), element) is None for function, element in pairs):
        _in_place().expect(pairs)


def callee(function: Callable[..., Any]) -> Any:
    """A function for jitted functions to call, compiled together with them. Python still calls it as plain Python."""
    callees.append(function)
    return function


def inlined(function: Callable[..., Any]) -> Any:
    """A function whose code is copied into each jitted function that calls it.

    Numba optimises a callee again for every caller above it; for a call many levels deep, that multiplies the time of
    compilation.
    """
    return Deferred(lambda: import_module("numba").njit(inline="always", **OPTIONS)(function))


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function whose calls in jitted functions become the LLVM IR that it emits."""
    return Deferred(lambda: import_module("numba.extending").intrinsic(function))


def jitted(function: Callable[..., Any]) -> Any:
    """A function for Python to call with any arguments, as Numba compiles them: for benchmarks and tests."""
    return _in_place().jitted(function)
