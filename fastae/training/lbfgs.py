"""Training by L-BFGS (SciPy's), on all rows at once: ``train`` where the gradient is exact and there are no steps."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize as scipy_minimize

from fastae.data.row_source import Rows
from fastae.engine.engine import Engine
from fastae.network import Parameters
from fastae.objective import Objective
from fastae.optimizers import State
from fastae.training import streaming
from fastae.training.history import DivergenceError, Epoch, History
from fastae.training.progress import progress_bar


def minimize(
    params: Parameters,
    X: np.ndarray | Rows,
    *,
    engine: Engine,
    max_iter: int,
    index: np.ndarray | None,
    seed: int,
    shift: np.ndarray | None,
    scale: np.ndarray | None,
    objective: Objective,
    max_slope: float,
    validate: Callable[[Parameters], float] | None,
    patience: int | None,
    tol: float,
    state: State,
    callback: Callable[[Epoch], bool] | None,
    progress: bool,
) -> History:
    """Minimize S over the flat buffer of `params`, in place.

    Parameters
    ----------
    max_iter : int
        Iterations, which the history counts as epochs.
    max_slope : float
        It is done where no derivative of S is larger.
    patience, tol
        Stop when the validation loss has not beaten its best by `tol` in more than `patience` iterations on end.
    params, X and all others
        As for ``fastae.train``; `state` is as it was.

    Raises
    ------
    DivergenceError
        The loss was not finite before any step, or no longer.
    """
    history = History(state)
    best, best_flat, stale = np.inf, params.flat.copy(), 0
    began = time.perf_counter()

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        trial = Parameters(params.network, params.dtype)
        trial.flat[:] = flat
        options: dict[str, Any] = {"shift": shift, "scale": scale, "objective": objective, "seed": seed}
        if isinstance(X, Rows):
            loss, gradient = streaming.loss_and_gradient(engine, trial, X, **options)
        else:
            loss, gradient = engine.loss_and_gradient(trial, X, index=index, **options)
        return loss, gradient.flat.astype(np.float64)

    def step(intermediate_result: Any) -> None:
        nonlocal best, best_flat, stale
        params.flat[:] = intermediate_result.x
        history.loss.append(float(intermediate_result.fun))
        history.seconds = time.perf_counter() - began
        loss = None
        if validate is not None:
            loss = validate(params)
            history.validation_loss.append(loss)
            stale = 0 if loss <= best - tol else stale + 1
            if loss < best:
                best, best_flat = loss, params.flat.copy()
                history.best_epoch = len(history.loss)
        done = Epoch(len(history.loss), max_iter, history.loss[-1], 1.0, history.seconds, params, loss)
        show(done)
        if callback is not None and callback(done):
            history.stop_reason = "callback"
            raise StopIteration
        if patience is not None and stale > patience:
            history.stop_reason = "tol"
            raise StopIteration

    first, _ = cost(params.flat.astype(np.float64))
    if not np.isfinite(first):
        raise DivergenceError("the loss is not finite before any step: X holds too large values; scale it")
    with progress_bar(progress, max_iter, len(X)) as show:
        found = scipy_minimize(
            cost,
            params.flat.astype(np.float64),
            jac=True,
            method="L-BFGS-B",
            callback=step,
            options={"maxiter": max_iter, "gtol": max_slope, "maxfun": 15_000},
        )
    if not np.isfinite(found.fun):
        raise DivergenceError(
            f"the loss was not finite in iteration {len(history.loss) + 1}: scale the data, or lower alpha. "
            "The parameters are back at the last finite loss"
        )
    params.flat[:] = found.x if validate is None else best_flat
    if not history.loss:
        history.loss.append(float(found.fun))
    if history.stop_reason == "epochs" and found.status != 1:  # 1: SciPy's limit of iterations
        history.stop_reason = "tol"
    return history
