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
        Changed in place.
    X : array of shape (m, n), any float or integer dtype, any strides; or Rows
        Never copied whole, never written. Rows (``fastae.open_rows``) are read block by block, in each epoch anew. A
        batch larger than a block is a step from the sums of its blocks. Shuffled, pieces of the file come in random
        order, and so do the rows of each block.
    engine : Engine, optional
        Of the parameters' network and dtype; by default one on all CPUs of this process.
    optimizer : Optimizer, optional
        ``SGD(...)``, ``Adam(...)`` or ``AdamW(...)``; Adam by default.
    epochs : int, default 100
        Times to go through all rows.
    batch_size : int, optional
        Rows a step; all of them by default. The last batch of an epoch holds the rows that are left.
    index : array of int, optional
        Rows of `X` to train on; all by default.
    shuffle : bool, default True
        Draw the rows of the mini-batches anew, without replacement, in each epoch.
    seed : int or numpy.random.Generator, default 0
        For the shuffling and the noise.
    shift, scale, sample_weight, objective : optional
        As for ``Engine.loss_and_gradient``, of each batch. No sample_weight, nor `index`, for Rows of many blocks.
    validate : callable, optional
        Called with the parameters after each epoch, gives the validation loss. The best parameters are kept at the end.
    patience : int, optional
        Stop when the validation loss, or without `validate` the loss, has not beaten its best by `tol` in more than
        `patience` epochs on end.
    tol : float, default 0
    adaptive : bool, default False
        Divide the learning rate by 5 where `patience` would stop, and stop only once it is below 1e-6.
    state : State, optional
        An earlier run's ``History.state``, to go on from; changed in place.
    callback : callable, optional
        Called with an ``Epoch`` after each epoch; training stops where it returns True.
    progress : bool, default False
        Show a progress bar on stderr.
    checkpoint : path or Checkpoint, optional
        A file to go on from after an interruption. Written when training ends and, between epochs, at most every 5
        seconds and for at most a twentieth of the time: parameters, best parameters, `state`, the generator's state
        and the history so far. Always the last one or the one before, whole.
    resume : bool, default False
        Go on from `checkpoint`, to the same bits as a run that was never interrupted; where there is no such file,
        begin. `epochs` counts the earlier ones and may have grown; all else must be as it was. What is passed in
        `params`, `state` and a generator is overwritten. A run that `tol` stopped is at its end.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        A wrong argument, named; nothing has been changed then. Or `checkpoint` is damaged, or of another run.
    OSError
        `checkpoint` cannot be written; what was there before is whole.
    DivergenceError
        The loss was no longer finite: says at which epoch and learning rate, and what helps. `params` and `state` are
        then back at the last point from which a finite loss was computed.
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
