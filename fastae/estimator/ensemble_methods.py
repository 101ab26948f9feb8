"""EnsembleMethods: what an estimator with several networks does differently once it is fitted."""

from typing import Any, Self

import numpy as np

from fastae.data.row_source import RowSource
from fastae.estimator.autoencoder import Autoencoder
from fastae.estimator.ensemble_inference import EnsembleInference
from fastae.optimizers import State
from fastae.storage import Stored

_AUTO = "output_layer", "init", "noise", "noise_level"  # what else may be "auto" in a detector
_CACHES = "_kept_model", "_ensemble_key", "_kept_calibration"


class EnsembleMethods(EnsembleInference, Autoencoder):
    """Applies several networks where there are; otherwise, all is as in ``Autoencoder``."""

    n_estimators: int
    contamination: float
    _states: tuple[Any, ...] = ()  # of the optimizer, by network

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

    def _store_ensemble(self, about: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        if self._ensemble is None:
            return
        for i, params in enumerate(self._all_params[1:], start=1):
            tensors.update({f"{i}.{name}": array for name, array in params.items()})
        about["ensemble"] = {
            "networks": len(self._all_params),
            "represented": self._ensemble.represented,
            "factor": self._ensemble.factor,
        }
        tensors.update(
            typical=self._ensemble.typical,
            kept=self._ensemble.kept,
            moments=self._ensemble.moments,
            oob_scores=self.oob_scores_,
        )
        if self._oob_weight is not None:
            tensors["oob_weight"] = self._oob_weight

    def _restore_ensemble(self, stored: Stored) -> None:
        super()._restore_ensemble(stored)
        if self._ensemble is not None:
            self._states = tuple(State.zeros(params) for params in self._all_params)

    def for_one_thread(self) -> Self:  # noqa: D102
        model = super().for_one_thread()
        for name in (*_CACHES, "_states"):
            vars(model).pop(name, None)
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in _CACHES}

    def _forget_ensemble(self) -> None:
        """Where one network follows several."""
        for name in ("_ensemble", "_states", "oob_scores_", "_oob_weight", *_CACHES):
            vars(self).pop(name, None)
