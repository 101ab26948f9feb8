"""L-BFGS (SciPy's), on all rows at once: training where the gradient is exact and there are no mini-batches."""

import time
from typing import Any

import numpy as np
from scipy.optimize import minimize as scipy_minimize
from threadpoolctl import threadpool_limits

from fastae.data.row_source import Rows
from fastae.engine.engine import Engine
from fastae.network import Parameters
from fastae.objective import Objective
from fastae.optimizers import State
from fastae.training.history import DivergenceError, History
from fastae.training.options import TrainingOptions
from fastae.training.progress import progress_bar
from fastae.training.streaming import loss_and_gradient
from fastae.training.watch import Watch


def minimize(
    params: Parameters,
    rows: Rows,
    state: State,
    options: TrainingOptions,
    *,
    engine: Engine,
    shift: np.ndarray | None,
    scale: np.ndarray | None,
    objective: Objective,
    max_slope: float,
    sample_weight: np.ndarray | None = None,
) -> History:
    """Minimize S over the flat buffer of `params`, in place.

    Parameters
    ----------
    state : State
        For the history; not changed.
    options : TrainingOptions
        `epochs` is the largest number of iterations. There are no batches and no checkpoints.
    max_slope : float
        Stop where no derivative of S is larger.
    params, rows, engine, shift, scale, objective, sample_weight
        As for ``fastae.train``.

    Raises
    ------
    DivergenceError
        The loss was not finite before any step, or no longer finite.
    """
    history = History(state)
    began = time.perf_counter()
    data: dict[str, Any] = {"shift": shift, "scale": scale, "objective": objective, "seed": options.seed}
    if sample_weight is not None:
        data["sample_weight"] = sample_weight

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        trial = Parameters(params.network, params.dtype)
        trial.flat[:] = flat
        if not np.isfinite(flat).all():  # where steps diverge, also in the padding
            trial.clear_padding()
        loss, gradient = loss_and_gradient(engine, trial, rows, **data)
        return loss, gradient.flat.astype(np.float64)

    def after_iteration(intermediate_result: Any) -> None:  # SciPy goes by this argument's name
        params.flat[:] = intermediate_result.x
        history.loss.append(float(intermediate_result.fun))
        history.learning_rate.append(1.0)
        history.seconds, history.best_epoch = time.perf_counter() - began, len(history.loss)
        if watch.stops_after_epoch():
            raise StopIteration

    first_loss, _ = cost(params.flat.astype(np.float64))
    if not np.isfinite(first_loss):
        raise DivergenceError("the loss is not finite before any step: X holds too large values; scale it")
    # BLAS on many threads takes longer for SciPy's short vectors, and takes CPUs from the engine
    with (
        progress_bar(options.progress, options.epochs, len(rows)) as show,
        threadpool_limits(1, "blas"),
    ):
        watch = Watch(options, params, history, show)
        result = scipy_minimize(
            cost,
            params.flat.astype(np.float64),
            jac=True,
            method="L-BFGS-B",
            callback=after_iteration,
            options={"maxiter": options.epochs, "gtol": max_slope, "maxfun": 15_000},
        )
    if not np.isfinite(result.fun):
        raise DivergenceError(
            f"the loss was not finite in iteration {len(history.loss) + 1}: scale the data, or lower alpha"
        )
    if options.validate is None:
        params.flat[:] = result.x
    watch.keep_best()
    if not history.loss:
        history.loss.append(float(result.fun))
    if history.stop_reason == "epochs" and result.status != 1:  # 1: SciPy reached the limit of iterations
        history.stop_reason = "tol"
    return history
