"""The command ``fastae``: reads arguments, calls the library and prints results.

Results go to standard output, as text or with --json as JSON; progress and errors go to standard error. The exit
status is 0 for success, 1 for an error, 2 for a wrong argument, 130 if interrupted, 141 if the reader of the pipe is
gone.

    shared.py     the application, its errors and the printing of results, for all commands
    arguments.py  the arguments that several commands have
    train.py      train
    models.py     encode, reconstruct, score, inspect
    machine.py    check-gradients, doctor, demo, warmup
    bench.py      bench
    outputs.py    files of arrays and tables, written chunk by chunk
    figures.py    the plots of train and score
    labels.py     the work of score --label
    demo.py       the work of demo
    doctor.py     the work of doctor
"""

import sys
from io import TextIOWrapper

from fastae.cli import bench, machine, models, train
from fastae.cli.shared import app, drop_output, print_error

__all__ = ["app", "bench", "machine", "main", "models", "train"]


def main() -> None:
    """Run the command. Standard input and output are UTF-8, as files are, whatever the locale."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):  # None where it is closed
            stream.reconfigure(encoding="utf-8")
    try:
        app()
    except OSError as error:  # from writing a help page; commands handle their own errors
        print_error(error)
        drop_output()
        sys.exit(1)
