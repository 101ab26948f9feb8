"""The thread pools of other libraries: their thread counts, and the CPU that OpenBLAS detects."""

import sys
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
