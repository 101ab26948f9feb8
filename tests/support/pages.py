"""The code of README.md and docs/: a page's blocks run in order, in one place, as a reader would run them.

All Python runs, in one namespace; of shell blocks those under a line ``<!-- runs -->`` do. A ``text`` block right after
one is what it prints, numbers to one in the last digit. One under a line ``<!-- needs: torch -->`` is left out where
that module is not installed.

``python tests/support/pages.py`` runs docs/ and puts the pictures that the pages save into docs/images/, from where
they are shown.
"""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import processes

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^ *```[ \t]*(\S*)", re.MULTILINE)
BLOCK = re.compile(
    r"(?:(?:^<!-- needs: (?P<needs>\w+) -->\n)?^```python\n|^<!-- (?P<runs>runs) -->\n```sh\n)(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?")


class Block(NamedTuple):
    """One block: where it begins in its page, what must be installed, its language, and what it is to print."""

    line: int
    needs: str | None
    shell: bool
    code: str
    output: str | None


def blocks(page: Path) -> list[Block]:
    """The blocks that run, in order."""
    text, parts = page.read_text(encoding="utf-8"), []
    for match in BLOCK.finditer(text):
        line, shell = text.count("\n", 0, match.start("code")), match["runs"] is not None
        parts.append(Block(line, match["needs"], shell, match["code"], match["output"]))
    return parts


def run(page: Path) -> int:
    """Run the page's blocks where the process stands; how many ran."""
    namespace, ran = {"__name__": page.stem}, 0
    with np.printoptions(), warnings.catch_warnings():  # what a page sets is the page's
        for block in blocks(page):
            if block.needs and importlib.util.find_spec(block.needs) is None:
                continue
            place = f"{page.name}:{block.line}"
            printed = in_shell(block.code, place) if block.shell else in_python(block, page, namespace)
            if block.output is not None and not says(printed, block.output):
                raise AssertionError(f"{place}: this block prints\n{printed}\nand not\n{block.output}")
            ran += 1
    return ran


def in_python(block: Block, page: Path, namespace: dict[str, object]) -> str:
    """What the block prints."""
    code = compile("\n" * block.line + block.code, str(page), "exec")  # a traceback shows the page's line
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)
    return printed.getvalue()


def in_shell(code: str, place: str) -> str:
    """What the commands write to standard output; AssertionError where one fails. ``fastae`` is this Python's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    ran = processes.run(["sh", "-e", "-c", code], cwd=None, env=environment)
    if ran.returncode:
        raise AssertionError(f"{place}: exit status {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def says(printed: str, wanted: str) -> bool:
    """Whether two texts say the same: word for word, and numbers to one in the last digit of the wanted one."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", wanted).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(wanted), strict=True)
    return all(abs(float(got) - float(number)) <= 1.01 * last_digit(number) for got, number in pairs)


def last_digit(number: str) -> float:
    """What one in the last digit of a printed number is worth."""
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for page in PAGES[1:]:
            print(f"{page.name}: {run(page)} blocks", file=sys.stderr)
        for picture in Path().glob("*.png"):
            shutil.copy(picture, ROOT / "docs" / "images")
