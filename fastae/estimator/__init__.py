"""Autoencoder and AutoencoderDetector: scikit-learn's way to the engine.

settings.py     the constructor, and what it asks of optimizer and objective
inputs.py       X, as users give it
scaling.py      the scale that the network sees
fitted.py       what a fitted model does with rows
callbacks.py    who is told of each epoch
autoencoder.py  fitting
detector.py     scores and their threshold
"""

from fastae.estimator.autoencoder import Autoencoder
from fastae.estimator.detector import AutoencoderDetector

__all__ = ["Autoencoder", "AutoencoderDetector"]
