"""The demo: an autoencoder trained on scikit-learn's digits, and the same steps in NumPy for comparison.

Times are measured as in ``fastae bench``: an epoch of each in turn, after a rest and a warm-up, with NumPy on one BLAS
thread or on all, whichever is faster. A NumPy with more threads than suit these small steps would look far too slow.
"""

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastae import reference
from fastae.data.row_source import ArrayRows
from fastae.engine import thread_pool
from fastae.engine.engine import Engine
from fastae.engine.warmup import warm_up
from fastae.estimator import Autoencoder
from fastae.estimator.automatic import budget_of, unit_of
from fastae.training.gradient_descent import train
from fastae.training.pca import principal_components, start_at_pca

if TYPE_CHECKING:
    from rich.table import Table

BATCH_SIZE = 200
ROUNDS = 7  # of timing


@dataclass(frozen=True)
class Result:
    """Data, losses and times of one run of the demo.

    Both sides train the same network from the same weights on the same batches. They start where PCA ends.

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
    numpy_threads : int
        Number of BLAS threads: 1 or all, whichever is faster for NumPy.
    loss_by_pca : float
        Mean over all rows of half the squared error of PCA with as many components.
    loss_before : float
        The same of the network, before training.
    loss_after : float
        The same after training.
    numpy_loss_after : float
        The same after the same steps in NumPy; equal up to rounding.
    seconds : float
        Duration of an epoch: the median of several, timed in turn with NumPy's.
    numpy_seconds : float
        Duration of an epoch in NumPy, measured in the same way.
    """

    X: np.ndarray
    xhat: np.ndarray
    hidden: int
    epochs: int
    threads: int
    numpy_threads: int
    loss_by_pca: float
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
    """Train 64 -> hidden -> 64 -> 64 on the digits, then time an epoch and train in NumPy too.

    Network and optimizer are those of an ``Autoencoder`` with its default settings, but unscaled.
    """
    from rich.console import Console
    from threadpoolctl import threadpool_limits

    from fastae.bench.pools import set_threads
    from fastae.bench.rounds import Contender, fastest, in_turn

    warm_up()
    X = digits()
    model = Autoencoder(hidden, scale=None, max_iter=epochs, batch_size=BATCH_SIZE)
    network = model._network(X.shape[1], [hidden])
    engine = Engine(network)
    components = principal_components(
        ArrayRows(X), hidden, np.float32, shift=None, scale=None, missing=False, n_threads=None
    )
    assert components is not None  # 64 columns in [0, 1]
    unit = unit_of(model, components.deviation)
    budget = budget_of(model, len(X), network.widths, BATCH_SIZE, unit=unit)
    start = start_at_pca(network, components, seed, np.float32)
    options: dict[str, Any] = {"optimizer": model._optimizer(budget), "batch_size": BATCH_SIZE, "seed": seed}
    loss_before, _ = engine.loss_and_gradient(start, X)
    params = start.copy()
    train(params, X, engine=engine, epochs=epochs, progress=progress, **options)
    loss_after, _ = engine.loss_and_gradient(params, X)

    def ours(times: int) -> None:
        train(start.copy(), X, engine=engine, epochs=times, **options)

    def numpys(times: int) -> None:
        reference.train(start, X, epochs=times, **options)

    console = Console(stderr=True)
    waiting = console.status("timing NumPy and fastae in turn") if progress else contextlib.nullcontext()
    cpus = thread_pool.available_cpus()
    with waiting, threadpool_limits():  # restores the BLAS threads
        numpy = fastest([Contender(numpys, threads) for threads in dict.fromkeys((1, cpus))])
        timings = in_turn({"fastae": Contender(ours, cpus), "numpy": numpy}, rounds=ROUNDS)
        set_threads(numpy.threads)
        arrays, _ = reference.train(start, X, epochs=epochs, **options)
    return Result(
        X=X,
        xhat=engine.reconstruct(params, X),
        hidden=hidden,
        epochs=epochs,
        threads=engine.n_threads,
        numpy_threads=numpy.threads,
        loss_by_pca=components.error(hidden) / 2,
        loss_before=loss_before,
        loss_after=loss_after,
        numpy_loss_after=float(reference.cost(X, reference.forward(X, arrays)["xhat"])),
        seconds=timings["fastae"].median,
        numpy_seconds=timings["numpy"].median,
    )


def table(result: Result) -> "Table":
    """Make a table of the result for the terminal."""
    from rich.table import Table

    rows, features = result.X.shape
    comparison = Table(
        title=f"digits: {rows} rows, {features} features, {result.hidden} code units",
        caption=(
            f"Both take the same steps in float32: Adam, batches of {BATCH_SIZE}, from the same weights. NumPy is "
            "fastae.reference, on 1 BLAS thread or all, whichever is faster. Epochs are timed in turn, as in "
            f"fastae bench; the times are medians of {ROUNDS}."
        ),
        caption_justify="left",
    )
    comparison.add_column("")
    comparison.add_column(f"fastae, {_threads(result.threads)}", justify="right")
    comparison.add_column(f"NumPy, {_threads(result.numpy_threads)}", justify="right")
    comparison.add_row("loss of PCA", f"{result.loss_by_pca:.5f}", f"{result.loss_by_pca:.5f}")
    comparison.add_row("loss before", f"{result.loss_before:.5f}", f"{result.loss_before:.5f}")
    comparison.add_row(
        f"loss after {result.epochs} epochs", f"{result.loss_after:.5f}", f"{result.numpy_loss_after:.5f}"
    )
    comparison.add_row("ms per epoch", f"{result.seconds * 1e3:.2f}", f"{result.numpy_seconds * 1e3:.2f}")
    comparison.add_row(
        "rows per second", f"{rows / result.seconds:,.0f}", f"{rows / result.numpy_seconds:,.0f}"
    )
    comparison.add_row("speed", f"{result.numpy_seconds / result.seconds:.1f}x", "1x")
    return comparison


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"
