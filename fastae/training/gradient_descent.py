"""Training on rows of this machine: epochs of mini-batch or full-batch gradient descent over an engine.

An epoch is one call of ``Engine.run_steps``, so that many small steps cost one jitted call; where rows keep their
order and nobody watches, a call takes many epochs. ``epochs.py`` holds the loop.
"""

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from fastae.checks import check_count, check_index
from fastae.data.row_source import Rows
from fastae.engine.engine import Engine
from fastae.network import Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import DivergenceError, Epoch, History
from fastae.training.loop import check_start, descend, draw_noise_seed
from fastae.training.streaming import run_epoch

__all__ = ["DivergenceError", "Epoch", "History", "train"]


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
        Initial parameters; changed in place.
    X : array-like of shape (m, n), any float or integer dtype, any strides; or Rows
        Training data: never copied whole, never written. Rows (``fastae.open_rows``) are read again in every epoch,
        chunk by chunk. A batch larger than a chunk is one step from the sums over its chunks. When shuffled, the
        pieces of the file are read in random order, and the rows of each chunk are drawn in random order.
    engine : Engine, optional
        Engine of the parameters' network and dtype. Default: a new one on all CPUs of this process.
    optimizer : SGD, Adam or AdamW, optional
        Default: ``Adam()``.
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
    sample_weight : array-like of shape (m,), optional
        Weight of each row, not negative. Default: 1. Not available for Rows of several chunks.
    objective : Objective, optional
        Penalties, noise in the input, missing cells. Default: none of them.
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
        An argument is not valid; the message names it, and nothing has been changed. Or `checkpoint` is damaged or
        belongs to another run.
    OSError
        `checkpoint` cannot be written; an existing file stays as it was.
    DivergenceError
        The loss became infinite or NaN. The message gives the epoch and the learning rate, and what may help. `params`
        and `state` are restored to the last point at which the loss was finite.
    """
    optimizer, state = check_start(params, optimizer, state)
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective, got {objective!r}")
    X = X.resident() if isinstance(X, Rows) else np.asarray(X)
    streamed = isinstance(X, Rows)
    if streamed and (index is not None or sample_weight is not None):
        raise ValueError("index and sample_weight need X in memory, but X is Rows of many blocks")
    rows = X.shape[0] if len(X.shape) else 0
    if index is not None:
        index = check_index(index, rows)
        rows = index.size
    if batch_size is not None:
        check_count("batch_size", batch_size)
    batch = min(batch_size or rows, rows)
    engine = Engine(params.network, dtype=params.dtype) if engine is None else engine
    generator = np.random.default_rng(seed)
    noise_seed = draw_noise_seed(generator, objective)
    shuffle = shuffle and batch < rows
    checkpoint = Checkpoint.at(checkpoint, resume)
    if checkpoint is not None:
        settings = {
            "X.shape": X.shape, "network": params.network, "dtype": params.dtype, "objective": objective,
            "optimizer": optimizer, "batch_size": batch, "shuffle": shuffle, "seed": seed, "patience": patience,
            "tol": tol, "adaptive": adaptive, "validate": validate is not None, "index": index, "shift": shift,
            "scale": scale, "sample_weight": sample_weight,
            "X.block_bytes": getattr(X, "block_bytes", None),
        }  # fmt: skip
        checkpoint.agree("training", settings)
        noise_seed = checkpoint.keep("noise_seed", noise_seed)
    gradient = Parameters(params.network, params.dtype)

    def run(rates: np.ndarray) -> np.ndarray:
        run_steps: Callable[..., np.ndarray]
        if streamed:
            run_steps = partial(run_epoch, engine, generator=generator if shuffle else None)
        else:
            order = index
            if shuffle:
                drawn = generator.permutation(rows)
                order = drawn if index is None else index[drawn]
            run_steps = partial(engine.run_steps, index=order, sample_weight=sample_weight)
        return run_steps(
            params,
            X,
            gradient=gradient,
            shift=shift,
            scale=scale,
            batch_size=batch,
            optimizer=optimizer,
            state=state,
            rates=rates,
            objective=objective,
            seed=noise_seed,
            epoch=state.epochs,
        )

    def is_finite() -> bool:
        blocks = X if isinstance(X, Rows) else [X]
        least, most = (np.fmin, np.fmax) if objective.missing else (np.minimum, np.maximum)  # NaN or not
        return all(np.isfinite([f.reduce(block, axis=None) for f in (least, most)]).all() for block in blocks)

    return descend(
        params,
        run,
        rows=rows,
        steps_per_epoch=-(-rows // max(batch, 1)),
        optimizer=optimizer,
        state=state,
        epochs=epochs,
        many_epochs_a_run=not shuffle and not streamed,
        validate=validate,
        patience=patience,
        tol=tol,
        adaptive=adaptive,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
        generator=generator,
        is_finite=is_finite,
    )
