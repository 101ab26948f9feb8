"""The commands that use models: encode, reconstruct, score and inspect."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from fastae.cli.arguments import Data, Drop, Header, Keep, Model, Plot, print_guess
from fastae.cli.shared import Json, command, notice, print_facts
from fastae.cli.train import automatic, how_it_ended

CHUNK_BYTES = 1 << 24  # of rows that encode, reconstruct and score hold at a time


# The mean p-value of new rows is 1/2. Above this, and by so many standard errors, they are the rows of the training
ORDINARY, STANDARD_ERRORS = 0.6, 6


def _open_model(path: Path) -> Any:
    from fastae.estimator.stored import StoredModel

    try:
        return StoredModel(path)
    except ValueError as error:
        if path.suffix.lower() not in (".csv", ".tsv", ".gz", ".npy", ".npz", ".parquet", ".pq"):
            raise
        raise ValueError(f"{error}. It seems to be data: the model comes first, then the data") from None


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
    print_guess(rows)
    if rows.ignored:
        shown = ", ".join(map(repr, rows.ignored[:5])) + ", ..." * (len(rows.ignored) > 5)
        notice(
            f"{rows.name}: ignored what the model does not use: column{'s' * (len(rows.ignored) > 1)} {shown}"
        )
    return rows


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
    outliers, p_values = 0, 0.0

    def columns(part: Any) -> outputs.Columns:
        nonlocal outliers, p_values
        scores = outputs.scores(detector, part, top)
        outliers += int(scores["outlier"].sum())
        if "p_value" in scores:
            p_values += float(scores["p_value"].sum())
        if labels is not None:
            errors.append(scores["error"])
        return scores

    as_text = not as_json if str(out) == "-" else out.suffix.lower() not in outputs.PARQUET
    outputs.save_tables(out, outputs.tables(rows, columns, kept, as_text=as_text), as_json=as_json)
    mean = p_values / max(len(rows), 1)
    if mean > ORDINARY and (mean - 0.5) * (12 * len(rows)) ** 0.5 > STANDARD_ERRORS:
        notice(
            f"{rows.name}: these errors are smaller than those of new rows. Was the model trained on these rows? "
            "`fastae train --scores` writes their errors by networks that have not seen them"
        )
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
        **how_it_ended(loaded),
        "threshold": -loaded.offset_ if hasattr(loaded, "offset_") else None,
        "date": written.isoformat(" ", "seconds"),
        "version": loaded.version,
        "features": list(getattr(loaded, "feature_names_in_", ())) or None,
        "auto": automatic(loaded),
    }
    print_facts(facts, as_json)
