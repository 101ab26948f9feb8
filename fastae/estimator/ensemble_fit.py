"""EnsembleFit: fitting the networks of a detector."""

import os
import time
from dataclasses import replace
from typing import Any, cast

import numpy as np

from fastae.data.row_source import ArrayRows, RowSource
from fastae.data.weighted import counted
from fastae.distributed.spread import train_spread
from fastae.engine import thread_pool
from fastae.estimator.automatic import patience
from fastae.estimator.callbacks import callbacks
from fastae.estimator.ensemble import SHARE, Ensemble, geometric_mean
from fastae.estimator.ensemble_checkpoint import EnsembleCheckpoint
from fastae.estimator.ensemble_methods import EnsembleMethods
from fastae.estimator.ensemble_training import (
    KEPT_MOST,
    Bags,
    Trainee,
    can_start_from,
    lengths_without,
    options_of,
    out_of_bag_mean,
    ratio_of_quantiles,
    residual_moments,
    rows_to_keep,
    start_networks,
    train_alone,
    train_here,
    training_array,
    typical_errors,
)
from fastae.estimator.inputs import check
from fastae.estimator.neighbours import FLOOR
from fastae.estimator.quality import warn_if_code_is_wide
from fastae.estimator.scaling import shift_and_scale
from fastae.estimator.sklearn_types import with_callbacks
from fastae.training.history import DivergenceError, Epoch, History, naming_rate
from fastae.training.progress import progress_bar


class EnsembleFit(EnsembleMethods):
    """Trains several networks where `n_estimators` is above 1; otherwise, all is as in ``Autoencoder``."""

    def _fit(
        self,
        X: Any,
        sample_weight: Any,
        *,
        X_val: Any,
        checkpoint: str | os.PathLike[str] | None,
        resume: bool,
    ) -> None:
        if self.n_estimators == 1:
            self._forget_ensemble()
            super()._fit(X, sample_weight, X_val=X_val, checkpoint=checkpoint, resume=resume)
        else:
            self._fit_ensemble(X, sample_weight, X_val=X_val, checkpoint=checkpoint, resume=resume)

    @with_callbacks
    def _fit_ensemble(self, X: Any, sample_weight: Any, *, X_val: Any, checkpoint: Any, resume: bool) -> None:
        """As ``_fit``, for several networks."""
        rows, weight = self._checked(X, sample_weight)
        validation = None if X_val is None else check(self, X_val, name="X_val")
        for data in (X, X_val):
            EnsembleCheckpoint.check_not_input(checkpoint, data)
        saved = EnsembleCheckpoint.at(checkpoint, resume)
        seed = self._seed_of_fit(saved, validation, {"max_iter": self.max_iter, "X.shape": rows.shape})
        bags = Bags.drawn(self.n_estimators, len(rows), seed[:1])
        array, numbers = training_array(rows, seed[:1])
        before = self._all_params if self.warm_start and hasattr(self, "params_") else None
        if before is not None and not can_start_from(before, self, array):
            before = None
        if before is None:
            self.shift_, self.scale_ = shift_and_scale(self, rows, weight)
        self._objective()
        trainees = start_networks(self, array, numbers, bags, seed[:1], before)
        self.params_ = trainees[0].params
        self._engine()  # made here, as several threads may use it for validation
        self._choose(trainees, self._patience(trainees[0], validation))
        self._train_networks(rows, array, trainees, weight, validation, saved)
        self._finish_ensemble(trainees, rows, weight, bags, seed[:1])

    def _checked(
        self, X: Any, sample_weight: Any, *, reset: bool = True
    ) -> tuple[RowSource, np.ndarray | None]:
        """`X` and `sample_weight`, if an ensemble can be trained on them."""
        rows, weight = self._rows_and_weight(X, sample_weight, reset=reset)
        if not rows.is_local and not hasattr(rows, "take"):
            raise ValueError("n_estimators must be 1 where X is spread over MPI ranks")
        if len(rows) < 2:
            raise ValueError(
                f"X has too few rows: n_samples = {len(rows)}, but each of several networks leaves some out; "
                "set n_estimators=1"
            )
        return rows, weight

    def _patience(self, trainee: Trainee, validation: RowSource | None) -> int | None:
        validates = validation is not None or self.early_stopping
        return patience(self, trainee.budget.epochs, validates=validates)

    def _choose(self, trainees: list[Trainee], stops_after: int | None) -> None:
        """Set the network, and what is "auto"."""
        self.network_ = trainees[0].params.network
        code = self.network_.widths[self.network_.code_layer]
        self._n_features_out = code * len(trainees)
        warn_if_code_is_wide(self, code, self.network_.widths[0])
        self.unit_ = 1.0
        self.auto_ = self._chosen(trainees[0].budget, stops_after)
        self.auto_ |= {name: self._value(name) for name in self._left_to_us()}
        self._print_auto()

    def _train_networks(
        self,
        rows: RowSource,
        array: np.ndarray,
        trainees: list[Trainee],
        weight: np.ndarray | None,
        validation: RowSource | None,
        saved: EnsembleCheckpoint | None,
        *,
        ends: bool = True,
    ) -> None:
        """Train all networks; those after the one at which a callback stops are dropped from `trainees`."""
        data: dict[str, Any] = {"shift": self.shift_, "scale": self.scale_, "objective": self._objective()}
        if weight is not None:
            data["sample_weight"] = weight
        done = 0 if saved is None else saved.restore_networks(trainees)
        began = time.perf_counter()
        with (
            callbacks(self, rows, len(trainees)) as callback,
            progress_bar(self.verbose > 0, len(trainees), len(trainees[0].index)) as show,
        ):
            watched = callback is not None or self.verbose > 0 or saved is not None
            at_once = thread_pool.available_cpus() if watched and rows.is_local else len(trainees)
            while done < len(trainees):
                some = trainees[done : done + at_once]
                options = [
                    self._options_of(trainee, array, weight, validation, ends=ends) for trainee in some
                ]
                try:
                    if rows.is_local:
                        train_here(self, some, array, data, options)
                    else:
                        train_spread(rows, train_alone, some, array, data, options)
                    stops = False
                    for number, trainee in enumerate(some, done + 1):
                        epoch = _epoch_of(trainee, number, len(trainees), time.perf_counter() - began)
                        show(epoch)
                        stops = stops or (callback is not None and callback(epoch))
                except BaseException as error:  # Ctrl-C too
                    if saved is not None and done:
                        saved.write_networks(trainees[:done])
                    if not isinstance(error, DivergenceError):
                        raise
                    raise naming_rate(error, "learning_rate_init") from None
                done += len(some)
                if saved is not None and (saved.due or done == len(trainees)):
                    saved.write_networks(trainees[:done])
                if stops:
                    del trainees[done:]

    def _options_of(
        self,
        trainee: Trainee,
        array: np.ndarray,
        weight: np.ndarray | None,
        validation: RowSource | None,
        *,
        ends: bool = True,
    ) -> dict[str, Any]:
        """What ``train`` is asked for one network, with its validation rows."""
        validate = None
        if validation is not None:
            validate = self._validation_loss(validation, None)
        elif self.early_stopping:
            bag, held_out = ArrayRows(array, index=trainee.index).split(
                self.validation_fraction, trainee.seed
            )
            trainee.index = cast(np.ndarray, cast(ArrayRows, bag).index)
            validate = self._validation_loss(held_out, weight)
        tolerance = self.tol * self.network_.widths[0] / (2 if self.early_stopping else 1)
        stops_after = self._patience(trainee, validation) if ends else None
        return options_of(self, trainee, validate, stops_after, tolerance, ends=ends)

    def _finish_ensemble(
        self,
        trainees: list[Trainee],
        rows: RowSource,
        weight: np.ndarray | None,
        bags: Bags,
        seed: list[int],
        before: Ensemble | None = None,
    ) -> None:
        """Set the fitted attributes: the networks, the kept rows (with those of `before`), the errors out of bag."""
        histories = [cast(History, trainee.history) for trainee in trainees]
        self.loss_curve_ = _mean_by_epoch([history.loss for history in histories])
        self.validation_loss_curve_ = _mean_by_epoch([history.validation_loss for history in histories])
        self.loss_, self.n_iter_ = self.loss_curve_[-1], len(self.loss_curve_)
        reasons = {history.stop_reason for history in histories}
        if len(trainees) < self.n_estimators:
            reasons.add("callback")
        self.stop_reason_ = (
            "callback" if "callback" in reasons else "tol" if reasons == {"tol"} else "max_iter"
        )
        self._states = tuple(trainee.state for trainee in trainees)
        self._n_features_out = self.network_.widths[self.network_.code_layer] * len(trainees)
        self.params_, self._state = trainees[0].params, trainees[0].state

        nobody = np.empty((0, rows.shape[1]), np.float32)
        networks = tuple(trainee.params for trainee in trainees)
        self._ensemble = Ensemble(networks, np.ones(len(networks)), nobody, 0, np.ones(rows.shape[1]), 1.0)
        left_out = np.stack([bags.left_out(i) for i in range(len(networks))], axis=1)
        chosen, old = rows_to_keep(np.asarray(left_out.any(axis=1)), weight, KEPT_MOST, seed), nobody
        own = cast(Any, rows).take(chosen).resident() if len(chosen) else np.empty(nobody.shape)
        weight_of_own = None if weight is None else weight[chosen]
        moments, share = residual_moments(self._ensemble_model(), own, left_out[chosen], weight_of_own)
        new = 1.0 if before is None else len(rows) / (len(rows) + min(before.represented, KEPT_MOST))
        if before is not None:
            moments, share = new * moments + (1 - new) * before.moments, new * share
        self._ensemble = replace(self._ensemble, moments=moments.astype(np.float32))

        errors, lengths = np.split(rows.map_rows(_ErrorsOfNetworks(self._model_for(rows))), 2, axis=1)
        typical = typical_errors(errors, bags)
        balance = replace(self._ensemble, typical=typical).balance
        error = out_of_bag_mean(errors, bags, balance)
        ones = np.ones(len(networks))
        plain = out_of_bag_mean(errors, bags, ones) - FLOOR
        length = out_of_bag_mean(lengths, bags, ones)
        whole = np.flatnonzero(length[chosen] > 0)
        length[chosen[whole]] = lengths_without(
            self._ensemble_model(), own[whole], left_out[chosen[whole]], share[whole]
        )
        del errors, lengths
        finite = np.isfinite(error[chosen])
        chosen, own = chosen[finite], own[finite]
        represented = len(rows)
        if before is not None:
            chosen, old, represented = _merged(chosen, before, len(rows), seed)
            own = cast(Any, rows).take(chosen).resident()
        kept = nobody
        if len(chosen):
            kept = self._ensemble_model().reconstruct(own).astype(np.float32)
        self._ensemble = replace(
            self._ensemble, typical=typical, kept=np.concatenate([kept, old]), represented=represented
        )
        distances = rows.map_rows(_Distances(self._model_for(rows)))
        if len(chosen):
            distances[chosen] = np.stack(
                self._ensemble_model().distances(own, np.arange(len(chosen))), axis=1
            )
        first = geometric_mean(error, *distances.T)
        factor = ratio_of_quantiles(first, length, 1 - SHARE, weight)
        if before is not None:
            factor = factor**new * before.factor ** (1 - new)
        self._ensemble = replace(self._ensemble, factor=factor)
        self._ensemble_model()  # here, so that to predict changes no attribute
        self.oob_scores_, self._oob_weight = -np.maximum(first, factor * length), weight
        vars(self).pop("_kept_calibration", None)
        self.offset_ = -self._calibration().threshold(self.contamination)
        self._compare_with_mean(plain, rows, weight)

    def _compare_with_mean(self, plain: np.ndarray, rows: RowSource, weight: np.ndarray | None) -> None:
        """Set how large the out-of-bag error is next to that of the mean; an ensemble is not compared with PCA."""
        self.error_over_mean_ = self.error_over_pca_ = None
        known = np.isfinite(plain)
        if weight is not None:
            known &= weight > 0
            rows, _ = counted(cast(ArrayRows, rows), weight)
        statistics = rows.column_statistics()
        scale = 1.0 if self.scale_ is None else self.scale_
        spread = float((statistics.square_times(scale) / np.maximum(statistics.count, 1)).mean())
        if known.any() and np.isfinite(spread) and spread > 0:
            weights = None if weight is None else weight[known] / weight[known].max()
            self.error_over_mean_ = float(np.average(plain[known], weights=weights)) / spread

    @with_callbacks
    def _partial_fit_ensemble(self, X: Any, sample_weight: Any) -> None:
        """As ``_partial_fit``, for several networks: each leaves out a part of these rows."""
        first = self._is_first_part()
        if not first and len(self._all_params) != self.n_estimators:
            there = len(self._all_params)
            raise ValueError(
                f"n_estimators is {self.n_estimators}, but the detector has {there} networks: fit it anew"
            )
        rows, weight = self._checked(X, sample_weight, reset=first)
        self._seed_parts(first)
        epochs = 0 if first else self._state.epochs
        seed = [int(self._seeds[0]), epochs]
        if first:
            self.shift_, self.scale_ = shift_and_scale(self, rows, weight)
        self._objective()
        bags = Bags.drawn(self.n_estimators, len(rows), seed)
        array, numbers = training_array(rows, seed)
        trainees = start_networks(
            self, array, numbers, bags, seed, None if first else self._all_params, ends=False
        )
        for i, trainee in enumerate(trainees):
            if not first:
                trainee.state = self._states[i].copy()
            trainee.seed = (int(self._seeds[1]) + i * 1_000_003 + epochs) % (1 << 31)
        self.params_ = trainees[0].params
        self._engine()
        self._choose(trainees, None)
        curve, before = ([], None) if first else (self.loss_curve_, self._ensemble)
        self._train_networks(rows, array, trainees, weight, None, None, ends=False)
        self._finish_ensemble(trainees, rows, weight, bags, seed, before)
        self.loss_curve_ = curve + self.loss_curve_
        self.n_iter_ = len(self.loss_curve_)


class _ErrorsOfNetworks:
    """The errors of each network, then the whitened ones, (m, 2 T), as a function that can be sent to workers."""

    def __init__(self, model: EnsembleFit) -> None:
        self.model = model

    def __call__(self, X: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # in float32, as there are m T of them
            return np.hstack(self.model._ensemble_model().network_errors(X))


class _Distances(_ErrorsOfNetworks):
    """The distance to the nearest kept row, and the remoteness: (m, 2)."""

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return np.stack(self.model._ensemble_model().distances(X), axis=1)


def _epoch_of(trainee: Trainee, number: int, networks: int, seconds: float) -> Epoch:
    """What a callback hears of a network that is trained."""
    history = cast(History, trainee.history)
    validation = min(history.validation_loss, default=None)
    rate = history.learning_rate[-1]
    return Epoch(number, networks, history.loss[-1], rate, seconds, trainee.params, validation)


def _mean_by_epoch(curves: list[list[float]]) -> list[float]:
    """The mean over the networks that were in training, epoch by epoch."""
    longest = max(map(len, curves))
    return [float(np.mean([curve[i] for curve in curves if i < len(curve)])) for i in range(longest)]


def _merged(
    chosen: np.ndarray, before: Ensemble, rows: int, seed: list[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Kept rows of earlier calls and of this one, each as many as the rows that they stand for."""
    represented, old = before.represented + rows, before.kept
    if len(chosen) + len(old) > KEPT_MOST:
        generator = np.random.default_rng([*seed, 4])
        new = min(len(chosen), max(round(KEPT_MOST * rows / represented), KEPT_MOST - len(old)))
        chosen = np.sort(generator.choice(chosen, new, replace=False))
        old = old[np.sort(generator.choice(len(old), min(len(old), KEPT_MOST - new), replace=False))]
    return chosen, old, represented
