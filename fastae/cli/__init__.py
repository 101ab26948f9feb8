"""The command ``fastae``: arguments in, results out. What it does is done elsewhere.

Results go to standard output, as lines or with --json for a machine; progress and errors to standard error. Exit
status: 0, all went well; 1, an error, said in one line; 2, a wrong argument; 130, interrupted; 141, nobody reads on.

    shared.py   what all commands share
    models.py   train, encode, reconstruct, score, inspect
    machine.py  check-gradients, doctor, demo, bench, warmup
"""

import sys
from io import TextIOWrapper

from fastae.cli import (
    machine,
    models,
)
from fastae.cli.shared import app, drop_output, tell

__all__ = ["app", "machine", "main", "models"]


def main() -> None:
    """Run the command. Text in and out is UTF-8, as in files, whatever the locale."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):  # None where it is closed
            stream.reconfigure(encoding="utf-8")
    try:
        app()
    except OSError as error:  # of writing a help page: commands have their own way to end
        tell(error)
        drop_output()
        sys.exit(1)
