"""Gradient descent on rows of this machine: arrays, and files that are read chunk by chunk.

An epoch over an array is one call of ``Engine.run_steps``, so that many small steps cost one jitted call. Where rows
keep their order and nothing happens between epochs, one call takes many epochs. The loop over epochs is in ``loop.py``.
"""

import os
from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.checks import check_count, check_index, check_matrix
from fastae.data.row_source import ArrayRows, Rows
from fastae.engine.engine import Engine
from fastae.network import Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import DivergenceError, Epoch, History
from fastae.training.loop import check_start, descend, draw_noise_seed
from fastae.training.options import TrainingOptions
from fastae.training.streaming import run_epoch

__all__ = ["DivergenceError", "Epoch", "History", "train", "train_on"]


def train(
    params: Parameters,
    X: "npt.ArrayLike | Rows",
    *,
    engine: Engine | None = None,
    optimizer: Optimizer | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    index: npt.ArrayLike | None = None,
    shuffle: bool = True,
    seed: int | np.random.Generator = 0,
    shift: npt.ArrayLike | None = None,
    scale: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    objective: Objective = PLAIN,
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
    """Train `params`, in place, to reconstruct the rows of `X`.

    Parameters
    ----------
    params : Parameters
        Changed in place.
    X : array of shape (m, n), any float or integer dtype, any strides; or Rows
        Never copied whole, never written. Rows (``fastae.open_rows``) that do not fit in memory are read chunk by
        chunk, again in each epoch. Shuffling draws a random order of the pieces of the file, and of the rows within
        each chunk. A batch larger than a chunk is a step from the sums of its chunks.
    engine : Engine, optional
        An engine for the parameters' network and dtype; by default one that uses all CPUs of this process.
    optimizer : Optimizer, optional
        ``SGD(...)``, ``Adam(...)`` or ``AdamW(...)``; Adam by default.
    epochs : int, default 100
        Number of passes over all rows.
    batch_size : int, optional
        Rows per step; all of them by default. The last batch of an epoch holds the remaining rows.
    index : array of int, optional
        Rows of `X` to train on; all by default. Needs `X` in memory.
    shuffle : bool, default True
        Draw new mini-batches, without replacement, in each epoch.
    seed : int or numpy.random.Generator, default 0
        For shuffling and noise.
    shift : array of shape (n,), optional
        As for ``Engine.loss_and_gradient``.
    scale : array of shape (n,), optional
        As for ``Engine.loss_and_gradient``.
    sample_weight : array of shape (m,), optional
        As for ``Engine.loss_and_gradient``, of each batch. Needs `X` in memory.
    objective : Objective, optional
        Terms of the loss in addition to the squared error, noise in the input, missing cells.
    validate : callable, optional
        Called with the parameters after each epoch, returns the validation loss. Training ends with the parameters of
        the least validation loss.
    patience : int, optional
        Stop when the validation loss, or without `validate` the loss, has not beaten its best by `tol` for more than
        `patience` epochs in a row.
    tol : float, default 0
        The least improvement that counts for `patience`.
    adaptive : bool, default False
        Where `patience` would stop, divide the learning rate by 5 instead, and stop only once it is below 1e-6.
    state : State, optional
        The ``History.state`` of an earlier run, to continue from; changed in place.
    callback : callable, optional
        Called with an ``Epoch`` after each epoch; training stops when it returns True.
    progress : bool, default False
        Show a progress bar on stderr.
    checkpoint : path or Checkpoint, optional
        A file to resume from after an interruption. It is written when training ends and, between epochs, at most every
        5 seconds and for at most a twentieth of the time. It holds parameters, best parameters, `state`, the state of
        the generator and the history. At any time the file is complete: the latest checkpoint, or the one before.
    resume : bool, default False
        Resume from `checkpoint`, with the same bits as a run that was never interrupted; without such a file, start a
        new run. `epochs` counts the earlier ones and may have grown; everything else must be as it was. The values of
        `params`, `state` and a generator are overwritten. A run that was stopped by `tol` is not continued.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        An argument is wrong, and the message names it; nothing has been changed. Or `checkpoint` is damaged, or belongs
        to another run.
    OSError
        `checkpoint` cannot be written; an earlier file there is still complete.
    DivergenceError
        The loss was no longer finite. The message says in which epoch and at which learning rate, and what helps.
        `params` and `state` are then back at the last point from which a finite loss was computed.
    """
    optimizer, state = check_start(params, optimizer, state)
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective, got {objective!r}")
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
    return train_on(
        _rows(X, params.network.widths[0], index, sample_weight),
        params,
        optimizer,
        state,
        options,
        engine=lambda: Engine(params.network, dtype=params.dtype) if engine is None else engine,
        n_threads=None,
        shift=shift,
        scale=scale,
        objective=objective,
        sample_weight=sample_weight,
    )


def _rows(X: "npt.ArrayLike | Rows", columns: int, index: Any, sample_weight: Any) -> Rows:
    """The rows of `X`, or those in `index`; an array is not copied."""
    if isinstance(X, Rows):
        if X.in_memory:
            X = X.resident()
        elif index is not None or sample_weight is not None:
            raise ValueError("index and sample_weight need X in memory, but X is Rows of many chunks")
        else:
            return X
    array = check_matrix(X, columns, "X")
    return ArrayRows(array, index=None if index is None else check_index(index, len(array)))


@singledispatch
def train_on(
    source: Any,
    params: Parameters,
    optimizer: Optimizer,
    state: State,
    options: TrainingOptions,
    *,
    engine: Callable[[], Engine],
    n_threads: int | None,
    shift: npt.ArrayLike | None,
    scale: npt.ArrayLike | None,
    objective: Objective,
    sample_weight: npt.ArrayLike | None = None,
) -> History:
    """As ``train``, for any kind of ``RowSource``; implementations for rows elsewhere are registered beside them.

    Parameters
    ----------
    source : RowSource
    engine : callable
        Returns the engine to use where rows are on this machine.
    n_threads : int or None
        Threads of each machine, where rows are on several.
    """
    rows: Rows = source.loaded()
    batch = options.batch_size
    if batch is not None:
        check_count("batch_size", batch)
    batch = min(batch or len(rows), len(rows))
    shuffle = options.shuffle and batch < len(rows)
    local_engine = engine()
    generator = np.random.default_rng(options.seed)
    noise_seed = draw_noise_seed(generator, objective)
    checkpoint = options.open_checkpoint()
    if checkpoint is not None:
        data = {"shift": shift, "scale": scale, "sample_weight": sample_weight}
        used = {"batch_size": batch, "shuffle": shuffle}
        settings = rows.settings() | options.settings(params, optimizer, objective) | used | data
        checkpoint.agree("training", settings)
        noise_seed = checkpoint.keep("noise_seed", noise_seed)
    weights: dict[str, Any] = {} if sample_weight is None else {"sample_weight": sample_weight}
    run_rows = partial(
        run_epoch,
        local_engine,
        params,
        rows,
        gradient=Parameters(params.network, params.dtype),
        batch_size=batch,
        optimizer=optimizer,
        state=state,
        generator=generator if shuffle else None,
        objective=objective,
        shift=shift,
        scale=scale,
        seed=noise_seed,
        **weights,
    )

    def is_finite() -> bool:
        least, most = (np.fmin, np.fmax) if objective.missing else (np.minimum, np.maximum)  # of NaN, or not
        return all(
            np.isfinite([extreme.reduce(chunk.rows, axis=None) for extreme in (least, most)]).all()
            for chunk in rows.chunks()
        )

    return descend(
        params,
        lambda rates: run_rows(rates=rates, epoch=state.epochs),
        rows=len(rows),
        steps_per_epoch=-(-len(rows) // max(batch, 1)),
        optimizer=optimizer,
        state=state,
        options=options,
        checkpoint=checkpoint,
        generator=generator,
        many_epochs_per_run=rows.in_memory and not shuffle,
        is_finite=is_finite,
    )
