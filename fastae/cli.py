"""The command ``fastae``: arguments in, results out. What it does is done elsewhere.

Results go to standard output, as lines or with --json for a machine; progress and errors to standard error. Exit
status: 0, all went well; 1, an error, said in one line; 2, a wrong argument; 130, interrupted; 141, nobody reads on.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

BLOCK_BYTES = 1 << 24  # of rows that a model is run over


class _Group(TyperGroup):
    """Takes --debug anywhere on the line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        debug = ["--debug"] if "--debug" in args else []
        return super().parse_args(ctx, debug + [word for word in args if word != "--debug"])


app = typer.Typer(cls=_Group, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
_shown = {"traceback": False}


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
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Train autoencoders on a CPU, fast."""
    _shown["traceback"] = debug


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of the app; its errors end in one line and an exit status."""

    @app.command(name=function.__name__.replace("_", "-"))
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:  # as of `| head`; what is left must not be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(141) from None
        except KeyboardInterrupt:
            typer.echo("fastae: interrupted", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if _shown["traceback"]:
                raise
            typer.echo(f"fastae: {_in_a_line(error)}", err=True)
            raise typer.Exit(1) from None

    return run


def _in_a_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    said = next(iter(str(error).splitlines()), "")
    if "contains NaN" in said:
        said += " train with --missing, for missing cells"
    if isinstance(error, (ArithmeticError, ImportError, OSError, TypeError, ValueError)):
        return said or type(error).__name__
    return f"{type(error).__name__}: {said} (--debug shows where)"


def _print(facts: Mapping[str, Any], as_json: bool) -> None:
    """One JSON object, or a line for each fact; sections are mappings of facts."""
    if as_json:
        typer.echo(json.dumps(facts, default=str))
        return
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            typer.echo(name)
            _print({f"  {key}": item for key, item in value.items()}, False)
        elif value is not None:
            typer.echo(f"{name.replace('_', ' '):{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


# -- arguments that commands share ----------------------------------------------------------------------------------

Data = Annotated[
    Path,
    typer.Argument(
        help="An .npy, .npz, .csv, .tsv or .parquet file; 'part-*.parquet' for several; - for CSV on standard input."
    ),
]
Model = Annotated[Path, typer.Argument(help="A file that train wrote, or Autoencoder.save.")]
Drop = Annotated[list[str] | None, typer.Option(help="Leave out the column of this name; may be repeated.")]
Plot = Annotated[Path | None, typer.Option(help="Draw a picture of it into this .png, .svg or .pdf file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Activation = Literal["sigmoid", "tanh", "relu", "identity"]


def _open_model(path: Path) -> Any:
    from fastae.estimator import Autoencoder

    return Autoencoder.load(path)


def _open_data(path: Path, drop: list[str] | None) -> Any:
    from fastae.data import open_rows

    return open_rows(path, drop=drop or (), block_bytes=BLOCK_BYTES)


# -- commands -------------------------------------------------------------------------------------------------------


@_command
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
    from fastae import figures, storage
    from fastae.blocks import Blocks
    from fastae.estimator import Autoencoder, AutoencoderDetector
    from fastae.training import Epoch

    storage.check_place(out)
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
            "r2": None if isinstance(rows, Blocks) else model.score(rows),
            "threshold": -model.offset_ if detector else None,
            "seconds": last[0].seconds if last else None,
        }
    _print(facts, as_json)


@contextmanager
def _training_rows(
    path: Path, drop: list[str] | None, dask: str | None, mpi: bool
) -> Iterator[tuple[Any, bool]]:
    """The rows, wherever they are to be trained on, and whether this process is the one that reports."""
    from fastae.data import open_rows

    if dask and mpi:
        raise typer.BadParameter("--dask and --mpi exclude each other", param_hint="--dask")
    if dask:
        from fastae import distributed

        with distributed.connect(dask) as client:
            yield distributed.open_blocks(client, path, drop or ()), True
    elif mpi:
        from fastae.mpi import MPIBlocks, abort_on_error

        with abort_on_error() as rank:
            yield MPIBlocks(open_rows(path, drop=drop or ())), rank == 0
    else:
        yield open_rows(path, drop=drop or ()), True


@_command
def encode(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The .npy file of the codes.")],
    drop: Drop = None,
    as_json: Json = False,
) -> None:
    """Write the code of each row to an .npy file."""
    _run_over("transform", model, data, out, drop, as_json)


@_command
def reconstruct(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The .npy file of the reconstructions.")],
    drop: Drop = None,
    as_json: Json = False,
) -> None:
    """Write each row as the model gives it back to an .npy file; missing cells are filled in."""
    _run_over("reconstruct", model, data, out, drop, as_json)


def _run_over(method: str, model: Path, data: Path, out: Path, drop: list[str] | None, as_json: bool) -> None:
    from fastae import outputs

    outputs.check_suffix(out, (".npy",))
    apply, rows = getattr(_open_model(model), method), _open_data(data, drop)
    shape, dtype = outputs.save_blocks(out, (apply(part) for part in rows.parts()), len(rows))
    _print({"file": str(out), "shape": shape, "dtype": dtype.name}, as_json)


@_command
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
    from fastae import figures, outputs
    from fastae.estimator import AutoencoderDetector

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
        _print(facts, as_json)


@_command
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
    _print(facts, as_json)


@_command
def check_gradients(
    features: Annotated[int, typer.Option(min=1)] = 12,
    hidden: Annotated[int, typer.Option(min=1)] = 5,
    activation: Annotated[Activation, typer.Option()] = "sigmoid",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Compare gradients with central differences: relative errors by parameter. Exit status 1: one is large."""
    import numpy as np

    from fastae import Engine, Network, Parameters, gradient_check

    network = Network((features, hidden, features, features), (activation, activation, "identity"))
    params = Parameters.random(network, seed, "float64")
    X = np.random.default_rng(seed).normal(size=(40, features))
    options = {"activations": network.activations}
    errors = {"reference": gradient_check.check_gradients(params, X, **options)}
    for dtype in ("float64", "float32"):
        same = Parameters(network, dtype)
        for name, array in params.items():
            same[name] = array
        engine = Engine(network, dtype=dtype)
        errors[dtype] = gradient_check.check_gradients(same, X, engine=engine)
    good = all(max(of.values()) < (1e-3 if name == "float32" else 1e-6) for name, of in errors.items())
    if as_json:
        _print({**errors, "good": good}, True)
    else:
        typer.echo(f"{'':4}" + "".join(f"{name:>11}" for name in errors))
        for name in params:
            typer.echo(f"{name:4}" + "".join(f"{of[name]:11.1e}" for of in errors.values()))
    if not good:
        raise typer.Exit(1)


@_command
def doctor(as_json: Json = False) -> None:
    """Versions, the CPU and the register tiles chosen for it, threads, and where the compiled kernels are kept."""
    from fastae.doctor import report

    _print(report(), as_json)


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


@_command
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


@_command
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


@_command
def warmup() -> None:
    """Compile the kernels ahead, for float32 and float64, on a build machine or in a Dockerfile.

    They are kept for the CPU they are compiled for: this one's or, where images move, NUMBA_CPU_NAME's.
    """
    from fastae.warmup import warm_up

    for dtype in ("float32", "float64"):
        typer.echo(f"{dtype}: ready in {warm_up(dtype):.1f} s")


def main() -> None:
    """Run the command."""
    app()
