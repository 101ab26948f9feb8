"""Rows in partitions on several machines, and training over them: bit-identical regardless of placement.

The gradient of a step is the sum of the gradients of all partitions, added along the tree of ``reduction_tree.py`` from
the sums of each worker's part (``worker_part.py``). How sums travel is decided by a subclass, in
``PartitionedEngine.sums``: ``LocalEngine`` here, Dask in ``dask/``, MPI in ``mpi.py``.
"""

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastae.data.column_statistics import ColumnStatistics
from fastae.data.row_source import ArrayRows, Rows, RowSource
from fastae.distributed.reduction_tree import Node, Sum
from fastae.distributed.worker_part import Setup, StepRequest, WorkerPart, make_setup, without_penalty
from fastae.engine.engine import Engine
from fastae.network import DType, Network, Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.checkpoint import Checkpoint
from fastae.training.gradient_descent import train_on
from fastae.training.history import Epoch, History
from fastae.training.loop import check_start, descend, draw_noise_seed
from fastae.training.options import TrainingOptions
from fastae.training.pca import loss_and_gradient_of
from fastae.training.step_by_step import steps_with

__all__ = [
    "LocalEngine",
    "PartitionedEngine",
    "Partitions",
    "StepRequest",
    "cut_rows",
    "is_dask",
    "make_engine",
]

ROWS_PER_STEP = 512  # of each partition, where the user gives no batch size
PARTITIONS_MOST = 32  # that files are cut into


class Partitions(RowSource):
    """A matrix in partitions of rows, wherever they are: what ``fastae.Autoencoder`` is fitted on.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    partition_sizes : list of int
        The number of rows of each partition, in order.
    feature_names : list of str or None
        The columns' names, where they have names.
    """

    name = "X"
    partition_sizes: list[int]
    feature_names: list[str] | None = None
    is_local = False
    in_memory = False

    @property
    def rows(self) -> list[int]:
        """The former name of `partition_sizes`."""
        return self.partition_sizes

    @property
    def rows_per_step(self) -> int:
        """Default batch size: few round trips per epoch, and enough work for all threads of a machine in each."""
        return min(ROWS_PER_STEP * len(self.partition_sizes), len(self))

    @property
    def default_batch_size(self) -> int:
        """`rows_per_step`."""
        return self.rows_per_step

    @abstractmethod
    def each(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(partition, *args) of every partition, in order, computed where it is; for small results."""

    def check_not_empty(self, argument: str = "X") -> None:
        """Raise a ValueError if there are no rows or no columns."""
        if 0 in self.shape:
            raise ValueError(f"{self.called(argument)} has shape {self.shape}: rows and columns are needed")

    def checked(self, *, allow_nan: bool) -> Self:
        """These partitions, checked now, by their workers."""
        self.each(_check_finite, allow_nan)
        return self

    def column_statistics(self) -> ColumnStatistics:
        """Count, mean, spread and range of each column, from the statistics of each partition."""
        statistics = ColumnStatistics(self.shape[1])
        for part in self.each(ColumnStatistics.of):
            statistics.merge(part)
        return statistics

    def split(self, fraction: float, seed: int) -> "tuple[RowSource, RowSource]":
        """Not possible: a ValueError."""
        raise ValueError("early_stopping needs X_val where X is on several machines")

    def map_rows(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """function(partition) of every partition that has rows, computed by its worker and concatenated here."""
        results = [result for result in self.each(_apply, function) if result is not None]
        return np.concatenate(results)

    def mean_over_rows(self, function: Callable[[np.ndarray, np.ndarray | None], np.ndarray]) -> float:
        """Mean over all rows of function(partition, None); only each partition's sum travels."""
        return float(sum(self.each(_sum, function)) / len(self))


def _check_finite(partition: np.ndarray, allow_nan: bool) -> None:
    ArrayRows(partition).checked(allow_nan=allow_nan)


def _apply(partition: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    return function(partition) if len(partition) else None


def _sum(partition: np.ndarray, function: Callable[[np.ndarray, np.ndarray | None], np.ndarray]) -> float:
    return float(function(partition, None).sum()) if len(partition) else 0.0


class PartitionedEngine(ABC):
    """Trains on partitions of rows, wherever they are. A subclass decides how their sums travel.

    Attributes
    ----------
    setup : Setup
    partition_sizes : list of int
        The number of rows of each partition, in order.
    """

    def __init__(self, setup: Setup, partition_sizes: Sequence[int]) -> None:
        if setup.objective.sparsity_weight:
            raise ValueError(
                "sparsity_weight needs the mean code of all rows, which is not known where rows are in partitions"
            )
        if not sum(partition_sizes):
            raise ValueError("X has no rows")
        self.setup, self.partition_sizes = setup, list(partition_sizes)
        self.engine = Engine(setup.network, 1, setup.dtype)

    @abstractmethod
    def sums(self, flat: np.ndarray, step: StepRequest) -> Sum | None:
        """The root's sum, at the parameters `flat`; None where the step takes no rows."""

    @property
    def root(self) -> Node:
        """All partitions."""
        return 0, len(self.partition_sizes)

    @property
    def first_rows(self) -> list[int]:
        """The number of each partition's first row."""
        return [0, *np.cumsum(self.partition_sizes[:-1]).tolist()]

    def loss_and_gradient(self, params: Parameters) -> tuple[float, Parameters]:
        """Compute the loss S and its gradient over all rows, as ``Engine.loss_and_gradient`` does.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.

        Returns
        -------
        loss : float
            The loss S, with its penalties.
        gradient : Parameters
            Its gradient: ``gradient["W1"]``, ``gradient["b1"]``, ...
        """
        check_start(params, None, None)
        gradient = Parameters(params.network, params.dtype)
        losses = self._run(params, gradient, [(StepRequest(), 0.0)])
        return float(losses[0, 0]), gradient

    def train(
        self,
        params: Parameters,
        *,
        optimizer: Optimizer | None = None,
        epochs: int = 100,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int | np.random.Generator = 0,
        validate: Callable[[Parameters], float] | None = None,
        patience: int | None = None,
        tol: float = 0.0,
        adaptive: bool = False,
        state: State | None = None,
        callback: Callable[[Epoch], bool | None] | None = None,
        progress: bool = False,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
        resume: bool = False,
    ) -> History:
        """Train `params`, in place, as ``fastae.train`` does.

        Parameters
        ----------
        params : Parameters
            Initial parameters; changed in place.
        optimizer : SGD, Adam or AdamW, or a subclass of fastae.optimizers.Custom, optional
            Default: ``Adam()``.
        epochs : int, default 100
            Number of times to process all rows.
        batch_size : int, optional
            Approximate number of rows per step: each step takes a proportional share of every partition. Default: all
            rows.
        shuffle : bool, default True
            Draw the rows of each partition in a new random order each epoch.
        seed : int or numpy.random.Generator, default 0
            Seed of the shuffling and of the noise.
        validate : callable, optional
            Called with the parameters after each epoch; returns the validation loss. Afterwards `params` are those
            with the lowest one.
        patience : int, optional
            Stop after more than this many consecutive epochs without an improvement of the validation loss, or without
            `validate`, of the loss. Default: never.
        tol : float, default 0.0
            Smallest decrease that counts as an improvement.
        adaptive : bool, default False
            Divide the learning rate by 5 when `patience` would stop training, and stop only once the rate is below
            1e-6.
        state : State, optional
            State of the optimizer, ``History.state`` of an earlier run, to continue from. It is changed in place.
            Default: a new one.
        callback : callable, optional
            Called with an ``Epoch`` after each epoch. Training stops when it returns True.
        progress : bool, default False
            Show a progress bar on stderr.
        checkpoint : path or Checkpoint, optional
            File from which an interrupted run can resume. It holds the parameters, the best parameters, the states of
            the optimizer and of the random generator, and the history. It is written when training ends and, between
            epochs, at most every 5 seconds and for at most a twentieth of the time; the file is always complete.
        resume : bool, default False
            Resume from `checkpoint`; the result has the same bits as that of a run that was never interrupted. Without
            such a file, training starts from the beginning. All arguments must be the same, except for `epochs`, which
            includes the epochs already done and may be larger. The contents of `params`, `state` and a generator
            passed as `seed` are overwritten. A run that `tol` stopped stays at its end.

        Returns
        -------
        History
            Losses, learning rates and times by epoch, and the optimizer's state.

        Raises
        ------
        TypeError, ValueError, OSError, DivergenceError
            As ``fastae.train``. After any error, `params` and `state` are those of the last complete epoch: they can
            be saved, and training can continue from them.
        """
        options = TrainingOptions(
            epochs=epochs,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            validate=validate,
            patience=patience,
            tol=tol,
            adaptive=adaptive,
            callback=callback,
            progress=progress,
            checkpoint=checkpoint,
            resume=resume,
        )
        return self.train_with(params, optimizer, state, options)

    def train_with(
        self,
        params: Parameters,
        optimizer: Optimizer | None,
        state: State | None,
        options: TrainingOptions,
    ) -> History:
        """As ``train``, with its options as one object."""
        optimizer, state = check_start(params, optimizer, state)
        rows = sum(self.partition_sizes)
        steps_per_epoch = -(-rows // min(options.batch_size or rows, rows))
        generator = np.random.default_rng(options.seed)
        noise_seed = draw_noise_seed(generator, self.setup.objective)
        shuffled = options.shuffle and steps_per_epoch > 1
        order_seed = int(generator.integers(1 << 63)) if shuffled else None
        checkpoint = options.open_checkpoint()
        if checkpoint is not None:
            settings = {"rows": self.partition_sizes, "shift": self.setup.shift, "scale": self.setup.scale}
            checkpoint.agree(
                "training", {**settings, **options.settings(params, optimizer, self.setup.objective)}
            )
            noise_seed = checkpoint.keep("noise_seed", noise_seed)
            order_seed = checkpoint.keep("order_seed", order_seed)
        gradient = Parameters(params.network, params.dtype)

        def run(rates: np.ndarray) -> np.ndarray:
            steps = [
                (StepRequest(number, steps_per_epoch, state.epochs, order_seed, noise_seed), float(rate))
                for number, rate in enumerate(rates)
            ]
            return self._run(params, gradient, steps, optimizer, state)

        return descend(
            params,
            run,
            rows=rows,
            steps_per_epoch=steps_per_epoch,
            optimizer=optimizer,
            state=state,
            options=options,
            checkpoint=checkpoint,
            generator=generator,
        )

    def _run(
        self,
        params: Parameters,
        gradient: Parameters,
        steps: Sequence[tuple[StepRequest, float]],
        optimizer: Optimizer | None = None,
        state: State | None = None,
    ) -> np.ndarray:
        """(steps, 2): the loss before each step, and its number of rows; ends at the first loss that is not finite."""
        losses, engine = np.zeros((len(steps), 2)), steps_with(self.engine, optimizer)
        for i, (step, rate) in enumerate(steps):
            root_sum = self.sums(params.flat, step)
            if root_sum is None:
                continue
            loss, weight = root_sum.totals
            losses[i] = loss / weight, weight
            if not np.isfinite(loss):
                return losses[: i + 1]
            losses[i, 0] += engine.combine_sums(
                params,
                root_sum.gradient[np.newaxis],
                weight,
                gradient=gradient,
                optimizer=optimizer,
                state=None if state is None else replace(state, steps=state.steps + i),
                rate=rate,
                alpha=self.setup.objective.alpha,
            )
        return losses


class LocalEngine(PartitionedEngine):
    """Trains on partitions that all lie on this machine, with the same bits as on several.

    Parameters
    ----------
    network : Network
        The network to train.
    partitions : sequence of ndarrays of shape (rows, n)
        The partitions.
    n_threads : int, optional
        Number of threads. Default: all CPUs that this process may use.
    dtype : "float32", "float64" or NumPy dtype, default "float32"
        Type of parameters, arithmetic and results.
    shift : array-like of shape (n,), optional
        Subtracted from each row before it enters the network. Default: 0.
    scale : array-like of shape (n,), optional
        Then multiplied with each row: the network sees (X - shift) * scale. Default: 1.
    objective : Objective, optional
        The loss, penalties, noise in the input, missing cells; `sparsity_weight` is not available. Default: the squared
        error alone.
    """

    def __init__(
        self,
        network: Network,
        partitions: Sequence[np.ndarray],
        *,
        n_threads: int | None = None,
        dtype: DType = "float32",
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        objective: Objective = PLAIN,
    ) -> None:
        sizes = [len(partition) for partition in partitions]
        super().__init__(make_setup(network, dtype, shift, scale, objective), sizes)
        first_rows = dict(enumerate(self.first_rows))
        self._part = WorkerPart(
            without_penalty(self.setup), dict(enumerate(partitions)), first_rows, len(sizes), n_threads
        )

    def sums(self, flat: np.ndarray, step: StepRequest) -> Sum | None:
        """The root's sum."""
        return self._part.sums(flat, step)[self.root]


@singledispatch
def make_engine(partitions: Partitions, network: Network, **options: Any) -> PartitionedEngine:
    """An engine for partitions of this kind; options are `n_threads`, `dtype`, `shift`, `scale` and `objective`."""
    raise TypeError(f"no engine trains on {type(partitions).__name__}")


@train_on.register
def _train_on_partitions(
    source: Partitions,
    params: Parameters,
    optimizer: Optimizer,
    state: State,
    options: TrainingOptions,
    *,
    engine: Callable[[], Engine],
    n_threads: int | None,
    **data: Any,
) -> History:
    trainer = make_engine(source, params.network, n_threads=n_threads, dtype=params.dtype, **data)
    return trainer.train_with(params, optimizer, state, options)


@loss_and_gradient_of.register
def _loss_and_gradient_of_partitions(
    source: Partitions, params: Parameters, *, n_threads: int | None, **data: Any
) -> tuple[float, Parameters]:
    engine = make_engine(source, params.network, n_threads=n_threads, dtype=params.dtype, **data)
    return engine.loss_and_gradient(params)


def cut_rows(rows: Rows) -> list[tuple[int, int]]:
    """Ranges first .. last - 1 of a file's pieces, of about the same number of rows; they depend on the file alone."""
    rows.check_not_empty()
    wanted = np.linspace(0, len(rows), min(PARTITIONS_MOST, len(rows.bounds) - 1) + 1)
    cuts = np.unique(np.searchsorted(rows.bounds, wanted)).tolist()
    return list(itertools.pairwise(cuts))


def is_dask(X: Any) -> bool:
    """Whether `X` is a Dask array or DataFrame; does not import Dask."""
    dask = any(kind.__module__.partition(".")[0] in ("dask", "dask_expr") for kind in type(X).__mro__)
    return dask and getattr(X, "ndim", 0) == 2


# Former names.
Blocks = Partitions
BlockEngine = PartitionedEngine
