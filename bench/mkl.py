"""Products by MKL for NumPy's step: PyPI has no NumPy linked with MKL, but the package ``mkl`` is the library."""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112


def _file() -> Path | None:
    return next(iter(sorted((Path(sys.prefix) / "lib").glob("libmkl_rt.so*"))), None)


def why_not() -> str:
    """Why there is no MKL; "" if there is."""
    return "" if _file() else "the package mkl is not installed"


@cache
def _library() -> Any:
    os.environ.setdefault("MKL_THREADING_LAYER", "GNU")  # the OpenMP that torch uses too
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(_file()))


def matmul_on(threads: int) -> Callable[..., Any]:
    """A stand-in for ``np.matmul(a, b, out=out)`` of matrices that computes on so many threads."""
    library = _library()
    gemms = {"f": (library.cblas_sgemm, ctypes.c_float), "d": (library.cblas_dgemm, ctypes.c_double)}

    def matmul(a: np.ndarray, b: np.ndarray, *, out: np.ndarray) -> None:
        library.MKL_Set_Num_Threads_Local(ctypes.c_int(threads))
        gemm, scalar = gemms[out.dtype.char]
        (m, n), k = out.shape, a.shape[1]
        sides = [PLAIN if side.flags.c_contiguous else TRANSPOSED for side in (a, b)]
        steps = [max(side.strides) // side.itemsize for side in (a, b, out)]
        at = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, out)]
        gemm(
            ROW_MAJOR, *sides, m, n, k, scalar(1), at[0], max(steps[0], 1), at[1], max(steps[1], 1), scalar(0),
            at[2], max(steps[2], n),
        )  # fmt: skip

    return matmul
