"""EnsembleMethods: what an estimator with several networks does differently once it is fitted."""

from functools import partial
from typing import Any, Self, cast

import numpy as np

from fastae.data.row_source import RowSource
from fastae.estimator.alarms import Calibration
from fastae.estimator.autoencoder import Autoencoder
from fastae.estimator.ensemble import CHUNK, Ensemble, EnsembleModel
from fastae.estimator.inputs import refuse_not_finite
from fastae.network import Parameters
from fastae.optimizers import State
from fastae.storage import Stored, check_like

_AUTO = "output_layer", "init", "noise", "noise_level"  # what else may be "auto" in a detector
_CACHES = "_kept_model", "_ensemble_key", "_kept_calibration"


class EnsembleMethods(Autoencoder):
    """Applies several networks where there are; otherwise, all is as in ``Autoencoder``."""

    n_estimators: int
    contamination: float
    _ensemble: Ensemble | None = None
    _states: tuple[Any, ...] = ()  # of the optimizer, by network
    oob_scores_: np.ndarray
    _oob_weight: np.ndarray | None

    def _value(self, name: str) -> Any:
        if name not in self._left_to_us():
            return getattr(self, name)
        several = self.n_estimators > 1
        if name == "output_layer":  # one layer decodes a code that is wider than the rows
            return not (several and isinstance(self.hidden_layer_sizes, str))
        if name == "init":
            return "random" if several else "pca"
        if name == "noise":
            return "mask" if several else None
        return 0.3 if several and "noise" in self._left_to_us() else 0.1

    def _left_to_us(self) -> list[str]:
        """The settings of a detector that are "auto", but for those that ``_chosen`` knows."""
        return [
            name for name in _AUTO if isinstance(getattr(self, name), str) and getattr(self, name) == "auto"
        ]

    def _dtype(self, X: RowSource) -> np.dtype[Any]:
        if self.n_estimators > 1 and self.dtype is None and self.scale is not None and self.solver != "lbfgs":
            return np.dtype(np.float32)
        return super()._dtype(X)

    # -- the fitted ensemble -------------------------------------------------------------------------------------------

    @property
    def _all_params(self) -> tuple[Parameters, ...]:
        return (self.params_,) if self._ensemble is None else self._ensemble.networks

    def _ensemble_model(self) -> EnsembleModel:
        """The ensemble with its engines; made when first used, and not saved with the model."""
        key = id(self._ensemble), id(self.shift_), self.n_threads, self.missing, self._in_bfloat16
        if getattr(self, "_ensemble_key", None) != key:
            ensemble = cast(Ensemble, self._ensemble)
            self._kept_model = EnsembleModel(
                ensemble, self._engine(), self.n_threads, self._in(), partial(refuse_not_finite, self)
            )
            self._ensemble_key = key
        return self._kept_model

    def _encode(self, X: np.ndarray) -> np.ndarray:
        return super()._encode(X) if self._ensemble is None else self._ensemble_model().encode(X)

    def _decode(self, code: np.ndarray) -> np.ndarray:
        if self._ensemble is None:
            return super()._decode(code)
        return self._ensemble_model().decode(code).astype(self.params_.dtype)

    def _xhat(self, X: np.ndarray) -> np.ndarray:
        if self._ensemble is None:
            return super()._xhat(X)
        return self._ensemble_model().reconstruct(X).astype(self.params_.dtype)

    def _mean_errors_of(self, X: np.ndarray, column_weight: np.ndarray | None = None) -> np.ndarray:
        if self._ensemble is None:
            return super()._mean_errors_of(X, column_weight)
        result, weight = np.empty(len(X)), np.ones(X.shape[1]) if column_weight is None else column_weight
        for first in range(0, len(X), CHUNK):
            result[first : first + CHUNK] = self._cell_errors(X[first : first + CHUNK]) @ weight
        return np.asarray(result / self._ensemble_model().cells(X))

    def _detection_errors(self, X: np.ndarray) -> np.ndarray:
        """(m,): minus the scores."""
        return self._mean_errors_of(X) if self._ensemble is None else self._ensemble_model().errors(X)

    def _detection_shares(self, X: np.ndarray) -> np.ndarray:
        """(m, n): each feature's share of the error."""
        if self._ensemble is not None:
            return self._ensemble_model().shares(X)
        error = self._cell_errors(X)
        total = error.sum(axis=1, keepdims=True)
        return np.asarray(error / np.where(total > 0, total, 1))

    def _store_ensemble(self, about: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        if self._ensemble is None:
            return
        for i, params in enumerate(self._all_params[1:], start=1):
            tensors.update({f"{i}.{name}": array for name, array in params.items()})
        about["ensemble"] = {"networks": len(self._all_params), "represented": self._ensemble.represented}
        tensors.update(typical=self._ensemble.typical, kept=self._ensemble.kept, oob_scores=self.oob_scores_)
        if self._oob_weight is not None:
            tensors["oob_weight"] = self._oob_weight

    def _restore_ensemble(self, stored: Stored) -> None:
        if "ensemble" not in stored.about:
            return
        with stored.blamed():
            about = stored.about["ensemble"]
            check_like("ensemble", about, {"networks": 0, "represented": 0})
            kept, rows = len(stored.tensors["kept"]), len(stored.tensors["oob_scores"])
            network, dtype = self.params_.network, self.params_.dtype
            others = []
            for i in range(1, about["networks"]):
                arrays = {
                    name: stored.tensor(f"{i}.{name}", shape, dtype)
                    for name, shape in network.shapes().items()
                }
                others.append(Parameters.from_arrays(network, arrays, dtype))
            trainees = (self.params_, *others)
            if about["networks"] < 1:
                raise ValueError("it has no networks")
        self._ensemble = Ensemble(
            trainees,
            stored.tensor("typical", (len(trainees),), np.float64),
            stored.tensor("kept", (kept, network.widths[0]), np.float32),
            about["represented"],
        )
        self.oob_scores_ = stored.tensor("oob_scores", (rows,), np.float64)
        weighted = "oob_weight" in stored.tensors
        self._oob_weight = stored.tensor("oob_weight", (rows,), np.float64) if weighted else None
        self._states = tuple(State.zeros(params) for params in trainees)
        self._n_features_out *= len(trainees)

    def for_one_thread(self) -> Self:  # noqa: D102
        model = super().for_one_thread()
        for name in (*_CACHES, "_states"):
            vars(model).pop(name, None)
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in _CACHES}

    def _calibration(self) -> Calibration:
        """What new rows are ranked against; sorted when first used."""
        if getattr(self, "_kept_calibration", None) is None:
            self._kept_calibration = Calibration(-self.oob_scores_, self._oob_weight)
        return self._kept_calibration

    def _forget_ensemble(self) -> None:
        """Where one network follows several."""
        for name in ("_ensemble", "_states", "oob_scores_", "_oob_weight", *_CACHES):
            vars(self).pop(name, None)
