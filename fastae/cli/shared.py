"""What all commands share: the application, how their errors end, and how their facts are printed."""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Activation = Literal["sigmoid", "tanh", "relu", "identity"]


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


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of the app; its errors end in one line and an exit status."""

    @app.command(name=function.__name__.replace("_", "-"))
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            print(end="", flush=True)  # errors of writing belong here; a closed output has none
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:  # as of `| head`
            drop_output()
            raise typer.Exit(141) from None
        except KeyboardInterrupt:
            typer.echo("fastae: interrupted", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            tell(error)
            raise typer.Exit(1) from None

    return run


def tell(error: Exception) -> None:
    """Say in a line what went wrong; or, with --debug, raise it."""
    if _shown["traceback"]:
        raise error
    typer.echo(f"fastae: {_in_a_line(error)}", err=True)


def drop_output() -> None:
    """Let nothing be flushed at exit to where it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _in_a_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    said = next(iter(str(error).splitlines()), "")
    if "contains NaN" in said:
        said = said.rstrip(".") + ": train with --missing, for missing cells"
    if isinstance(error, (ArithmeticError, ImportError, MemoryError, OSError, TypeError, ValueError)):
        return said or type(error).__name__
    return f"{type(error).__name__}: {said} (--debug shows where)"


def print_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """One JSON object, or a line for each fact; sections are mappings of facts."""
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
