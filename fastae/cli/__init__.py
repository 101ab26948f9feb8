"""The command ``fastae``: arguments in, results out. What it does is done elsewhere.

Results go to standard output, as lines or with --json for a machine; progress and errors to standard error. Exit
status: 0, all went well; 1, an error, said in one line; 2, a wrong argument; 130, interrupted; 141, nobody reads on.

    shared.py   what all commands share
    models.py   train, encode, reconstruct, score, inspect
    machine.py  check-gradients, doctor, demo, bench, warmup
"""

from fastae.cli import models  # noqa: I001 -- their commands are listed in this order
from fastae.cli import machine
from fastae.cli.shared import app

__all__ = ["app", "machine", "main", "models"]


def main() -> None:
    """Run the command."""
    app()
