"""The commands about fastae on this machine: check-gradients, doctor, demo, bench and warmup."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fastae.cli.shared import Activation, Json, command, print_facts


@command
def check_gradients(
    features: Annotated[int, typer.Option(min=1)] = 12,
    hidden: Annotated[int, typer.Option(min=1)] = 5,
    activation: Annotated[Activation, typer.Option()] = "sigmoid",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Compare gradients with central differences: relative errors by parameter. Exit status 1: one is large."""
    from fastae.gradient_check import check_network
    from fastae.network import Network

    network = Network((features, hidden, features, features), (activation, activation, "identity"))
    errors = check_network(network, seed)
    good = all(max(of.values()) < (1e-3 if name == "float32" else 1e-6) for name, of in errors.items())
    if as_json:
        print_facts({**errors, "good": good}, True)
    else:
        typer.echo(f"{'':4}" + "".join(f"{name:>11}" for name in errors))
        for name in errors["reference"]:
            typer.echo(f"{name:4}" + "".join(f"{of[name]:11.1e}" for of in errors.values()))
    if not good:
        raise typer.Exit(1)


@command
def doctor(as_json: Json = False) -> None:
    """Versions, the CPU and the register tiles chosen for it, threads, and where the compiled kernels are kept."""
    from fastae.cli.doctor import report

    print_facts(report(), as_json)


@command
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

    from fastae.cli import demo as job

    picture = find_spec("matplotlib") is not None
    if picture and not out.parent.is_dir():
        raise typer.BadParameter(f"{out.parent} is no directory", param_hint="--out")
    if picture and out.is_dir():
        raise typer.BadParameter(f"{out} is a directory", param_hint="--out")
    result = job.run(hidden=hidden, epochs=epochs, seed=seed, progress=True)
    console = Console()
    console.print(job.table(result))
    if picture:
        from fastae.plots import save_reconstructions

        try:
            save_reconstructions(out, result.X, result.xhat, shape=(8, 8))
        except (OSError, ValueError) as error:  # no room, no permission, no such format
            raise typer.BadParameter(str(error), param_hint="--out") from None
        console.print(f"reconstructions: {out}")
    else:
        console.print('reconstructions are drawn where matplotlib is installed: pip install "fastae\\[plot]"')


@command
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Three of the nine sizes.")] = False,
    size: Annotated[
        list[str] | None, typer.Option(help="A size of your own, n,k,m; may be repeated.")
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="Names with commas between; all that are installed by default.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this file (matplotlib).")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures into this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Put the table between the two marks in this file.")
    ] = None,
) -> None:
    """Time one loss and gradient beside NumPy, scikit-learn, torch and JAX, in turn, and under the CPU's peak."""
    from rich.console import Console

    from fastae.bench import report as reports
    from fastae.bench.cases import CASES, Case
    from fastae.bench.step_peers import PEERS

    names = None if peers is None else [name.strip() for name in peers.split(",")]
    if unknown := set(names or ()) - set(PEERS):
        raise typer.BadParameter(
            f"no peer {', '.join(unknown)}, only {', '.join(PEERS)}", param_hint="--peers"
        )
    cases = reports.QUICK if quick else CASES
    try:
        if size:
            cases = [Case.parse(words) for words in size]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from None
    if plot and not find_spec("matplotlib"):
        raise typer.BadParameter('needs matplotlib: pip install "fastae[plot]"', param_hint="--plot")
    for hint, path in (("--plot", plot), ("--json", json), ("--markdown", markdown)):
        if path and not path.parent.is_dir():
            raise typer.BadParameter(f"{path.parent} is no directory", param_hint=hint)
    try:
        text = reports.splice(markdown.read_text(), "") if markdown else ""
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{markdown}: {error}", param_hint="--markdown") from None

    report = reports.Report.run(cases, names, tell=lambda words: typer.echo(words, err=True))
    console = Console()
    for line in report.header():
        console.print(line, highlight=False)
    console.print(report.details(), report.standing())
    for line in report.notes():
        console.print(line, highlight=False, markup=False)
    if json:
        json.write_text(report.to_json())
    if markdown:
        markdown.write_text(reports.splice(text, report.markdown()))
    if plot:
        from fastae.bench.pictures import save

        save(report, plot)


@command
def warmup() -> None:
    """Compile the kernels ahead, for every dtype that this CPU computes in, as in a Dockerfile.

    They are kept for the CPU they are compiled for: this one or, where images move, the one that NUMBA_CPU_NAME and
    NUMBA_CPU_FEATURES name.
    """
    from fastae.engine.warmup import warm_up_all

    for dtype, seconds in warm_up_all():
        typer.echo(f"{dtype}: ready in {seconds:.1f} s")
