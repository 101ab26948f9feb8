"""The commands that concern this machine: check-gradients, doctor, demo, bench and warmup."""

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from fastae.cli.shared import Activation, Json, command, print_facts


@command("fastae check-gradients --features 20 --hidden 6 --activation tanh")
def check_gradients(
    features: Annotated[int, typer.Option(min=1, help="Number of features.")] = 12,
    hidden: Annotated[int, typer.Option(min=1, help="Number of code units.")] = 5,
    activation: Annotated[
        Activation, typer.Option(help="Activation of all layers but the last, which is linear.")
    ] = "sigmoid",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the weights and the rows.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare gradients with finite differences.

    Prints the relative error of each parameter's gradient, by the reference and by the engine, against central
    differences of the cost. The exit status is 1 if one of them is large.
    """
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


@command("fastae doctor")
def doctor(as_json: Json = False) -> None:
    """Show versions, CPU, threads and the kernel cache.

    Includes the register tiles chosen for the CPU and the directory that holds the compiled kernels.
    """
    from fastae.cli.doctor import report

    print_facts(report(), as_json)


@command("fastae demo")
def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs over the 1797 digits.")] = 300,
    hidden: Annotated[int, typer.Option(min=1, help="Number of code units.")] = 32,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the weights and the shuffling.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Image file for the reconstructions; needs matplotlib.")] = Path(
        "fastae-demo.png"
    ),
) -> None:
    """Train on handwritten digits and compare with NumPy.

    The 1797 digits ship with scikit-learn. The reference in NumPy then takes the same steps.
    """
    from rich.console import Console

    from fastae.cli import demo as demonstration

    has_matplotlib = find_spec("matplotlib") is not None
    if has_matplotlib and not out.parent.is_dir():
        raise typer.BadParameter(f"{out.parent} is not a directory", param_hint="--out")
    if has_matplotlib and out.is_dir():
        raise typer.BadParameter(f"{out} is a directory", param_hint="--out")
    result = demonstration.run(hidden=hidden, epochs=epochs, seed=seed, progress=True)
    console = Console()
    console.print(demonstration.table(result))
    if has_matplotlib:
        from fastae.plots import save_reconstructions

        try:
            save_reconstructions(out, result.X, result.xhat, shape=(8, 8))
        except (OSError, ValueError) as error:  # disk full, no permission, unknown format
            raise typer.BadParameter(str(error), param_hint="--out") from None
        console.print(f"reconstructions: {out}")
    else:
        console.print('to draw reconstructions, install matplotlib: pip install "fastae\\[plot]"')


@command(
    "fastae bench --quick",
    "fastae bench --size 30,8,10000 --peers numpy,sklearn --out bench.json",
    "fastae bench --many --threads 1",
    "fastae bench --quality --sets digits --peers sklearn,torch",
)
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Time three of the nine sizes, in under a minute.")
    ] = False,
    small: Annotated[bool, typer.Option("--small", help="Time batches of 32 to 256 rows instead.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Time deep networks and other activations instead.")
    ] = False,
    epochs: Annotated[bool, typer.Option("--epochs", help="Time epochs of Adam instead.")] = False,
    many: Annotated[
        bool, typer.Option("--many", help="Time the training of 100 networks at once instead.")
    ] = False,
    size: Annotated[
        list[str] | None, typer.Option(metavar="N,K,M", help="Time this size instead; may be repeated.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs to use; JAX too then sees no others.", show_default="all"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16"],
        typer.Option(help="Arithmetic of fastae and of the peers that count."),
    ] = "float32",
    quality: Annotated[
        bool,
        typer.Option("--quality", help="Time whole trainings instead, until the held-out error is low."),
    ] = False,
    sets: Annotated[
        str | None,
        typer.Option(
            help="Data sets of --quality, separated by commas.", show_default="six, where they are present"
        ),
    ] = None,
    detection: Annotated[
        Path | None,
        typer.Option(help="Measure detectors instead, on the labelled sets (.npz) in this directory."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="FASTAE_ADBENCH",
            help="Directory with the ADBench sets (.npz) of --quality.",
        ),
    ] = None,
    compiling: Annotated[
        bool, typer.Option("--compiling", help="With --quality, also time with compilation included.")
    ] = False,
    limit: Annotated[
        float, typer.Option(min=0, help="With --quality, begin no training that would take more seconds.")
    ] = 4.0,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --quality, trainings at each budget, of which the median counts; with --detection, "
            "trainings of each detector, of which the mean counts.",
        ),
    ] = 1,
    peers: Annotated[
        str | None,
        typer.Option(
            help="Libraries to compare with, separated by commas.", show_default="all that are installed"
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the results into this image file; needs matplotlib.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results to this file as JSON.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Replace the table between the two marks in this Markdown file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time one loss and gradient against other libraries.

    NumPy, scikit-learn, torch and JAX take turns, and the result is also given as a share of the CPU's peak. With
    --quality, whole trainings are timed, until the error of held-out rows is within 10% of the best known.
    """
    from dataclasses import replace

    from rich.console import Console

    from fastae.bench import report as reports
    from fastae.bench.cases import CASES, Case
    from fastae.bench.cases import SETS as CASE_SETS
    from fastae.bench.peer import no_bfloat16
    from fastae.bench.peers import peers_of
    from fastae.bench.pools import CpuError, limited_to
    from fastae.bench.quality_cases import SETS
    from fastae.bench.quality_peers import LIBRARIES
    from fastae.bench.quality_report import MARKS, QualityReport

    flags = {"quick": quick, "small": small, "deep": deep, "epochs": epochs, "many": many}
    asked = [name for name, given in flags.items() if given]
    rivals = [*(f"--{name}" for name in asked), *["--size"] * bool(size), *["--quality"] * quality]
    rivals += ["--detection"] * (detection is not None)
    if len(rivals) > 1:
        raise typer.BadParameter(f"cannot be combined with {rivals[0]}", param_hint=rivals[1])
    cases = CASE_SETS[asked[0]] if asked else CASES
    try:
        if size:
            cases = [Case.parse(text) for text in size]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from None
    cases = [replace(case, dtype=dtype) for case in cases]
    if (quality or detection) and (threads or dtype != "float32"):
        raise typer.BadParameter(
            f"cannot be combined with {rivals[0]}", param_hint="--threads" if threads else "--dtype"
        )
    if dtype == "bfloat16" and cases[0].kind != "step":
        raise typer.BadParameter(f"{rivals[0]} is timed in float32 or float64", param_hint="--dtype")
    if dtype == "bfloat16" and no_bfloat16():
        raise typer.BadParameter(no_bfloat16(), param_hint="--dtype")
    known = [name for name in peers_of(cases[0]) if name != "fastae"]
    names = _known("peer", peers, LIBRARIES if quality else known, "--peers")
    chosen = _known("set", sets, SETS, "--sets")
    if not quality and (chosen or compiling):
        raise typer.BadParameter("needs --quality", param_hint="--sets" if chosen else "--compiling")
    if quality and data and not data.is_dir():
        raise typer.BadParameter(f"{data} is not a directory", param_hint="--data")
    ignored = {"--peers": peers, "--plot": plot, "--markdown": markdown, "--json": as_json}
    if detection is not None and (given := [hint for hint, value in ignored.items() if value]):
        raise typer.BadParameter("cannot be combined with --detection", param_hint=given[0])
    if plot and not find_spec("matplotlib"):
        raise typer.BadParameter('plots need matplotlib: pip install "fastae[plot]"', param_hint="--plot")
    for hint, path in (("--plot", plot), ("--out", out), ("--markdown", markdown)):
        if path and not path.parent.is_dir():
            raise typer.BadParameter(f"{path.parent} is not a directory", param_hint=hint)
    try:
        marks = MARKS if quality else reports.MARKS
        text = reports.splice(markdown.read_text(encoding="utf-8"), "", marks) if markdown else ""
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{markdown}: {error}", param_hint="--markdown") from None

    def tell(message: str) -> None:
        typer.echo(message, err=True)

    if detection is not None:
        if not detection.is_dir():
            raise typer.BadParameter(f"{detection} is not a directory", param_hint="--detection")
        if not any(detection.glob("*.npz")):
            raise typer.BadParameter(f"{detection} holds no .npz files", param_hint="--detection")
        from fastae.bench.detection import main as measure_detection

        words = ["--data", str(detection), "--seeds", str(seeds)]
        measure_detection(words + (["--out", str(out)] if out else []))
        return
    report: reports.Report | QualityReport
    if quality:
        report = QualityReport.run(
            chosen, names, folder=data, limit=limit, seeds=seeds, cold=compiling, tell=tell
        )
        if not report.races:
            raise ValueError("; ".join(f"{name}: {why}" for name, why in report.missing.items()))
    else:
        try:
            with limited_to(threads):
                report = reports.Report.run(cases, names, tell=tell, quick=quick)
        except CpuError as error:
            raise typer.BadParameter(str(error), param_hint="--threads") from None
    if as_json:
        typer.echo(json.dumps(json.loads(report.to_json())))
    else:
        console = Console()
        for line in report.header():
            console.print(line, highlight=False)
        console.print(report.details())
        if isinstance(report, reports.Report):
            console.print(report.standing())
        for line in report.notes():
            console.print(line, highlight=False, markup=False)
    if out:
        out.write_text(report.to_json(), encoding="utf-8")
    if markdown:
        markdown.write_text(reports.splice(text, report.markdown(), marks), encoding="utf-8")
    if plot:
        from fastae.bench import pictures

        if isinstance(report, reports.Report):
            pictures.save(report, plot)
        else:
            pictures.save_quality(report, plot)


def _known(what: str, words: str | None, known: Iterable[str], hint: str) -> list[str] | None:
    """The names in `words`, separated by commas; None where the option was not given."""
    names = None if words is None else [name.strip() for name in words.split(",")]
    if unknown := set(names or ()) - set(known):
        raise typer.BadParameter(
            f"unknown {what} {', '.join(sorted(unknown))}; known are {', '.join(known)}", param_hint=hint
        )
    return names


@command("fastae warmup")
def warmup() -> None:
    """Compile all kernels ahead of time.

    Compiles for every dtype that this CPU supports, for example in a Dockerfile. The cache is valid for one kind of
    CPU: this one or, for images that run elsewhere, the one that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name.
    """
    from fastae.engine.warmup import warm_up_all

    for dtype, seconds in warm_up_all():
        typer.echo(f"{dtype}: ready in {seconds:.1f} s")
