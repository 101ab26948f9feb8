"""Autoencoder and AutoencoderDetector: scikit-learn's interface to the engine.

settings.py       the constructor's arguments, and the optimizer and objective they select
inputs.py         X as users pass it, checked
scaling.py        the scale of the network's input
fitted.py         encoding, reconstructing and scoring with trained parameters
dask_methods.py   the same on Dask collections, as lazy Dask arrays
callbacks.py      the user's callback and scikit-learn's
autoencoder.py    fitting
detector.py       scores and their threshold
ensemble_fit.py   fitting the networks of a detector; the files beside it hold the parts:
    ensemble_methods.py     what a fitted estimator with several networks does
    ensemble.py             several networks and the rows that distances are measured from: errors and shares
    neighbours.py           the nearest of those rows
    ensemble_training.py    which rows each network leaves out; training side by side
    ensemble_checkpoint.py  the networks that are trained, in a file
    alarms.py               p-values, thresholds, false discoveries
model_files.py    save and load
onnx_export.py    a fitted model as an ONNX graph
sklearn_types.py  scikit-learn's base classes and decorators, with types
"""

from fastae.estimator.autoencoder import Autoencoder
from fastae.estimator.detector import AutoencoderDetector

__all__ = ["Autoencoder", "AutoencoderDetector"]
