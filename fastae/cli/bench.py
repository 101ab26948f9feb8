"""The command bench: its options, and its three programs: steps and epochs, whole trainings, detectors."""

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastae.cli.shared import Json, check_output, command

if TYPE_CHECKING:
    from fastae.bench.quality_report import QualityReport
    from fastae.bench.report import Report


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
    from fastae.bench import quality_report, report
    from fastae.cli.outputs import check_distinct

    flags = {"quick": quick, "small": small, "deep": deep, "epochs": epochs, "many": many}
    programs = {**flags, "size": size, "quality": quality, "detection": detection is not None}
    asked = [f"--{name}" for name, given in programs.items() if given]
    if len(asked) > 1:
        raise typer.BadParameter(f"cannot be combined with {asked[0]}", param_hint=asked[1])
    if quality or detection is not None:
        _refuse({"--threads": threads, "--dtype": dtype != "float32"}, f"cannot be combined with {asked[0]}")
    if not quality:
        _refuse({"--sets": sets, "--compiling": compiling}, "needs --quality")
    files = {"--plot": plot, "--out": out, "--markdown": markdown}
    for hint, path in files.items():
        check_output(hint, path)
    check_distinct(files)
    if detection is not None:
        ignored = {"--peers": peers, "--plot": plot, "--markdown": markdown, "--json": as_json}
        _refuse(ignored, "cannot be combined with --detection")
        _measure_detectors(detection, seeds, out)
        return
    if plot and not find_spec("matplotlib"):
        raise typer.BadParameter('plots need matplotlib: pip install "fastae[plot]"', param_hint="--plot")
    marks = quality_report.MARKS if quality else report.MARKS
    page = _page(markdown, marks)
    if quality:
        options = {"folder": data, "limit": limit, "seeds": seeds, "cold": compiling}
        result: Report | QualityReport = _train_whole(sets, peers, **options)
    else:
        result = _time(_cases(asked, size, dtype), peers, threads, quick)
    _show(result, as_json)
    _write(result, plot, out)
    if markdown:
        _write_text(markdown, report.splice(page, result.markdown(), marks))


# -- the programs -----------------------------------------------------------------------------------------------------


def _measure_detectors(folder: Path, seeds: int, out: Path | None) -> None:
    """The program of --detection."""
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a directory", param_hint="--detection")
    if not any(folder.glob("*.npz")):
        raise typer.BadParameter(f"{folder} holds no .npz files", param_hint="--detection")
    from fastae.bench.detection import main

    main(["--data", str(folder), "--seeds", str(seeds)] + (["--out", str(out)] if out else []))


def _train_whole(sets: str | None, peers: str | None, **options: Any) -> "QualityReport":
    """The program of --quality; `options` are those of ``QualityReport.run``."""
    from fastae.bench.quality_cases import SETS
    from fastae.bench.quality_peers import LIBRARIES
    from fastae.bench.quality_report import QualityReport

    names, chosen = _known("peer", peers, LIBRARIES, "--peers"), _known("set", sets, SETS, "--sets")
    folder = options["folder"]
    if folder and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a directory", param_hint="--data")
    result = QualityReport.run(chosen, names, tell=_tell, **options)
    if not result.races:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in result.missing.items()))
    return result


def _cases(asked: list[str], size: list[str] | None, dtype: Any) -> list[Any]:
    """What is to be timed."""
    from dataclasses import replace

    from fastae.bench.cases import CASES, SETS, Case
    from fastae.bench.peer import no_bfloat16

    try:
        cases = [Case.parse(text) for text in size] if size else CASES
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from None
    if asked and not size:
        cases = SETS[asked[0].removeprefix("--")]
    if dtype == "bfloat16" and cases[0].kind != "step":
        raise typer.BadParameter(f"{asked[0]} is timed in float32 or float64", param_hint="--dtype")
    if dtype == "bfloat16" and no_bfloat16():
        raise typer.BadParameter(no_bfloat16(), param_hint="--dtype")
    return [replace(case, dtype=dtype) for case in cases]


def _time(cases: list[Any], peers: str | None, threads: int | None, quick: bool) -> "Report":
    """The program of all other options: steps, epochs or many networks, in turn with the peers."""
    from fastae.bench.peers import peers_of
    from fastae.bench.pools import CpuError, limited_to
    from fastae.bench.report import Report

    known = [name for name in peers_of(cases[0]) if name != "fastae"]
    names = _known("peer", peers, known, "--peers")
    try:
        with limited_to(threads):
            return Report.run(cases, names, tell=_tell, quick=quick)
    except CpuError as error:
        raise typer.BadParameter(str(error), param_hint="--threads") from None


# -- the results ------------------------------------------------------------------------------------------------------


def _show(result: "Report | QualityReport", as_json: bool) -> None:
    """Print the tables."""
    from rich.console import Console

    from fastae.bench.report import Report

    if as_json:
        typer.echo(json.dumps(json.loads(result.to_json())))
        return
    console = Console()
    for line in result.header():
        console.print(line, highlight=False)
    console.print(result.details())
    if isinstance(result, Report):
        console.print(result.standing())
    for line in result.notes():
        console.print(line, highlight=False, markup=False)


def _write(result: "Report | QualityReport", plot: Path | None, out: Path | None) -> None:
    """Write the picture and the JSON."""
    from fastae.bench.report import Report
    from fastae.storage import written_whole

    if out:
        _write_text(out, result.to_json())
    if plot:
        from fastae.bench import pictures

        with written_whole(plot) as temporary:
            if isinstance(result, Report):
                pictures.save(result, temporary)
            else:
                pictures.save_quality(result, temporary)


def _write_text(path: Path, text: str) -> None:
    from fastae.storage import written_whole

    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _page(markdown: Path | None, marks: tuple[str, str]) -> str:
    """The text of a page with a place for the table; an error if it has none."""
    from fastae.bench.report import splice

    if markdown is None:
        return ""
    try:
        return splice(markdown.read_text(encoding="utf-8"), "", marks)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{markdown}: {error}", param_hint="--markdown") from None


# -- the options ------------------------------------------------------------------------------------------------------


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Raise a BadParameter about the first of these options that is given."""
    for hint, given in options.items():
        if given:
            raise typer.BadParameter(why, param_hint=hint)


def _tell(message: str) -> None:
    typer.echo(message, err=True)


def _known(what: str, words: str | None, known: Iterable[str], hint: str) -> list[str] | None:
    """The names in `words`, separated by commas; None where the option was not given."""
    names = None if words is None else [name.strip() for name in words.split(",")]
    if unknown := set(names or ()) - set(known):
        raise typer.BadParameter(
            f"unknown {what} {', '.join(sorted(unknown))}; known are {', '.join(known)}", param_hint=hint
        )
    return names
