"""The one decorator of every jitted function, and its cache on disk.

Numba's cache stamps only the file that defines a function: a changed callee in another file would run stale, after an
edit and after an upgrade alike. Here the key also holds a hash of all kernel sources. This leans on private classes of
Numba, so it is kept to this file, behind ``tests/test_compiler.py``; where those are gone, or no cache directory can be
written, functions are compiled afresh in each process.
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


@cache  # said once
def _announce(kept: str | None) -> None:
    """Say on a terminal why the first call takes so long."""
    if sys.stderr is not None and sys.stderr.isatty():
        later = (
            f"later runs load them from {kept}" if kept else "no cache can be written: each run does so again"
        )
        print(
            f"fastae: compiling kernels for this CPU, about 8 s a dtype; {later}",
            file=sys.stderr,
            flush=True,
        )


def _cache_class() -> type | None:
    try:
        from numba.core.caching import FunctionCache, IndexDataCacheFile
    except ImportError:
        return None

    class SelfDescribedFiles(IndexDataCacheFile):  # type: ignore[misc]
        """A file for each signature and CPU, and what it is in it.

        Numba's own has an index that names files .1, .2, ...; of two processes that save at once, one may read the
        other's file for its own.
        """

        def _name(self, key: tuple[Any, ...]) -> str:
            digest = hashlib.sha256(repr(key[:2]).encode()).digest()
            return str(self._data_name(int.from_bytes(digest[:6], "big")))

        def save(self, key: tuple[Any, ...], data: Any) -> None:
            self._save_data(self._name(key), (key, data))

        def load(self, key: tuple[Any, ...]) -> Any:
            try:
                saved, data = self._load_data(self._name(key))
            except FileNotFoundError:
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
            except OSError:  # a full or read-only disk costs a compilation, never a result
                self.disable()

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                found = super().load_overload(sig, target_context)
            except OSError:
                self.disable()
                found = None
            if found is None:
                _announce(self.cache_path)
            return found

    return SourceStampedCache


_CACHE = _cache_class()


class _Hurry:
    """What makes a compilation shorter, entered for each of ours, one within the other; under Numba's compiler lock.

    The garbage collector is off: its searches of all that a compilation holds took a seventh of the time. And passes
    over single functions do no more than they must: passes over the whole module, which come after them, do the same
    again (a twelfth of the time; no kernel became slower).
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
    """Follows Numba while it compiles a function of ours."""

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
    """A function that Python calls: compiled on first use, without the GIL, dividing as IEEE does, cached on disk."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    if _CACHE is not None:
        try:
            dispatcher._cache = _CACHE(function)
        except (RuntimeError, OSError, TypeError):  # no cache directory can be written
            pass
    return dispatcher


class ByAddress:
    """A function that kernels call by its address (``simd.call_at``): compiled once, not into each of them again.

    Its first argument is a pointer to the dtype's elements, the others are int64s; it returns nothing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: dict[Any, Any] = {}

    def address(self, dtype: npt.DTypeLike) -> int:
        """Where it lies in memory, compiled for `dtype` (or loaded from disk) if that has not been done."""
        element = numba.from_dtype(np.dtype(dtype))
        if element not in self._compiled:
            integers = [types.int64] * (len(signature(self._function).parameters) - 1)
            self._compiled[element] = _callback(
                self._function, types.void(types.CPointer(element), *integers)
            )
        return int(self._compiled[element].address)


def _callback(function: Callable[..., Any], wanted: Any) -> Any:
    try:
        from numba.core.ccallback import CFunc

        made: Any = CFunc(function, (wanted.args, wanted.return_type), {}, _OPTIONS)
    except (ImportError, TypeError):
        return numba.cfunc(wanted, **_OPTIONS)(function)
    if _CACHE is not None:
        try:
            made._cache = _CACHE(function)
        except (RuntimeError, OSError, TypeError):
            _announce(None)
    with global_compiler_lock, _hurry:
        made.compile()
    return made


def callee(function: Callable[..., Any]) -> Any:
    """A function that jitted functions call: compiled with them, for no other use. To Python it is what it was."""
    return register_jitable(no_cfunc_wrapper=True, no_cpython_wrapper=True, **_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` into each kernel that calls it, not by itself.

    Numba optimises a callee again in every caller above it; for a call many levels deep that multiplies the time to
    compile.
    """
    return numba.njit(inline="always", **_OPTIONS)(function)
