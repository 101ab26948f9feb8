"""The commands that train a model and use it: train, encode, reconstruct, score and inspect."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fastae.cli.shared import Activation, Json, command, print_facts

CHUNK_BYTES = 1 << 24  # of rows that encode, reconstruct and score hold at a time

Data = Annotated[
    list[Path],
    typer.Argument(
        help="One or more .npy, .npz, .csv, .tsv or .parquet files of the same columns; - for CSV on standard input."
    ),
]
Model = Annotated[Path, typer.Argument(help="A file that train wrote, or Autoencoder.save.")]
Drop = Annotated[list[str] | None, typer.Option(help="Leave out the column of this name; may be repeated.")]
Plot = Annotated[Path | None, typer.Option(help="Draw a picture of it into this .png, .svg or .pdf file.")]


def _open_model(path: Path) -> Any:
    from fastae.estimator import Autoencoder

    return Autoencoder.load(path)


def _open_data(paths: list[Path], drop: list[str] | None) -> Any:
    from fastae.data.open import open_rows

    return open_rows(paths, drop=drop or (), chunk_bytes=CHUNK_BYTES)


@command
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The model's file, in safetensors.")],
    hidden: Annotated[str, typer.Option(help="Units of the encoder's layers, the code last: 64,16.")] = "32",
    activation: Annotated[Activation, typer.Option()] = "sigmoid",
    solver: Annotated[Literal["adam", "adamw", "sgd", "lbfgs"], typer.Option()] = "adam",
    epochs: Annotated[int, typer.Option(min=1, help="Times to go through the rows, at most.")] = 200,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows a step.", show_default="200, or all")
    ] = None,
    learning_rate: Annotated[float, typer.Option()] = 0.001,
    alpha: Annotated[float, typer.Option(help="L2 penalty on the weights.")] = 1e-4,
    scale: Annotated[
        Literal["standard", "minmax", "none"], typer.Option(help="What is done to the columns first.")
    ] = "standard",
    missing: Annotated[
        bool, typer.Option("--missing", help="Empty and NaN cells are missing, and no error.")
    ] = False,
    noise: Annotated[
        Literal["gaussian", "mask", "swap", "none"], typer.Option(help="Corrupt the input while training.")
    ] = "none",
    noise_level: Annotated[float, typer.Option()] = 0.1,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Stop by the loss of a tenth of the rows, set aside.")
    ] = False,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better loss after which training stops.")
    ] = 10,
    detector: Annotated[bool, typer.Option(help="Find the threshold that makes a row an outlier.")] = True,
    contamination: Annotated[float, typer.Option(help="Share of the rows to be above the threshold.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the batches and the noise.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each machine.", show_default="all CPUs")
    ] = None,
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="Of the arithmetic.")] = "float32",
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file to go on from after an interruption.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from --checkpoint, if it is there.")
    ] = False,
    dask: Annotated[
        str | None,
        typer.Option(help="Train on a Dask cluster: its scheduler's address, or local to start one here."),
    ] = None,
    mpi: Annotated[bool, typer.Option("--mpi", help="Train on all ranks, under mpirun.")] = False,
    drop: Drop = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Train an autoencoder on the rows of a file, and save it."""
    widths = _widths(hidden)
    from fastae import storage
    from fastae.cli import figures
    from fastae.estimator import Autoencoder, AutoencoderDetector
    from fastae.training.history import Epoch

    if str(out) == "-":
        raise typer.BadParameter("a model goes to a file, not to standard output", param_hint="--out")
    storage.check_place(out)
    if checkpoint is not None and checkpoint.absolute() == out.absolute():
        raise typer.BadParameter(f"{out} is --out, too", param_hint="--checkpoint")
    if plot is not None:
        figures.check(plot)
    if plot is not None and (dask or mpi):
        raise typer.BadParameter("draws rows, which --dask and --mpi leave elsewhere", param_hint="--plot")
    last: deque[Epoch] = deque(maxlen=1)
    model: Any = AutoencoderDetector(contamination=contamination) if detector else Autoencoder()
    model.set_params(
        hidden_layer_sizes=widths,
        activation=activation,
        solver=solver,
        max_iter=epochs,
        batch_size=batch_size or "auto",
        learning_rate_init=learning_rate,
        alpha=alpha,
        scale=None if scale == "none" else scale,
        missing="mask" if missing else None,
        noise=None if noise == "none" else noise,
        noise_level=noise_level,
        early_stopping=early_stopping,
        n_iter_no_change=patience,
        random_state=seed,
        n_threads=threads,
        dtype=dtype,
        callback=last.append,
        verbose=0 if as_json else 1,
    )
    with _training_rows(data, drop, dask, mpi) as (rows, first):
        model.fit(rows, checkpoint=checkpoint, resume=resume)
        model.set_params(verbose=0, callback=None)
        if not first:
            return
        model.save(out)
        if plot is not None:
            figures.save_training(plot, model, rows)
        facts = {
            "model": str(out),
            "rows": len(rows),
            "features": rows.shape[1],
            "hidden": list(widths),
            "epochs": model.n_iter_,
            "stopped_by": model.stop_reason_,
            "loss": model.loss_,
            "validation_loss": min(model.validation_loss_curve_, default=None),
            "r2": model.score(rows) if rows.is_local else None,
            "threshold": -model.offset_ if detector else None,
            "seconds": last[0].seconds if last else None,
        }
    print_facts(facts, as_json)


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(word) for word in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise typer.BadParameter(
            f"positive numbers like 64,16 are needed, got {text!r}", param_hint="--hidden"
        )
    return widths


@contextmanager
def _training_rows(
    paths: list[Path], drop: list[str] | None, dask: str | None, mpi: bool
) -> Iterator[tuple[Any, bool]]:
    """The rows, wherever they are to be trained on, and whether this process is the one that reports."""
    from fastae.data.open import open_rows

    if dask and mpi:
        raise typer.BadParameter("--dask and --mpi exclude each other", param_hint="--dask")
    if dask:
        from fastae import distributed

        with distributed.connect(dask) as client:
            yield distributed.open_partitions(client, paths, drop or ()), True
    elif mpi:
        from fastae.distributed.mpi import MPIPartitions, abort_on_error

        with abort_on_error() as rank:
            yield MPIPartitions(open_rows(paths, drop=drop or ())), rank == 0
    else:
        yield open_rows(paths, drop=drop or ()), True


@command
def encode(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The .npy file of the codes.")],
    drop: Drop = None,
    as_json: Json = False,
) -> None:
    """Write the code of each row to an .npy file."""
    _run_over("transform", model, data, out, drop, as_json)


@command
def reconstruct(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The .npy file of the reconstructions.")],
    drop: Drop = None,
    as_json: Json = False,
) -> None:
    """Write each row as the model gives it back to an .npy file; missing cells are filled in."""
    _run_over("reconstruct", model, data, out, drop, as_json)


def _run_over(
    method: str, model: Path, data: list[Path], out: Path, drop: list[str] | None, as_json: bool
) -> None:
    from fastae.cli import outputs

    outputs.check_suffix(out, (".npy",))
    apply, rows = getattr(_open_model(model), method), _open_data(data, drop)
    shape, dtype = outputs.save_blocks(out, (apply(part) for part in rows.parts()), len(rows))
    print_facts({"file": str(out), "shape": shape, "dtype": dtype.name}, as_json)


@command
def score(
    model: Model,
    data: Data,
    out: Annotated[
        Path, typer.Option(help="A .csv or .parquet file, a line for each row; -: standard output.")
    ] = Path("-"),
    top: Annotated[int, typer.Option(min=1, help="How many features to name, the worst first.")] = 3,
    drop: Drop = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Say of each row how large its error is, whether that makes it an outlier, and by which features.

    The error is the mean over features of the squared error, in the scale that the network sees; a share is a feature's
    part of it.
    """
    from fastae.cli import figures, outputs
    from fastae.estimator import AutoencoderDetector

    if str(out) != "-":
        outputs.check_suffix(out, (".csv", ".parquet", ".pq"))
    if plot is not None:
        figures.check(plot)
    detector, rows = _open_model(model), _open_data(data, drop)
    if not isinstance(detector, AutoencoderDetector):
        raise ValueError(f"{model} has no threshold: score needs a model trained without --no-detector")
    outliers = 0

    def counted() -> Iterator[outputs.Table]:
        nonlocal outliers
        for table in outputs.scores(detector, rows, top):
            outliers += int(table["outlier"].sum())
            yield table

    outputs.save_scores(out, counted(), as_json=as_json)
    if plot is not None:
        figures.save_scoring(plot, detector, rows)
    if str(out) != "-":
        facts = {"file": str(out), "rows": len(rows), "outliers": outliers, "threshold": -detector.offset_}
        print_facts(facts, as_json)


@command
def inspect(model: Model, as_json: Json = False) -> None:
    """Say what a model file holds."""
    loaded = _open_model(model)
    network, params = loaded.network_, loaded.params_
    layers = zip(network.widths[1:], network.activations, strict=True)
    facts = {
        "model": type(loaded).__name__,
        "network": " -> ".join([str(network.widths[0]), *(f"{width} {g}" for width, g in layers)]),
        "code": network.widths[network.code_layer],
        "parameters": sum(array.size for array in params.values()),
        "dtype": params.dtype.name,
        "scale": loaded.scale,
        "missing": loaded.missing,
        "epochs": loaded.n_iter_,
        "stopped_by": loaded.stop_reason_,
        "loss": loaded.loss_,
        "validation_loss": min(loaded.validation_loss_curve_, default=None),
        "threshold": -loaded.offset_ if hasattr(loaded, "offset_") else None,
        "features": list(getattr(loaded, "feature_names_in_", ())) or None,
    }
    print_facts(facts, as_json)
