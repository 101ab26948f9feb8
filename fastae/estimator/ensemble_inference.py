"""EnsembleInference: inference by several networks where a model has them. It imports no scikit-learn."""

from typing import Any, cast

import numpy as np

from fastae.estimator.alarms import Calibration
from fastae.estimator.ensemble import CHUNK, Ensemble, EnsembleModel, moments_shape
from fastae.estimator.inference import Inference, cells_of
from fastae.network import Parameters
from fastae.storage import Stored, check_like


class EnsembleInference(Inference):
    """A model of several networks or, as ``Inference``, of one."""

    _ensemble: Ensemble | None = None
    _n_features_out: int
    oob_scores_: np.ndarray
    _oob_weight: np.ndarray | None

    @property
    def _all_params(self) -> tuple[Parameters, ...]:
        return (self.params_,) if self._ensemble is None else self._ensemble.networks

    def _ensemble_model(self) -> EnsembleModel:
        """The ensemble with its engines; made when first used, and not saved with the model."""
        key = id(self._ensemble), id(self.shift_), self.n_threads, self.missing, self._in_bfloat16
        if getattr(self, "_ensemble_key", None) != key:
            ensemble = cast(Ensemble, self._ensemble)
            dtype: Any = "bfloat16" if self._in_bfloat16 else self.params_.dtype
            self._kept_model = EnsembleModel(
                ensemble, self._engine(), dtype, self.n_threads, self._in(), self._refuse_not_finite
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
        return np.asarray(result / cells_of(X, bool(self.missing)))

    def _detection_errors(self, X: np.ndarray) -> np.ndarray:
        """(m,): minus the scores."""
        return super()._detection_errors(X) if self._ensemble is None else self._ensemble_model().errors(X)

    def _errors_and_shares(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._ensemble is None:
            return super()._errors_and_shares(X)
        return self._ensemble_model().errors_and_shares(X)

    def _restore_ensemble(self, stored: Stored) -> None:
        if "ensemble" not in stored.about:
            return
        with stored.blamed():
            about = stored.about["ensemble"]
            check_like("ensemble", about, {"networks": 0, "represented": 0, "factor": 1.0})
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
            stored.tensor("moments", moments_shape(network.widths[0]), np.float32),
            about["factor"],
        )
        self.oob_scores_ = stored.tensor("oob_scores", (rows,), np.float64)
        weighted = "oob_weight" in stored.tensors
        self._oob_weight = stored.tensor("oob_weight", (rows,), np.float64) if weighted else None
        self._n_features_out *= len(trainees)

    def _calibration(self) -> Calibration:
        """What new rows are ranked against; sorted when first used."""
        if getattr(self, "_kept_calibration", None) is None:
            self._kept_calibration = Calibration(-self.oob_scores_, self._oob_weight)
        return self._kept_calibration
