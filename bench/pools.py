"""The thread pools of other libraries: how many threads they use, and what OpenBLAS takes this CPU for."""

import sys
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _blas() -> Any:
    import numpy  # noqa: F401  # the libraries that are found are those loaded by now
    import scipy.linalg  # noqa: F401

    return ThreadpoolController().select(user_api="blas")


def set_threads(count: int) -> None:
    """Have NumPy, SciPy and torch use `count` threads from now on. JAX's pool is sized once, by the CPUs."""
    _blas().limit(limits=count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def blas_libraries() -> list[str]:
    """Each BLAS library in the process, with the kind of core it computes for."""
    found = {
        f"{info['internal_api']} {info['version']} for {info.get('architecture', '?')}"
        for info in _blas().info()
    }
    return sorted(found)
