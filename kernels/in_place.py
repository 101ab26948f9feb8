"""Compiles kernels in this process, with Numba, and keeps the result on disk. Importing this imports Numba.

Numba's cache checks only the file that defines a function: after an edit or an upgrade, it would load code compiled
with an old callee from another file. Here the key also holds a hash of all kernel sources. This uses private classes
of Numba, in this file alone; ``tests/kernels/test_compiler.py`` checks that they do what is expected. Where those
classes are missing, or no cache directory can be written, each process compiles its functions again.
"""

import contextlib
import gc
import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numba
from numba import types
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import register_jitable

from fastae.kernels import compiler, private_files, sources
from fastae.kernels.compiler import OPTIONS
from fastae.kernels.sources import source_hash


class _Notices:
    """What a user at a terminal is told of compilations, each fact once; and why compiled code was not kept."""

    def __init__(self) -> None:
        self.muted = False
        self.not_kept: list[str] = []  # reasons
        self._printed: set[str] = set()

    def compiling(self, cache_path: str | None) -> None:
        """Explain why the first call takes so long, and whether the next process has to compile again."""
        if cache_path is None:
            outlook = "no cache can be written: each run compiles them again"
            self.not_kept.append("no directory can be written by this user alone")
        elif not sources.unchanged():
            outlook = f"{_CHANGED}: the next run compiles them again"
            self._printed.add("not saved")
        else:
            outlook = f"later runs load them from {cache_path}"
        self._print("compiling", f"compiling kernels for this CPU, about 8 s per dtype; {outlook}")

    def not_saved(self, reason: str) -> None:
        self.not_kept.append(reason)
        self._print("not saved", f"compiled kernels are not saved: {reason}")

    def _print(self, fact: str, text: str) -> None:
        if self.muted or fact in self._printed:
            return
        self._printed.add(fact)
        if sys.stderr is not None and sys.stderr.isatty():
            print(f"fastae: {text}", file=sys.stderr, flush=True)


notices = _Notices()
_CHANGED = "the source files have changed since they were imported"


class _NoCache:
    """In the place of a cache where there is none."""

    cache_path = None

    def holds(self, sig: Any, target_context: Any) -> bool:
        return True  # to compile elsewhere would not help

    def load_overload(self, sig: Any, target_context: Any) -> None:
        notices.compiling(None)

    def save_overload(self, sig: Any, data: Any) -> None:
        pass


def _cache_class() -> type | None:
    """Numba's cache of one function, with our key and files; None if this version of Numba lacks what it needs."""
    try:
        from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile
    except ImportError:
        return None

    def private(locator: Any) -> type:
        """One of Numba's rules where files are kept, with a directory that only this user can write to."""

        class Private(locator):  # type: ignore[misc]
            def get_cache_path(self) -> str:
                path = str(super().get_cache_path())
                if os.path.basename(path) == "__pycache__":  # where other users may read Python's own files
                    return os.path.join(path, "fastae")
                return path

            def ensure_cache_path(self) -> None:
                path = self.get_cache_path()
                if path not in tried:
                    try:
                        private_files.make_directory(path)
                        super().ensure_cache_path()  # which tries to write there
                        tried[path] = None
                    except OSError as error:
                        tried[path] = error.strerror or str(error)
                if tried[path] is not None:
                    raise OSError(tried[path])

        return Private

    class PrivateImplementation(CompileResultCacheImpl):  # type: ignore[misc]
        _locator_classes = tuple(private(locator) for locator in CompileResultCacheImpl._locator_classes)

    class SelfDescribedFiles(IndexDataCacheFile):  # type: ignore[misc]
        """One file per signature and CPU, which holds for its whole key or is ignored.

        Numba's class has an index that names files .1, .2, ...: if two processes save at once, one may read the
        other's file as its own.
        """

        def _path(self, key: tuple[Any, ...]) -> str:
            digest = hashlib.sha256(repr(key[:2]).encode()).digest()
            return str(self._data_path(self._data_name(int.from_bytes(digest[:6], "big"))))

        def save(self, key: tuple[Any, ...], data: Any) -> None:
            private_files.write(self._path(key), repr(key).encode(), self._dump(data))

        def load(self, key: tuple[Any, ...]) -> Any:
            content = private_files.read(self._path(key), repr(key).encode())
            return None if content is None else pickle.loads(content)

    class SourceStampedCache(FunctionCache):  # type: ignore[misc]
        _impl_class = PrivateImplementation

        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__(function)
            # The hash of the file that defines the function, because kernels may be defined elsewhere than here.
            self._definition = (self._impl.filename_base, self._impl.locator.get_source_stamp())
            self._cache_file = SelfDescribedFiles(self._cache_path, self._impl.filename_base, None)

        def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
            return (*super()._index_key(sig, codegen), *self._definition, numba.__version__, source_hash())

        def holds(self, sig: Any, target_context: Any) -> bool:
            """Whether there is a file for this signature; it may be damaged."""
            key = self._index_key(sig, target_context.codegen())
            return source_hash() is not None and os.path.exists(self._cache_file._path(key))

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                if sources.unchanged():
                    super().save_overload(sig, data)
                else:
                    notices.not_saved(_CHANGED)
            except OSError as error:  # on a full or read-only disk, compile again in each process
                self.disable()
                notices.not_saved(f"{self.cache_path}: {error.strerror or error}")

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            compiled = None
            if source_hash() is not None:
                with contextlib.suppress(Exception):  # a file that cannot be loaded is one that is not there
                    compiled = super().load_overload(sig, target_context)
            if compiled is None:
                notices.compiling(self.cache_path)
            return compiled

    return SourceStampedCache


tried: dict[str, str | None] = {}  # directories for the cache, and why one cannot be used
_CACHE = _cache_class()


def _cache_of(function: Callable[..., Any]) -> Any:
    """The cache on disk of one function."""
    if _CACHE is not None:
        with contextlib.suppress(RuntimeError, OSError, TypeError):  # no cache directory can be written
            return _CACHE(function)
    return _NoCache()


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Hold Numba's lock, without the garbage collector, which took a seventh of the time of a compilation."""
    with global_compiler_lock:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


def settle() -> None:
    """Tell Numba of the callees that were declared since the last call."""
    with global_compiler_lock:
        while compiler.callees:
            register_jitable(no_cfunc_wrapper=True, no_cpython_wrapper=True, **OPTIONS)(
                compiler.callees.pop()
            )


def type_of(value: Any) -> Any:
    """Numba's type of a function that jitted functions call."""
    settle()
    context = cpu_target.typing_context
    context.refresh()
    return context.resolve_value_type(value)


def jitted(function: Callable[..., Any]) -> Any:
    """See ``compiler.jitted``."""
    settle()
    dispatcher = numba.njit(**OPTIONS)(function)
    dispatcher._cache = _cache_of(function)
    return dispatcher


def c_function(function: Callable[..., Any], element: str | None) -> Any:
    """The C function that `function` becomes, compiled or loaded from disk; it must be kept while it is called.

    Its arguments are int64; but if there is an `element`, a dtype, the first is a pointer to elements of it.
    """
    if config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set, but the kernels run only when compiled")
    signature = _signature(function, element)
    try:
        callback = _callback(function, signature)
    except (ImportError, TypeError):
        notices.compiling(None)
        with _compiling():
            settle()
            return numba.cfunc(signature, **OPTIONS)(function)
    callback._cache = _cache_of(function)
    with _compiling():
        settle()
        callback.compile()
    return callback


def _signature(function: Callable[..., Any], element: str | None) -> Any:
    integers, returns = compiler.shape_of(function)
    arguments = [types.int64] * integers
    if element is not None:
        arguments[0] = types.CPointer(getattr(types, element))
    return (types.int64 if returns else types.void)(*arguments)


def _callback(function: Callable[..., Any], signature: Any) -> Any:
    from numba.core.ccallback import CFunc

    return CFunc(function, (signature.args, signature.return_type), {}, OPTIONS)


def llvm_of(function: Callable[..., Any], element: str | None) -> tuple[str, str, str]:
    """For ``build.py``: the optimised LLVM IR of a C function, the name of its body, and that of Numba's wrapper."""
    with _compiling():
        settle()
        compiled = _callback(function, _signature(function, element))._compile_uncached()
        compiled.library._ensure_finalized()
    names = compiled.fndesc
    return str(compiled.library._final_module), names.llvm_func_name, names.llvm_cfunc_wrapper_name


def target_machine() -> Any:
    """LLVM's description of the CPU that Numba compiles for."""
    return cpu_target.target_context.codegen()._tm


# -- with the help of another process ---------------------------------------------------------------------------------

HELPED_FROM = 5  # functions to compile that are worth another process
_helpers: list[subprocess.Popen[bytes]] = []


def expect(functions: list[tuple[Callable[..., Any], str | None]]) -> None:
    """Have another process compile what of these will be needed soon and is not on disk, the last one first.

    This process compiles the first one first. Each loads what it finds on disk, so they meet in between.
    """
    name = os.path.basename(sys.executable or "").lower()
    if not name.startswith("python") or getattr(sys, "frozen", False) or config.DISABLE_JIT or _cpus() < 2:
        return
    missing = [pair for pair in functions if not _on_disk(*pair)]
    if len(missing) < HELPED_FROM:
        return
    names = [(compiler.name_of(function), element) for function, element in reversed(missing)]
    code = f"import sys; sys.path[:] = {sys.path!r}; from fastae.kernels import in_place; in_place.help({names!r})"
    with contextlib.suppress(OSError):  # no process can be started
        quiet = subprocess.DEVNULL
        _helpers.append(
            subprocess.Popen([sys.executable, "-c", code], stdin=quiet, stdout=quiet, stderr=quiet)
        )


def help(names: list[tuple[str, str | None]]) -> None:
    """Compile the kernels of these names, each for a dtype or for none, unless they are on disk by then."""
    for name, element in names:
        import_module(f"fastae.kernels.{name.rpartition('.')[0]}")
        (function,) = (each.function for each in compiler.registry if compiler.name_of(each.function) == name)
        if not _on_disk(function, element):
            c_function(function, element)


def _on_disk(function: Callable[..., Any], element: str | None) -> bool:
    holds = _cache_of(function).holds(_signature(function, element), cpu_target.target_context)
    return bool(holds)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_path() -> str | None:
    """The directory that holds the compiled kernels; None if there is none."""
    path: str | None = _cache_of(type_of).cache_path
    return path


ready = True  # all of this module is there: see ``compiler._in_place``
