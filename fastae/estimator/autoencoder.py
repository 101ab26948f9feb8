"""Autoencoder: fitted to the rows of X, by epochs of gradient steps or by L-BFGS."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Self, cast

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if

from fastae import optimizers
from fastae.data.row_source import Rows, RowSource
from fastae.estimator.callbacks import CallbackSupportMixin, callbacks, with_callbacks
from fastae.estimator.fitted import FittedModel
from fastae.estimator.inputs import check
from fastae.estimator.model_files import ModelFiles
from fastae.estimator.scaling import shift_and_scale
from fastae.network import Network, Parameters
from fastae.training import lbfgs
from fastae.training.checkpoint import Checkpoint
from fastae.training.gradient_descent import train_on
from fastae.training.history import DivergenceError, History
from fastae.training.options import TrainingOptions

_MAY_DIFFER = {
    "max_iter",
    "n_threads",
    "warm_start",
    "callback",
    "verbose",
}  # between a checkpoint and the fit that resumes it


def goes_by_steps(model: "Autoencoder") -> bool:
    """True, or an AttributeError that names the solver, as ``available_if`` expects."""
    if model.solver == "lbfgs":
        raise AttributeError("partial_fit needs solver 'adam', 'adamw' or 'sgd', got 'lbfgs'")
    return True


class Autoencoder(ModelFiles, CallbackSupportMixin, FittedModel):
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

    _state: optimizers.State

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
            float32 and float64 data are not copied. Rows (``fastae.open_rows``) that fill more than a chunk are read
            chunk by chunk, and need not fit in memory. Dask collections stay on the workers, which do the training
            (``fastae.distributed``); batch_size="auto" is then 512 rows of each partition.
        y : ignored
        X_val : array-like of shape (m', n) or Rows, optional
            Validation rows: fit keeps the parameters with the least validation loss. With `early_stopping`, training
            also stops by this loss, and no rows of `X` are set aside.
        checkpoint : path, optional
            A file to resume from after an interruption. It is written when training ends, and before that at most
            every 5 seconds and for at most a twentieth of the time. Not for solver "lbfgs".
        resume : bool, default False
            Resume from `checkpoint`, with the same bits as a fit that was never interrupted; without such a file, start
            a new fit. `X` and the settings must be as they were, but `max_iter` may have grown.

        Raises
        ------
        ValueError
            Data or a parameter is wrong, and the message names it; or `checkpoint` is damaged or belongs to another
            run.
        OSError
            `checkpoint` cannot be written.
        DivergenceError
            The loss was no longer finite; the message says when, and what helps. The estimator keeps the last
            parameters with a finite loss.
        """
        rows = check(self, X, reset=True)
        validation = None if X_val is None else check(self, X_val, name="X_val")
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=3).tolist()
        saved = Checkpoint.at(checkpoint, resume)
        if saved is not None:
            if self.solver == "lbfgs":
                raise ValueError(
                    "checkpoint needs solver 'adam', 'adamw' or 'sgd', got 'lbfgs', which has no checkpoints"
                )
            settings = {name: value for name, value in self._settings().items() if name not in _MAY_DIFFER}
            saved.agree(
                "estimator", {**settings, "X_val.shape": None if validation is None else validation.shape}
            )
            seed = saved.keep("seed", seed)  # random_state may be None
        if self.solver == "lbfgs" and not rows.is_local:
            raise ValueError("solver 'lbfgs' needs X on one machine; 'adam', 'adamw' and 'sgd' do not")
        if self.early_stopping and validation is None:
            rows, validation = rows.split(self.validation_fraction, int(seed[2]))
        self._start(rows, seed[0])
        validate = None if validation is None else self._validation_loss(validation)
        stops_early = self.early_stopping or validate is None
        patience = int(self.n_iter_no_change) if stops_early and self.n_iter_no_change < np.inf else None
        self._finish(
            self._train(
                rows,
                epochs=self.max_iter,
                seed=int(seed[1]),
                validate=validate,
                patience=patience,
                checkpoint=saved,
            )
        )
        return self

    @available_if(goes_by_steps)
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train for one epoch on the rows of `X`, from the parameters of the last call.

        The first call draws the weights, and computes the scale from its rows.
        """
        if self.early_stopping:
            raise ValueError("partial_fit cannot be combined with early_stopping=True")
        first = not hasattr(self, "params_")
        rows = check(self, X, reset=first)
        if first or not hasattr(self, "_seeds"):
            self._seeds = check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=3)
        if first:
            self._start(rows, self._seeds[0])
        seed = int(self._seeds[1]) + self._state.epochs
        curve = [] if first else self.loss_curve_
        history = self._train(rows, epochs=1, seed=seed)
        history.loss = curve + history.loss
        self._finish(history)
        return self

    def _start(self, X: RowSource, seed: int) -> None:
        """Set network, scale, parameters and optimizer state to train from."""
        self._objective()  # an option out of range is an error before there is a model
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
            self.shift_, self.scale_ = shift_and_scale(self, X)
            self.params_ = Parameters.random(network, int(seed), dtype)
        self._state = optimizers.State.zeros(self.params_)
        self.network_ = network
        self._n_features_out = encoder[-1]

    def _dtype(self, X: RowSource) -> np.dtype[Any]:
        if self.dtype is not None:
            return np.dtype(self.dtype)
        return np.dtype(np.float32 if X.dtype == np.float32 else np.float64)

    def _validation_loss(self, rows: RowSource) -> Callable[[Parameters], float]:
        """A function that gives the loss of these rows at given parameters."""

        def validate(params: Parameters) -> float:
            return rows.mean_over_rows(partial(self._model_for(rows)._errors, params=params)) / 2

        return validate

    def _train(self, rows: RowSource, **options: Any) -> History:
        """By epochs or by L-BFGS; options are those of ``TrainingOptions`` that are not settings."""
        batch_size = rows.default_batch_size if self.batch_size == "auto" else int(self.batch_size)
        data: dict[str, Any] = {"shift": self.shift_, "scale": self.scale_, "objective": self._objective()}
        with callbacks(self, rows, options["epochs"]) as callback:
            asked = TrainingOptions(
                **options,
                batch_size=batch_size,
                shuffle=self.shuffle,
                tol=self.tol * rows.shape[1],
                adaptive=self.learning_rate == "adaptive" and self.solver != "lbfgs",
                callback=callback,
                progress=self.verbose > 0,
            )
            if self.solver == "lbfgs":
                local = cast(Rows, rows)
                return lbfgs.minimize(
                    self.params_, local, self._state, asked, engine=self._engine(), max_slope=self.tol, **data
                )
            optimizer = self._optimizer(len(rows), -(-len(rows) // min(batch_size, len(rows))))
            data |= {"engine": self._engine, "n_threads": self.n_threads}
            try:
                return train_on(rows, self.params_, optimizer, self._state, asked, **data)
            except DivergenceError as error:
                raise DivergenceError(
                    str(error).replace("lower the learning rate", "lower learning_rate_init")
                ) from None

    def _finish(self, history: History) -> None:
        self.loss_curve_, self.validation_loss_curve_ = history.loss, history.validation_loss
        self.loss_, self.n_iter_ = history.loss[-1], len(history.loss)
        self.stop_reason_ = "max_iter" if history.stop_reason == "epochs" else history.stop_reason
