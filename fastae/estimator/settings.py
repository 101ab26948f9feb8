"""Settings: the estimators' constructor, the values of its arguments, and the optimizer and objective they select.

``Autoencoder`` documents the arguments. ``AutoencoderDetector`` has two more, and "auto" for four of these.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import wraps
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.utils._param_validation import Interval, Options, StrOptions

from fastae import optimizers
from fastae.estimator.automatic import Budget
from fastae.estimator.sklearn_types import BaseEstimator
from fastae.network import Activation, DType
from fastae.objective import Loss, Noise, Objective
from fastae.training.history import Epoch

_POSITIVE, _NOT_NEGATIVE = Interval(Real, 0, None, closed="neither"), Interval(Real, 0, None, closed="left")
_FRACTION = Interval(Real, 0, 1, closed="left")
_AUTO = StrOptions({"auto"})


# What arguments are called in other libraries: the name here
_OTHER_NAMES = {
    "epochs": "max_iter",
    "n_epochs": "max_iter",
    "lr": "learning_rate_init",
    "weight_decay": "alpha",
    "optimizer": "solver",
    "patience": "n_iter_no_change",
    "seed": "random_state",
    "n_jobs": "n_threads",
    "hidden": "hidden_layer_sizes",
}


_Class = TypeVar("_Class")


def suggests_names(kind: type[_Class]) -> type[_Class]:
    """A class whose constructor suggests the name used here for an argument that is named as in other libraries."""
    make: Any = kind.__init__

    @wraps(make)  # so that scikit-learn sees the arguments
    def checked(self: Any, *args: Any, **settings: Any) -> None:
        for name in settings:
            if name in _OTHER_NAMES and name not in self._get_param_names():
                raise TypeError(
                    f"{type(self).__name__} has no argument {name!r}: it is called {_OTHER_NAMES[name]!r}"
                )
        make(self, *args, **settings)

    kind.__init__ = checked  # type: ignore[method-assign]
    return kind


@suggests_names
@dataclass(eq=False, repr=False)  # equality and representation are scikit-learn's
class Settings(BaseEstimator):
    """An estimator's settings, as they were passed to the constructor."""

    hidden_layer_sizes: int | Sequence[int] | Literal["auto"] = "auto"
    _: KW_ONLY
    output_layer: bool = True
    activation: Activation | Literal["logistic"] = "sigmoid"
    init: Literal["pca", "random"] = "pca"
    solver: Literal["adam", "adamw", "sgd", "lbfgs"] = "adam"
    loss: Loss = "squared_error"
    huber_delta: float = 1.0
    alpha: float = 1e-4
    batch_size: int | Literal["auto"] = "auto"
    learning_rate: Literal["constant", "invscaling", "adaptive", "cosine"] = "cosine"
    learning_rate_init: float | Literal["auto"] = "auto"
    power_t: float = 0.5
    max_iter: int | Literal["auto"] = "auto"
    shuffle: bool = True
    random_state: int | np.random.RandomState | None = None
    tol: float = 1e-4
    n_iter_no_change: float | Literal["auto"] = "auto"
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-8
    warm_start: bool = False
    early_stopping: bool = False
    validation_fraction: float = 0.1
    scale: Literal["standard", "minmax"] | None = "standard"
    noise: Noise | None = None
    noise_level: float = 0.1
    sparsity_weight: float = 0.0
    sparsity_target: float = 0.05
    missing: Literal["mask"] | None = None
    n_threads: int | None = None
    dtype: DType | Literal["bfloat16"] | None = None
    callback: Callable[[Epoch], bool | None] | None = None
    verbose: int = 0

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": [_AUTO, "array-like", Interval(Integral, 1, None, closed="left")],
        "output_layer": ["boolean"],
        "activation": [StrOptions({"sigmoid", "logistic", "tanh", "relu", "identity"})],
        "init": [StrOptions({"pca", "random"})],
        "solver": [StrOptions({"adam", "adamw", "sgd", "lbfgs"})],
        "loss": [StrOptions({"squared_error", "huber", "bernoulli"})],
        "huber_delta": [_POSITIVE],
        "alpha": [_NOT_NEGATIVE],
        "batch_size": [_AUTO, Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive", "cosine"})],
        "learning_rate_init": [_AUTO, _POSITIVE],
        "power_t": [_NOT_NEGATIVE],
        "max_iter": [_AUTO, Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [_NOT_NEGATIVE],
        "n_iter_no_change": [_AUTO, Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "momentum": [_FRACTION],
        "nesterovs_momentum": ["boolean"],
        "beta_1": [_FRACTION],
        "beta_2": [_FRACTION],
        "epsilon": [_POSITIVE],
        "warm_start": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "scale": [StrOptions({"standard", "minmax"}), None],
        "noise": [StrOptions({"gaussian", "mask", "swap"}), None],
        "noise_level": [_NOT_NEGATIVE],
        "sparsity_weight": [_NOT_NEGATIVE],
        "sparsity_target": [Interval(Real, 0, 1, closed="neither")],
        "missing": [StrOptions({"mask"}), None],
        "n_threads": [Interval(Integral, 1, None, closed="left"), None],
        "dtype": [StrOptions({"float32", "float64", "bfloat16"}), None, type, np.dtype],
        "callback": [callable, None],
        "verbose": ["verbose"],
    }

    def _value(self, name: str) -> Any:
        """What the setting `name` stands for."""
        return getattr(self, name)

    def _optimizer(self, budget: Budget, *, ends: bool = True) -> optimizers.Optimizer:
        """The optimizer, with its schedule over the epochs of `budget`, or without a known end."""
        rate: float | optimizers.Schedule = budget.rate
        if self.learning_rate == "invscaling":

            def rate(step: npt.NDArray[np.int64]) -> npt.ArrayLike:
                return budget.rate / (step // budget.steps_per_epoch * budget.rows + 1.0) ** self.power_t

        elif self.learning_rate == "cosine" and ends:
            rate = optimizers.cosine(budget.rate, budget.epochs * budget.steps_per_epoch)
        if self.solver == "sgd":
            return optimizers.SGD(
                learning_rate=rate,
                momentum=self.momentum,
                nesterov=self.nesterovs_momentum and self.momentum > 0,
            )
        adam: dict[str, Any] = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        adam["rate_factors"] = budget.rate_factors or None
        if self.solver == "adamw":
            return optimizers.AdamW(learning_rate=rate, weight_decay=self.alpha, **adam)
        return optimizers.Adam(learning_rate=rate, **adam)

    def _objective(self) -> Objective:
        if self.loss == "bernoulli" and self.scale == "standard":
            raise ValueError(
                "loss 'bernoulli' needs targets in [0, 1]: scale must be 'minmax' or, for such data, None, "
                "got 'standard'"
            )
        return Objective(
            loss=self.loss,
            huber_delta=self.huber_delta,
            alpha=0.0 if self.solver == "adamw" else self.alpha,
            noise=self._value("noise"),
            noise_level=self._value("noise_level"),
            sparsity_weight=self.sparsity_weight,
            sparsity_target=self.sparsity_target,
            missing=self.missing is not None,
        )
