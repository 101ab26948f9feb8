"""Autoencoder and AutoencoderDetector: the scikit-learn interface to the engine.

    autoencoder.py  Autoencoder: fitting
    detector.py     AutoencoderDetector: outlier scores and their threshold
    fitted.py       what a fitted model computes from rows
    lazily.py       the same for Dask collections
    settings.py     the constructor's arguments, and the optimizer and objective they stand for
    inputs.py       X, as users pass it, checked and made a RowSource
    scaling.py      the scale in which the network sees the columns
    callbacks.py    functions that are called after each epoch
    model_files.py  save and load
    onnx_export.py  a fitted model as an ONNX graph

A class is built on the ones below it: detector, autoencoder, fitted, settings.
"""

from fastae.estimator.autoencoder import Autoencoder
from fastae.estimator.detector import AutoencoderDetector

__all__ = ["Autoencoder", "AutoencoderDetector"]
