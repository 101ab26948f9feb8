"""The decorators of jitted functions, and their cache on disk.

Numba's cache checks only the file that defines a function: after an edit or an upgrade, it would load code compiled
with an old callee from another file. Here the key also holds a hash of all kernel sources. This uses private classes
of Numba, in this file alone; ``tests/kernels/test_compiler.py`` checks that they do what is expected. Where those
classes are missing, or no cache directory can be written, each process compiles its functions again.

    kernel       called from Python, compiled on first use
    ByAddress    called by kernels through its address, compiled once
    callee       called by jitted functions, compiled together with them
    inlined      the same, but its code is copied into the caller
"""

import gc
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import register_jitable


@cache
def source_hash() -> str:
    """SHA-256 over every source file beside this one, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache  # printed once
def _announce(cache_path: str | None) -> None:
    """Tell a user at a terminal why the first call takes so long."""
    if sys.stderr is not None and sys.stderr.isatty():
        later = (
            f"later runs load them from {cache_path}"
            if cache_path
            else "no cache can be written: each run compiles them again"
        )
        print(
            f"fastae: compiling kernels for this CPU, about 8 s per dtype; {later}",
            file=sys.stderr,
            flush=True,
        )


def _cache_class() -> type | None:
    """Numba's cache of one function, with our key; None if this version of Numba lacks the classes it needs."""
    try:
        from numba.core.caching import FunctionCache, IndexDataCacheFile
    except ImportError:
        return None

    class SelfDescribedFiles(IndexDataCacheFile):  # type: ignore[misc]
        """One file per signature and CPU, which holds its own key.

        Numba's class has an index that names files .1, .2, ...: if two processes save at once, one may read the
        other's file as its own.
        """

        def _name(self, key: tuple[Any, ...]) -> str:
            digest = hashlib.sha256(repr(key[:2]).encode()).digest()
            return str(self._data_name(int.from_bytes(digest[:6], "big")))

        def save(self, key: tuple[Any, ...], data: Any) -> None:
            self._save_data(self._name(key), (key, data))

        def load(self, key: tuple[Any, ...]) -> Any:
            try:
                saved, data = self._load_data(self._name(key))
            except (
                FileNotFoundError,
                ImportError,
                AttributeError,
            ):  # not there, or names a module that is gone
                return None
            return data if saved == key else None

    class SourceStampedCache(FunctionCache):  # type: ignore[misc]
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__(function)
            self._cache_file = SelfDescribedFiles(self._cache_path, self._impl.filename_base, None)

        def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
            return (*super()._index_key(sig, codegen), numba.__version__, source_hash())

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                super().save_overload(sig, data)
            except OSError:  # on a full or read-only disk, compile again in each process
                self.disable()

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                compiled = super().load_overload(sig, target_context)
            except OSError:
                self.disable()
                compiled = None
            if compiled is None:
                _announce(self.cache_path)
            return compiled

    return SourceStampedCache


_CACHE = _cache_class()


class _Hurry:
    """Makes compilations shorter: a context for each function of ours, possibly nested, under Numba's compiler lock.

    The garbage collector is off: it took a seventh of the time, searching all that a compilation holds. LLVM's passes
    over single functions do the least they can, because its passes over the whole module come later and do the same
    (a twelfth of the time; no kernel became slower).
    """

    def __init__(self) -> None:
        self._depth, self._collects = 0, False

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._collects = gc.isenabled()
            gc.disable()
            codegen = cpu_target.target_context.codegen()
            passes = getattr(codegen, "_function_pass_manager", None)
            if passes is not None:
                codegen._function_pass_manager = lambda **options: passes(**{"opt": 0} | options)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            vars(cpu_target.target_context.codegen()).pop("_function_pass_manager", None)
            if self._collects:
                gc.enable()


_hurry = _Hurry()


class _Listener(event.Listener):  # type: ignore[misc]
    """Is told by Numba when it starts and ends compiling a function; acts on those of fastae."""

    def on_start(self, compilation: Any) -> None:
        dispatcher = compilation.data["dispatcher"]
        if dispatcher.py_func.__module__.startswith("fastae."):
            _announce(dispatcher.stats.cache_path)
            _hurry.__enter__()

    def on_end(self, compilation: Any) -> None:
        if compilation.data["dispatcher"].py_func.__module__.startswith("fastae."):
            _hurry.__exit__()


event.register("numba:compile", _Listener())

_OPTIONS = {"error_model": "numpy", "nogil": True}  # divide as IEEE does; without the GIL


def kernel(function: Callable[..., Any]) -> Any:
    """A function for Python to call: compiled on first use, cached on disk, run without the GIL."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    if _CACHE is not None:
        try:
            dispatcher._cache = _CACHE(function)
        except (RuntimeError, OSError, TypeError):  # no cache directory can be written
            pass
    return dispatcher


class ByAddress:
    """A function that kernels call by its address (``simd.call_at``): compiled once per dtype, not into each caller.

    Its first argument is a pointer to elements of the dtype, the others are int64; it returns nothing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: dict[Any, Any] = {}

    def address(self, dtype: npt.DTypeLike) -> int:
        """The address of the function for `dtype`; the first call compiles it or loads it from disk."""
        element = numba.from_dtype(np.dtype(dtype))
        if element not in self._compiled:
            integers = [types.int64] * (len(signature(self._function).parameters) - 1)
            self._compiled[element] = _callback(
                self._function, types.void(types.CPointer(element), *integers)
            )
        return int(self._compiled[element].address)


def _callback(function: Callable[..., Any], signature: Any) -> Any:
    """The C function that `function` becomes, cached on disk."""
    try:
        from numba.core.ccallback import CFunc

        callback: Any = CFunc(function, (signature.args, signature.return_type), {}, _OPTIONS)
    except (ImportError, TypeError):
        return numba.cfunc(signature, **_OPTIONS)(function)
    if _CACHE is not None:
        try:
            callback._cache = _CACHE(function)
        except (RuntimeError, OSError, TypeError):
            _announce(None)
    with global_compiler_lock, _hurry:
        callback.compile()
    return callback


def callee(function: Callable[..., Any]) -> Any:
    """A function for jitted functions to call, compiled together with them. Python still calls it as plain Python."""
    return register_jitable(no_cfunc_wrapper=True, no_cpython_wrapper=True, **_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """A function whose code is copied into each jitted function that calls it.

    Numba optimises a callee again for every caller above it; for a call many levels deep, that multiplies the time of
    compilation.
    """
    return numba.njit(inline="always", **_OPTIONS)(function)
