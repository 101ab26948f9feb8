"""The thread pools of other libraries: their thread counts, and the CPU that OpenBLAS detects."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _blas() -> Any:
    import numpy  # noqa: F401  # threadpoolctl finds only libraries that are loaded
    import scipy.linalg  # noqa: F401

    return ThreadpoolController().select(user_api="blas")


def set_threads(count: int) -> None:
    """Make NumPy, SciPy and torch use `count` threads from now on. JAX's pool has a fixed size, the number of CPUs."""
    _blas().limit(limits=count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def blas_libraries() -> list[str]:
    """Each BLAS library in the process, with its version and the kind of CPU that it uses."""
    libraries = {
        f"{info['internal_api']} {info['version']} for {info.get('architecture', '?')}"
        for info in _blas().info()
    }
    return sorted(libraries)


class CpuError(ValueError):
    """The process cannot be limited to so many CPUs."""


@contextmanager
def limited_to(threads: int | None) -> Iterator[None]:
    """Let this process use only so many of its CPUs: every library, JAX too, then takes them for all that there are.

    CpuError if it has fewer, or if the system cannot do so.
    """
    if threads is None:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise CpuError("this system cannot limit the CPUs of a process")
    before = os.sched_getaffinity(0)
    if not 1 <= threads <= len(before):
        raise CpuError(f"{threads} is not within 1 .. {len(before)}, the CPUs of this process")
    _set_affinity(set(sorted(before)[:threads]))
    try:
        yield
    finally:
        _set_affinity(before)


def _set_affinity(cpus: set[int]) -> None:
    """Of all threads of this process."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cpus)
        except ProcessLookupError:
            pass  # it has ended
