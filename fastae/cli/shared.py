"""What all commands share: the application, the handling of errors, and the printing of results."""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

Json = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
Activation = Literal["sigmoid", "tanh", "relu", "identity"]


class _Group(TyperGroup):
    """Accepts --debug anywhere on the command line."""

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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train autoencoders on a CPU, and use them to encode, reconstruct and score data."""
    _shown["traceback"] = debug


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command of the app, whose errors become one line and an exit status."""

    @app.command(name=function.__name__.replace("_", "-"))
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            print(end="", flush=True)  # so that errors of writing occur here; a closed output has none
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:  # as with `| head`
            drop_output()
            raise typer.Exit(141) from None
        except KeyboardInterrupt:
            typer.echo("fastae: interrupted", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            print_error(error)
            raise typer.Exit(1) from None

    return run


def print_error(error: Exception) -> None:
    """Print an error in one line; or, with --debug, raise it."""
    if _shown["traceback"]:
        raise error
    typer.echo(f"fastae: {_one_line(error)}", err=True)


def drop_output() -> None:
    """Discard output that is still buffered: flushing it at exit would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = next(iter(str(error).splitlines()), "")
    if "contains NaN" in message:
        message = message.rstrip(".") + ": if cells are missing, train with --missing"
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
