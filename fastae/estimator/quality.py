"""Warnings about models that train without an error but are not what the user wants."""

import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from fastae.estimator.automatic import Budget

_SHARE = 0.01  # of the loss, by which the last epochs must have lowered it
_FEW = 0.25  # of the steps of an automatic budget
_WORSE = 1.15  # times the error of PCA


def warn_if_code_is_wide(model: Any, units: int, columns: int) -> None:
    """Warn of a code that can hold each row as it is; noise and sparsity make such a code useful."""
    if units > columns and model._value("noise") is None and not model.sparsity_weight:
        warnings.warn(
            f"the code is wider than the data: {units} units for {columns} columns, so that the model can copy its "
            "input instead of learning from it; choose hidden_layer_sizes below the number of columns, or add noise",
            UserWarning,
            stacklevel=3,
        )


def warn_if_worse_than_pca(model: Any) -> None:
    """Warn where PCA with as many components reconstructs the training rows better by more than a little.

    Not for Huber's loss: PCA minimises the squared error, which outliers rule.
    """
    ratio = None if model.loss == "huber" else model.error_over_pca_
    if ratio is not None and ratio > _WORSE and model._value("noise") is None and not model.sparsity_weight:
        advice = "raise max_iter, or lower learning_rate_init"
        if model.loss == "bernoulli":
            pass  # the scale follows from it
        elif model.scale is None:
            advice += ", or set scale"
        elif model.scale == "minmax" and model.missing:
            advice += (
                ", or set scale='standard', with which a missing cell enters as the mean, not the least value"
            )
        warnings.warn(
            f"the error is {ratio:.1f} times that of PCA with as many components: {advice}",
            ConvergenceWarning,
            stacklevel=4,
        )


def warn_if_unfinished(model: Any, budget: Budget, tol: float) -> None:
    """Warn where training ended with `max_iter` epochs although more of them would have lowered the loss."""
    if model.stop_reason_ != "max_iter":
        return
    curve = model.validation_loss_curve_ or model.loss_curve_
    last = min(10, len(curve) // 2)
    if model.learning_rate == "cosine" and model.solver != "lbfgs":
        # The loss settles as the rate falls to 0, however few the steps are; so their number counts as well.
        steps = model.n_iter_ * budget.steps_per_epoch
        if steps >= _FEW * budget.steps:
            return
        last = len(curve) // 2
    if not last:
        return
    fall = min(curve[:-last]) - min(curve[-last:])
    if fall > max(last * tol, _SHARE * min(curve)):
        warnings.warn(
            f"the loss was still falling after {len(curve)} epochs: raise max_iter",
            ConvergenceWarning,
            stacklevel=4,
        )
