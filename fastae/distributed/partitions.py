"""Training on blocks of rows that lie on several machines, with the same bits however they lie.

A step's gradient is the sum of all blocks', added along the tree of ``tree.py`` from what each machine's shard
(``shard.py``) holds. How sums travel is a subclass's ``BlockEngine.sums``: ``LocalEngine`` here, Dask in
``distributed/``, MPI in ``mpi.py``.
"""

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.checks import check_count
from fastae.data.row_source import Rows
from fastae.distributed.reduction_tree import Node, Sum
from fastae.distributed.worker_part import Setup, Shard, Step, make_setup, without_penalty
from fastae.engine.engine import Engine
from fastae.network import DType, Network, Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import Epoch, History
from fastae.training.loop import check_start, descend, draw_noise_seed

__all__ = ["BlockEngine", "Blocks", "LocalEngine", "Step", "cut_rows", "is_dask", "read_pieces"]

ROWS_A_STEP = 512  # of each block, where nobody says
BLOCKS_MOST = 32  # that files are cut into


class Blocks(ABC):
    """A matrix in blocks of rows, wherever they are: what ``fastae.Autoencoder`` is fitted on.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    rows : list of int
        Of each block, in order.
    feature_names : list of str or None
        The columns' names, where they have some.
    """

    name = "X"  # in messages
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    rows: list[int]
    feature_names: list[str] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def rows_a_step(self) -> int:
        """Where nobody says: few round trips, and work enough for all of a machine's threads in each."""
        return min(ROWS_A_STEP * len(self.rows), len(self))

    @abstractmethod
    def each(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(block, *args) of every block, in order, computed where it is; for small results."""

    @abstractmethod
    def engine(self, network: Network, **options: Any) -> "BlockEngine":
        """An engine for these blocks; options are `n_threads`, `dtype`, `shift`, `scale`, `objective`."""


class BlockEngine(ABC):
    """Trains on blocks of rows, wherever they are. A subclass says how their sums come together.

    Attributes
    ----------
    setup : Setup
    rows : list of int
        Of each block, in order.
    """

    def __init__(self, setup: Setup, rows: Sequence[int]) -> None:
        if setup.objective.sparsity_weight:
            raise ValueError(
                "sparsity_weight needs the mean code of all rows, which blocks of rows do not have"
            )
        if not sum(rows):
            raise ValueError("X has no rows")
        self.setup, self.rows = setup, list(rows)
        self.engine = Engine(setup.network, 1, setup.dtype)

    @abstractmethod
    def sums(self, flat: np.ndarray, step: Step) -> Sum | None:
        """The root's sum, at the parameters `flat`; None where the step takes no rows."""

    @property
    def root(self) -> Node:
        """All blocks."""
        return 0, len(self.rows)

    @property
    def first_rows(self) -> list[int]:
        """The number of each block's first row."""
        return [0, *np.cumsum(self.rows[:-1]).tolist()]

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
        losses = self._run(params, gradient, [(Step(), 0.0)])
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
        optimizer : SGD, Adam or AdamW, optional
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
        optimizer, state = check_start(params, optimizer, state)
        rows = sum(self.rows)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        steps_per_epoch = -(-rows // min(batch_size or rows, rows))
        generator = np.random.default_rng(seed)
        noise_seed = draw_noise_seed(generator, self.setup.objective)
        order_seed = int(generator.integers(1 << 63)) if shuffle and steps_per_epoch > 1 else None
        checkpoint = Checkpoint.at(checkpoint, resume)
        if checkpoint is not None:
            settings = {
                "rows": self.rows, "shift": self.setup.shift, "scale": self.setup.scale,
                "network": params.network, "dtype": params.dtype, "objective": self.setup.objective,
                "optimizer": optimizer, "batch_size": batch_size, "shuffle": shuffle, "seed": seed,
                "validate": validate is not None, "patience": patience, "tol": tol, "adaptive": adaptive,
            }  # fmt: skip
            checkpoint.agree("training", settings)
            noise_seed = checkpoint.keep("noise_seed", noise_seed)
            order_seed = checkpoint.keep("order_seed", order_seed)
        gradient = Parameters(params.network, params.dtype)

        def run(rates: np.ndarray) -> np.ndarray:
            steps = [
                (Step(number, steps_per_epoch, state.epochs, order_seed, noise_seed), float(rate))
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
            epochs=epochs,
            validate=validate,
            patience=patience,
            tol=tol,
            adaptive=adaptive,
            callback=callback,
            progress=progress,
            checkpoint=checkpoint,
            generator=generator,
        )

    def _run(
        self,
        params: Parameters,
        gradient: Parameters,
        steps: Sequence[tuple[Step, float]],
        optimizer: Optimizer | None = None,
        state: State | None = None,
    ) -> np.ndarray:
        """(steps, 2): the loss of each step, before it, and its rows; no further than one that is not finite."""
        losses = np.zeros((len(steps), 2))
        for i, (step, rate) in enumerate(steps):
            found = self.sums(params.flat, step)
            if found is None:
                continue
            loss, weight = found.totals
            losses[i] = loss / weight, weight
            if not np.isfinite(loss):
                return losses[: i + 1]
            losses[i, 0] += self.engine.combine_sums(
                params,
                found.gradient[np.newaxis],
                weight,
                gradient=gradient,
                optimizer=optimizer,
                state=None if state is None else replace(state, steps=state.steps + i),
                rate=rate,
                alpha=self.setup.objective.alpha,
            )
        return losses


class LocalEngine(BlockEngine):
    """Trains on partitions that all lie on this machine, with the same bits as on several.

    Parameters
    ----------
    network : Network
        The network to train.
    blocks : sequence of ndarrays of shape (rows, n)
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
        Penalties, noise in the input, missing cells; `sparsity_weight` is not available. Default: none of them.
    """

    def __init__(
        self,
        network: Network,
        blocks: Sequence[np.ndarray],
        *,
        n_threads: int | None = None,
        dtype: DType = "float32",
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        objective: Objective = PLAIN,
    ) -> None:
        super().__init__(
            make_setup(network, dtype, shift, scale, objective), [len(block) for block in blocks]
        )
        first_rows = dict(enumerate(self.first_rows))
        self._shard = Shard(
            without_penalty(self.setup), dict(enumerate(blocks)), first_rows, len(blocks), n_threads
        )

    def sums(self, flat: np.ndarray, step: Step) -> Sum | None:
        """The root's sum."""
        return self._shard.sums(flat, step)[self.root]


def cut_rows(rows: Rows) -> list[tuple[int, int]]:
    """Blocks of about the same number of rows, each whole pieces of a file, first .. last - 1: by the file alone."""
    if not len(rows):
        raise ValueError(f"{rows.name} has no rows")
    wanted = np.linspace(0, len(rows), min(BLOCKS_MOST, len(rows.bounds) - 1) + 1)
    cuts = np.unique(np.searchsorted(rows.bounds, wanted)).tolist()
    return list(itertools.pairwise(cuts))


def read_pieces(rows: Rows, first: int, last: int) -> np.ndarray:
    """Pieces `first` .. `last` - 1 of a file, as one array."""
    start = int(rows.bounds[first])
    out = np.empty((int(rows.bounds[last]) - start, rows.shape[1]), rows.dtype)
    for piece in range(first, last):
        rows.read(piece, out[rows.bounds[piece] - start : rows.bounds[piece + 1] - start])
    return out


def is_dask(X: Any) -> bool:
    """Whether `X` is a Dask array or DataFrame; Dask is not imported to say so."""
    dask = any(kind.__module__.partition(".")[0] in ("dask", "dask_expr") for kind in type(X).__mro__)
    return dask and getattr(X, "ndim", 0) == 2
