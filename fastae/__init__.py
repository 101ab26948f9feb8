"""fastae: autoencoders trained fast on CPUs.

Names are loaded when they are first used: ``import fastae`` imports neither NumPy nor a compiler nor scikit-learn.

    kernels/                                jitted code that works on arrays; it imports nothing else from here
    storage.py checks.py                    files written completely or not at all, argument checks
    reference.py                            the equations in pure NumPy
    network.py objective.py optimizers.py   what is trained, what is minimised, how steps are taken
    engine/                                 the loss and gradient of a batch, on all cores of one machine
    gradient_check.py                       gradients checked numerically
    data/                                   rows from files, data frames and arrays
    training/                               epochs of steps, L-BFGS, checkpoints
    distributed/                            the same steps on several machines: Dask, MPI
    estimator/                              Autoencoder and AutoencoderDetector, for scikit-learn users
    plots/  bench/                          plots, and benchmarks against other libraries
    cli/  __main__.py                       the command ``fastae``

A module may import only what is listed before it. ``_moved.py`` maps old module paths to new ones.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from fastae import _moved

if TYPE_CHECKING:  # what type checkers see; at run time __getattr__ loads each name when it is first used
    from fastae import bench as bench
    from fastae import data as data
    from fastae import distributed as distributed
    from fastae import engine as engine
    from fastae import estimator as estimator
    from fastae import kernels as kernels
    from fastae import network as network
    from fastae import objective as objective
    from fastae import optimizers as optimizers
    from fastae import plots as plots
    from fastae import reference as reference
    from fastae import training as training
    from fastae.data import Rows as Rows
    from fastae.data import open_rows as open_rows
    from fastae.engine import Engine as Engine
    from fastae.engine import errors_many as errors_many
    from fastae.engine import reconstruct_many as reconstruct_many
    from fastae.estimator import Autoencoder as Autoencoder
    from fastae.estimator import AutoencoderDetector as AutoencoderDetector
    from fastae.gradient_check import check_gradients as check_gradients
    from fastae.network import Network as Network
    from fastae.network import Parameters as Parameters
    from fastae.objective import Objective as Objective
    from fastae.optimizers import SGD as SGD
    from fastae.optimizers import Adam as Adam
    from fastae.optimizers import AdamW as AdamW
    from fastae.training import DivergenceError as DivergenceError
    from fastae.training import History as History
    from fastae.training import train as train
    from fastae.training import train_many as train_many

__version__ = "0.1.0"

_HOME = {
    "Network": "fastae.network",
    "Parameters": "fastae.network",
    "Engine": "fastae.engine",
    "errors_many": "fastae.engine",
    "reconstruct_many": "fastae.engine",
    "Objective": "fastae.objective",
    "Autoencoder": "fastae.estimator",
    "AutoencoderDetector": "fastae.estimator",
    "check_gradients": "fastae.gradient_check",
    "SGD": "fastae.optimizers",
    "Adam": "fastae.optimizers",
    "AdamW": "fastae.optimizers",
    "Rows": "fastae.data",
    "open_rows": "fastae.data",
    "train": "fastae.training",
    "train_many": "fastae.training",
    "DivergenceError": "fastae.training",
    "History": "fastae.training",
}
_MODULES = (
    "reference",
    "network",
    "objective",
    "optimizers",
    "engine",
    "data",
    "rows",
    "training",
    "distributed",
    "estimator",
    "plots",
    "kernels",
    "bench",
)

__all__ = ["__version__", *_HOME, "kernels", "reference"]  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # which would take it to have every name

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
    return sorted({*__all__, *_MODULES})


if os.path.isfile(os.path.join(os.path.dirname(__file__), "kernels")):
    raise ImportError(
        "fastae/kernels and fastae/bench are files, but should be links to directories: turn on Developer Mode of "
        "Windows, run 'git config --global core.symlinks true', and clone the repository again"
    )

_moved.install()
