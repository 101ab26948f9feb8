"""The demo: an autoencoder trained on scikit-learn's digits, and the same steps in NumPy for comparison."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastae import reference
from fastae.engine.engine import Engine
from fastae.engine.warmup import warm_up
from fastae.network import Network, Parameters
from fastae.optimizers import Adam
from fastae.training.gradient_descent import train

if TYPE_CHECKING:
    from rich.table import Table

BATCH_SIZE = 200


@dataclass(frozen=True)
class Result:
    """Data, losses and times of one run of the demo.

    Attributes
    ----------
    X : ndarray of shape (1797, 64), float32
        The digits, with pixels in [0, 1].
    xhat : ndarray of shape (1797, 64), float32
        Their reconstructions.
    hidden : int
        Number of code units.
    epochs : int
        Number of epochs.
    threads : int
        Number of threads of the engine.
    loss_before : float
        Mean over all rows of half the squared error, before training.
    loss_after : float
        The same after training.
    numpy_loss_after : float
        The same after the same steps in NumPy; equal up to rounding.
    seconds : float
        Duration of the steps.
    numpy_seconds : float
        Duration of the steps in NumPy.
    """

    X: np.ndarray
    xhat: np.ndarray
    hidden: int
    epochs: int
    threads: int
    loss_before: float
    loss_after: float
    numpy_loss_after: float
    seconds: float
    numpy_seconds: float


def digits() -> np.ndarray:
    """Load the 1797 digits of 8 x 8 pixels that ship with scikit-learn: (1797, 64), float32 in [0, 1]."""
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().data / 16, np.float32)


def run(*, hidden: int = 32, epochs: int = 300, seed: int = 0, progress: bool = False) -> Result:
    """Train 64 -> hidden -> 64 -> 64 on the digits with Adam, then take the same steps in NumPy."""
    warm_up()
    X = digits()
    network = Network.autoencoder(X.shape[1], hidden)
    engine = Engine(network)
    params = Parameters.random(network, seed)
    start = params.copy()
    loss_before, _ = engine.loss_and_gradient(params, X)
    optimizer = Adam(learning_rate=0.003)
    history = train(
        params,
        X,
        engine=engine,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        progress=progress,
    )
    loss_after, _ = engine.loss_and_gradient(params, X)

    began = time.perf_counter()
    arrays, _ = reference.train(
        start, X, optimizer=optimizer, epochs=epochs, batch_size=BATCH_SIZE, seed=seed
    )
    numpy_seconds = time.perf_counter() - began
    return Result(
        X=X,
        xhat=engine.reconstruct(params, X),
        hidden=hidden,
        epochs=epochs,
        threads=engine.n_threads,
        loss_before=loss_before,
        loss_after=loss_after,
        numpy_loss_after=float(reference.cost(X, reference.forward(X, arrays)["xhat"])),
        seconds=history.seconds,
        numpy_seconds=numpy_seconds,
    )


def table(result: Result) -> "Table":
    """Make a table of the result for the terminal."""
    from rich.table import Table

    rows, features = result.X.shape
    comparison = Table(title=f"digits: {rows} rows, {features} features, {result.hidden} code units, Adam")
    comparison.add_column("")
    comparison.add_column(f"fastae, {result.threads} thread{'s' * (result.threads > 1)}", justify="right")
    comparison.add_column("NumPy reference", justify="right")
    comparison.add_row("loss before", f"{result.loss_before:.5f}", f"{result.loss_before:.5f}")
    comparison.add_row(
        f"loss after {result.epochs} epochs", f"{result.loss_after:.5f}", f"{result.numpy_loss_after:.5f}"
    )
    comparison.add_row("seconds", f"{result.seconds:.3f}", f"{result.numpy_seconds:.3f}")
    ours, theirs = (result.epochs * rows / seconds for seconds in (result.seconds, result.numpy_seconds))
    comparison.add_row("rows per second", f"{ours:,.0f}", f"{theirs:,.0f}")
    comparison.add_row("speed", f"{ours / theirs:.1f}x", "1x")
    return comparison
