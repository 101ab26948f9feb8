"""Autoencoder: the estimator that is fitted by epochs of steps or by L-BFGS."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self, cast

import numpy as np
from sklearn.utils import check_random_state

from fastae import optimizers
from fastae.checks import in_units
from fastae.data.row_source import ArrayRows, Rows, RowSource
from fastae.estimator.automatic import (
    CODE_MOST,
    FLOAT32_ROWS,
    Budget,
    Start,
    automatic_code,
    budget_of,
    patience,
    unit_of,
)
from fastae.estimator.callbacks import callbacks
from fastae.estimator.fitted import FittedModel
from fastae.estimator.inputs import check, check_weight
from fastae.estimator.model_files import ModelFiles
from fastae.estimator.quality import warn_if_code_is_wide, warn_if_unfinished, warn_if_worse_than_pca
from fastae.estimator.scaling import shift_and_scale
from fastae.estimator.sklearn_types import CallbackSupportMixin, available_if, fit_context, with_callbacks
from fastae.estimator.whole import changed_whole
from fastae.network import MOST_UNITS, Activation, Network, Parameters
from fastae.training import lbfgs
from fastae.training.checkpoint import Checkpoint
from fastae.training.gradient_descent import train_on
from fastae.training.history import DivergenceError, History, naming_rate
from fastae.training.options import TrainingOptions
from fastae.training.pca import (
    RANK_TOLERANCE,
    PrincipalComponents,
    error_of_observed_cells,
    principal_components,
    start_at_pca,
)

# Settings that may differ between a checkpoint and the fit that resumes it.
MAY_DIFFER = {"max_iter", "n_threads", "warm_start", "callback", "verbose"}


def goes_by_steps(model: "Autoencoder") -> bool:
    """True, or an AttributeError that names the solver, as ``available_if`` expects."""
    if model.solver == "lbfgs":
        raise AttributeError("partial_fit needs solver 'adam', 'adamw' or 'sgd', got 'lbfgs'")
    return True


class Autoencoder(ModelFiles, CallbackSupportMixin, FittedModel):
    """An autoencoder of dense layers that minimises the mean over rows of half the squared error, or of another loss.

    Parameters have the names of scikit-learn's MLPRegressor where they mean the same.

    Parameters
    ----------
    hidden_layer_sizes : int, sequence of int or "auto", default "auto"
        Widths of the encoder's layers; the last one is the code. The decoder mirrors the encoder, up to n features.
        "auto": one layer of as many units as principal components hold 90% of the variance, n / 2 and 256 at most.
    output_layer : bool, default True
        Add a final linear layer of n outputs. Without it, the decoder's last layer is linear itself. With the loss
        "bernoulli", that layer's activation is the sigmoid.
    activation : "sigmoid", "logistic", "tanh", "relu" or "identity", default "sigmoid"
        Activation of all other layers; "logistic" is another name for "sigmoid".
    init : "pca" or "random", default "pca"
        Parameters to start from. "pca": those at which the network reconstructs each row as PCA with as many components
        does, with all units in the nearly linear range of the activation; PCA of more than 4096 columns goes by 1024
        of the rows. "random": Glorot-uniform weights, as for ``fastae.Parameters.random``.
    solver : "adam", "adamw", "sgd" or "lbfgs", default "adam"
        Optimizer. "lbfgs" uses all rows in every iteration; the others take steps over mini-batches.
    loss : "squared_error", "huber" or "bernoulli", default "squared_error"
        What training minimises, as ``fastae.Objective`` describes: "huber" for data with outliers that should not
        count by their square, "bernoulli" for binary data and others in [0, 1], which needs a `scale` of "minmax" or
        None. Validation losses and all errors of rows are of the squared error, whatever the loss.
    huber_delta : float, default 1.0
        The residual beyond which "huber" is linear, in the network's scale.
    alpha : float, default 1e-4
        L2 penalty as in MLPRegressor: adds alpha/(2m) sum(W^2) to the loss of a batch of m rows. For "adamw", the
        decoupled weight decay instead.
    batch_size : int or "auto", default "auto"
        Rows per step. "auto": min(128, m); more where one epoch would otherwise exceed the steps of `max_iter`. Not
        used by "lbfgs".
    learning_rate : "constant", "invscaling", "adaptive" or "cosine", default "cosine"
        Learning-rate schedule. "constant" keeps `learning_rate_init`. "invscaling" divides it by (r + 1)^power_t,
        where r is the number of rows processed in earlier epochs. "adaptive" divides it by 5 whenever training would
        stop. "cosine" lowers it to 0 along half a cosine over `max_iter` epochs. Not used by "lbfgs".
    learning_rate_init : float or "auto", default "auto"
        Learning rate of the first step, for all layers. "auto": 0.06 for sigmoid units and an eighth of it in the first
        layer, 0.03 for "tanh" and half of it in the first layer, 0.03 for other activations, 0.01 for "sgd"; times
        min(1, 64 / w)^(2/3) for a widest layer of w units, times min(1, 3 / l)^2 for l layers. For "adam", the rates of
        the last layer are multiplied with `unit_`, except for the loss "bernoulli", and those of the first layer's
        weights divided by it where it is above 1, because weights to and from columns differ by their unit. For
        "cosine" with fewer than 1000 steps s, also times s / 1000 from "pca", and times (s / 1000)^(1/2) in a warm
        start. In ``partial_fit``, "cosine" keeps a tenth of the rate, for any number of steps.
    power_t : float, default 0.5
        Exponent of "invscaling".
    max_iter : int or "auto", default "auto"
        Maximum number of epochs; of iterations for "lbfgs". "auto": as many as make up 10,000 sqrt(64 / w) steps for a
        widest layer of w units, or 10,000 (64 / w) where w is below 64, and 50,000 at most; fewer for batches of more
        than 128 rows, by the square root of their size; and at most 5 steps per row, or up to 20 where the rows have
        14 to 56 times as many cells as the network has parameters. At least 1 epoch. For "lbfgs", 1000.
    shuffle : bool, default True
        Draw the rows of each batch at random, without replacement, in a new order each epoch.
    random_state : int, RandomState or None, default None
        Seed of the initial weights, the batches, the validation rows and the noise. None: NumPy's global state.
    tol : float, default 1e-4
        What counts as an improvement, as in MLPRegressor. With `early_stopping`: an increase by `tol` of the R^2 of the
        validation rows, that is, a decrease of their loss by `tol` / 2 times the sum of the columns' variances in the
        network's scale. Without: a decrease by `tol` of the loss per feature, `loss_` / n. "lbfgs" also stops when no
        component of the gradient is larger than `tol`.
    n_iter_no_change : int or "auto", default "auto"
        Training stops after more than this many consecutive epochs without an improvement of the validation loss, or
        without validation rows, of the loss. ``numpy.inf``: never. "auto": a tenth of the epochs, at least 10, with
        `early_stopping`; otherwise never for "cosine", whose last epochs are the best, and 10 for other schedules.
    momentum : float, default 0.9
        Momentum of "sgd", in [0, 1).
    nesterovs_momentum : bool, default True
        Use Nesterov's momentum for "sgd".
    beta_1 : float, default 0.9
        Decay rate of the first moment, for "adam" and "adamw", in [0, 1).
    beta_2 : float, default 0.99
        Decay rate of the second moment, for "adam" and "adamw", in [0, 1).
    epsilon : float, default 1e-8
        Added to the denominator of a step of "adam" or "adamw".
    warm_start : bool, default False
        Begin `fit` with the parameters of the last one; the optimizer's state and its schedule start anew.
    early_stopping : bool, default False
        Set validation rows aside, stop by their loss, and keep the parameters with the lowest validation loss.
    validation_fraction : float, default 0.1
        Share of the rows set aside by `early_stopping`, in (0, 1).
    scale : "standard", "minmax" or None, default "standard"
        Scale each column before it enters the network, to mean 0 and standard deviation 1 or to the range 0 to 1.
        Reconstructions are scaled back. None: no scaling.
    noise : "gaussian", "mask", "swap" or None, default None
        Corrupt the scaled input during training (a denoising autoencoder), as ``fastae.Objective`` describes.
    noise_level : float, default 0.1
        Standard deviation of "gaussian" noise in the network's scale, or probability that "mask" or "swap" changes a
        cell.
    sparsity_weight : float, default 0.0
        Weight of the Kullback-Leibler penalty on the mean code of a batch, as ``fastae.Objective`` describes.
    sparsity_target : float, default 0.05
        Mean value of a code unit at which that penalty is 0, in (0, 1).
    missing : "mask" or None, default None
        "mask": cells that are NaN are missing, and count neither as input nor in the error. None: NaN is an error.
    n_threads : int or None, default None
        Maximum number of threads on each machine. None: all CPUs that this process may use, or the threads that Dask
        gives to each worker.
    dtype : "float32", "float64", "bfloat16" or None, default None
        Floating-point type for training and inference. None: float32, to which rows are rounded once they are scaled;
        but float64 for data that are not float32 where `scale` is None, `solver` is "lbfgs" or m is below 1000. Results
        then have the dtype of `X`, or float64 for integers. "bfloat16": parameters and results are float32, and matrix
        products take operands rounded to bfloat16, as ``fastae.Engine`` describes; needs a CPU with AVX512_BF16, and
        rows on this machine.
    callback : callable or None, default None
        Called with a ``fastae.training.Epoch`` after each epoch. Training stops when it returns True.
    verbose : int, default 0
        1 shows a progress bar on stderr.

    Attributes
    ----------
    params_ : Parameters
        Trained weights and biases.
    network_ : Network
        Widths and activations of the layers.
    shift_ : ndarray of shape (n,), or None
        The network sees (X - shift_) * scale_. None where `scale` is None.
    scale_ : ndarray of shape (n,), or None
        See `shift_`.
    loss_ : float
        Loss of the last epoch: the last entry of `loss_curve_`.
    loss_curve_ : list of float
        Loss of each epoch, in the network's scale.
    validation_loss_curve_ : list of float
        Validation loss after each epoch, in the network's scale; empty without validation rows.
    error_over_mean_ : float or None
        Mean squared error of the training rows, in the network's scale, divided by that of the columns' means. None
        where all rows are alike, and after ``partial_fit``. Of more than 4096 columns, the latter error is estimated
        from 1024 rows; it is None where these are on several machines.
    error_over_pca_ : float or None
        The same divided by the error of PCA with as many components as the narrowest layer has units: below 1, the
        model beats PCA. A missing cell enters PCA as the mean, and does not count in its error either. For a few
        components of more than 1024 columns, PCA's error is an estimate, up to about 1% too large. None where that
        error is 0, where `error_over_mean_` is None, and for more than 1024 rows of more than 4096 columns.
    auto_ : dict
        The values of the settings that are "auto", by name, and `rate_factors`, what the learning rates of some
        parameters are multiplied with, as for ``fastae.Adam``; empty for a model file of a version that did not store
        them. `n_iter_no_change` is None where training does not stop by it.
    unit_ : float
        What automatic learning rates go by: the largest standard deviation of a column of the training rows in the
        network's scale, to two digits, where a missing cell counts as the mean; of more than 1024 columns and a narrow
        code, an estimate. That of the first training holds in warm starts and ``partial_fit``. 1 with the scale
        "standard", for several networks, where all rows are alike, and where it is not known: of more than 4096
        columns on several machines, and in models of earlier versions.
    n_iter_ : int
        Number of epochs, or of iterations for "lbfgs".
    stop_reason_ : "max_iter", "tol" or "callback"
        What ended training.
    n_features_in_ : int
        Number of features n of the training data.
    feature_names_in_ : ndarray of shape (n,)
        Names of the features; only where the training data have names.
    """

    network_: Network
    error_over_mean_: float | None
    error_over_pca_: float | None
    _state: optimizers.State
    unit_: float

    # -- fitting ------------------------------------------------------------------------------------------------

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> Self:
        """Train on the rows of `X`.

        A fit takes effect as a whole. After an error or Ctrl-C, the estimator is what it was before the call: the old
        model, or not fitted. `checkpoint` keeps what an interrupted fit has learned.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Training data. float32 and float64 arrays are not copied. Rows (``fastae.open_rows``) larger than one chunk
            are read chunk by chunk and need not fit in memory. Dask collections stay on their workers, which do the
            training (``fastae.distributed``); a `batch_size` of "auto" is then 512 rows of each partition.
        y : None, optional
            Ignored.
        sample_weight : array-like of shape (m,), optional
            Weight of each row in the loss, in `shift_` and `scale_`, and in the validation loss of the rows that
            `early_stopping` sets aside: a row of weight 2 counts like two such rows, one of weight 0 not at all.
            `alpha` is divided by the sum of a batch's weights, so weights much smaller than 1 make it count more. `X`
            must be in memory. Default: 1.
        X_val : array-like of shape (m', n) or Rows, optional
            Validation rows, which all count alike: the parameters with the lowest validation loss are kept. With
            `early_stopping`, these rows also decide when to stop, and no others are set aside.
        checkpoint : path, optional
            File from which an interrupted fit can resume. It is written when training ends and, before that, at most
            every 5 seconds and for at most a twentieth of the time. Not available for "lbfgs".
        resume : bool, default False
            Resume from `checkpoint`; the result has the same bits as that of a fit that was never interrupted. Without
            such a file, training starts from the beginning. `X` and the settings must be the same, except for
            `max_iter`, which may be larger unless `learning_rate` is "cosine", or `early_stopping` goes by an "auto"
            `n_iter_no_change`.

        Returns
        -------
        Autoencoder
            The fitted estimator itself.

        Raises
        ------
        ValueError
            The data or a setting are not valid, or `checkpoint` is damaged, belongs to another run, or is a file that
            `X` or `X_val` is read from. The message names the argument.
        OSError
            `checkpoint` cannot be written.
        DivergenceError
            The loss became infinite or NaN. The message says when, and what may help.
        """
        with changed_whole(self) as model:
            model._fit(X, sample_weight, X_val=X_val, checkpoint=checkpoint, resume=resume)
        return self

    @with_callbacks
    def _fit(
        self,
        X: Any,
        sample_weight: Any,
        *,
        X_val: Any,
        checkpoint: str | os.PathLike[str] | None,
        resume: bool,
    ) -> None:
        """See ``fit``, for the copy that it works on."""
        rows, weight = self._rows_and_weight(X, sample_weight)
        validation = None if X_val is None else check(self, X_val, name="X_val")
        for data in (X, X_val):
            Checkpoint.check_not_input(checkpoint, data)
        saved = Checkpoint.at(checkpoint, resume)
        if saved is not None and self.solver == "lbfgs":
            raise ValueError(
                "checkpoint needs solver 'adam', 'adamw' or 'sgd', got 'lbfgs', which has no checkpoints"
            )
        seed = self._seed_of_fit(saved, validation, {})
        whole, validation_weight = rows, None
        if self.early_stopping and validation is None:
            rows, validation = rows.split(self.validation_fraction, int(seed[2]))
            validation_weight = weight
        components, start = self._start(rows, seed[0], weight)
        if saved is not None:
            self.unit_ = saved.keep("unit", self.unit_)  # last bits may differ elsewhere
        budget = self._budget(rows, start=start)
        stops_after = patience(self, budget.epochs, validates=validation is not None)
        self.auto_ = self._chosen(budget, stops_after)
        tol = self._tolerance(components)
        self._print_auto()
        validate = None if validation is None else self._validation_loss(validation, validation_weight)
        self._finish(
            self._train(
                rows,
                weight,
                budget,
                self._optimizer(budget),
                epochs=budget.epochs,
                seed=int(seed[1]),
                validate=validate,
                patience=stops_after,
                tol=tol,
                checkpoint=saved,
            )
        )
        self._compare(self._error_of(rows, whole, weight), rows, weight, components)
        warn_if_unfinished(self, budget, tol)
        warn_if_worse_than_pca(self)

    @available_if(goes_by_steps)
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on the rows of `X`, continuing from the last call.

        The first call computes the initial parameters, `shift_` and `scale_` from its rows. The learning rate of
        "cosine" does not fall, as it is not known when training ends. After an error or
        Ctrl-C, the estimator is what it was before the call.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Training data of this epoch.
        y : None, optional
            Ignored.
        sample_weight : array-like of shape (m,), optional
            Weight of each row, as for ``fit``. Default: 1.

        Returns
        -------
        Autoencoder
            The estimator itself.

        Raises
        ------
        AttributeError
            The solver is "lbfgs".
        ValueError
            The data or a setting are not valid, or `early_stopping` is True.
        DivergenceError
            The loss became infinite or NaN.
        """
        with changed_whole(self) as model:
            model._partial_fit(X, sample_weight)
        return self

    @with_callbacks
    def _partial_fit(self, X: Any, sample_weight: Any) -> None:
        """See ``partial_fit``, for the copy that it works on."""
        first = self._is_first_part()
        rows, weight = self._rows_and_weight(X, sample_weight, reset=first)
        self._seed_parts(first)
        if first:
            self._start(rows, self._seeds[0], weight)
        else:  # copies, because the steps write to them
            self.params_, self._state = self.params_.copy(), self._state.copy()
        seed = int(self._seeds[1]) + self._state.epochs
        curve = [] if first else self.loss_curve_
        budget = self._budget(rows, ends=False)
        self.auto_ = self._chosen(budget, None)
        history = self._train(rows, weight, budget, self._optimizer(budget, ends=False), epochs=1, seed=seed)
        history.loss = curve + history.loss
        self._finish(history)
        self.error_over_mean_ = self.error_over_pca_ = None

    # -- parts of a fit, also of several networks ---------------------------------------------------------------

    def _rows_and_weight(
        self, X: Any, sample_weight: Any, *, reset: bool = True
    ) -> tuple[RowSource, np.ndarray | None]:
        """`X` and `sample_weight`, checked; rows on several machines are refused where they cannot be trained on."""
        rows = check(self, X, reset=reset)
        weight = check_weight(rows, sample_weight)
        if not rows.is_local and self.solver == "lbfgs":
            raise ValueError("solver 'lbfgs' needs X on one machine; 'adam', 'adamw' and 'sgd' do not")
        if not rows.is_local and self._in_bfloat16:
            raise ValueError("dtype 'bfloat16' needs X on one machine; 'float32' does not")
        return rows, weight

    def _drawn_seeds(self) -> np.ndarray:
        """Three seeds, drawn from `random_state`."""
        return np.asarray(check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=3))

    def _seed_of_fit(
        self, saved: Checkpoint | None, validation: RowSource | None, more: dict[str, Any]
    ) -> list[int]:
        """The seeds of a fit; those of the run that is resumed, whose settings and `more` must be the same."""
        seed: list[int] = self._drawn_seeds().tolist()
        if saved is None:
            return seed
        settings = {name: value for name, value in self._settings().items() if name not in MAY_DIFFER}
        shape = None if validation is None else validation.shape
        saved.agree("estimator", settings | more | {"X_val.shape": shape})
        kept: list[int] = saved.keep("seed", seed)  # random_state may be None
        return kept

    def _is_first_part(self) -> bool:
        """Whether ``partial_fit`` is called for the first time; a ValueError if a setting does not go with it."""
        if self.early_stopping:
            raise ValueError("partial_fit cannot be combined with early_stopping=True")
        return not hasattr(self, "params_")

    def _seed_parts(self, first: bool) -> None:
        """Draw the seeds of all calls of ``partial_fit``."""
        if first or not hasattr(self, "_seeds"):
            self._seeds = self._drawn_seeds()

    def _print_auto(self) -> None:
        """Print what the settings that are "auto" stand for, where the user wants to see progress."""
        if self.verbose and self.auto_:
            chosen = (f"{name}={value}" for name, value in self.auto_.items() if value is not None)
            print("auto:", ", ".join(chosen), file=sys.stderr)

    # -- parts of a fit of one network --------------------------------------------------------------------------

    def _start(
        self, X: RowSource, seed: int, weight: np.ndarray | None
    ) -> tuple[PrincipalComponents | None, Start]:
        """Set network, scale, parameters and optimizer state to train from.

        Returns what the data's PCA is, and what the parameters are.
        """
        self._objective()  # an option out of range is an error before there is a model
        n, dtype = X.shape[1], self._dtype(X)
        if self.warm_start and self.dtype is None and hasattr(self, "params_"):
            dtype = self.params_.dtype
        encoder: Sequence[Any] | None = None
        if not isinstance(self.hidden_layer_sizes, str):
            encoder = np.atleast_1d(self.hidden_layer_sizes).tolist()
        elif self.warm_start and hasattr(self, "network_") and self.network_.widths[0] == n:
            encoder = self.network_.widths[1 : self.network_.code_layer + 1]
        network = None if encoder is None else self._network(n, encoder)
        again = (
            self.warm_start
            and hasattr(self, "params_")
            and (self.params_.network, self.params_.dtype) == (network, dtype)
        )
        if not again:
            self.shift_, self.scale_ = shift_and_scale(self, X, weight)
        components = principal_components(
            X,
            max(network.widths[1 : network.code_layer + 1]) if network else CODE_MOST,
            dtype,
            n_threads=self.n_threads,
            shift=self.shift_,
            scale=self.scale_,
            missing=self.missing is not None,
            sample_weight=weight,
            centred=self.scale == "standard" and not again,
        )
        if network is None:
            network = self._network(n, [automatic_code(n, components)])
        start: Start = "warm" if again else "random"
        if again:
            self.params_ = self.params_.copy()  # because the steps write to them
        elif components is None or self._value("init") == "random":
            self.params_ = Parameters.random(network, int(seed), dtype)
        else:
            self.params_, start = start_at_pca(network, components, int(seed), dtype), "pca"
        self._state = optimizers.State.zeros(self.params_)
        if not again:
            self.unit_ = unit_of(self, None if components is None else components.deviation)
        self.network_ = network
        self._n_features_out = network.widths[network.code_layer]
        warn_if_code_is_wide(self, self._n_features_out, n)
        return components, start

    def _network(self, columns: int, encoder: Sequence[Any]) -> Network:
        """The network whose encoder has these widths."""
        if not encoder or any(not isinstance(width, int) or width < 1 for width in encoder):
            raise ValueError(
                f"hidden_layer_sizes must be 'auto' or positive integers, got {self.hidden_layer_sizes!r}"
            )
        if max(encoder) > MOST_UNITS:
            raise ValueError(f"hidden_layer_sizes must be at most {MOST_UNITS}, got {max(encoder)}")
        g = "sigmoid" if self.activation == "logistic" else self.activation
        widths = (columns, *encoder, *encoder[-2::-1], columns)
        top: Activation = "sigmoid" if self.loss == "bernoulli" else "identity"
        activations: tuple[Activation, ...] = (g,) * (len(widths) - 2) + (
            g if self._value("output_layer") else top,
        )
        if self._value("output_layer"):
            widths, activations = (*widths, columns), (*activations, top)
        return Network(widths, activations, len(encoder))

    def _dtype(self, X: RowSource) -> np.dtype[Any]:
        """The dtype of the parameters."""
        if self._in_bfloat16:
            return np.dtype(np.float32)
        if self.dtype is not None:
            return np.dtype(self.dtype)
        suffices = self.scale is not None and self.solver != "lbfgs" and len(X) >= FLOAT32_ROWS
        return np.dtype(np.float32 if suffices or X.dtype == np.float32 else np.float64)

    def _budget(self, rows: RowSource, *, start: Start = "pca", ends: bool = True) -> Budget:
        """How to train the network on these rows."""
        widths, batch = self.network_.widths, rows.default_batch_size
        return budget_of(self, len(rows), widths, batch, start=start, ends=ends, unit=self.unit_)

    def _chosen(self, budget: Budget, stops_after: int | None) -> dict[str, Any]:
        """What the settings that are "auto" stand for in this fit."""
        values = {
            "hidden_layer_sizes": list(self.network_.widths[1 : self.network_.code_layer + 1]),
            "batch_size": budget.batch_size,
            "learning_rate_init": budget.rate,
            "max_iter": budget.epochs,
            "n_iter_no_change": stops_after,
        }
        if self.solver == "lbfgs":
            del values["batch_size"], values["learning_rate_init"]
        chosen = {name: value for name, value in values.items() if isinstance(getattr(self, name), str)}
        if "learning_rate_init" in chosen and budget.rate_factors:
            chosen["rate_factors"] = budget.rate_factors
        return chosen

    def _tolerance(self, components: PrincipalComponents | None) -> float:
        """The decrease of the loss that counts as an improvement."""
        n = self.network_.widths[0]
        if not self.early_stopping:
            return self.tol * n
        total = components.total if components is not None else 0.0
        # Half of it is the loss at R^2 = 0; rounded, so that a run is resumed where last bits differ
        return self.tol * float(f"{(total or n) / 2:.3g}")

    def _error_of(self, rows: RowSource, whole: RowSource, weight: np.ndarray | None) -> float:
        """Mean over the training rows of the sum of squared errors; `whole` holds the rows set aside as well."""
        return 2 * self._validation_loss(rows, weight)(self.params_)

    def _compare(
        self,
        error: float,
        rows: RowSource,
        weight: np.ndarray | None,
        components: PrincipalComponents | None,
    ) -> None:
        """Set how large the error of the training rows is next to that of the mean, and of PCA."""
        self.error_over_mean_ = self.error_over_pca_ = None
        if components is None or not components.total > 0:
            return
        self.error_over_mean_ = error / components.total
        if not components.of_all_rows:
            return
        most = min(self.network_.widths)
        pca = components.error(most)
        if self.missing:  # of which the filled-in cells are a part
            pca = error_of_observed_cells(
                rows,
                components,
                most,
                self.params_.dtype,
                n_threads=self.n_threads,
                shift=self.shift_,
                scale=self.scale_,
                sample_weight=weight,
            )
        if pca > RANK_TOLERANCE * components.total:
            self.error_over_pca_ = error / pca

    def _validation_loss(self, rows: RowSource, weight: np.ndarray | None) -> Callable[[Parameters], float]:
        """A function that gives the loss of these rows at given parameters."""
        if weight is not None:
            local = cast(ArrayRows, rows)
            chosen = local.of_array(weight)
            if not chosen.any():
                raise ValueError("sample_weight is zero in every row that early_stopping sets aside")
            chosen, _ = in_units(chosen)
            return lambda params: float(
                np.average(self._errors(local.array, local.index, params), weights=chosen) / 2
            )

        def validate(params: Parameters) -> float:
            return rows.mean_over_rows(partial(self._model_for(rows)._errors, params=params)) / 2

        return validate

    def _train(
        self,
        rows: RowSource,
        weight: np.ndarray | None,
        budget: Budget,
        optimizer: optimizers.Optimizer,
        **options: Any,
    ) -> History:
        """By epochs or by L-BFGS; options are those of ``TrainingOptions`` that are not settings."""
        data: dict[str, Any] = {"shift": self.shift_, "scale": self.scale_, "objective": self._objective()}
        if weight is not None:
            data["sample_weight"] = weight
        with callbacks(self, rows, options["epochs"]) as callback:
            asked = TrainingOptions(
                **options,
                batch_size=budget.batch_size,
                shuffle=self.shuffle,
                adaptive=self.learning_rate == "adaptive" and self.solver != "lbfgs",
                callback=callback,
                progress=self.verbose > 0,
                restores=False,  # after an error, nobody sees this copy
            )
            try:
                if self.solver == "lbfgs":
                    local = cast(Rows, rows)
                    return lbfgs.minimize(
                        self.params_,
                        local,
                        self._state,
                        asked,
                        engine=self._engine(),
                        max_slope=self.tol,
                        **data,
                    )
                data |= {"engine": self._engine, "n_threads": self.n_threads}
                return train_on(rows, self.params_, optimizer, self._state, asked, **data)
            except DivergenceError as error:
                for _ in rows if isinstance(rows, Rows) else ():
                    pass  # an error if they hold NaN or infinity, which names the column
                raise naming_rate(error, "learning_rate_init") from None

    def _finish(self, history: History) -> None:
        self.loss_curve_, self.validation_loss_curve_ = history.loss, history.validation_loss
        self.loss_, self.n_iter_ = history.loss[-1], len(history.loss)
        self.stop_reason_ = "max_iter" if history.stop_reason == "epochs" else history.stop_reason
