"""Gradient descent on rows of this machine: arrays, and files that are read chunk by chunk.

An epoch over an array is one call of ``Engine.run_steps``, so that many small steps cost one jitted call. Where nothing
happens between epochs, one call takes many. The loop over epochs is in ``loop.py``.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.checks import check_index, check_matrix, check_target, refuse_target_scale
from fastae.data.row_source import ArrayRows, Rows
from fastae.engine.engine import Engine
from fastae.engine.jobs import check_loss, outside_range
from fastae.kernels.job import BERNOULLI_SLACK
from fastae.network import Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import DivergenceError, Epoch, History
from fastae.training.loop import check_start, descend, draw_noise_seed
from fastae.training.options import TrainingOptions
from fastae.training.step_by_step import check_tied, steps_with
from fastae.training.streaming import run_epoch

__all__ = ["DivergenceError", "Epoch", "History", "train", "train_on"]


def train(
    params: Parameters,
    X: "npt.ArrayLike | Rows",
    *,
    Y: npt.ArrayLike | None = None,
    engine: Engine | None = None,
    optimizer: Optimizer | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    index: npt.ArrayLike | None = None,
    shuffle: bool = True,
    seed: int | np.random.Generator = 0,
    shift: npt.ArrayLike | None = None,
    scale: npt.ArrayLike | None = None,
    target_shift: npt.ArrayLike | None = None,
    target_scale: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    objective: Objective = PLAIN,
    tied: Sequence[tuple[str, str]] = (),
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
    """Train `params`, in place, to reconstruct the rows of `X`, or to compute those of `Y` from them.

    Parameters
    ----------
    params : Parameters
        Initial parameters; changed in place.
    X : array-like of shape (m, n), any float or integer dtype, any strides; or Rows
        Training data: never copied whole, never written. Rows (``fastae.open_rows``) are read again in every epoch,
        chunk by chunk. A batch larger than a chunk is one step from the sums over its chunks. When shuffled, the
        pieces of the file are read in random order, and the rows of each chunk are drawn in random order.
    Y : array-like of shape (m, q), any float or integer dtype, any strides, optional
        What the network's q outputs are compared with; read as `X` is, with the same `index`. A cell that is NaN is an
        error or, if the objective has `missing`, is not part of the loss. Default: `X`. Not available for Rows of
        several chunks.
    engine : Engine, optional
        Engine of the parameters' network and dtype. Default: a new one on all CPUs of this process.
    optimizer : SGD, Adam or AdamW, or a subclass of fastae.optimizers.Custom, optional
        Its `rate_factors` freeze parameters, or give them rates of their own; its `clip_norm` clips the gradient. A
        subclass of ``fastae.optimizers.Custom`` is an optimizer of your own. Default: ``Adam()``.
    epochs : int, default 100
        Number of times to process all rows.
    batch_size : int, optional
        Rows per step; the last batch of an epoch holds the remaining rows. Default: all rows.
    index : array-like of int, optional
        Numbers of the rows of `X` to train on. Default: all. Not available for Rows of several chunks.
    shuffle : bool, default True
        Draw the rows of each batch at random, without replacement, in a new order each epoch.
    seed : int or numpy.random.Generator, default 0
        Seed of the shuffling and of the noise.
    shift : array-like of shape (n,), optional
        Subtracted from each row before it enters the network. Default: 0.
    scale : array-like of shape (n,), optional
        Then multiplied with each row: the network sees (X - shift) * scale. Default: 1.
    target_shift : array-like of shape (q,), optional
        Subtracted from each row of `Y`. Default: 0.
    target_scale : array-like of shape (q,), optional
        Then multiplied with each row of `Y`: the output is compared with (Y - target_shift) * target_scale. Default: 1.
    sample_weight : array-like of shape (m,), optional
        Weight of each row, not negative. Default: 1. Not available for Rows of several chunks.
    objective : Objective, optional
        The loss, penalties, noise in the input, missing cells. Default: the squared error alone.
    tied : sequence of pairs of names, default ()
        Pairs of weights that share their numbers: with ``(("W1", "W2"),)``, W2 is the transpose of W1. Before the first
        step, W2 is overwritten; after that, W1 is updated by the sum of both gradients. An L2 penalty counts both.
        Python takes the steps one by one, which slows down small steps. "swap" noise then takes cells from rows of the
        same batch.
    validate : callable, optional
        Called with the parameters after each epoch; returns the validation loss. Afterwards `params` are those with
        the lowest one.
    patience : int, optional
        Stop after more than this many consecutive epochs without an improvement of the validation loss, or without
        `validate`, of the loss. Default: never.
    tol : float, default 0.0
        Smallest decrease that counts as an improvement.
    adaptive : bool, default False
        Divide the learning rate by 5 when `patience` would stop training, and stop only once the rate is below 1e-6.
    state : State, optional
        State of the optimizer, ``History.state`` of an earlier run, to continue from. It is changed in place. Default:
        a new one.
    callback : callable, optional
        Called with an ``Epoch`` after each epoch. Training stops when it returns True.
    progress : bool, default False
        Show a progress bar on stderr.
    checkpoint : path or Checkpoint, optional
        File from which an interrupted run can resume. It holds the parameters, the best parameters, the states of the
        optimizer and of the random generator, and the history. It is written when training ends and, between epochs,
        at most every 5 seconds and for at most a twentieth of the time; the file is always complete.
    resume : bool, default False
        Resume from `checkpoint`; the result has the same bits as that of a run that was never interrupted. Without
        such a file, training starts from the beginning. All arguments must be the same, except for `epochs`, which
        includes the epochs already done and may be larger. The contents of `params`, `state` and a generator passed as
        `seed` are overwritten. A run that `tol` stopped stays at its end.

    Returns
    -------
    History
        Losses, learning rates and times by epoch, and the optimizer's state.

    Raises
    ------
    TypeError, ValueError
        An argument is not valid; the message names it, and nothing has been changed. Or `checkpoint` is damaged,
        belongs to another run, or is a file that `X` is read from.
    OSError
        `checkpoint` cannot be written; an existing file stays as it was.
    DivergenceError
        The loss became infinite or NaN. The message gives the epoch and the learning rate, and what may help. `params`
        and `state` are restored to what they were after an earlier epoch, at a finite loss.
    """
    optimizer, state = check_start(params, optimizer, state)
    Checkpoint.check_not_input(checkpoint, X)
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
        tied=check_tied(tied, params.network, optimizer),
    )
    rows = rows_of(X, params.network.widths[0], index, sample_weight)
    target: dict[str, Any] = {}
    if Y is not None:
        if not isinstance(rows, ArrayRows):
            raise ValueError("Y needs X in memory, but X is Rows of many chunks")
        Y = check_target(Y, rows.array, params.network.widths[-1])
        target = {"Y": Y, "target_shift": target_shift, "target_scale": target_scale}
    else:
        refuse_target_scale(target_shift, target_scale)
    return train_on(
        rows,
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
        **target,
    )


def rows_of(X: "npt.ArrayLike | Rows", columns: int, index: Any, sample_weight: Any) -> Rows:
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
    **target: Any,
) -> History:
    """As ``train``, for any kind of ``RowSource``; implementations for rows elsewhere are registered beside them.

    Parameters
    ----------
    source : RowSource
    engine : callable
        Returns the engine to use where rows are on this machine.
    n_threads : int or None
        Threads of each machine, where rows are on several.
    target : dict
        Empty, or Y, checked, and its `target_shift` and `target_scale`: only for arrays.
    """
    rows: Rows = source.loaded()
    batch = min(options.batch_size or len(rows), len(rows))
    shuffle = options.shuffle and batch < len(rows)
    local_engine = engine()
    generator = np.random.default_rng(options.seed)
    noise_seed = draw_noise_seed(generator, objective)
    checkpoint = options.open_checkpoint()
    if checkpoint is not None:
        data = {"shift": shift, "scale": scale, "sample_weight": sample_weight}
        if target:
            data |= target | {"Y": target["Y"].shape}
        used = {"batch_size": batch, "shuffle": shuffle}
        settings = rows.settings() | options.settings(params, optimizer, objective) | used | data
        checkpoint.agree("training", settings)
        noise_seed = checkpoint.keep("noise_seed", noise_seed)
    if objective.loss == "bernoulli":
        check_loss(objective, params.network)
        _check_range(rows, params.dtype, shift, scale, sample_weight, target)
    weights: dict[str, Any] = {} if sample_weight is None else {"sample_weight": sample_weight}
    run_rows = partial(
        run_epoch,
        steps_with(local_engine, optimizer, options.tied),
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
        memory=[],
        **weights,
        **target,
    )

    def is_finite() -> bool:
        least, most = (np.fmin, np.fmax) if objective.missing else (np.minimum, np.maximum)  # of NaN, or not
        return all(
            np.isfinite([extreme.reduce(chunk.rows, axis=None) for extreme in (least, most)]).all()
            for chunk in rows.chunks()
        ) and (not target or np.isfinite(target["Y"]).all() or objective.missing)

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
        many_epochs_per_run=rows.in_memory,
        is_finite=is_finite,
    )


def _check_range(
    rows: Rows,
    dtype: np.dtype[Any],
    shift: npt.ArrayLike | None,
    scale: npt.ArrayLike | None,
    sample_weight: npt.ArrayLike | None,
    target: dict[str, Any],
) -> None:
    """Raise a ValueError, before any step, if a target of the loss "bernoulli" is outside [0, 1], up to rounding."""
    name, weight = "X", None if sample_weight is None else np.asarray(sample_weight)
    if target:
        name, shift, scale = "Y", target["target_shift"], target["target_scale"]
        rows = ArrayRows(target["Y"], index=getattr(rows, "index", None))
    if weight is not None and getattr(rows, "index", None) is not None:
        weight = weight[rows.index]  # type: ignore[attr-defined]
    slack, first = BERNOULLI_SLACK * np.finfo(dtype).eps, 0
    minus = 0.0 if shift is None else np.asarray(shift, np.float64)
    factor = 1.0 if scale is None else np.asarray(scale, np.float64)
    for part in rows.slices():
        counted = part if weight is None else part[weight[first : first + len(part)] > 0]
        first += len(part)
        seen = ((counted - minus) * factor).astype(dtype)
        if ((seen < -slack) | (seen > 1 + slack)).any():  # NaN is found by the run
            raise outside_range(name)
