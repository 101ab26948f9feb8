"""The arguments that several commands have: data, model, columns, plots."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastae.cli.shared import notice

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


def print_guess(rows: Any) -> None:
    """Print how a CSV file's first line was read, where it could have been read in another way."""
    if rows.guess:
        notice(f"{rows.guess} (--header or --no-header states it)")
