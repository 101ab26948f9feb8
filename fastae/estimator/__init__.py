"""Autoencoder and AutoencoderDetector: scikit-learn's way to the engine.

What the constructor takes, what X may be, what is done with it:

    settings.py       the constructor, and what it asks of optimizer and objective
    inputs.py         X, as users give it
    scaling.py        the scale that the network sees
    fitted.py         what a fitted model does with rows
    lazily.py         and with Dask collections
    callbacks.py      who is told of each epoch
    autoencoder.py    fitting
    detector.py       scores and their threshold
    model_files.py    save and load
    onnx_export.py    a fitted model as an ONNX graph
    sklearn_types.py  scikit-learn's base classes and decorators, with types
"""

from fastae.estimator.autoencoder import Autoencoder
from fastae.estimator.detector import AutoencoderDetector

__all__ = ["Autoencoder", "AutoencoderDetector"]
