"""ModelFiles: the estimators' ``save``, ``load`` and ``to_onnx``."""

import copy
import os
from dataclasses import asdict
from typing import Any, Self

import numpy as np

from fastae import storage
from fastae.estimator import onnx_export
from fastae.network import DType, Parameters
from fastae.optimizers import State

# Fitted attributes that every model has, and what they are like; a detector has `offset_` as well
_FITTED = {
    "n_features_in_": 0,
    "loss_": 0.0,
    "loss_curve_": [0.0],
    "validation_loss_curve_": [0.0],
    "n_iter_": 0,
    "stop_reason_": "",
}
# Fitted attributes that files of earlier versions lack: what they are like, and what they are then
_LATER: dict[str, tuple[Any, Any]] = {
    "auto_": ({}, {}),
    "error_over_mean_": (0.0, None),
    "error_over_pca_": (0.0, None),
    "unit_": (0.0, 1.0),
}
_TENSORS = (
    "params_",
    "network_",
    "shift_",
    "scale_",
    "oob_scores_",
)  # fitted attributes that are not stored as JSON


class ModelFiles:
    """Saves a fitted estimator to a file and loads it."""

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if hasattr(type(self), "n_estimators") and "n_estimators" not in state:
            self.n_estimators = 1
        if "params_" in state:
            _complete(self)

    def save(self: Any, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a safetensors file. Nothing is pickled.

        The tensors are the dense, row-major W1, b1, ... and, if the data are scaled, `shift` and `scale`. Those of an
        ensemble's other networks are 1.W1, 1.b1, ..., 2.W1, ...; there are also `typical`, the typical error of each
        network, `kept`, the reconstructions of up to 4096 training rows, `moments`, which residuals are measured by,
        and `oob_scores`. Settings and fitted attributes are stored as JSON in the metadata. A `callback`, and a
        `random_state` that is not an integer, are not stored: both are None in the loaded model. The optimizer's state
        is not stored either, so that further training starts without it.

        Parameters
        ----------
        path : path
            File to write. It is replaced only once the new one is complete.

        Raises
        ------
        NotFittedError
            The model has not been fitted.
        OSError
            The file cannot be written; an existing file stays as it was.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        tensors = dict(self.params_)
        if self.scale_ is not None:
            tensors |= {"shift": self.shift_, "scale": self.scale_}
        fitted = {
            name: value
            for name, value in vars(self).items()
            if name.endswith("_") and not name.startswith("_") and name not in _TENSORS
        }
        about = {
            "network": asdict(self.network_),
            "scaled": self.scale_ is not None,
            "settings": self._settings(),
            "fitted": fitted,
        }
        self._store_ensemble(about, tensors)
        storage.write(path, type(self).__name__, about, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a model from a file that ``save`` wrote.

        Parameters
        ----------
        path : path
            File to read.

        Returns
        -------
        Autoencoder
            An estimator of the saved class, with parameters of the same bits.

        Raises
        ------
        OSError
            The file does not exist or cannot be read.
        ValueError
            The file is incomplete or damaged, has a format that this version does not know, or does not hold a model
            of this class or of one derived from it.
        """
        stored = storage.read(path)
        known = {kind.__name__: kind for kind in _family(cls)}
        if stored.kind not in known:
            raise ValueError(f"{stored.path} is a file of {stored.kind}, not of {cls.__name__}")
        params = Parameters.from_stored(stored)
        with stored.blamed():
            model = _made(known[stored.kind], stored.about["settings"])
        restore(model, stored, params, detects=hasattr(model, "set_threshold"))
        model._state = State.zeros(params)
        model._n_features_out = params.network.widths[params.network.code_layer]
        model._restore_ensemble(stored)
        return model  # type: ignore[no-any-return]

    def to_onnx(self: Any, path: str | os.PathLike[str], *, dtype: DType | None = None) -> None:
        """Write the fitted model as an ONNX graph, for example for ONNX Runtime. Needs the extra ``onnx``.

        The graph's input is `X` of shape (rows, n), in `dtype` and the scale of the data. Its outputs are
        `code` and `reconstruction`, equal to ``transform`` and ``reconstruct``; that of a detector also has `score`
        and `decision`, equal to ``score_samples`` and ``decision_function``. All outputs have the same dtype. A runtime
        refuses an input of any other.

        Parameters
        ----------
        path : path
            File to write. It is replaced only once the new one is complete.
        dtype : "float32", "float64" or NumPy dtype, optional
            Type of the graph's input, weights and outputs. Default: the model's. Choose "float32" to run a float64
            model on float32 rows.

        Raises
        ------
        NotFittedError
            The model has not been fitted.
        ValueError
            `dtype` is neither float32 nor float64.
        ImportError
            onnx is not installed.
        OSError
            The file cannot be written; an existing file stays as it was.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        graph = onnx_export.build(self, dtype).SerializeToString()
        with storage.written_whole(path) as file:
            file.write_bytes(graph)

    def _store_ensemble(self, about: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        """Add what an estimator with several networks stores to the content of a file."""

    def _restore_ensemble(self, stored: storage.Stored) -> None:
        """Set what ``_store_ensemble`` has stored."""

    def _settings(self: Any) -> dict[str, Any]:
        """The constructor's arguments; those that a file cannot hold are None."""
        return {
            name: None if name == "callback" or isinstance(value, np.random.RandomState) else value
            for name, value in self.get_params(deep=False).items()
        }


def _made(kind: type[Any], settings: Any) -> Any:
    """An estimator with settings from a file; an error if one is missing, unknown or out of range."""
    storage.check_like("settings", settings, {})
    if isinstance(settings["hidden_layer_sizes"], list):
        settings["hidden_layer_sizes"] = tuple(settings["hidden_layer_sizes"])
    if hasattr(kind, "n_estimators"):
        settings = {"n_estimators": 1} | settings  # which files of earlier versions lack
    model = kind(**settings)
    model._validate_params()
    return model


def restore(model: Any, stored: storage.Stored, params: Parameters, *, detects: bool) -> None:
    """Set a model's fitted attributes from a file with these parameters; if it `detects` outliers, the threshold."""
    with stored.blamed():
        fitted, scaled = (stored.about[name] for name in ("fitted", "scaled"))
        storage.check_like("scaled", scaled, True)
        storage.check_like("fitted", fitted, {})
        _restore_fitted(model, fitted, params.network.widths[0], detects)
    shape = params.network.widths[:1]
    model.shift_ = stored.tensor("shift", shape, np.float64) if scaled else None
    model.scale_ = stored.tensor("scale", shape, np.float64) if scaled else None
    model.params_, model.network_ = params, params.network


def _restore_fitted(model: Any, fitted: dict[str, Any], columns: int, detects: bool) -> None:
    """Set the fitted attributes of a model of so many columns; an error if one is missing or wrong."""
    for name, example in (_FITTED | ({"offset_": 0.0} if detects else {})).items():
        storage.check_like(name, fitted[name], example)
    for name, (example, otherwise) in _LATER.items():
        if fitted.get(name, otherwise) != otherwise:
            storage.check_like(name, fitted[name], example)
    if not 0 < fitted.get("unit_", 1.0) < np.inf:
        raise ValueError(f"unit_ must be positive and finite, got {fitted['unit_']}")
    if fitted["n_features_in_"] != columns:
        raise ValueError(
            f"n_features_in_ is {fitted['n_features_in_']}, but the network has {columns} inputs"
        )
    if "feature_names_in_" in fitted:
        storage.check_like("feature_names_in_", fitted["feature_names_in_"], ("",) * columns)
        fitted["feature_names_in_"] = np.array(fitted["feature_names_in_"], object)
    for name, value in fitted.items():
        if not name.endswith("_") or name.startswith("_") or name in _TENSORS or hasattr(type(model), name):
            raise ValueError(f"{name!r} is not a fitted attribute")
        setattr(model, name, value)
    _complete(model)


def _complete(model: Any) -> None:
    """Set the fitted attributes that a file or a pickle of an earlier version lacks."""
    for name, (_, otherwise) in _LATER.items():
        if name not in vars(model):
            setattr(model, name, copy.copy(otherwise))


def _family(kind: type[Any]) -> list[type[Any]]:
    """A class and all classes derived from it."""
    return [kind, *(member for derived in kind.__subclasses__() for member in _family(derived))]
