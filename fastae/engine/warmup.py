"""Compiles every kernel that engines, training and estimators call, ahead of use; or loads it from package or cache."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from fastae.engine.thread_pool import available_cpus
from fastae.kernels import exp, sigmoid_with_derivative


def dtypes() -> list[str]:
    """The dtypes that an engine can have on the CPU that kernels are compiled for."""
    from fastae.kernels.forms import forms_of

    return [dtype for dtype in ("float32", "bfloat16", "float64") if forms_of(dtype)]


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

    Raises
    ------
    OSError
        Compiled kernels cannot be kept for later processes.
    """
    from fastae.kernels import prebuilt
    from fastae.kernels.target import TARGET

    start, parts_of = time.perf_counter(), {dtype: _parts(dtype) for dtype in dtypes()}
    if prebuilt.why_compiled() is None and not TARGET.amx:  # there is nothing to compile
        for dtype in parts_of:
            yield dtype, time.perf_counter() - start
        return
    from fastae.kernels import in_place

    if in_place.cache_path() is None:
        raise OSError("compiled kernels cannot be kept: no directory can be written by this user alone")
    parts = dict.fromkeys(part for parts in parts_of.values() for part in parts)
    with ProcessPoolExecutor(min(available_cpus(), len(parts)), get_context("spawn")) as pool:
        longest_first = sorted(parts, key=lambda part: part[0] in ("threads", "functions"))
        compiled = {
            part: pool.submit(_compile_to_keep, *part, part == longest_first[0]) for part in longest_first
        }
        for dtype, needed in parts_of.items():
            for part in needed:
                if reasons := compiled[part].result():
                    pool.shutdown(cancel_futures=True)
                    raise OSError(f"compiled kernels cannot be kept: {reasons[0]}")
            yield dtype, time.perf_counter() - start


def _parts(dtype: str) -> list[tuple[str, str]]:
    """What is compiled for a dtype: pairs of a form's name or a name in PARTS, and the element type to compile it for.

    The parts that take longest come first.
    """
    from fastae.kernels.forms import forms_of

    element = "float32" if dtype == "bfloat16" else dtype
    forms = [(form.name, element) for form in forms_of(dtype)]
    return [("items", element), *forms, ("threads", ""), ("functions", element), ("nearest", "")]


def _compile(part: str, element: str) -> None:
    if part in PARTS:
        PARTS[part](element)
    else:
        _products(part, element)


def _compile_to_keep(part: str, element: str, notify: bool) -> list[str]:
    """Compile a part; return the reasons why compiled code of this process was not kept. One part prints notices."""
    from fastae.kernels import in_place

    in_place.notices.muted = not notify
    _compile(part, element)
    return in_place.notices.not_kept


def _items(element: str) -> None:
    """All that a job calls by address, except products."""
    from fastae.kernels.step import ITEMS

    for item in ITEMS.values():
        item.address(np.dtype(element))


def _products(name: str, element: str) -> None:
    """The functions of the form of this name."""
    from fastae.kernels import products, stretch
    from fastae.kernels.forms import forms_of

    (form,) = {form for dtype in dtypes() for form in forms_of(dtype) if form.name == name}
    products.addresses(form, np.dtype(element))
    if form.own_weights:
        stretch.prepare_weights.loaded()


def _threads(_: str) -> None:
    """What checks parameters and runs a job, the same for every dtype."""
    from fastae.kernels import padding, step

    padding.checker()
    for kernel in (step.open_job, step.admit, step.run, step.run_alone, step.abandon):
        kernel.loaded()


def _functions(element: str) -> None:
    """The public functions of arrays, and what draws orders of rows."""
    from fastae.kernels.array_header import SMALL
    from fastae.kernels.shuffle import orders

    orders(np.random.default_rng(0), None, 2, 1)
    for x in np.zeros(2, element), np.zeros(SMALL, element):  # small arrays, and others
        sigmoid_with_derivative(x, x.copy(), x.copy())
        exp(x, x.copy())


def _nearest(_: str) -> None:
    """The distances of a detector of several networks, which are in float32 for every dtype."""
    from fastae.kernels.nearest import nearest

    nearest.address("float32")


# The parts beside the forms of products
PARTS: dict[str, Callable[[str], None]] = {
    "items": _items,
    "threads": _threads,
    "functions": _functions,
    "nearest": _nearest,
}
