"""Autoencoder and AutoencoderDetector: scikit-learn's way to the engine."""

import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from numbers import Integral, Real
from typing import Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_feature_names, check_array, check_is_fitted, validate_data

from fastae import optimizers, streaming
from fastae.blocks import Blocks, is_dask
from fastae.checkpoint import Checkpoint
from fastae.column_statistics import ColumnStatistics
from fastae.columns import difference_of_names, refuse_columns
from fastae.engine import Engine
from fastae.model_files import ModelFiles
from fastae.network import Network, Parameters
from fastae.objective import Objective
from fastae.rows import Rows
from fastae.training import DivergenceError, Epoch, History, progress_bar, train

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in where scikit-learn has no callbacks."""

    def with_callbacks(method: Any) -> Any:
        """Stands in where scikit-learn has no callbacks."""
        return method


BLOCK = 4096  # rows that statistics are taken of at a time
Here = np.ndarray | Rows  # checked, and on this machine
Data = Here | Blocks
_Method = TypeVar("_Method", bound=Callable[..., Any])
_POSITIVE, _NOT_NEGATIVE = Interval(Real, 0, None, closed="neither"), Interval(Real, 0, None, closed="left")
_MAY_DIFFER = {"max_iter", "n_threads", "warm_start", "callback", "verbose"}  # where a checkpoint is resumed
_FRACTION = Interval(Real, 0, 1, closed="left")


def _goes_by_steps(model: "Autoencoder") -> bool:
    if model.solver == "lbfgs":
        raise AttributeError("partial_fit needs solver 'adam', 'adamw' or 'sgd', got 'lbfgs'")
    return True


def _also_lazily(method: _Method) -> _Method:
    """For a Dask array or DataFrame, a lazy Dask array of the results of its blocks."""

    @wraps(method)
    def call(self: "Autoencoder", X: Any, **options: Any) -> Any:
        if not is_dask(X):
            return method(self, X, **options)
        from fastae.distributed import map_rows

        check_is_fitted(self)
        return map_rows(self, method.__name__, X, **options)

    return cast(_Method, call)


def _sum_of_errors(block: np.ndarray, model: "Autoencoder", params: Parameters) -> float:
    return float(model._errors(block, None, params).sum()) if len(block) else 0.0


def _scores(block: np.ndarray, model: "AutoencoderDetector") -> np.ndarray:
    return model.score_samples(block) if len(block) else np.empty(0)


def _check_finite(block: np.ndarray, allow_nan: bool) -> None:
    assert_all_finite(block, allow_nan=allow_nan, input_name="X")


class Autoencoder(
    ModelFiles,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    """An autoencoder of dense layers, trained on the mean over rows of half the squared error.

    Names are those of scikit-learn's MLPRegressor where the meaning is the same.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default (32,)
        Widths of the encoder, the code last. The decoder mirrors them up to n features; a linear map of n to n follows.
    output_layer : bool, default True
        Have that map. Without it the decoder's own last layer is linear.
    activation : "sigmoid" (or "logistic"), "tanh", "relu" or "identity", default "sigmoid"
    solver : "adam", "adamw", "sgd" or "lbfgs", default "adam"
    alpha : float, default 1e-4
        L2 penalty, as MLPRegressor's: alpha/(2m) sum(W^2) over a batch of m rows. For "adamw", the decoupled weight
        decay instead.
    batch_size : int or "auto", default "auto"
        Rows a step: min(200, m) for "auto". "lbfgs" takes all rows.
    learning_rate : "constant", "invscaling", "adaptive" or "cosine", default "constant"
        learning_rate_init throughout; divided by (rows gone through + 1)^power_t; divided by 5 where training would
        stop; or lowered to 0 along half a cosine over max_iter epochs.
    learning_rate_init : float, default 0.001
    power_t : float, default 0.5
    max_iter : int, default 200
        Epochs at most; iterations for "lbfgs".
    shuffle : bool, default True
    random_state : int, RandomState or None, default None
        Of the first weights, the batches, the validation rows and the noise.
    tol : float, default 1e-4
        An improvement of the loss per feature: of `loss_` / n. For "lbfgs" also the largest slope to stop at.
    n_iter_no_change : int, default 10
        Training stops when the loss (with validation rows, the validation loss) has not beaten its best by `tol` in
        more than `n_iter_no_change` epochs on end.
    momentum : float, default 0.9
    nesterovs_momentum : bool, default True
    beta_1, beta_2, epsilon : float, defaults 0.9, 0.999, 1e-8
    warm_start : bool, default False
        Go on from the last fit's parameters; the optimizer and its schedule start anew.
    early_stopping : bool, default False
        Set validation rows aside, stop by their loss, and keep the parameters that were best for them.
    validation_fraction : float, default 0.1
    scale : "standard", "minmax" or None, default "standard"
        The network sees columns of mean 0 and standard deviation 1, or from 0 to 1; undone on the way out.
    noise : "gaussian", "mask", "swap" or None, default None
        Corrupt the input while training, after scaling (a denoising autoencoder); see ``fastae.Objective``.
    noise_level : float, default 0.1
    sparsity_weight, sparsity_target : float, defaults 0 and 0.05
        Weight and target of the mean code's Kullback-Leibler divergence; see ``fastae.Objective``.
    missing : "mask" or None, default None
        "mask": NaN cells are missing, and training goes by the others. None: NaN is an error.
    n_threads : int or None, default None
        All CPUs this process may use. Of each machine, where X lies on several; a Dask worker's are what Dask gives it.
    dtype : "float32", "float64" or None, default None
        Of the arithmetic. None: float32 for float32 data, else float64.
    callback : callable or None, default None
        Called with a ``fastae.training.Epoch`` after each epoch; training stops where it returns True.
    verbose : int, default 0
        1: a progress bar on stderr.

    Attributes
    ----------
    params_ : Parameters
    network_ : Network
    shift_, scale_ : ndarray of shape (n,) or None
        The network sees (X - shift_) * scale_.
    loss_ : float
        The last of `loss_curve_`.
    loss_curve_, validation_loss_curve_ : list of float
        By epoch, in the scale the network sees.
    n_iter_ : int
    stop_reason_ : "max_iter", "tol" or "callback"
    n_features_in_, feature_names_in_
    """

    params_: Parameters
    _state: optimizers.State

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "output_layer": ["boolean"],
        "activation": [StrOptions({"sigmoid", "logistic", "tanh", "relu", "identity"})],
        "solver": [StrOptions({"adam", "adamw", "sgd", "lbfgs"})],
        "alpha": [_NOT_NEGATIVE],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive", "cosine"})],
        "learning_rate_init": [_POSITIVE],
        "power_t": [_NOT_NEGATIVE],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [_NOT_NEGATIVE],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
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
        "dtype": [StrOptions({"float32", "float64"}), None, type, np.dtype],
        "callback": [callable, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] | int = (32,),
        *,
        output_layer: bool = True,
        activation: str = "sigmoid",
        solver: str = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        scale: str | None = "standard",
        noise: str | None = None,
        noise_level: float = 0.1,
        sparsity_weight: float = 0.0,
        sparsity_target: float = 0.05,
        missing: str | None = None,
        n_threads: int | None = None,
        dtype: npt.DTypeLike | None = None,
        callback: Callable[[Epoch], bool | None] | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.output_layer = output_layer
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.warm_start = warm_start
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.scale = scale
        self.noise = noise
        self.noise_level = noise_level
        self.sparsity_weight = sparsity_weight
        self.sparsity_target = sparsity_target
        self.missing = missing
        self.n_threads = n_threads
        self.dtype = dtype
        self.callback = callback
        self.verbose = verbose

    # -- fitting ------------------------------------------------------------------------------------------------

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        X_val: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> Self:
        """Train on the rows of `X`.

        Parameters
        ----------
        X : array-like of shape (m, n), frame, Rows, or Dask array or DataFrame
            Read as it is: float32 and float64 data are not copied. Rows (``fastae.open_rows``) that fill more than a
            block are read block by block, and need not fit in memory. Dask collections stay on the workers, which
            train (``fastae.distributed``); "auto" is then a batch of 512 rows of each of their blocks.
        y : ignored
        X_val : array-like of shape (m', n) or Rows, optional
            Validation rows: the parameters best for them are kept. `early_stopping` also stops by their loss, and then
            sets none aside.
        checkpoint : path, optional
            A file to go on from after an interruption: written when training ends, and before that at most every 5
            seconds and for at most a twentieth of the time. "lbfgs" has none.
        resume : bool, default False
            Go on from `checkpoint`, to the same bits as a fit that was never interrupted; where there is no such file,
            begin. `X` and the settings must be as they were, but `max_iter` may have grown.

        Raises
        ------
        ValueError
            Data or a parameter is wrong, named; `checkpoint` is damaged, or of another run.
        OSError
            `checkpoint` cannot be written.
        DivergenceError
            The loss was no longer finite: says when, and what helps. The estimator keeps the last finite parameters.
        """
        X = self._check(X, reset=True)
        if X_val is not None:
            X_val = self._check(X_val, name="X_val")
        rows = len(X)
        random = check_random_state(self.random_state)
        seed = random.randint(np.iinfo(np.int32).max, size=3).tolist()
        saved = Checkpoint.at(checkpoint, resume)
        if saved is not None:
            if self.solver == "lbfgs":
                raise ValueError(
                    "checkpoint needs solver 'adam', 'adamw' or 'sgd', got 'lbfgs', which has none"
                )
            settings = {name: value for name, value in self._settings().items() if name not in _MAY_DIFFER}
            saved.agree("estimator", {**settings, "X_val.shape": None if X_val is None else X_val.shape})
            seed = saved.keep("seed", seed)  # random_state may be None
        index = validation = None
        if isinstance(X, Blocks) and self.early_stopping and X_val is None:
            raise ValueError("early_stopping needs X_val where X is on several machines")
        if self.early_stopping and X_val is None and isinstance(X, Rows):
            X, X_val = X.split(self.validation_fraction, int(seed[2]))
        elif self.early_stopping and X_val is None:
            held_out = int(np.ceil(self.validation_fraction * rows))
            if held_out >= rows:
                raise ValueError(
                    f"validation_fraction leaves no rows to train on: n_samples = {rows}, held out {held_out}"
                )
            order = np.random.default_rng(seed[2]).permutation(rows)
            validation, index = np.sort(order[:held_out]), np.sort(order[held_out:])
        self._start(X, index, seed[0])
        validate = None
        if X_val is not None or validation is not None:
            data = X if X_val is None else X_val

            def validate(params: Parameters) -> float:
                if isinstance(data, Blocks):
                    sums = data.each(_sum_of_errors, self.for_one_thread(), params)
                    return float(sum(sums) / (2 * len(data)))
                return float(self._errors(data, validation, params).mean() / 2)

        stops_early = self.early_stopping or validate is None
        patience = int(self.n_iter_no_change) if stops_early and self.n_iter_no_change < np.inf else None
        if self.solver == "lbfgs":
            if isinstance(X, Blocks):
                raise ValueError("solver 'lbfgs' needs X on one machine; 'adam', 'adamw' and 'sgd' do not")
            history = self._minimize(X, index, int(seed[1]), validate, patience)
        else:
            history = self._descend(
                X,
                int(seed[1]),
                epochs=self.max_iter,
                index=index,
                validate=validate,
                patience=patience,
                checkpoint=saved,
            )
        self._finish(history)
        return self

    @available_if(_goes_by_steps)
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train for one epoch on the rows of `X`, from where the last call left off.

        The first call draws the weights and settles `scale`, by its rows.
        """
        if self.early_stopping:
            raise ValueError("partial_fit does not go with early_stopping=True")
        first = not hasattr(self, "params_")
        X = self._check(X, reset=first)
        if first or not hasattr(self, "_seeds"):
            self._seeds = check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=3)
        if first:
            self._start(X, None, self._seeds[0])
        seed = int(self._seeds[1]) + self._state.epochs
        curve = [] if first else self.loss_curve_
        history = self._descend(X, seed, epochs=1)
        history.loss = curve + history.loss
        self._finish(history)
        return self

    def _start(self, X: Data, index: np.ndarray | None, seed: int) -> None:
        """Network, scale, parameters and optimizer state to train from."""
        self._objective()  # names an option out of its range while there is no model yet
        n = X.shape[1]
        encoder = tuple(np.atleast_1d(self.hidden_layer_sizes).tolist())
        if not encoder or any(not isinstance(width, int) or width < 1 for width in encoder):
            raise ValueError(f"hidden_layer_sizes must be positive integers, got {self.hidden_layer_sizes!r}")
        g = "sigmoid" if self.activation == "logistic" else self.activation
        widths = (n, *encoder, *encoder[-2::-1], n)
        activations: tuple[str, ...] = (g,) * (len(widths) - 2) + (g if self.output_layer else "identity",)
        if self.output_layer:
            widths, activations = (*widths, n), (*activations, "identity")
        network, dtype = Network(widths, activations, len(encoder)), self._dtype(X)
        again = (
            self.warm_start
            and hasattr(self, "params_")
            and (self.params_.network, self.params_.dtype) == (network, dtype)
        )
        if not again:
            self.shift_, self.scale_ = self._statistics(X, index)
            self.params_ = Parameters.random(network, int(seed), dtype)
        self._state = optimizers.State.zeros(self.params_)
        self.network_ = network
        self._n_features_out = encoder[-1]

    def _descend(self, X: Data, seed: int, *, epochs: int, index: Any = None, **options: Any) -> History:
        rows = len(X) if index is None else len(index)
        auto = X.rows_a_step if isinstance(X, Blocks) else min(200, rows)
        batch = auto if self.batch_size == "auto" else int(self.batch_size)
        steps = -(-rows // min(batch, rows))
        data = {"shift": self.shift_, "scale": self.scale_, "objective": self._objective()}
        options |= {
            "optimizer": self._optimizer(rows, steps),
            "epochs": epochs,
            "batch_size": batch,
            "shuffle": self.shuffle,
            "seed": seed,
            "tol": self.tol * X.shape[1],
            "adaptive": self.learning_rate == "adaptive",
            "state": self._state,
            "progress": self.verbose > 0,
        }
        try:
            with self._callbacks(X, epochs) as callback:
                options["callback"] = callback
                if isinstance(X, Blocks):
                    engine = X.engine(
                        self.network_, n_threads=self.n_threads, dtype=self.params_.dtype, **data
                    )
                    return engine.train(self.params_, **options)
                return train(self.params_, X, engine=self._engine(), index=index, **data, **options)
        except DivergenceError as error:
            raise DivergenceError(
                str(error).replace("lower the learning rate", "lower learning_rate_init")
            ) from None

    def _minimize(self, X: Here, index: Any, seed: int, validate: Any, patience: int | None) -> History:
        """L-BFGS on the flat buffer (SciPy)."""
        params, engine, objective = self.params_, self._engine(), self._objective()
        history = History(self._state)
        best, best_flat, stale = np.inf, params.flat.copy(), 0
        began = time.perf_counter()

        def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
            trial = Parameters(params.network, params.dtype)
            trial.flat[:] = flat
            options = {"shift": self.shift_, "scale": self.scale_, "objective": objective, "seed": seed}
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
                stale = 0 if loss <= best - self.tol * X.shape[1] else stale + 1
                if loss < best:
                    best, best_flat = loss, params.flat.copy()
                    history.best_epoch = len(history.loss)
            done = Epoch(
                len(history.loss), self.max_iter, history.loss[-1], 1.0, history.seconds, params, loss
            )
            show(done)
            if tell is not None and tell(done):
                history.stop_reason = "callback"
                raise StopIteration
            if patience is not None and stale > patience:
                history.stop_reason = "tol"
                raise StopIteration

        first, _ = cost(params.flat.astype(np.float64))
        if not np.isfinite(first):
            raise DivergenceError(
                "the loss is not finite before any step: X holds too large values; scale it"
            )
        with (
            self._callbacks(X, self.max_iter) as tell,
            progress_bar(self.verbose > 0, self.max_iter, len(X)) as show,
        ):
            found = minimize(
                cost,
                params.flat.astype(np.float64),
                jac=True,
                method="L-BFGS-B",
                callback=step,
                options={"maxiter": self.max_iter, "gtol": self.tol, "maxfun": 15_000},
            )
            if not np.isfinite(found.fun):
                raise DivergenceError(
                    f"the loss was not finite in iteration {len(history.loss) + 1}: scale the data, or lower alpha. "
                    "The parameters are back at the last finite loss"
                )
            params.flat[:] = found.x
            if validate is not None:
                params.flat[:] = best_flat
        if not history.loss:
            history.loss.append(float(found.fun))
        if history.stop_reason == "epochs" and found.status != 1:  # 1: SciPy's limit of iterations
            history.stop_reason = "tol"
        return history

    def _finish(self, history: History) -> None:
        self.loss_curve_, self.validation_loss_curve_ = history.loss, history.validation_loss
        self.loss_, self.n_iter_ = history.loss[-1], len(history.loss)
        self.stop_reason_ = "max_iter" if history.stop_reason == "epochs" else history.stop_reason

    def _optimizer(self, rows: int, steps_per_epoch: int) -> optimizers.Optimizer:
        rate: float | optimizers.Schedule = self.learning_rate_init
        if self.learning_rate == "invscaling":

            def rate(step: npt.NDArray[np.int64]) -> npt.ArrayLike:
                return self.learning_rate_init / (step // steps_per_epoch * rows + 1.0) ** self.power_t

        elif self.learning_rate == "cosine":
            rate = optimizers.cosine(self.learning_rate_init, self.max_iter * steps_per_epoch)
        if self.solver == "sgd":
            return optimizers.SGD(
                learning_rate=rate,
                momentum=self.momentum,
                nesterov=self.nesterovs_momentum and self.momentum > 0,
            )
        betas = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        if self.solver == "adamw":
            return optimizers.AdamW(learning_rate=rate, weight_decay=self.alpha, **betas)
        return optimizers.Adam(learning_rate=rate, **betas)

    def _objective(self) -> Objective:
        return Objective(
            alpha=0.0 if self.solver == "adamw" else self.alpha,
            noise=self.noise,
            noise_level=self.noise_level,
            sparsity_weight=self.sparsity_weight,
            sparsity_target=self.sparsity_target,
            missing=self.missing is not None,
        )

    @contextmanager
    def _callbacks(self, X: Data, epochs: int) -> Iterator[Callable[[Epoch], bool] | None]:
        """The user's callback and scikit-learn's, as one; None where there is neither."""
        context = None
        if getattr(self, "_skl_callbacks", None):
            context = self._init_callback_context(max_subtasks=epochs)
            context.call_on_fit_task_begin(estimator=self, X=X)

        def tell(epoch: Epoch) -> bool:
            stop = self.callback is not None and bool(self.callback(epoch))
            if context is not None:
                task = context.subcontext(task_name="epoch")
                task.call_on_fit_task_begin(estimator=self, X=X)
                told = task.call_on_fit_task_end(
                    estimator=self,
                    X=X,
                    metadata={"loss": epoch.loss, "validation_loss": epoch.validation_loss},
                    reconstruction_attributes=lambda: {"params_": epoch.params.copy()},
                )
                stop = bool(told) or stop
            return stop

        yield None if context is None and self.callback is None else tell
        if context is not None:
            context.call_on_fit_task_end(
                estimator=self, X=X, reconstruction_attributes=lambda: {"params_": self.params_.copy()}
            )

    # -- what a fitted model does ---------------------------------------------------------------------------------

    @_also_lazily
    def transform(self, X: Any) -> np.ndarray:
        """The code of each row: (m, k), k the last of `hidden_layer_sizes`, in the model's dtype."""
        X = self._check_fitted(X)
        return self._over(X, lambda block: self._engine().encode(self.params_, block, **self._in()))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows from codes of shape (m, k), as ``transform`` gives: (m, n), in the scale of the data."""
        check_is_fitted(self)
        X = check_array(X, dtype=(np.float64, np.float32), input_name="X")
        if X.shape[1] != self._n_features_out:
            raise ValueError(f"X has {X.shape[1]} features, but the code has {self._n_features_out}")
        return self._out(self._engine().decode(self.params_, X))

    @_also_lazily
    def reconstruct(self, X: Any) -> np.ndarray:
        """Each row as the network gives it back: (m, n), in the scale of the data; missing cells filled in."""
        return self._over(self._check_fitted(X), self._reconstruct)

    @_also_lazily
    def reconstruction_error(self, X: Any, *, per_feature: bool = False) -> np.ndarray:
        """Mean over features of the squared error of each row: (m,) float64, in the squared units of the data.

        With `per_feature` the squared error of each cell: (m, n). Missing cells have none, and do not count.
        """
        X = self._check_fitted(X)
        weight = None if self.scale_ is None else 1 / np.square(self.scale_)
        if per_feature:
            cell = 1 if weight is None else weight
            return self._over(X, lambda block: self._cell_errors(block) * cell)
        return self._mean_errors(X, weight)

    def score(self, X: Any, y: Any = None) -> float:
        """R^2 of the reconstruction, the mean over features: 1 is perfect, 0 is as good as each feature's mean."""
        X = self._check_fitted(X)
        seen, left = ColumnStatistics(X.shape[1]), np.zeros(X.shape[1])
        for block in self._blocks(X):
            seen.add(block)
            left += self._cell_errors(block).sum(axis=0)
        spread = seen.square if self.scale_ is None else seen.square * np.square(self.scale_)
        varies = seen.most > seen.least
        return float(np.mean(np.where(varies, 1 - left / np.where(varies, spread, 1), left == 0)))

    # -- within -----------------------------------------------------------------------------------------------

    def _dtype(self, X: Data) -> np.dtype[Any]:
        if self.dtype is not None:
            return np.dtype(self.dtype)
        return np.dtype(np.float32 if X.dtype == np.float32 else np.float64)

    def _check(self, X: Any, *, reset: bool = False, name: str = "X") -> Data:
        checks: dict[str, Any] = {
            "dtype": (np.float64, np.float32),
            "ensure_all_finite": "allow-nan" if self.missing else True,
        }
        checked: np.ndarray
        if np.ma.isMaskedArray(X):
            raise TypeError(f"{name} is a masked array: pass {name}.filled(np.nan), with missing='mask'")
        X = self._in_blocks(X)
        if isinstance(X, (Blocks, Rows)):
            self.check_columns(X.shape[1], X.feature_names, reset=reset, name=name, source=X.name)
        if isinstance(X, Blocks):
            if 0 in X.shape:
                raise ValueError(f"{name} has shape {X.shape}: rows and columns are needed")
            X.each(_check_finite, self.missing is not None)
            return X
        if isinstance(X, Rows):
            data = X.resident()
            return data if isinstance(data, Rows) else check_array(data, input_name=name, **checks)
        refuse_columns(X, name)
        if name != "X":
            _check_feature_names(self, X, reset=False)
            checked = check_array(X, input_name=name, **checks)
            if checked.shape[1] != self.n_features_in_:
                raise ValueError(f"{name} has {checked.shape[1]} features, but X has {self.n_features_in_}")
            return checked
        checked = validate_data(self, X, reset=reset, **checks)
        return checked

    @staticmethod
    def _in_blocks(X: Any) -> Any:
        """A Dask array or DataFrame as Blocks, on its workers; anything else as it is."""
        if not is_dask(X):
            return X
        from fastae.distributed import DaskBlocks, find_client

        return DaskBlocks(find_client(), X)

    def check_columns(
        self,
        columns: int,
        names: Sequence[str] | None,
        *,
        reset: bool = False,
        name: str = "X",
        source: str = "X",
    ) -> None:
        """What scikit-learn's ``validate_data`` does with the columns of a frame, for other data."""
        if reset:
            self.n_features_in_ = columns
            if names is not None:
                self.feature_names_in_ = np.asarray(names, object)
            elif hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
            return
        fitted = getattr(self, "feature_names_in_", None)
        if names is not None and fitted is not None and list(names) != list(fitted):
            raise ValueError(
                f"{source} has other columns than the model was fitted with: "
                f"{difference_of_names(names, list(fitted))}"
            )
        called = name if source == "X" else source
        if columns != self.n_features_in_:
            raise ValueError(
                f"{called} has {columns} features, but the model was fitted with {self.n_features_in_}"
            )

    def _check_fitted(self, X: Any) -> Here:
        check_is_fitted(self)
        if is_dask(X) or isinstance(X, Blocks):
            raise TypeError("X must be on this machine here; give it as an array, block by block")
        checked = self._check(X)
        assert not isinstance(checked, Blocks)
        return checked

    def _read(self, X: Rows) -> Iterator[np.ndarray]:
        """The blocks of Rows, checked as arrays are."""
        for block in X:
            assert_all_finite(block, allow_nan=self.missing is not None, input_name="X")
            yield block

    def _blocks(self, X: Here, index: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """A few rows at a time of `X`, or of its rows in `index`."""
        for block in self._read(X) if isinstance(X, Rows) else [X]:
            rows = len(block) if index is None else len(index)
            for first in range(0, rows, BLOCK):
                part = slice(first, first + BLOCK)
                yield block[part] if index is None else block[index[part]]

    def _over(self, X: Here, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """function(X), for Rows block by block."""
        if not isinstance(X, Rows):
            return function(X)
        made, first = np.empty(0), 0
        for block in self._read(X):
            some = function(block)
            if not first:
                made = np.empty((len(X), *some.shape[1:]), some.dtype)
            made[first : first + len(some)] = some
            first += len(some)
        return made

    def _statistics(self, X: Data, index: np.ndarray | None) -> tuple[Any, Any]:
        """Shift and scale of each column over the rows in `index`."""
        if self.scale is None:
            return None, None
        seen = ColumnStatistics(X.shape[1])
        if isinstance(X, Blocks):
            for some in X.each(ColumnStatistics.of):
                seen.merge(some)
        else:
            for block in self._blocks(X, index):
                seen.add(block)
        if self.scale == "minmax":
            shift, spread = seen.least, seen.most - seen.least
        else:
            shift, spread = seen.mean, np.sqrt(seen.square / np.maximum(seen.count, 1))
            # A column of one value has a spread of nothing but rounding; the bound is scikit-learn's.
            rows = len(X) if index is None else len(index)
            spread[spread <= rows * np.finfo(np.float64).eps * np.abs(shift)] = 0
        shift = np.nan_to_num(shift)
        return shift, 1 / np.where(np.nan_to_num(spread) > 0, np.nan_to_num(spread), 1)

    def for_one_thread(self) -> Self:
        """A copy to be run on blocks, arrays without names, one by each of many threads."""
        made: Self = copy.copy(self)
        made.n_threads, made.callback = 1, None
        for name in ("_kept_engine", "_engine_key", "feature_names_in_"):
            made.__dict__.pop(name, None)
        return made

    def _engine(self) -> Engine:
        """The engine of these parameters; made when first used, and not part of the model."""
        key = (self.params_.network, self.n_threads, self.params_.dtype)
        if getattr(self, "_engine_key", None) != key:
            self._kept_engine, self._engine_key = Engine(*key), key
        return self._kept_engine

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        for name in ("_kept_engine", "_engine_key"):
            state.pop(name, None)
        return state

    def _in(self) -> dict[str, Any]:
        return {"shift": self.shift_, "scale": self.scale_, "missing": self.missing is not None}

    def _out(self, xhat: np.ndarray) -> np.ndarray:
        if self.scale_ is not None:
            xhat /= self.scale_
            xhat += self.shift_
        return xhat

    def _reconstruct(self, X: np.ndarray) -> np.ndarray:
        return self._out(self._engine().reconstruct(self.params_, X, **self._in()))

    def _cell_errors(self, X: np.ndarray) -> np.ndarray:
        """Squared error of each cell in float64, in the scale the network sees; 0 for missing ones."""
        xhat = self._engine().reconstruct(self.params_, X, **self._in())
        seen = X.astype(np.float64) if self.scale_ is None else (X - self.shift_) * self.scale_
        error: np.ndarray = np.square(xhat - seen)
        return np.where(np.isnan(X), 0.0, error) if self.missing else error

    def _errors(
        self, X: Here, index: Any, params: Parameters, column_weight: np.ndarray | None = None
    ) -> np.ndarray:
        """Sum of squared errors by row, in the scale the network sees, or in that which `column_weight` makes."""
        options = {"index": index, "column_weight": column_weight, **self._in()}
        return self._over(X, lambda block: self._engine().errors(params, block, **options))

    def _mean_errors(self, X: Here, column_weight: np.ndarray | None = None) -> np.ndarray:
        """Mean over the cells that are not missing of each row's squared error."""

        def mean(block: np.ndarray) -> np.ndarray:
            cells: Any = block.shape[1]
            if self.missing:
                cells = np.maximum((~np.isnan(block)).sum(axis=1), 1)
            return np.asarray(self._errors(block, None, self.params_, column_weight) / cells)

        return self._over(X, mean)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"] if self.dtype is None else []
        return tags


class AutoencoderDetector(OutlierMixin, Autoencoder):
    """Finds outliers: rows that an autoencoder of the rest gives back badly.

    A row's score is minus the mean over features of its squared error, in the scale the network sees, so that all
    features count alike.

    Parameters
    ----------
    hidden_layer_sizes and all others
        As for ``Autoencoder``.
    contamination : float in (0, 0.5], default 0.1
        Share of the training rows to be called outliers.

    Attributes
    ----------
    offset_ : float
        Rows that score below it are outliers.
    All of ``Autoencoder``'s.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        **Autoencoder._parameter_constraints,
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] | int = (32,),
        *,
        contamination: float = 0.1,
        output_layer: bool = True,
        activation: str = "sigmoid",
        solver: str = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        scale: str | None = "standard",
        noise: str | None = None,
        noise_level: float = 0.1,
        sparsity_weight: float = 0.0,
        sparsity_target: float = 0.05,
        missing: str | None = None,
        n_threads: int | None = None,
        dtype: npt.DTypeLike | None = None,
        callback: Callable[[Epoch], bool | None] | None = None,
        verbose: int = 0,
    ) -> None:
        options = locals()
        for name in self._get_param_names():
            setattr(self, name, options[name])

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        X_val: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> Self:
        """Train on the rows of `X`, as ``Autoencoder.fit``, and put the threshold where `contamination` says."""
        X = self._in_blocks(X)  # here, so that it is loaded once
        super().fit(X, y, X_val=X_val, checkpoint=checkpoint, resume=resume)
        return self.set_threshold(contamination=self.contamination, X=X)

    @available_if(_goes_by_steps)
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """As ``Autoencoder.partial_fit``; the threshold follows from the scores of this call's rows."""
        X = self._in_blocks(X)
        super().partial_fit(X, y)
        return self.set_threshold(contamination=self.contamination, X=X)

    def set_threshold(
        self,
        error: float | None = None,
        *,
        contamination: float | None = None,
        X: Any | None = None,
    ) -> Self:
        """Decide anew which rows are outliers: those of more than `error`, or the worst share of the rows of `X`.

        Parameters
        ----------
        error : float, optional
            Mean over features of the squared error, in the scale the network sees: minus a score.
        contamination : float in (0, 0.5], with X : array-like of shape (m, n), optional
            The share of `X` that is to be called outliers.
        """
        check_is_fitted(self)
        if (error is None) == (contamination is None):
            raise ValueError("set_threshold takes either error, or contamination with X")
        if error is not None:
            if not error >= 0 or X is not None:
                raise ValueError(f"error must not be negative, and comes without X, got {error!r}")
            self.offset_ = -float(error)
            return self
        if X is None or not 0 < float(contamination or 0) <= 0.5:
            raise ValueError(f"contamination must be in (0, 0.5] and come with X, got {contamination!r}")
        X = self._in_blocks(X)
        if isinstance(X, Blocks):
            scores = np.concatenate(X.each(_scores, self.for_one_thread()))
        else:
            scores = self.score_samples(X)
        self.offset_ = float(np.percentile(scores, 100.0 * float(contamination or 0)))
        return self

    @_also_lazily
    def score_samples(self, X: Any) -> np.ndarray:
        """Minus the mean over features of each row's squared error, in the scale the network sees: (m,) float64."""
        return -self._mean_errors(self._check_fitted(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """score_samples(X) - offset_: below 0 for outliers."""
        check_is_fitted(self, "offset_")
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """-1 for outliers, 1 for the others."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def explain(self, X: Any, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Which features make up a row's error, the worst first.

        Returns
        -------
        features : ndarray of shape (m, top)
            Their names where the model was fitted with names, else their columns' numbers.
        shares : ndarray of shape (m, top), float64
            Their part of the row's error, in [0, 1].
        """
        X = self._check_fitted(X)
        if top < 1 or top % 1:
            raise ValueError(f"top must be an integer of at least 1, got {top!r}")
        shape = (len(X), min(int(top), X.shape[1]))
        features, shares, first = np.empty(shape, np.intp), np.empty(shape), 0
        for block in self._blocks(X):
            error = self._cell_errors(block)
            worst = np.argsort(-error, axis=1, kind="stable")[:, : int(top)]
            total = error.sum(axis=1, keepdims=True)
            part = slice(first, first + len(block))
            features[part] = worst
            shares[part] = np.take_along_axis(error, worst, axis=1) / np.where(total > 0, total, 1)
            first += len(block)
        names = getattr(self, "feature_names_in_", None)
        return (features if names is None else np.asarray(names, object)[features]), shares
