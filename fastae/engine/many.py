"""Many networks on the same rows: their errors or reconstructions, computed side by side.

Checks of arguments that are one per network are here, too. Training them is in ``training/many.py``.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from fastae.checks import check_count, check_index, check_matrix
from fastae.engine import thread_pool
from fastae.engine.engine import Engine
from fastae.engine.side_by_side import SideBySide
from fastae.network import Parameters

# Weights from which all threads work on one network. Measured in batches of 200: the time of two networks on one thread
# each, as a multiple of both in turn on two threads, is 0.55 at 70,000 weights, 0.96 at 330,000, 1.07 at 720,000.
WIDE = 400_000
# Rows that a thread runs through all networks before it goes on: few enough that they stay in its cache, and that all
# threads have some; so many that calling an engine takes much less time than its work.
ROWS_LEAST, ROWS_MOST = 256, 4096


def errors_many(
    params: Sequence[Parameters],
    X: npt.ArrayLike,
    *,
    n_threads: int | None = None,
    index: npt.ArrayLike | None = None,
    shift: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    scale: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    column_weight: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    missing: bool = False,
    reduce: Literal["mean"] | None = None,
    on_not_finite: Callable[[], object] | None = None,
) -> np.ndarray:
    """Compute the error of each row under each of many networks: sum_j c_j (xhat_ij - x_ij)^2.

    Reconstructions are not stored. Each network's errors have the bits that ``Engine.errors`` computes, for any number
    of threads.

    Parameters
    ----------
    params : list of Parameters
        The networks. Their dtypes may differ; each takes n features and puts out n.
    X : array-like of shape (m, n), any float or integer dtype, any strides
        Rows, the same for all networks: never copied whole, never written.
    n_threads : int, optional
        Maximum number of threads. Default: the CPUs that this process may use.
    index : array-like of int, optional
        Numbers of the rows of `X` to use, in this order. Default: all rows.
    shift : array-like of shape (n,), or list of one per network, optional
        Subtracted from each row before it enters the network. Default: 0.
    scale : array-like of shape (n,), or list of one per network, optional
        Then multiplied with each row. The network sees (X - shift) * scale. Default: 1.
    column_weight : array-like of shape (n,), or list of one per network, optional
        The factors c_j. Default: 1.
    missing : bool, default False
        Treat cells that are NaN as missing: 0 in the input and not part of the error.
    reduce : "mean", optional
        Return the mean over the networks, whose errors are then not stored. Default: the errors of each network.
    on_not_finite : callable, optional
        Called without arguments if a cell is infinite or, unless it is a missing one, NaN, as a network sees it; it may
        raise an error. Several threads may call it.

    Returns
    -------
    ndarray of shape (networks, rows), or (rows,) with `reduce`; float64
        Errors, where x is what the network sees: the scaled row.

    Raises
    ------
    TypeError, ValueError
        An argument is not valid; the message names it and, where it is about one network, the number of the network,
        counted from 0.
    """
    networks = check_networks(params, written=False)
    options = _each({"shift": shift, "scale": scale, "column_weight": column_weight}, len(networks))

    def errors(engine: Engine, i: int, **rows: Any) -> np.ndarray:
        return engine.errors(networks[i], missing=missing, on_not_finite=on_not_finite, **rows, **options[i])

    return _run(networks, X, index, errors, (), np.dtype(np.float64), n_threads, reduce)


def reconstruct_many(
    params: Sequence[Parameters],
    X: npt.ArrayLike,
    *,
    n_threads: int | None = None,
    index: npt.ArrayLike | None = None,
    shift: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    scale: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    missing: bool = False,
    reduce: Literal["mean"] | None = None,
    on_not_finite: Callable[[], object] | None = None,
) -> np.ndarray:
    """Reconstruct each row with each of many networks.

    Each network's results have the bits that ``Engine.reconstruct`` computes, for any number of threads.

    Parameters
    ----------
    params : list of Parameters
        The networks. Their dtypes may differ; each takes n features and puts out n.
    X : array-like of shape (m, n), any float or integer dtype, any strides
        Rows, the same for all networks: never copied whole, never written.
    n_threads : int, optional
        Maximum number of threads. Default: the CPUs that this process may use.
    index : array-like of int, optional
        Numbers of the rows of `X` to use, in this order. Default: all rows.
    shift : array-like of shape (n,), or list of one per network, optional
        Subtracted from each row before it enters the network. Default: 0.
    scale : array-like of shape (n,), or list of one per network, optional
        Then multiplied with each row. The network sees (X - shift) * scale. Default: 1.
    missing : bool, default False
        Treat cells that are NaN as missing: 0 in the input.
    reduce : "mean", optional
        Return the mean over the networks, whose reconstructions are then not stored. Default: those of each network.
    on_not_finite : callable, optional
        Called without arguments if a cell is infinite or, unless it is a missing one, NaN, as a network sees it; it may
        raise an error. Several threads may call it.

    Returns
    -------
    ndarray of shape (networks, rows, n), or (rows, n) with `reduce`
        The networks' outputs; shift and scale are not undone. The dtype is that of the networks, or float64 if one of
        them is float64.

    Raises
    ------
    TypeError, ValueError
        As from ``errors_many``.
    """
    networks = check_networks(params, written=False)
    options = _each({"shift": shift, "scale": scale}, len(networks))
    dtype = np.result_type(*{each.dtype for each in networks})

    def reconstruct(engine: Engine, i: int, **rows: Any) -> np.ndarray:
        return engine.reconstruct(
            networks[i], missing=missing, on_not_finite=on_not_finite, **rows, **options[i]
        )

    return _run(networks, X, index, reconstruct, (networks[0].network.widths[0],), dtype, n_threads, reduce)


def _each(options: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The options of each of `count` networks."""
    values = {name: arrays(name, value, count) for name, value in options.items()}
    return [{name: value[i] for name, value in values.items()} for i in range(count)]


def _run(
    networks: list[Parameters],
    X: npt.ArrayLike,
    index: npt.ArrayLike | None,
    call: Callable[..., np.ndarray],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    n_threads: int | None,
    reduce: str | None,
) -> np.ndarray:
    """Results of all networks for all rows, part of the rows by part; or their mean, added up in the networks' order.

    Parameters
    ----------
    call : callable
        call(engine, number of the network, X=..., index=...) returns an array (rows, *shape).
    """
    if reduce not in (None, "mean"):
        raise ValueError(f'reduce must be "mean" or None, got {reduce!r}')
    threads = check_threads(n_threads)
    array = check_matrix(X, networks[0].network.widths[0], "X")
    chosen = None if index is None else check_index(index, len(array))
    rows = len(array) if chosen is None else len(chosen)
    at_a_time = 1 if any(each.flat.size >= WIDE for each in networks) else threads
    part = min(ROWS_MOST, max(ROWS_LEAST, -(-rows // at_a_time))) * (threads // at_a_time)
    parts = -(-rows // part)
    out = np.zeros((rows, *shape) if reduce else (len(networks), rows, *shape), dtype)
    stop, engines = threading.Event(), threading.local()

    def task(number: int) -> None:
        here = slice(number * part, min(number * part + part, rows))
        those = {"X": array[here]} if chosen is None else {"X": array, "index": chosen[here]}
        for i, network in enumerate(networks):
            # Of this thread: an engine for each kind of network
            own = cast(dict[Any, Engine], engines.__dict__)
            kind = network.network, network.dtype
            if kind not in own:
                own[kind] = Engine(kind[0], threads // at_a_time, kind[1])
                own[kind].stop_on(stop)
            with Naming(i):
                result = call(own[kind], i, **those)
            if reduce:
                out[here] += result
            else:
                out[i, here] = result
        if reduce:
            out[here] /= len(networks)

    SideBySide(task, parts, stop).run(min(at_a_time, parts))
    return out


# -- arguments --------------------------------------------------------------------------------------------------------


class Naming:
    """A context that puts the number of a network before the message of an error about it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (TypeError, ValueError, ArithmeticError)) and error.args:
            error.args = f"network {self._number}: {error.args[0]}", *error.args[1:]


def check_networks(params: Sequence[Parameters], *, written: bool) -> list[Parameters]:
    """`params` as a list of Parameters, all for the same number of features; if `written`, they share no memory."""
    if isinstance(params, Parameters):  # type: ignore[unreachable]
        raise TypeError("params must be a list of Parameters, got one Parameters")
    networks = list(params)
    if not networks:
        raise ValueError("params is empty")
    for i, each in enumerate(networks):
        if not isinstance(each, Parameters):
            raise TypeError(f"network {i}: params must be Parameters, got {type(each).__name__}")
        inputs, outputs = each.network.widths[0], each.network.widths[-1]
        if inputs != networks[0].network.widths[0]:
            raise ValueError(
                f"network {i}: params take {inputs} features, but those of network 0 take "
                f"{networks[0].network.widths[0]}"
            )
        if outputs != inputs:
            raise ValueError(f"network {i}: params put out {outputs} features, not {inputs}")
    if written:
        refuse_shared("params", [each.flat for each in networks])
    return networks


def check_threads(n_threads: int | None) -> int:
    """The number of threads to use."""
    if n_threads is not None:
        check_count(n_threads, "n_threads")
    most = thread_pool.available_cpus()
    return most if n_threads is None else min(int(n_threads), most)


def refuse_shared(name: str, arrays: Sequence[Any]) -> None:
    """Raise a ValueError if two of these arrays share memory."""
    seen: dict[int, int] = {}
    for i, array in enumerate(arrays):
        if isinstance(array, np.ndarray):
            first = seen.setdefault(array.__array_interface__["data"][0], i)
            if first != i:
                raise ValueError(f"network {i}: {name} must not be those of network {first} too")


def values(name: str, value: Any, count: int) -> list[Any]:
    """A value for each network, from one for all or from a list."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        if len(value) != count:
            raise ValueError(f"{name} has {len(value)} values, but params are of {count} networks")
        return [each.item() if isinstance(each, np.generic) else each for each in value]
    return [value] * count


def arrays(name: str, value: Any, count: int) -> list[Any]:
    """An array for each network, from one for all or from a list of arrays, or from the rows of a matrix."""
    if isinstance(value, (list, tuple)) and not all(
        np.ndim(each) == 0 and each is not None for each in value
    ):
        several = True
    else:
        several = isinstance(value, np.ndarray) and value.ndim == 2
    return values(name, list(value), count) if several else [value] * count
