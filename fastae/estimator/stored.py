"""StoredModel: a model in a file, to look at or to apply to rows, without scikit-learn, which takes long to import."""

import os
from typing import Any

import numpy as np

from fastae import storage
from fastae.data.row_source import Rows
from fastae.estimator.ensemble_inference import EnsembleInference
from fastae.estimator.inference import check_columns
from fastae.estimator.model_files import restore
from fastae.network import Network, Parameters

_KINDS = "Autoencoder", "AutoencoderDetector"
_SETTINGS: dict[str, tuple[Any, ...]] = {  # that inference depends on
    "scale": (None, "standard", "minmax"),
    "missing": (None, "mask"),
    "dtype": (None, "float32", "float64", "bfloat16"),
}


class StoredModel(EnsembleInference):
    """The model in a file that an estimator's ``save`` wrote.

    Fitted attributes have the names that they have in estimators, and methods give the same results. X is ``Rows``.

    Parameters
    ----------
    path : path
        File to read.

    Attributes
    ----------
    kind : "Autoencoder" or "AutoencoderDetector"
        The class of the estimator.
    version : str or None
        The version of fastae that wrote the file.

    Raises
    ------
    OSError
        The file does not exist or cannot be read.
    ValueError
        The file is incomplete or damaged, has a format that this version does not know, or does not hold a model.
    """

    network_: Network
    offset_: float
    feature_names_in_: np.ndarray

    def __init__(self, path: str | os.PathLike[str]) -> None:
        stored = storage.read(path)
        if stored.kind not in _KINDS:
            raise ValueError(f"{stored.path} is a file of {stored.kind}, not of {_KINDS[0]}")
        self.kind, self.version = stored.kind, stored.about.get("fastae")
        params = Parameters.from_stored(stored)
        with stored.blamed():
            settings = stored.about["settings"]
            storage.check_like("settings", settings, {})
            for name, values in _SETTINGS.items():
                if settings[name] not in values:
                    raise ValueError(f"{name} must be among {values}, got {settings[name]!r}")
                setattr(self, name, settings[name])
            if settings["n_threads"] is not None:
                storage.check_like("n_threads", settings["n_threads"], 1)
            self.n_threads = settings["n_threads"]
        restore(self, stored, params, detects=self.detects)
        self._n_features_out = params.network.widths[params.network.code_layer]
        self._restore_ensemble(stored)

    @property
    def all_params_(self) -> tuple[Parameters, ...]:
        """The parameters of all networks."""
        return self._all_params

    @property
    def detects(self) -> bool:
        """Whether the model has a threshold for outliers."""
        return self.kind == "AutoencoderDetector"

    def _rows(self, X: Rows) -> Rows:
        """The rows, if they have the features that the model was fitted with; they are checked when they are read."""
        check_columns(self, X.shape[1], X.feature_names, source=X.name)
        X.check_not_empty()
        return X.checked(allow_nan=self.missing is not None)

    def transform(self, X: Rows) -> np.ndarray:
        """Compute the code (m, k) of each row."""
        return self._rows(X).map_rows(lambda rows: self._in_dtype_of(rows, self._encode(rows)))

    def reconstruct(self, X: Rows) -> np.ndarray:
        """Reconstruct each row (m, n), in the scale of the data."""
        return self._rows(X).map_rows(self._reconstruct)

    def score_samples(self, X: Rows) -> np.ndarray:
        """Score each row (m,): minus its error, in the network's scale."""
        return -self._rows(X).map_rows(self._detection_errors)

    def explain(self, X: Rows, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The features (m, top) that cause each row's error, and their shares of it (m, top)."""
        _, features, shares = self.errors_and_explanation(X, top)
        return features, shares

    def errors_and_explanation(self, X: Rows, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Minus the scores of rows, (m,), and what ``explain`` returns, in one pass."""
        return self._explain(self._rows(X), top)
