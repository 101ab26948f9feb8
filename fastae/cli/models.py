"""The commands that train and use models: train, encode, reconstruct, score and inspect."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fastae.cli.shared import Activation, Json, command, notice, print_facts, warnings_as_notices

CHUNK_BYTES = 1 << 24  # of rows that encode, reconstruct and score hold at a time
# The names that messages and results use for settings
OPTIONS = {
    "hidden_layer_sizes": "--hidden",
    "batch_size": "--batch-size",
    "learning_rate_init": "--learning-rate",
    "max_iter": "--epochs",
    "n_iter_no_change": "--patience",
}

Data = Annotated[
    list[Path],
    typer.Argument(
        help="One or more .npy, .npz, .csv, .tsv (both also with .gz) or .parquet files of the same columns; "
        "- is CSV on standard input."
    ),
]
Model = Annotated[Path, typer.Argument(help="Model file, written by train or by Autoencoder.save.")]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Leave out the column with this name; may be repeated."),
]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether the first line of a CSV file holds column names.",
        show_default="guessed",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Copy this column of the data to the output; may be repeated."),
]
Plot = Annotated[Path | None, typer.Option(help="Plot the results into this .png, .svg or .pdf file.")]


def _open_model(path: Path) -> Any:
    from fastae.estimator.stored import StoredModel

    return StoredModel(path)


def _open_data(
    paths: list[Path], drop: list[str] | None, header: bool | None, model: Any, keep: Iterable[str] = ()
) -> Any:
    """The rows for a model, in its order of columns; what was guessed and ignored is printed in one line each."""
    from fastae.data.columns import Selection
    from fastae.data.open import open_selected

    names = getattr(model, "feature_names_in_", None)
    only = None if names is None else tuple(names)
    selection = Selection(tuple(drop or ()), tuple(dict.fromkeys(keep)), only)
    rows = open_selected(paths, selection, chunk_bytes=CHUNK_BYTES, header=header)
    _print_guess(rows)
    if rows.ignored:
        shown = ", ".join(map(repr, rows.ignored[:5])) + ", ..." * (len(rows.ignored) > 5)
        notice(
            f"{rows.name}: ignored what the model does not use: column{'s' * (len(rows.ignored) > 1)} {shown}"
        )
    return rows


def _print_guess(rows: Any) -> None:
    if rows.guess:
        notice(f"{rows.guess} (--header or --no-header states it)")


@command(
    "fastae train data.csv --hidden 8 --out model.safetensors",
    "fastae train 'part-*.parquet' --drop id --hidden 64,16 --early-stopping --out model.safetensors",
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
    for hint, path in (("--out", out), ("--checkpoint", checkpoint), ("--plot", plot)):
        if path is not None:
            outputs.check_not_input(hint, path, files)
    outputs.check_distinct({"--out": out, "--checkpoint": checkpoint, "--plot": plot})
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
            _print_guess(rows)
        began = time.perf_counter()
        with warnings_as_notices(OPTIONS):
            model.fit(rows, checkpoint=checkpoint, resume=resume)
        seconds = time.perf_counter() - began
        model.set_params(verbose=0)
        if not first:
            return
        model.save(out)
        if plot is not None:
            figures.save_training(plot, model, rows)
        facts = {
            "model": str(out),
            "rows": len(rows),
            "features": rows.shape[1],
            "networks": len(model.all_params_) if detector else None,
            "hidden": list(model.network_.widths[1 : model.network_.code_layer + 1]),
            **_how_it_ended(model),
            "r2": model.score(rows) if rows.is_local else None,
            "threshold": -model.offset_ if detector else None,
            "seconds": seconds,
            "auto": _automatic(model),
        }
    print_facts(facts, as_json)


def _how_it_ended(model: Any) -> dict[str, Any]:
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


def _automatic(model: Any) -> dict[str, Any] | None:
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


@command(
    "fastae encode model.safetensors data.csv --out codes.npy",
    "fastae encode model.safetensors data.csv --keep id --out codes.parquet",
)
def encode(
    model: Model,
    data: Data,
    out: Annotated[
        Path, typer.Option(help=".npy, .csv or .parquet file to write, with the code of each input row.")
    ],
    keep: Keep = None,
    drop: Drop = None,
    header: Header = None,
    as_json: Json = False,
) -> None:
    """Write the code of each input row: its compressed form.

    An .npy file holds the codes alone; a .csv or .parquet file also has names: code_1, code_2, ...
    """
    _run_over("transform", model, data, out, keep, drop, header, as_json)


@command(
    "fastae reconstruct model.safetensors data.csv --out reconstructions.csv",
)
def reconstruct(
    model: Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(help=".npy, .csv or .parquet file to write, with one reconstruction per input row."),
    ],
    keep: Keep = None,
    drop: Drop = None,
    header: Header = None,
    as_json: Json = False,
) -> None:
    """Write one reconstruction per input row.

    Each output row is the model's reconstruction, in the scale of the data; missing cells are filled in.
    """
    _run_over("reconstruct", model, data, out, keep, drop, header, as_json)


def _run_over(
    method: str,
    path: Path,
    data: list[Path],
    out: Path,
    keep: list[str] | None,
    drop: list[str] | None,
    header: bool | None,
    as_json: bool,
) -> None:
    from fastae.cli import outputs
    from fastae.data.open import paths_of

    outputs.check_suffix(out, (".npy", *outputs.TABLES))
    if keep and out.suffix.lower() == ".npy":
        raise typer.BadParameter("an .npy file has no names: write .csv or .parquet", param_hint="--keep")
    outputs.check_not_input("--out", out, [path, *paths_of(data)])
    model = _open_model(path)
    networks = len(model.all_params_)
    if method == "transform" and networks > 1:
        notice(
            f"{path}: the codes of {networks} networks, side by side; for the code of one, train with --estimators 1"
        )
    apply, kept = getattr(model, method), tuple(dict.fromkeys(keep or ()))
    rows = _open_data(data, drop, header, model, kept)
    if out.suffix.lower() == ".npy":
        shape, dtype = outputs.save_chunks(out, (apply(part) for part in rows.parts()), len(rows))
    else:
        width = model._n_features_out if method == "transform" else model.network_.widths[0]
        names = [f"{'code' if method == 'transform' else 'column'}_{i + 1}" for i in range(width)]
        if method == "reconstruct":
            names = list(getattr(model, "feature_names_in_", names))

        def columns(part: Any) -> outputs.Columns:
            return dict(zip(names, apply(part).T, strict=True))

        as_text = out.suffix.lower() not in outputs.PARQUET
        outputs.save_tables(out, outputs.tables(rows, columns, kept, as_text=as_text))
        shape, dtype = (len(rows), len(kept) + width), model.params_.dtype
    print_facts({"file": str(out), "shape": shape, "dtype": dtype.name}, as_json)


@command(
    "fastae score model.safetensors data.csv --out scores.csv",
    "fastae score model.safetensors data.csv --keep id --label is_fraud --out scores.parquet",
    "head -100 data.csv | fastae score model.safetensors - --json",
)
def score(
    model: Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(help=".csv or .parquet file to write, with one line per row; - is standard output."),
    ] = Path("-"),
    top: Annotated[
        int, typer.Option(min=1, help="Number of features to report per row, the worst first.")
    ] = 3,
    keep: Keep = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column that is 1 (or true) for outliers and 0 for all other rows: "
            "report AUROC and average precision.",
        ),
    ] = None,
    drop: Drop = None,
    header: Header = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Score each row and flag outliers.

    Reports each row's error, whether it is an outlier, its p-value, and the features responsible. The error of one
    network is the mean squared error over the features, in its scale; several networks also measure the distance from
    the training rows. The p-value says how rare such a large error is among rows like those of the training; only
    several networks have it. A share is a feature's part of the error.
    """
    from fastae.cli import figures, outputs
    from fastae.cli.labels import detection_quality, labels_of
    from fastae.data.open import paths_of

    files = paths_of(data)
    if str(out) != "-":
        outputs.check_suffix(out, outputs.TABLES)
        outputs.check_not_input("--out", out, [model, *files])
    if plot is not None:
        outputs.check_not_input("--plot", plot, [model, *files])
        outputs.check_distinct({"--out": out, "--plot": plot})
        figures.check(plot)
    detector = _open_model(model)
    if not detector.detects:
        raise ValueError(f"{model} has no threshold: train the model without --no-detector")
    kept = tuple(dict.fromkeys(keep or ()))
    rows = _open_data(data, drop, header, detector, kept if label is None else (*kept, label))
    labels = None if label is None else labels_of(rows.kept[label], label, rows.name)
    errors: list[Any] = []
    outliers = 0

    def columns(part: Any) -> outputs.Columns:
        nonlocal outliers
        scores = outputs.scores(detector, part, top)
        outliers += int(scores["outlier"].sum())
        if labels is not None:
            errors.append(scores["error"])
        return scores

    as_text = not as_json if str(out) == "-" else out.suffix.lower() not in outputs.PARQUET
    outputs.save_tables(out, outputs.tables(rows, columns, kept, as_text=as_text), as_json=as_json)
    quality = {} if labels is None else detection_quality(labels, errors)
    if plot is not None:
        from fastae.estimator import AutoencoderDetector

        figures.save_scoring(plot, AutoencoderDetector.load(model), rows)
    if str(out) != "-":
        facts = {"file": str(out), "rows": len(rows), "outliers": outliers, "threshold": -detector.offset_}
        print_facts(facts | quality, as_json)
    elif quality:
        notice(", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in quality.items()))


@command("fastae inspect model.safetensors")
def inspect(model: Model, as_json: Json = False) -> None:
    """Show the contents of a model file."""
    from datetime import datetime

    loaded = _open_model(model)
    written = datetime.fromtimestamp(model.stat().st_mtime)
    network, params = loaded.network_, loaded.params_
    layers = zip(network.widths[1:], network.activations, strict=True)
    facts = {
        "model": loaded.kind,
        "network": " -> ".join([str(network.widths[0]), *(f"{width} {g}" for width, g in layers)]),
        "networks": len(loaded.all_params_) if loaded.detects else None,
        "code": loaded._n_features_out,
        "parameters": sum(array.size for array in params.values()) * len(loaded.all_params_),
        "dtype": loaded.dtype if loaded.dtype == "bfloat16" else params.dtype.name,
        "scale": loaded.scale,
        "missing": loaded.missing,
        **_how_it_ended(loaded),
        "threshold": -loaded.offset_ if hasattr(loaded, "offset_") else None,
        "date": written.isoformat(" ", "seconds"),
        "version": loaded.version,
        "features": list(getattr(loaded, "feature_names_in_", ())) or None,
        "auto": _automatic(loaded),
    }
    print_facts(facts, as_json)
