"""Many networks on the same rows: trained side by side, and run side by side.

Each network is trained exactly as ``train`` trains it alone; only the threads are divided differently. This file checks
the arguments, divides the threads among the networks, and restores all networks after an error.
"""

import heapq
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from fastae.checks import check_count, check_matrix, check_seed, check_vector, check_weights
from fastae.data.row_source import Rows
from fastae.engine import thread_pool
from fastae.engine.engine import SMALL_JOB, Engine
from fastae.engine.side_by_side import SideBySide
from fastae.network import Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.gradient_descent import rows_of, train_on
from fastae.training.history import DivergenceError, History
from fastae.training.loop import check_start
from fastae.training.options import TrainingOptions

T = TypeVar("T")

WIDE = 64_000  # weights from which all threads share the steps of one network: beside others, its weights leave L2
GAIN = 0.7  # what each thread adds in steps that threads share, beside one thread alone


@dataclass
class _Training:
    """One network and how it is to be trained."""

    params: Parameters
    rows: Rows
    optimizer: Optimizer
    state: State
    options: TrainingOptions
    objective: Objective
    arrays: dict[str, Any]  # shift, scale and sample_weight

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.params.flat.size

    @property
    def flops(self) -> float:
        """The work of a step."""
        return 6.0 * self.size * min(self.options.batch_size or len(self.rows), len(self.rows))

    @property
    def work(self) -> float:
        """The work of all epochs."""
        return 6.0 * self.size * len(self.rows) * self.options.epochs

    def run(self, engine: Engine) -> History:
        """Train the network with `engine`."""
        return train_on(
            self.rows,
            self.params,
            self.optimizer,
            self.state,
            self.options,
            engine=lambda: engine,
            n_threads=None,
            objective=self.objective,
            **self.arrays,
        )


def train_many(
    params: Sequence[Parameters],
    X: "npt.ArrayLike | Rows",
    *,
    n_threads: int | None = None,
    optimizer: Optimizer | Sequence[Optimizer | None] | None = None,
    epochs: int | Sequence[int] = 100,
    batch_size: int | Sequence[int | None] | None = None,
    index: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    shuffle: bool | Sequence[bool] = True,
    seed: int | Sequence[int | np.random.Generator] = 0,
    shift: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    scale: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    sample_weight: npt.ArrayLike | Sequence[npt.ArrayLike | None] | None = None,
    objective: Objective | Sequence[Objective] = PLAIN,
    validate: Callable[[Parameters], float] | Sequence[Callable[[Parameters], float] | None] | None = None,
    patience: int | Sequence[int | None] | None = None,
    tol: float | Sequence[float] = 0.0,
    adaptive: bool | Sequence[bool] = False,
    state: Sequence[State | None] | None = None,
    on_divergence: Literal["raise", "keep"] = "raise",
) -> list[History]:
    """Train many networks on the same rows, side by side.

    Each network is trained as ``train`` would train it alone, with the same bits for any number of threads and whatever
    the other networks are. Small networks take one thread each. The threads share the steps of a network of 64,000
    weights or more, and of the last few networks.

    Each option is one value for all networks, or a list with one value per network.

    Parameters
    ----------
    params : list of Parameters
        Initial parameters of each network; changed in place. Networks and dtypes may differ, but each network takes n
        features and puts out n.
    X : array-like of shape (m, n), any float or integer dtype, any strides; or Rows in memory
        Training data: never copied, never written.
    n_threads : int, optional
        Maximum number of threads, for all networks together. Default: the CPUs that this process may use.
    optimizer : SGD, Adam or AdamW, optional
        Default: ``Adam()``. Learning rates and their schedules are part of it.
    epochs : int, default 100
        Number of times to process all rows.
    batch_size : int, optional
        Rows per step. Default: all rows.
    index : array-like of int, optional
        Numbers of the rows of `X` to train on. Default: all. A list of arrays has one per network.
    shuffle : bool, default True
        Draw the rows of each batch at random, without replacement, in a new order each epoch.
    seed : int or list, default 0
        Seed of the shuffling and of the noise. Networks with the same seed and the same number of rows draw the same
        batches. A numpy.random.Generator seeds one network only.
    shift, scale : array-like of shape (n,), optional
        The network sees (X - shift) * scale. Default: 0 and 1. A list of arrays has one per network.
    sample_weight : array-like of shape (m,), optional
        Weight of each row, not negative. Default: 1. A list of arrays has one per network.
    objective : Objective, optional
        Penalties, noise in the input, missing cells. Default: none of them.
    validate : callable, optional
        Called with the network's parameters after each epoch; returns the validation loss. Several threads call it at
        the same time. Afterwards, the parameters are those with the lowest one.
    patience, tol, adaptive : optional
        When to stop, as for ``train``.
    state : list of State, optional
        The optimizer's state of each network, to continue from; changed in place. Default: new ones.
    on_divergence : "raise" or "keep", default "raise"
        What happens if the loss of a network becomes infinite or NaN. "raise": all training stops with a
        DivergenceError. "keep": this network keeps the parameters it had after an earlier epoch, at a finite loss; its
        History ends with an infinite loss and has the `stop_reason` "divergence". The others are trained to the end.

    Returns
    -------
    list of History
        What ``train`` returns, for each network.

    Raises
    ------
    TypeError, ValueError
        An argument is not valid; the message names it and, where it is about one network, the number of the network,
        counted from 0.
    DivergenceError
        The loss of a network became infinite or NaN; the message gives its number.

    Notes
    -----
    After any error, and after Ctrl-C, all networks and states are as they were before.
    """
    networks = _check_networks(params)
    if on_divergence not in ("raise", "keep"):
        raise ValueError(f'on_divergence must be "raise" or "keep", got {on_divergence!r}')
    threads = _check_threads(n_threads)
    count = len(networks)
    if isinstance(X, Rows):
        if not X.in_memory:
            raise ValueError("X must be in memory, but it is Rows of many chunks: pass an array")
        X = X.resident()
    array = check_matrix(X, networks[0].network.widths[0], "X")
    one_each = {
        "optimizer": optimizer,
        "epochs": epochs,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "seed": seed,
        "objective": objective,
        "validate": validate,
        "patience": patience,
        "tol": tol,
        "adaptive": adaptive,
        "state": state,
    }
    values = {name: _values(name, value, count) for name, value in one_each.items()}
    for name, value in {
        "index": index,
        "shift": shift,
        "scale": scale,
        "sample_weight": sample_weight,
    }.items():
        values[name] = _arrays(name, value, count)
    _refuse_shared("state", [None if s is None else getattr(s, "moments", None) for s in values["state"]])
    _refuse_shared_generators(values["seed"])
    trainings = []
    for i, network in enumerate(networks):
        with _Naming(i):
            trainings.append(_training(network, array, {name: each[i] for name, each in values.items()}))
    return _train_all(trainings, threads, on_divergence == "keep")


def _training(params: Parameters, X: np.ndarray, values: dict[str, Any]) -> _Training:
    """The training of one network, checked as far as that takes no work."""
    optimizer, state = check_start(params, values["optimizer"], values["state"])
    objective = values["objective"]
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective, got {objective!r}")
    names = "epochs", "batch_size", "shuffle", "seed", "validate", "patience", "tol", "adaptive"
    options = TrainingOptions(**{name: values[name] for name in names})
    check_count("epochs", options.epochs)
    for name in ("batch_size", "patience"):
        if values[name] is not None:
            check_count(name, values[name])
    check_seed(options.seed)
    columns = X.shape[1]
    rows = rows_of(X, columns, values["index"], None)
    for name in ("shift", "scale"):
        if values[name] is not None and not np.isfinite(check_vector(values[name], columns, name)).all():
            raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    if values["sample_weight"] is not None:
        check_weights(values["sample_weight"], len(X))
    arrays = {name: values[name] for name in ("shift", "scale", "sample_weight")}
    return _Training(params, rows, optimizer, state, options, objective, arrays)


def _train_all(trainings: list[_Training], n_threads: int, keep_diverged: bool) -> list[History]:
    """Train all networks, or leave all as they were and raise an error."""
    histories: dict[int, History] = {}
    saved = [(t.params.flat.copy(), t.state.copy(), _generator_state(t.options.seed)) for t in trainings]
    stop = threading.Event()

    def run(group: list[int], at_a_time: int, n_threads: int) -> None:
        """Train a group of networks, so many at a time, on `n_threads` threads each."""
        engines = (
            threading.local()
        )  # of each thread: its last one, because most networks are like the one before

        def task(number: int) -> None:
            i = group[number]
            training = trainings[i]
            engine = getattr(engines, "last", None)
            kind = training.params.network, training.params.dtype
            if engine is None or (engine.network, engine.dtype) != kind:
                engine = engines.last = Engine(kind[0], n_threads, kind[1])
                engine.stop_on(stop)
            with _Naming(i):
                try:
                    histories[i] = training.run(engine)
                except DivergenceError as error:
                    if not keep_diverged or error.history is None:
                        raise
                    histories[i] = error.history

        SideBySide(task, len(group), stop).run(at_a_time)

    try:
        for group in divide(trainings, n_threads):
            run(*group)
    except BaseException:
        for training, (flat, state, generator_state) in zip(trainings, saved, strict=True):
            training.params.flat[:], training.state.moments[:] = flat, state.moments
            training.state.steps, training.state.epochs = state.steps, state.epochs
            if isinstance(training.options.seed, np.random.Generator):
                training.options.seed.bit_generator.state = generator_state
        raise
    return [histories[i] for i in range(len(trainings))]


def divide(trainings: Sequence[Any], n_threads: int) -> list[tuple[list[int], int, int]]:
    """Divide the threads among networks: groups of (numbers of the networks, how many at a time, threads of each).

    Wide networks come first, one at a time on all threads. Then each thread takes one network after the other, most
    work first. The last networks, fewer than half as many as threads, have several threads each if they end earlier so.
    """
    most_first = sorted(range(len(trainings)), key=lambda i: -trainings[i].work)
    wide = [i for i in most_first if trainings[i].size >= WIDE]
    narrow = [i for i in most_first if trainings[i].size < WIDE]
    last = len(narrow) % n_threads
    tail: list[int] = []
    if 0 < last <= n_threads // 2:
        each = n_threads // last
        tail = narrow[-last:]
        share = 1 + GAIN * (each - 1)
        works = [trainings[i].work for i in narrow]
        alone = _makespan(works, n_threads)
        shared = _makespan(works[:-last], n_threads) + works[-last] / share
        if shared >= alone or min(trainings[i].flops for i in tail) < SMALL_JOB:
            tail = []
    groups = []
    if wide:
        groups.append((wide, 1, n_threads))
    if alone_each := narrow[: len(narrow) - len(tail)]:
        groups.append((alone_each, n_threads, 1))
    if tail:
        groups.append((tail, len(tail), n_threads // len(tail)))
    return groups


def _makespan(works: Sequence[float], n_threads: int) -> float:
    """When the last of `n_threads` threads is done, if each takes the next work as soon as it has none."""
    busy = [0.0] * n_threads
    for work in works:
        heapq.heappushpop(busy, busy[0] + work)
    return max(busy)


class _Naming:
    """A context that puts the number of a network before the message of an error about it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (TypeError, ValueError, DivergenceError)) and error.args:
            error.args = f"network {self._number}: {error.args[0]}", *error.args[1:]


def _check_networks(params: Sequence[Parameters]) -> list[Parameters]:
    """`params` as a list of Parameters that share no memory, all for the same number of features."""
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
    _refuse_shared("params", [each.flat for each in networks])
    return networks


def _check_threads(n_threads: int | None) -> int:
    """The number of threads to use."""
    if n_threads is not None:
        check_count("n_threads", n_threads)
    most = thread_pool.available_cpus()
    return most if n_threads is None else min(int(n_threads), most)


def _refuse_shared(name: str, arrays: Sequence[Any]) -> None:
    """Raise a ValueError if two of these arrays share memory."""
    seen: dict[int, int] = {}
    for i, array in enumerate(arrays):
        if isinstance(array, np.ndarray):
            first = seen.setdefault(array.__array_interface__["data"][0], i)
            if first != i:
                raise ValueError(f"network {i}: {name} must not be those of network {first} too")


def _refuse_shared_generators(seeds: Sequence[Any]) -> None:
    """Raise a ValueError if two networks would draw from one generator: which numbers each gets would be chance."""
    seen: dict[int, int] = {}
    for i, seed in enumerate(seeds):
        if isinstance(seed, np.random.Generator):
            first = seen.setdefault(id(seed.bit_generator), i)
            if first != i:
                raise ValueError(
                    f"network {i}: seed is the generator of network {first} too; pass one for each"
                )


def _generator_state(seed: Any) -> Any:
    return seed.bit_generator.state if isinstance(seed, np.random.Generator) else None


def _values(name: str, value: Any, count: int) -> list[Any]:
    """A value for each network, from one for all or from a list."""
    if isinstance(value, (list, tuple, np.ndarray)):
        if len(value) != count:
            raise ValueError(f"{name} has {len(value)} values, but params are of {count} networks")
        return [each.item() if isinstance(each, np.generic) else each for each in value]
    return [value] * count


def _arrays(name: str, value: Any, count: int) -> list[Any]:
    """An array for each network, from one for all or from a list of arrays, or from the rows of a matrix."""
    if isinstance(value, (list, tuple)) and not all(
        np.ndim(each) == 0 and each is not None for each in value
    ):
        several = True
    else:
        several = isinstance(value, np.ndarray) and value.ndim == 2
    return _values(name, list(value), count) if several else [value] * count
