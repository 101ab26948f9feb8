"""Training: epochs of mini-batch or full-batch gradient descent over an engine.

An epoch is one call of ``Engine.run_steps``, so that many small steps cost one jitted call; where rows keep their
order and nobody watches, a call takes many epochs. ``descend`` is the loop without the data: other rows than an
array's, on other machines, are trained on by the same one.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from fastae.checkpoint import Checkpoint
from fastae.engine import Engine, check_index
from fastae.network import Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Adam, Optimizer, State
from fastae.rows import Rows
from fastae.streaming import run_epoch

# Unshuffled and unwatched: what a divergence, or Ctrl-C, takes back at most
EPOCHS_A_CALL, STEPS_A_CALL = 64, 1000


class DivergenceError(ArithmeticError):
    """The loss was no longer finite. The parameters are those of the last finite loss kept."""


@dataclass(frozen=True)
class Epoch:
    """What a callback is told after each epoch.

    Attributes
    ----------
    number : int
        Counted from 1.
    epochs : int
        How many were asked for.
    loss : float
        Mean over the epoch's rows of half the squared error, each batch's before its step.
    learning_rate : float
        Of the epoch's last step.
    seconds : float
        Since training began.
    params : Parameters
        The ones being trained, after this epoch.
    validation_loss : float or None
        After this epoch, where it is asked for.
    """

    number: int
    epochs: int
    loss: float
    learning_rate: float
    seconds: float
    params: Parameters = field(repr=False)
    validation_loss: float | None = None


@dataclass
class History:
    """How a training run went.

    Attributes
    ----------
    loss : list of float
        By epoch: mean over its rows of half the squared error, each batch's before its step.
    validation_loss : list of float
        By epoch, after it; empty unless asked for.
    learning_rate : list of float
        By epoch: that of its last step.
    best_epoch : int
        Whose parameters are kept: that of the least validation loss, or the last; counted from 1.
    seconds : float
        What the run took.
    rows : int
        Rows gone through: m times the epochs.
    state : State
        The optimizer's, to go on from.
    stop_reason : str
        "epochs" (all done), "callback", or "tol": no better for `patience` epochs.
    """

    state: State
    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0
    learning_rate: list[float] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0
    stop_reason: str = "epochs"

    @property
    def rows_per_second(self) -> float:
        """Rows gone through per second."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0


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
            optimizer=optimizer.code,
            moments=state.moments,
            rates=rates,
            settings=optimizer.settings(state.steps),
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


def check_start(
    params: Parameters, optimizer: Optimizer | None, state: State | None
) -> tuple[Optimizer, State]:
    """The optimizer and the state to begin with, checked against `params`; Adam and a new state where they are None."""
    if not isinstance(params, Parameters):
        raise TypeError(f"params must be Parameters, got {type(params).__name__}")
    optimizer = Adam() if optimizer is None else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, such as fastae.Adam(), got {optimizer!r}")
    state = State.zeros(params) if state is None else state
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, got {type(state).__name__}")
    if state.moments.shape != (2, params.flat.size) or state.moments.dtype != params.dtype:
        raise ValueError(f"state is of {state.moments.shape} {state.moments.dtype}, not of these params")
    if not (state.moments.flags.c_contiguous and state.moments.flags.writeable):
        raise ValueError("state holds moments that are read-only or not C-contiguous")
    return optimizer, state


def draw_noise_seed(generator: np.random.Generator, objective: Objective) -> int:
    """What the noise is drawn by; the generator's own numbers stay as they are."""
    return int(generator.spawn(1)[0].integers(1 << 63)) if objective.noise else 0


def descend(
    params: Parameters,
    run: Callable[[np.ndarray], np.ndarray],
    *,
    rows: int,
    steps_per_epoch: int,
    optimizer: Optimizer,
    state: State,
    epochs: int,
    many_epochs_a_run: bool = False,
    validate: Callable[[Parameters], float] | None = None,
    patience: int | None = None,
    tol: float = 0.0,
    adaptive: bool = False,
    callback: Callable[[Epoch], bool | None] | None = None,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    generator: np.random.Generator,
    is_finite: Callable[[], bool] = lambda: True,
) -> History:
    """The epochs of ``train``, wherever the rows are: `run` takes the steps, this keeps the books.

    `run` is given the learning rates of the steps of one whole epoch, or with `many_epochs_a_run` of several. It takes
    these steps, changing `params` and ``state.moments`` in place, and returns (steps, 2): each step's loss before it
    and the sum of its rows' weights, no further than the first loss that is not finite. `is_finite` says whether the
    data are; a checkpoint keeps the state of `generator`. The other options, and what is returned and raised, are
    ``train``'s.
    """
    check_count("epochs", epochs)
    if patience is not None:
        check_count("patience", patience)
    watched = callback is not None or progress or validate is not None or patience is not None
    epochs_a_run = 1
    if many_epochs_a_run and not watched:
        epochs_a_run = max(1, min(EPOCHS_A_CALL, STEPS_A_CALL // max(steps_per_epoch, 1)))

    history = History(state)
    best, best_flat, best_epoch, stale, factor = np.inf, None, 0, 0, 1.0
    if checkpoint is not None and checkpoint.loop is not None:
        history = _resumed(checkpoint, state, optimizer, epochs)
        best, best_epoch, stale, factor = checkpoint.loop["watch"]
        best_flat = checkpoint.restore(params, state, generator)
    kept = _Kept(params, state)
    began = time.perf_counter() - history.seconds

    def write_checkpoint(checkpoint: Checkpoint) -> None:
        loop = {
            "watch": (best, best_epoch, stale, factor),
            "history": {name: value for name, value in vars(history).items() if name != "state"},
            "rate": (state.steps - 1, optimizer.rates(state.steps - 1, 1)[0]),
        }
        checkpoint.write(params, state, generator, best_flat, loop)

    with progress_bar(progress, epochs, rows) as show:
        while len(history.loss) < epochs and history.stop_reason != "tol":
            if checkpoint is not None and history.loss and checkpoint.due:
                write_checkpoint(checkpoint)
            count = min(epochs_a_run, epochs - len(history.loss))
            if checkpoint is not None:  # a call should not outlast the time between two writes
                in_time = len(history.loss) * checkpoint.SECONDS / max(history.seconds, 1e-9)
                count = max(1, min(count, int(in_time)))
            rates = factor * optimizer.rates(state.steps, count * steps_per_epoch)
            kept.before()
            drawn_from = generator.bit_generator.state
            try:
                losses = run(rates)
            except BaseException:  # Ctrl-C too: whole epochs only, and a state that belongs to the parameters
                kept.restore(first_step=False)
                if checkpoint is not None and history.loss:
                    generator.bit_generator.state = drawn_from
                    write_checkpoint(checkpoint)
                raise
            bad = np.flatnonzero(~np.isfinite(losses[:, 0]))
            if bad.size:
                kept.restore(first_step=bad[0] == 0)
                epoch = len(history.loss) + 1 + int(bad[0]) // steps_per_epoch
                raise DivergenceError(
                    _what_helps(epoch, float(rates[bad[0]]), bool(bad[0] == 0), kept, is_finite)
                )
            state.steps += rates.size
            state.epochs += count
            by_epoch = losses.reshape(count, steps_per_epoch, 2)
            history.loss += np.average(by_epoch[:, :, 0], axis=1, weights=by_epoch[:, :, 1]).tolist()
            history.learning_rate += rates[steps_per_epoch - 1 :: steps_per_epoch].tolist()
            history.rows += count * rows
            history.seconds = time.perf_counter() - began
            history.best_epoch = len(history.loss)
            if not watched:
                continue
            watched_loss = history.loss[-1]
            if validate is not None:
                watched_loss = float(validate(params))
                history.validation_loss.append(watched_loss)
            stale = 0 if watched_loss <= best - tol else stale + 1
            if watched_loss < best:
                best = watched_loss
                if validate is not None:
                    best_flat, best_epoch = params.flat.copy(), len(history.loss)
            done = Epoch(
                len(history.loss),
                epochs,
                history.loss[-1],
                history.learning_rate[-1],
                history.seconds,
                params,
                history.validation_loss[-1] if validate is not None else None,
            )
            show(done)
            if callback is not None and callback(done):
                history.stop_reason = "callback"
                break
            if patience is not None and stale > patience:
                factor, stale = factor / 5, 0
                if not adaptive or history.learning_rate[-1] <= 1e-6:
                    history.stop_reason = "tol"
                    break
    if checkpoint is not None:
        write_checkpoint(checkpoint)
    if best_flat is not None:
        params.flat[:], history.best_epoch = best_flat, best_epoch
    return history


class _Kept:
    """Parameters and optimizer state to fall back on: those before this call of the engine, and before the last."""

    def __init__(self, params: Parameters, state: State) -> None:
        self.params, self.state = params, state
        self.calls = 0
        self._saved = [(params.flat.copy(), state.moments.copy(), state.steps) for _ in range(2)]

    def before(self) -> None:
        flat, moments, _ = self._saved[self.calls % 2]
        flat[:], moments[:] = self.params.flat, self.state.moments
        self._saved[self.calls % 2] = flat, moments, self.state.steps
        self.calls += 1

    def restore(self, first_step: bool) -> None:
        """To before this call or, where that already gave no finite loss, to before the one before."""
        flat, moments, steps = self._saved[(self.calls - 1 - (first_step and self.calls > 1)) % 2]
        self.params.flat[:], self.state.moments[:], self.state.steps = flat, moments, steps


def _resumed(checkpoint: Checkpoint, state: State, optimizer: Optimizer, epochs: int) -> History:
    """The history up to the checkpoint, if `epochs` and the learning rate's schedule let it go on."""
    loop = checkpoint.loop or {}
    history = History(state, **loop["history"])
    if len(history.loss) > epochs:
        raise ValueError(
            f"{checkpoint.path} is of {len(history.loss)} epochs already, but {epochs} are asked for"
        )
    step, was = loop["rate"]
    if (rate := optimizer.rates(step, 1)[0]) != was:
        raise ValueError(
            f"{checkpoint.path} is of another run: learning_rate was {was!r} in step {step}, "
            f"and is {float(rate)!r} now"
        )
    if history.stop_reason == "callback":  # what a callback stopped may go on
        history.stop_reason = "epochs"
    return history


def _what_helps(epoch: int, rate: float, first_step: bool, kept: _Kept, is_finite: Callable[[], bool]) -> str:
    said = f"the loss was not finite in epoch {epoch}, at learning rate {rate:.3g}"
    if epoch == 1 and first_step:
        if not np.isfinite(kept.params.flat).all():
            return f"{said}: params hold NaN or infinity; start from finite ones"
        return f"{said}, before any step: X holds NaN or infinity, or values too large; clean or scale it"
    if not is_finite():
        return f"{said}: X holds NaN or infinity; clean it. The parameters are back at the last finite loss"
    return (
        f"{said}: lower the learning rate, or scale the data. The parameters are back at the last finite loss"
    )


@contextmanager
def progress_bar(wanted: bool, epochs: int, rows: int) -> Iterator[Callable[[Epoch], None]]:
    """A bar on stderr, moved by the function it gives; where it is not `wanted` that function does nothing."""
    if not wanted:
        yield lambda epoch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=epochs, said="")
        shown = 0.0

        def show(epoch: Epoch) -> None:
            nonlocal shown
            # an update costs as much as a small epoch
            if epoch.seconds - shown > 0.05 or epoch.number == epochs:
                shown = epoch.seconds
                said = f"loss {epoch.loss:.6g}"
                if epoch.validation_loss is not None:
                    said += f", validation {epoch.validation_loss:.6g}"
                said += f", {epoch.number * rows / epoch.seconds:,.0f} rows/s"
                bar.update(task, completed=epoch.number, said=said)

        yield show


def check_count(name: str, value: int) -> None:
    """An error that names `value` unless it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
