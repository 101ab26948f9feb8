"""Callbacks: the user's, and from version 1.9 on scikit-learn's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastae.data.row_source import RowSource
from fastae.training.history import Epoch


@contextmanager
def callbacks(model: Any, rows: RowSource, epochs: int) -> Iterator[Callable[[Epoch], bool] | None]:
    """The user's callback and scikit-learn's, as one; None if there are none."""
    context, X = None, getattr(rows, "array", rows)
    if getattr(model, "_skl_callbacks", None):
        context = model._init_callback_context(max_subtasks=epochs)
        context.call_on_fit_task_begin(estimator=model, X=X)

    def tell(epoch: Epoch) -> bool:
        stop = model.callback is not None and bool(model.callback(epoch))
        if context is not None:
            task = context.subcontext(task_name="epoch")
            task.call_on_fit_task_begin(estimator=model, X=X)
            callback_stops = task.call_on_fit_task_end(
                estimator=model,
                X=X,
                metadata={"loss": epoch.loss, "validation_loss": epoch.validation_loss},
                reconstruction_attributes=lambda: {"params_": epoch.params.copy()},
            )
            stop = bool(callback_stops) or stop
        return stop

    yield None if context is None and model.callback is None else tell
    if context is not None:
        context.call_on_fit_task_end(
            estimator=model, X=X, reconstruction_attributes=lambda: {"params_": model.params_.copy()}
        )
