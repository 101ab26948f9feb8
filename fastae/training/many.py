"""Many networks trained on the same rows, side by side. What they compute of rows is in ``engine/many.py``.

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

from fastae.checks import check_finite_vector, check_matrix, check_weights
from fastae.data.row_source import Rows
from fastae.engine.engine import Engine
from fastae.engine.many import WIDE, Naming, arrays, check_networks, check_threads, refuse_shared, values
from fastae.engine.runner import SMALL_JOB
from fastae.engine.side_by_side import SideBySide
from fastae.network import Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.gradient_descent import rows_of, train_on
from fastae.training.history import DivergenceError, History
from fastae.training.loop import check_start
from fastae.training.options import TrainingOptions

T = TypeVar("T")

# What each further thread adds, of one thread's speed, where threads share the steps of a network. Measured on two
# threads in batches of 200: 0.14 at 70,000 weights and 0.78 at 160,000.
LARGE, GAIN, GAIN_OF_LARGE = 100_000, 0.15, 0.7


@dataclass
class _Training:
    """One network and how it is to be trained."""

    params: Parameters
    rows: Rows
    optimizer: Optimizer
    state: State
    options: TrainingOptions
    objective: Objective
    data: dict[str, Any]  # shift, scale and sample_weight

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
            **self.data,
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
    the other networks are. Small networks take one thread each. The threads share the steps of a network of 400,000
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
    optimizer : SGD, Adam or AdamW, or a subclass of fastae.optimizers.Custom, optional
        Default: ``Adam()``. Learning rates and their schedules are part of it.
    epochs : int, default 100
        Number of times to process all rows.
    batch_size : int, optional
        Rows per step. Default: all rows.
    index : array-like of int, optional
        Numbers of the rows of `X` to train on. Default: all. A list of arrays has one per network.
    shuffle : bool, default True
        Draw the rows of each batch at random, without replacement, in a new order each epoch.
    seed : int, default 0
        Seed of the shuffling and of the noise. Networks with the same seed and the same number of rows draw the same
        batches. A numpy.random.Generator seeds one network only.
    shift : array-like of shape (n,), optional
        Subtracted from each row before it enters the network. Default: 0. A list of arrays has one per network.
    scale : array-like of shape (n,), optional
        Then multiplied with each row: the network sees (X - shift) * scale. Default: 1. A list of arrays has one per
        network.
    sample_weight : array-like of shape (m,), optional
        Weight of each row, not negative. Default: 1. A list of arrays has one per network.
    objective : Objective, optional
        The loss, penalties, noise in the input, missing cells. Default: the squared error alone.
    validate : callable, optional
        Called with the network's parameters after each epoch; returns the validation loss. Several threads call it at
        the same time. Afterwards, the parameters are those with the lowest one.
    patience : int, optional
        Stop a network after more than this many consecutive epochs without an improvement of its validation loss, or
        without `validate`, of its loss. Default: never.
    tol : float, default 0.0
        Smallest decrease that counts as an improvement.
    adaptive : bool, default False
        Divide the learning rate by 5 when `patience` would stop training, and stop only once the rate is below 1e-6.
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
    networks = check_networks(params, written=True)
    if on_divergence not in ("raise", "keep"):
        raise ValueError(f'on_divergence must be "raise" or "keep", got {on_divergence!r}')
    threads = check_threads(n_threads)
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
    each = {name: values(name, value, count) for name, value in one_each.items()}
    for name, value in {
        "index": index,
        "shift": shift,
        "scale": scale,
        "sample_weight": sample_weight,
    }.items():
        each[name] = arrays(name, value, count)
    refuse_shared("state", [None if s is None else getattr(s, "moments", None) for s in each["state"]])
    _refuse_shared_generators(each["seed"])
    trainings, keep_diverged = [], on_divergence == "keep"
    for i, network in enumerate(networks):
        with Naming(i):
            own = {name: value[i] for name, value in each.items()}
            trainings.append(_training(network, array, own, keep_diverged))
    return _train_all(trainings, threads, keep_diverged)


def _training(params: Parameters, X: np.ndarray, own: dict[str, Any], keep_diverged: bool) -> _Training:
    """The training of one network, checked as far as that takes no work."""
    optimizer, state = check_start(params, own["optimizer"], own["state"])
    objective = own["objective"]
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective, got {objective!r}")
    names = "epochs", "batch_size", "shuffle", "seed", "validate", "patience", "tol", "adaptive"
    options = TrainingOptions(**{name: own[name] for name in names}, restores=keep_diverged)
    columns = X.shape[1]
    rows = rows_of(X, columns, own["index"], None)
    for name in ("shift", "scale"):
        if own[name] is not None:
            check_finite_vector(own[name], columns, name)
    if own["sample_weight"] is not None:
        check_weights(own["sample_weight"], len(X))
    data = {name: own[name] for name in ("shift", "scale", "sample_weight")}
    return _Training(params, rows, optimizer, state, options, objective, data)


def _train_all(trainings: list[_Training], n_threads: int, keep_diverged: bool) -> list[History]:
    """Train all networks, or leave all as they were and raise an error."""
    histories: dict[int, History] = {}
    saved = [(t.params.flat.copy(), t.state.copy(), _generator_state(t.options.seed)) for t in trainings]
    stop = threading.Event()

    def run(group: list[int], at_a_time: int, n_threads: int) -> None:
        """Train a group of networks, so many at a time, on `n_threads` threads each."""
        engines = threading.local()  # of each thread: its last one; most networks are like the one before

        def task(number: int) -> None:
            i = group[number]
            training = trainings[i]
            engine = getattr(engines, "last", None)
            kind = training.params.network, training.params.dtype
            if engine is None or (engine.network, engine.dtype) != kind:
                engine = engines.last = Engine(kind[0], n_threads, kind[1])
                engine.stop_on(stop)
            with Naming(i):
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
        while True:
            try:
                _restore(trainings, saved)
                break
            except KeyboardInterrupt:  # once more
                continue
        raise
    return [histories[i] for i in range(len(trainings))]


def _restore(trainings: Sequence[_Training], saved: Sequence[tuple[np.ndarray, State, Any]]) -> None:
    """Set networks, states and generators to what was saved of them."""
    for training, (flat, state, generator_state) in zip(trainings, saved, strict=True):
        training.params.flat[:], training.state.moments[:] = flat, state.moments
        training.state.steps, training.state.epochs = state.steps, state.epochs
        if isinstance(training.options.seed, np.random.Generator):
            training.options.seed.bit_generator.state = generator_state


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
        gain = GAIN_OF_LARGE if min(trainings[i].size for i in tail) >= LARGE else GAIN
        share = 1 + gain * (each - 1)
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
