"""The loop over epochs, without the data: learning rates, checkpoints, and what to do after a divergence.

This loop is shared by arrays, files and clusters; callers pass `run`, which takes the steps. What happens between two
epochs is in ``watch.py``.
"""

import time
from collections.abc import Callable

import numpy as np

from fastae.network import Parameters
from fastae.objective import Objective
from fastae.optimizers import Adam, InKernels, Optimizer, State
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import LOWER_RATE, DivergenceError, History, stored_history
from fastae.training.options import TrainingOptions
from fastae.training.progress import progress_bar
from fastae.training.watch import Watch

# At most as many in one run, where nothing is decided between epochs: a divergence, or Ctrl-C, takes back the whole
# run, and each of its epochs may have an order of the rows of its own, in memory
EPOCHS_PER_RUN, STEPS_PER_RUN, ROWS_PER_RUN = 64, 1000, 1 << 20


def check_start(
    params: Parameters, optimizer: Optimizer | None, state: State | None
) -> tuple[Optimizer, State]:
    """The optimizer and the state to begin with, checked against `params`; Adam and a new state by default."""
    if not isinstance(params, Parameters):
        raise TypeError(f"params must be Parameters, got {type(params).__name__}")
    if not params.flat.flags.writeable:
        raise ValueError("params.flat is read-only, but training changes it")
    optimizer = Adam() if optimizer is None else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, such as fastae.Adam(), got {optimizer!r}")
    if isinstance(optimizer, InKernels):
        optimizer.factors(params.network)  # names only its parameters
    state = State.zeros(params) if state is None else state
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, got {type(state).__name__}")
    state.check(params)
    return optimizer, state


def draw_noise_seed(generator: np.random.Generator, objective: Objective) -> int:
    """A seed for the noise; the generator's own stream of numbers is not advanced."""
    return int(generator.spawn(1)[0].integers(1 << 63)) if objective.noise else 0


def descend(
    params: Parameters,
    run: Callable[[np.ndarray], np.ndarray],
    *,
    rows: int,
    steps_per_epoch: int,
    optimizer: Optimizer,
    state: State,
    options: TrainingOptions,
    checkpoint: Checkpoint | None,
    generator: np.random.Generator,
    many_epochs_per_run: bool = False,
    is_finite: Callable[[], bool] = lambda: True,
) -> History:
    """The epochs of ``train``, wherever the rows are: `run` takes the steps, and this function does the rest.

    Parameters
    ----------
    run : callable
        Given the learning rates of all steps of one epoch, takes these steps: changes `params` and ``state.moments`` in
        place. Returns an array of shape (steps, 2): the loss before each step, and the sum of its rows' weights; it
        ends at the first loss that is not finite.
    rows, steps_per_epoch : int
        Of one epoch.
    generator : numpy.random.Generator
        What `run` draws from; its state is part of the checkpoint.
    many_epochs_per_run : bool, default False
        `run` may be given the learning rates of several epochs.
    is_finite : callable, optional
        Whether the data are finite, asked after a divergence.
    params, optimizer, state, options, checkpoint
        As for ``train``, which also says what is returned and raised.
    """
    epochs, epochs_per_run = options.epochs, 1
    if many_epochs_per_run and not options.decides:
        most = STEPS_PER_RUN // max(steps_per_epoch, 1), ROWS_PER_RUN // max(rows, 1)
        epochs_per_run = max(1, min(EPOCHS_PER_RUN, *most))

    history, best_flat = History(state), None
    resumed = checkpoint is not None and checkpoint.loop is not None
    if checkpoint is not None and checkpoint.loop is not None:
        stored_watch = checkpoint.loop["watch"]
        history = _resumed(checkpoint, state, optimizer, epochs)
        best_flat = checkpoint.restore(params, state, generator)
    rollback = _Rollback(params, state, 2 if options.restores else int(checkpoint is not None))
    began = time.perf_counter() - history.seconds

    def write_checkpoint(checkpoint: Checkpoint) -> None:
        loop = {
            "watch": watch.stored,
            "history": stored_history(history),
            "rate": (state.steps - 1, optimizer.rates(state.steps - 1, 1)[0]),
        }
        checkpoint.write(params, state, generator, watch.best_flat, loop)

    with progress_bar(options.progress, epochs, rows) as show:
        watch = Watch(options, params, history, show)
        if resumed:
            watch.stored, watch.best_flat = stored_watch, best_flat
        while len(history.loss) < epochs and history.stop_reason != "tol":
            if checkpoint is not None and history.loss and checkpoint.due:
                write_checkpoint(checkpoint)
            count = min(epochs_per_run, epochs - len(history.loss))
            if checkpoint is not None:  # a run should not outlast the time between two writes
                in_time = len(history.loss) * checkpoint.SECONDS / max(history.seconds, 1e-9)
                count = max(1, min(count, int(in_time)))
            rates = watch.factor * optimizer.rates(state.steps, count * steps_per_epoch)
            rollback.save()
            drawn_from = generator.bit_generator.state
            try:
                losses = run(rates)
            except BaseException:  # Ctrl-C too: keep whole epochs only, and a state that fits the parameters
                rollback.restore(first_step=False)
                if checkpoint is not None and history.loss:
                    generator.bit_generator.state = drawn_from
                    write_checkpoint(checkpoint)
                raise
            bad = np.flatnonzero(~np.isfinite(losses[:, 0]))
            if bad.size:
                rollback.restore(first_step=bad[0] == 0)
                epoch = len(history.loss) + 1 + int(bad[0]) // steps_per_epoch
                advice = _advice(epoch, float(rates[bad[0]]), bool(bad[0] == 0), params, is_finite)
                if options.restores and (len(history.loss) or bad[0]):
                    advice += ". The parameters are back at the last finite loss"
                error = DivergenceError(advice)
                history.loss.append(np.inf)
                history.learning_rate.append(float(rates[bad[0]]))
                history.seconds, history.stop_reason = time.perf_counter() - began, "divergence"
                error.history = history
                raise error
            state.steps += rates.size
            state.epochs += count
            by_epoch = losses.reshape(count, steps_per_epoch, 2)
            history.loss += np.average(by_epoch[:, :, 0], axis=1, weights=by_epoch[:, :, 1]).tolist()
            history.learning_rate += rates[steps_per_epoch - 1 :: steps_per_epoch].tolist()
            history.rows += count * rows
            history.seconds = time.perf_counter() - began
            history.best_epoch = len(history.loss)
            if (options.decides or options.progress) and watch.stops_after_epoch():
                break
    if checkpoint is not None:
        write_checkpoint(checkpoint)
    watch.keep_best()
    return history


class _Rollback:
    """Parameters and optimizer state to return to: those before this run of steps, and before the previous one.

    A divergence that shows in the first loss of a run goes back to before the previous run. `runs` are kept, 2, 1 or
    none; memory is allocated for a run when there is one.
    """

    def __init__(self, params: Parameters, state: State, runs: int) -> None:
        self.params, self.state = params, state
        self.runs, self._kept = 0, runs
        self._saved: list[tuple[np.ndarray, State]] = []

    def save(self) -> None:
        """Called before each run."""
        if self.runs < self._kept:
            self._saved.append((self.params.flat.copy(), self.state.copy()))
        elif self._kept:
            flat, state = self._saved[self.runs % self._kept]
            flat[:], state.moments[:], state.steps = self.params.flat, self.state.moments, self.state.steps
        self.runs += 1

    def restore(self, first_step: bool) -> None:
        """Return to before this run or, if its first loss was not finite, to before the previous run."""
        if self._kept:
            back = first_step and self.runs > 1 and self._kept > 1
            flat, state = self._saved[(self.runs - 1 - back) % self._kept]
            self.params.flat[:], self.state.moments[:], self.state.steps = flat, state.moments, state.steps


def _resumed(checkpoint: Checkpoint, state: State, optimizer: Optimizer, epochs: int) -> History:
    """The history up to the checkpoint; a ValueError if `epochs` or the learning rate schedule do not fit."""
    loop = checkpoint.loop or {}
    history = History(state, **loop["history"])
    if len(history.loss) > epochs:
        raise ValueError(f"{checkpoint.path} has {len(history.loss)} epochs already, but epochs is {epochs}")
    step, was = loop["rate"]
    if (rate := optimizer.rates(step, 1)[0]) != was:
        raise ValueError(
            f"{checkpoint.path} belongs to another run: learning_rate was {was!r} in step {step}, "
            f"and is {float(rate)!r} now; the rates of a cosine depend on the number of epochs"
        )
    if history.stop_reason == "callback":  # a run that a callback stopped can be resumed
        history.stop_reason = "epochs"
    return history


def _advice(
    epoch: int, rate: float, first_step: bool, params: Parameters, is_finite: Callable[[], bool]
) -> str:
    """The message of a DivergenceError: when the loss was not finite, and what helps."""
    when = f"the loss was not finite in epoch {epoch}, at learning rate {rate:.3g}"
    if epoch == 1 and first_step:
        if not np.isfinite(params.flat).all():
            return f"{when}: params hold NaN or infinity; start from finite ones"
        return f"{when}, before any step: X holds NaN or infinity, or values too large; clean or scale it"
    if not is_finite():
        return f"{when}: X holds NaN or infinity; clean it"
    return f"{when}: {LOWER_RATE}, or scale the data"
