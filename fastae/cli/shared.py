"""What all commands share: the application, the handling of errors, and the printing of results."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

Json = Annotated[bool, typer.Option("--json", help="Print results as JSON, one object per line.")]
Activation = Literal["sigmoid", "tanh", "relu", "identity"]


# In order of use, as the help page lists them
COMMANDS = (
    "train",
    "inspect",
    "score",
    "encode",
    "reconstruct",
    "demo",
    "doctor",
    "warmup",
    "bench",
    "check-gradients",
)


class _Group(TyperGroup):
    """Accepts --debug anywhere on the command line, and lists the commands in order of use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        debug = ["--debug"] if "--debug" in args else []
        return super().parse_args(ctx, debug + [word for word in args if word != "--debug"])


def _examples(*lines: str) -> str:
    """The end of a help page; the mark keeps lines from being wrapped."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return f"\b\n{title}\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples(
        "fastae train data.csv --hidden 8 --out model.safetensors",
        "fastae score model.safetensors data.csv --out scores.csv",
        "fastae train --help",
    ),
)
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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train autoencoders on a CPU, and use them to encode, reconstruct and score data."""
    _shown["traceback"] = debug


def command(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of the app, whose errors become one line and an exit status.

    The examples end its help page.
    """

    def make(function: Callable[..., None]) -> Callable[..., None]:
        @app.command(name=function.__name__.replace("_", "-"), epilog=_examples(*examples))
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
                print(end="", flush=True)  # so that errors of writing occur here; a closed output has none
            except (typer.Exit, typer.Abort, typer.BadParameter):
                raise
            except BrokenPipeError as error:
                if (
                    error.filename is not None
                ):  # of --out: what was to be written is lost; not so with `| head`
                    print_error(error)
                drop_output()
                raise typer.Exit(141) from None
            except KeyboardInterrupt:
                notice("interrupted")
                raise typer.Exit(130) from None
            except Exception as error:
                print_error(error)
                raise typer.Exit(1) from None

        return run

    return make


def check_output(option: str, path: Path | None) -> None:
    """Raise a BadParameter about `option` if no file can be written at `path`; None passes."""
    from fastae.storage import check_place

    if path is not None:
        try:
            check_place(path)
        except OSError as error:
            raise typer.BadParameter(_one_line(error), param_hint=option) from None


def notice(text: str) -> None:
    """Print one line to standard error."""
    typer.echo(f"fastae: {text}", err=True)


@contextmanager
def warnings_as_notices(names: Mapping[str, str]) -> Iterator[None]:
    """A context whose warnings for users are printed in one line, with the options' names for the settings'."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if not issubclass(category, UserWarning):
            show_other(message, category, *place, **options)
            return
        text = str(message)
        for setting, option in names.items():
            text = text.replace(setting, option)
        notice(text)

    with warnings.catch_warnings():
        show_other = warnings.showwarning
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def print_error(error: Exception) -> None:
    """Print an error in one line; or, with --debug, raise it."""
    if _shown["traceback"]:
        raise error
    notice(_one_line(error))


def drop_output() -> None:
    """Discard output that is still buffered: flushing it at exit would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = next(iter(str(error).splitlines()), "")
    if isinstance(error, ValueError):
        from fastae.data.row_source import NanError

        if isinstance(error, NanError):
            message = f"{error.args[0]}: if cells are missing, train with --missing"
    if isinstance(error, (ArithmeticError, ImportError, MemoryError, OSError, TypeError, ValueError)):
        return message or type(error).__name__
    return f"{type(error).__name__}: {message} (--debug shows the traceback)"


def print_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print one JSON object, or one line per fact; a mapping is a section of facts."""
    if as_json:
        from fastae.cli.outputs import json_text

        typer.echo(json_text(facts))
        return
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            typer.echo(name)
            print_facts({f"  {key}": item for key, item in value.items()}, False)
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
