"""ModelFiles: the methods ``save``, ``load`` and ``to_onnx`` of the estimators."""

import os
from dataclasses import asdict
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fastae import storage
from fastae.estimator import onnx_export
from fastae.network import Parameters
from fastae.optimizers import State

_TENSORS = ("params_", "network_", "shift_", "scale_")  # fitted attributes that are not stored as JSON


class ModelFiles:
    """Methods that write a fitted estimator to a file and read it back."""

    def save(self: Any, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a safetensors file; a failed write leaves no partial file. Nothing is pickled.

        Its tensors are the dense, row-major W1, b1, ... and, where the data are scaled, `shift` and `scale`. Settings
        and fitted attributes are stored as JSON in its metadata. A `callback`, and a `random_state` that is not a
        number, are not stored: they are None in the loaded model. The state of the optimizer is not stored either:
        further training starts with a new one.

        Raises
        ------
        NotFittedError
        OSError
            The file cannot be written; an earlier file there is unchanged.
        """
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
        storage.write(path, type(self).__name__, about, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a model that ``save`` wrote: an estimator of the same class, with the same bits.

        Raises
        ------
        OSError
            There is no such file.
        ValueError
            The file is cut off, damaged or in a format that this version does not know; or it holds no model, or a
            model whose class is neither this one nor derived from it.
        """
        stored = storage.read(path)
        known = {kind.__name__: kind for kind in _family(cls)}
        if stored.kind not in known:
            raise ValueError(f"{stored.path} is a file of {stored.kind}, not of {cls.__name__}")
        params = Parameters.from_stored(stored)
        with stored.blamed():
            settings, fitted, scaled = (stored.about[name] for name in ("settings", "fitted", "scaled"))
            if isinstance(settings["hidden_layer_sizes"], list):
                settings["hidden_layer_sizes"] = tuple(settings["hidden_layer_sizes"])
            if "feature_names_in_" in fitted:
                fitted["feature_names_in_"] = np.array(fitted["feature_names_in_"], object)
            model: Any = known[stored.kind](**settings)
            vars(model).update(fitted)
        shape = params.network.widths[:1]
        model.shift_ = stored.tensor("shift", shape) if scaled else None
        model.scale_ = stored.tensor("scale", shape) if scaled else None
        model.params_, model.network_, model._state = params, params.network, State.zeros(params)
        model._n_features_out = params.network.widths[params.network.code_layer]
        return model  # type: ignore[no-any-return]

    def to_onnx(self: Any, path: str | os.PathLike[str]) -> None:
        """Write the fitted model as an ONNX graph, for ONNX Runtime and other runtimes; needs the extra ``onnx``.

        The input is `X` of shape (rows, n) in the model's dtype, in the scale of the data. The outputs are `code` and
        `reconstruction`, as from ``transform`` and ``reconstruct``. The graph of a detector also has the outputs
        `score` and `decision`, as from ``score_samples`` and ``decision_function``, in the model's dtype.

        Raises
        ------
        NotFittedError
        ImportError
            onnx is not installed.
        OSError
            The file cannot be written; an earlier file there is unchanged.
        """
        check_is_fitted(self)
        graph = onnx_export.build(self).SerializeToString()
        with storage.written_whole(path) as file:
            file.write_bytes(graph)

    def _settings(self: Any) -> dict[str, Any]:
        """The constructor's arguments; those that a file cannot hold are None."""
        return {
            name: None if name == "callback" or isinstance(value, np.random.RandomState) else value
            for name, value in self.get_params(deep=False).items()
        }


def _family(kind: type[Any]) -> list[type[Any]]:
    """A class and all classes derived from it."""
    return [kind, *(member for derived in kind.__subclasses__() for member in _family(derived))]
