"""Autoencoder and AutoencoderDetector: scikit-learn's interface to the engine.

settings.py       the constructor's arguments, and the optimizer and objective they select
inputs.py         X as users pass it, checked
scaling.py        the scale of the network's input
inference.py      what trained parameters compute on arrays: codes, reconstructions, errors
fitted.py         the same as methods of an estimator
stored.py         the same for a model in a file, without scikit-learn
dask_methods.py   the same on Dask collections, as lazy Dask arrays
callbacks.py      the user's callback and scikit-learn's
autoencoder.py    fitting
automatic.py      what the settings that are "auto" stand for
quality.py        warnings about models that train without an error but are not what the user wants
whole.py          a fit takes effect as a whole, or not at all
detector.py       scores and their threshold
ensemble_fit.py   fitting the networks of a detector; the files beside it hold the parts:
    ensemble_methods.py     what a fitted estimator with several networks does
    ensemble_inference.py   the part of it that needs no scikit-learn: codes, reconstructions, errors
    ensemble.py             several networks and the rows that distances are measured from: errors and shares
    neighbours.py           the nearest of those rows
    linear.py               engines of single threads, and a linear layer by them
    ensemble_training.py    which rows each network leaves out; training side by side
    ensemble_checkpoint.py  the networks that are trained, in a file
    alarms.py               p-values, thresholds, false discoveries
model_files.py    save and load
onnx_export.py    a fitted model as an ONNX graph
sklearn_types.py  scikit-learn's base classes and decorators, with types
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; at run time __getattr__ loads each name when it is first used
    from fastae.estimator.autoencoder import Autoencoder as Autoencoder
    from fastae.estimator.detector import AutoencoderDetector as AutoencoderDetector

_HOME = {"Autoencoder": "autoencoder", "AutoencoderDetector": "detector"}
__all__ = ["Autoencoder", "AutoencoderDetector"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fastae.estimator' has no attribute {name!r}")
        importlib.import_module("fastae.estimator.detector")  # both: a file of either may be loaded
        value = getattr(importlib.import_module(f"fastae.estimator.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
