"""The command train: it fits an autoencoder or a detector to files and writes the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fastae.cli.arguments import Data, Drop, Header, Plot, print_guess
from fastae.cli.shared import Activation, Json, command, print_facts, warnings_as_notices

# The names that messages and results use for settings
OPTIONS = {
    "hidden_layer_sizes": "--hidden",
    "batch_size": "--batch-size",
    "learning_rate_init": "--learning-rate",
    "max_iter": "--epochs",
    "n_iter_no_change": "--patience",
}


@command(
    "fastae train data.csv --hidden 8 --out model.safetensors",
    "fastae train 'part-*.parquet' --drop id --hidden 64,16 --early-stopping --out model.safetensors",
    "fastae train data.csv --scores scores.csv --contamination 0.01 --out model.safetensors",
    "fastae train data.csv --checkpoint run --resume --out model.safetensors",
)
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Model file to write, in safetensors format.")],
    hidden: Annotated[
        str,
        typer.Option(
            help="Units per encoder layer; the last is the code (the compressed representation). For example 64,16; "
            "auto: one layer, of twice as many units as features for several networks; of one network, of as many "
            "units as principal components hold 90% of the variance."
        ),
    ] = "auto",
    activation: Annotated[
        Activation, typer.Option(help="Activation of all layers but the last.")
    ] = "sigmoid",
    estimators: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of networks of a detector. Several detect outliers better; with 1, `fastae encode` writes "
            "the code of that one.",
            show_default="15; 1 with --hidden or --mpi",
        ),
    ] = None,
    init: Annotated[
        Literal["auto", "pca", "random"],
        typer.Option(
            help="Start where PCA ends, or from random weights. auto: random for several networks, otherwise pca."
        ),
    ] = "auto",
    solver: Annotated[Literal["adam", "adamw", "sgd", "lbfgs"], typer.Option(help="Optimizer.")] = "adam",
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of epochs.", show_default="by rows and columns"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows per step.", show_default="128, or all rows if there are fewer"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the first step.",
            show_default="0.03 for several networks; of one, by its columns and layers",
        ),
    ] = None,
    schedule: Annotated[
        Literal["cosine", "constant", "invscaling", "adaptive"],
        typer.Option(help="How the learning rate falls."),
    ] = "cosine",
    loss: Annotated[
        Literal["squared_error", "huber", "bernoulli"],
        typer.Option(
            help="What training minimises: the squared error; huber, which is linear for large errors; bernoulli, the "
            "cross-entropy for binary data and others in 0 .. 1, with --scale minmax or none."
        ),
    ] = "squared_error",
    huber_delta: Annotated[
        float | None,
        typer.Option(
            help="Error beyond which --loss huber is linear, in the network's scale.", show_default="1"
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="L2 penalty on the weights; with adamw, decoupled weight decay.")
    ] = 1e-4,
    scale: Annotated[
        Literal["standard", "minmax", "none"],
        typer.Option(
            help="Scale each column to mean 0 and deviation 1 (standard), to 0 .. 1 (minmax), or not."
        ),
    ] = "standard",
    missing: Annotated[bool, typer.Option("--missing", help="Allow missing cells: empty or NaN.")] = False,
    noise: Annotated[
        Literal["auto", "gaussian", "mask", "swap", "none"],
        typer.Option(
            help="Corrupt the input during training. auto: mask for several networks, otherwise none."
        ),
    ] = "auto",
    noise_level: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of gaussian noise; probability of mask and swap.",
            show_default="0.3 for the noise of auto, otherwise 0.1",
        ),
    ] = None,
    early_stopping: Annotated[
        bool,
        typer.Option(
            "--early-stopping",
            help="Hold out 10% of the rows for validation; stop when their loss no longer improves.",
        ),
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after more than this many epochs without an improvement in the validation loss (with "
            "--early-stopping), else in the loss.",
            show_default="10 or a tenth of the epochs with --early-stopping, never with cosine",
        ),
    ] = None,
    detector: Annotated[
        bool, typer.Option(help="Set a threshold for outliers, needed by `fastae score`.")
    ] = True,
    contamination: Annotated[
        float, typer.Option(help="Share to flag as outliers: of new rows; with --estimators 1, of the rows.")
    ] = 0.1,
    scores: Annotated[
        Path | None,
        typer.Option(
            help=".csv or .parquet file to write, with the error of each training row, whether it is an outlier and "
            "its p-value, by networks that were not trained on it; with --estimators 1, by the one that was."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the weights, the batches and the noise.")
    ] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of threads on each machine.", show_default="all CPUs"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16"],
        typer.Option(help="Floating-point type for training and inference."),
    ] = "float32",
    checkpoint: Annotated[
        Path | None, typer.Option(help="File from which an interrupted run can resume.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from --checkpoint, if the file exists.")
    ] = False,
    dask: Annotated[
        str | None,
        typer.Option(
            help="Train on the Dask cluster with this scheduler address; 'local' starts one on this machine."
        ),
    ] = None,
    mpi: Annotated[
        bool, typer.Option("--mpi", help="Train on all ranks of an MPI job; start it with mpirun.")
    ] = False,
    drop: Drop = None,
    header: Header = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Train an autoencoder and write a model file."""
    widths = _widths(hidden)
    import time

    from fastae import storage
    from fastae.cli import figures, outputs
    from fastae.data.open import paths_of
    from fastae.estimator import Autoencoder, AutoencoderDetector

    if str(out) == "-":
        raise typer.BadParameter("a model is written to a file, not to standard output", param_hint="--out")
    storage.check_place(out)
    files = paths_of(data)
    places = {"--out": out, "--checkpoint": checkpoint, "--plot": plot, "--scores": scores}
    for hint, path in places.items():
        if path is not None:
            outputs.check_not_input(hint, path, files)
    outputs.check_distinct(places)
    if scores is not None:
        outputs.check_suffix(scores, outputs.TABLES)
        storage.check_place(scores)
        if dask or mpi or not detector:
            raise typer.BadParameter(
                "needs a detector, trained on this machine: leave out --dask, --mpi and --no-detector",
                param_hint="--scores",
            )
    if plot is not None:
        figures.check(plot)
    if plot is not None and (dask or mpi):
        raise typer.BadParameter(
            "plots need the rows on this machine: leave out --dask and --mpi", param_hint="--plot"
        )
    if huber_delta is not None and loss != "huber":
        raise typer.BadParameter("goes with --loss huber only", param_hint="--huber-delta")
    model: Any = Autoencoder()
    if detector:
        several = estimators or (1 if mpi or widths != "auto" else AutoencoderDetector.n_estimators)
        model = AutoencoderDetector(contamination=contamination, n_estimators=several)
    elif estimators is not None:
        raise typer.BadParameter(
            "several networks make a detector: leave out --no-detector", param_hint="--estimators"
        )
    given = {"init": init, "noise": noise, "noise_level": "auto" if noise_level is None else noise_level}
    for name, value in given.items():  # the defaults of the two classes differ
        if value != "auto":
            model.set_params(**{name: None if value == "none" else value})
    model.set_params(
        hidden_layer_sizes=widths,
        activation=activation,
        solver=solver,
        loss=loss,
        huber_delta=Autoencoder.huber_delta if huber_delta is None else huber_delta,
        max_iter=epochs or "auto",
        batch_size=batch_size or "auto",
        learning_rate=schedule,
        learning_rate_init="auto" if learning_rate is None else learning_rate,
        alpha=alpha,
        scale=None if scale == "none" else scale,
        missing="mask" if missing else None,
        early_stopping=early_stopping,
        n_iter_no_change=patience or "auto",
        random_state=seed,
        n_threads=threads,
        dtype=dtype,
        verbose=0 if as_json else 1,
    )
    with _training_rows(data, drop, header, dask, mpi) as (rows, first):
        if first:
            print_guess(rows)
        began = time.perf_counter()
        with warnings_as_notices(OPTIONS):
            model.fit(rows, checkpoint=checkpoint, resume=resume)
        seconds = time.perf_counter() - began
        model.set_params(verbose=0)
        if not first:
            return
        model.save(out)
        if scores is not None:
            outputs.save_tables(scores, [outputs.scores_of_training(model, rows)])
        if plot is not None:
            figures.save_training(plot, model, rows)
        facts = {
            "model": str(out),
            "rows": len(rows),
            "features": rows.shape[1],
            "networks": len(model.all_params_) if detector else None,
            "hidden": list(model.network_.widths[1 : model.network_.code_layer + 1]),
            **how_it_ended(model),
            "r2": model.score(rows) if rows.is_local else None,
            "threshold": -model.offset_ if detector else None,
            "seconds": seconds,
            "auto": automatic(model),
        }
    print_facts(facts, as_json)


def how_it_ended(model: Any) -> dict[str, Any]:
    """The facts about a fit that train and inspect print."""
    reason = model.stop_reason_
    return {
        "epochs": model.n_iter_,
        "stopped_by": {"max_iter": "--epochs", "tol": "--patience"}.get(reason, reason),
        "loss": model.loss_,
        "validation_loss": min(model.validation_loss_curve_, default=None),
        "error_over_mean": model.error_over_mean_,
        "error_over_pca": model.error_over_pca_,
    }


def automatic(model: Any) -> dict[str, Any] | None:
    """What was chosen from the data, by the names of the options."""
    names = {setting: option.strip("-").replace("-", "_") for setting, option in OPTIONS.items()}
    return {names.get(setting, setting): value for setting, value in model.auto_.items()} or None


def _widths(text: str) -> tuple[int, ...] | Literal["auto"]:
    from fastae.network import MOST_UNITS

    if text == "auto":
        return "auto"
    try:
        widths = tuple(int(word) for word in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise typer.BadParameter(
            f"must be auto, or positive integers such as 64,16, got {text!r}", param_hint="--hidden"
        )
    if max(widths) > MOST_UNITS:
        raise typer.BadParameter(f"must be at most {MOST_UNITS}, got {max(widths)}", param_hint="--hidden")
    return widths


@contextmanager
def _training_rows(
    paths: list[Path], drop: list[str] | None, header: bool | None, dask: str | None, mpi: bool
) -> Iterator[tuple[Any, bool]]:
    """Yield the rows, on this machine or on several, and whether this process is the one that writes the results."""
    from fastae.data.open import open_rows

    if dask and mpi:
        raise typer.BadParameter("--dask and --mpi cannot be used together", param_hint="--dask")
    if dask:
        from fastae import distributed

        with distributed.connect(dask) as client:
            yield distributed.open_partitions(client, paths, drop or (), header), True
    elif mpi:
        from fastae.distributed.mpi import MPIPartitions, abort_on_error

        with abort_on_error() as rank:
            rows = open_rows(paths, drop=drop or (), header=header)
            partitions = MPIPartitions(rows)
            partitions.guess = rows.guess
            yield partitions, rank == 0
    else:
        yield open_rows(paths, drop=drop or (), header=header), True
