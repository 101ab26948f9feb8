"""fastae: the fastest way to train an autoencoder on a CPU.

The names below are loaded when first used, so that ``import fastae`` costs little more than ``import numpy``:
no compiler, no scikit-learn, until something needs one.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Network": "fastae.network",
    "Parameters": "fastae.network",
    "Engine": "fastae.engine",
    "Objective": "fastae.objective",
    "Autoencoder": "fastae.estimator",
    "AutoencoderDetector": "fastae.estimator",
    "check_gradients": "fastae.gradient_check",
    "SGD": "fastae.optimizers",
    "Adam": "fastae.optimizers",
    "AdamW": "fastae.optimizers",
    "Rows": "fastae.rows",
    "open_rows": "fastae.data",
    "train": "fastae.training",
    "DivergenceError": "fastae.history",
    "History": "fastae.history",
}
_MODULES = (
    "reference",
    "network",
    "engine",
    "data",
    "rows",
    "optimizers",
    "training",
    "plots",
    "kernels",
    "bench",
)

__all__ = ["__version__", *_HOME, "kernels", "reference"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastae.{name}")
    else:
        raise AttributeError(f"module 'fastae' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
