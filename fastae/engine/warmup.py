"""Compiles every kernel that engines, training and estimators call, ahead of use, or loads it from the cache."""

import ctypes
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from fastae.engine.thread_pool import available_cpus
from fastae.kernels import exp, sigmoid_with_derivative
from fastae.kernels import job as fields
from fastae.kernels.layout import address


def dtypes() -> list[str]:
    """The dtypes that an engine can have on the CPU that kernels are compiled for."""
    from fastae.kernels.target import TARGET

    return ["float32"] + ["bfloat16"] * TARGET.bfloat16 + ["float64"]


def warm_up(dtype: str = "float32") -> float:
    """Compile every kernel for one of ``dtypes()``; return the seconds it took.

    A kernel is compiled once per dtype, for all networks, and kept in Numba's cache (``NUMBA_CACHE_DIR``).
    """
    start = time.perf_counter()
    for part in _parts(dtype):
        _compile(*part)
    return time.perf_counter() - start


def warm_up_all() -> Iterator[tuple[str, float]]:
    """Compile every kernel for all of ``dtypes()``; yield each dtype when it is done, and the seconds since the start.

    It uses one process per CPU, because in one process Numba compiles one function at a time. The processes import
    the script that calls this function: the call must stand under ``if __name__ == "__main__":`` there.
    """
    start, parts_of = time.perf_counter(), {dtype: _parts(dtype) for dtype in dtypes()}
    parts = dict.fromkeys(part for parts in parts_of.values() for part in parts)
    with ProcessPoolExecutor(min(available_cpus(), len(parts)), get_context("spawn")) as pool:
        longest_first = sorted(parts, key=lambda part: list(PARTS).index(part[0]))
        compiled = {part: pool.submit(_compile, *part) for part in longest_first}
        for dtype, needed in parts_of.items():
            for part in needed:
                compiled[part].result()
            yield dtype, time.perf_counter() - start


def _parts(dtype: str) -> list[tuple[str, str]]:
    """What is compiled for a dtype: pairs of a name in PARTS and the element type to compile it for."""
    if dtype == "bfloat16":
        return [("threads", ""), ("items", "float32"), ("products of bfloat16", "float32")]
    return [
        ("threads", ""),
        *((part, dtype) for part in ("items", "products", "products of few columns", "functions")),
    ]


def _compile(part: str, element: str) -> None:
    PARTS[part](element)


def _items(element: str) -> None:
    """All that a job calls by address, except products."""
    from fastae.kernels.step import ITEMS

    for item in ITEMS.values():
        item.address(np.dtype(element))


def _products(element: str) -> None:
    from fastae.kernels import gemm, products

    products.addresses(gemm.COLUMN_BLOCKS, np.dtype(element))


def _products_of_few_columns(element: str) -> None:
    from fastae.kernels import products, rowlanes

    products.addresses(rowlanes.ROW_LANES, np.dtype(element))


def _products_of_bfloat16(element: str) -> None:
    from fastae.kernels import bfloat16, products, stretch

    products.addresses(bfloat16.PAIRS, np.dtype(element))
    job = fields.Job()
    stretch.prepare_weights(ctypes.addressof(job), 4)  # a job of no layers


def _threads(_: str) -> None:
    """What runs a job, the same for every dtype. The job here is finished before it begins."""
    from fastae.kernels import step

    job, control, members = fields.Job(), np.zeros(fields.CONTROL_BYTES, np.int8), np.zeros(1, fields.MEMBER)
    members["held"] = fields.FREE
    control_at, members_at = address(control), address(members)
    step.open_job(control_at, members_at, fields.FINISHED_CLAIM, 1)
    step.admit(control_at, members_at, 1)
    step.run(ctypes.addressof(job), control_at, members_at, 0)
    step.abandon(control_at)


def _functions(element: str) -> None:
    """The public functions of arrays."""
    x = np.zeros(2, element)
    sigmoid_with_derivative(x, x.copy(), x.copy())
    exp(x, x.copy())


# The parts that take longest come first.
PARTS: dict[str, Callable[[str], None]] = {
    "items": _items,
    "products of bfloat16": _products_of_bfloat16,
    "products": _products,
    "threads": _threads,
    "products of few columns": _products_of_few_columns,
    "functions": _functions,
}
