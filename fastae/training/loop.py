"""The loop over epochs, without the data: learning rates, stopping, validation, checkpoints, and what diverged.

Rows of an array, of a file and of other machines are all trained on by this one loop: its callers take the steps.
"""

import time
from collections.abc import Callable

import numpy as np

from fastae.checks import check_count
from fastae.network import Parameters
from fastae.objective import Objective
from fastae.optimizers import Adam, Optimizer, State
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import DivergenceError, Epoch, History
from fastae.training.progress import progress_bar

# Unshuffled and unwatched: what a divergence, or Ctrl-C, takes back at most
EPOCHS_A_CALL, STEPS_A_CALL = 64, 1000


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
    state.check(params)
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
