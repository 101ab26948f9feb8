"""The command ``fastae``: arguments in, tables out. What it does is done elsewhere."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from fastae import __version__

        typer.echo(f"fastae {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Train autoencoders on a CPU, fast."""


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Times to go through the 1797 digits.")] = 300,
    hidden: Annotated[int, typer.Option(min=1, help="Units of the code.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and of the shuffling.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Where the picture of reconstructions goes, if matplotlib is installed.")
    ] = Path("fastae-demo.png"),
) -> None:
    """Train on the handwritten digits that ship with scikit-learn, and compare with NumPy."""
    from rich.console import Console
    from rich.table import Table

    from fastae import demo as job

    picture = find_spec("matplotlib") is not None
    if picture and not out.parent.is_dir():
        raise typer.BadParameter(f"{out.parent} is no directory", param_hint="--out")
    if picture and out.is_dir():
        raise typer.BadParameter(f"{out} is a directory", param_hint="--out")
    with Console(stderr=True).status("loading the kernels; the first time, compiling them takes about 15 s"):
        job.warm_up(hidden)
    result = job.run(hidden=hidden, epochs=epochs, seed=seed, progress=True)

    rows, features = result.X.shape
    table = Table(title=f"digits: {rows} rows of {features} features, a code of {hidden}, Adam")
    table.add_column("")
    table.add_column(f"fastae, {result.threads} thread{'s' * (result.threads > 1)}", justify="right")
    table.add_column("NumPy reference", justify="right")
    table.add_row("loss before", f"{result.loss_before:.5f}", f"{result.loss_before:.5f}")
    table.add_row(f"loss after {epochs} epochs", f"{result.loss_after:.5f}", f"{result.numpy_loss_after:.5f}")
    table.add_row("seconds", f"{result.seconds:.3f}", f"{result.numpy_seconds:.3f}")
    ours, theirs = (epochs * rows / seconds for seconds in (result.seconds, result.numpy_seconds))
    table.add_row("rows per second", f"{ours:,.0f}", f"{theirs:,.0f}")
    table.add_row("speed", f"{ours / theirs:.1f}x", "1x")
    console = Console()
    console.print(table)
    if picture:
        from fastae.plots import save_reconstructions

        try:
            save_reconstructions(out, result.X, result.xhat, shape=(8, 8))
        except (OSError, ValueError) as error:  # no room, no permission, no such format
            raise typer.BadParameter(str(error), param_hint="--out") from None
        console.print(f"reconstructions: {out}")
    else:
        console.print('reconstructions are drawn where matplotlib is installed: pip install "fastae\\[plot]"')


def main() -> None:
    """Run the command."""
    app()
