"""The report of ``fastae bench --quality``: all races as a table, Markdown and JSON."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fastae.bench import machine
from fastae.bench.quality import LIMIT, Curve, Point, Race, add_cold, race
from fastae.bench.quality_cases import DEEP_EPOCHS, SETS, SIX, WITHIN, directory
from fastae.bench.quality_peers import CONTENDERS, installed
from fastae.bench.report import machine_lines, table

MARKS = "<!-- fastae bench --quality -->\n", "<!-- end of fastae bench --quality -->\n"


@dataclass(frozen=True)
class QualityReport:
    """The machine, one race per data set, and why sets and peers were skipped."""

    machine: dict[str, Any]
    races: list[Race]
    missing: dict[str, str]
    limit: float
    seeds: int

    @classmethod
    def run(
        cls,
        sets: Sequence[str] | None = None,
        peers: Sequence[str] | None = None,
        *,
        folder: Path | None = None,
        limit: float = LIMIT,
        seeds: int = 1,
        cold: bool = False,
        tell: Callable[[str], Any] = lambda words: None,
    ) -> "QualityReport":
        """Race on `sets` (by default six) against `peers` (by default all installed), as ``quality.race`` describes.

        `folder` holds the ADBench sets, `cold` adds the times with compilation, and `tell` receives progress messages.
        """
        folder = folder or directory()
        names, missing = installed(peers)
        about = machine.describe()  # before our own load
        races = []
        for name in SIX if sets is None else sets:
            if why := SETS[name].missing(folder):
                missing[name] = why
                continue
            of = race(SETS[name].task(folder), names, limit=limit, seeds=seeds, tell=tell)
            if cold:
                add_cold(of, folder, tell)
            races.append(of)
        return cls(about, races, missing, limit, seeds)

    @property
    def cold(self) -> bool:
        """Whether times with compilation were measured."""
        return any(curve.cold for of in self.races for curve in of.curves.values())

    @property
    def names(self) -> list[str]:
        """The contenders of all races, in the order of CONTENDERS."""
        return [name for name in CONTENDERS if any(name in of.curves for of in self.races)]

    def mean_speedup(self, *, cold: bool = False) -> float | None:
        """Geometric mean of the speedups over the best peer, where it and fastae reached the target."""
        speedups = [speedup for of in self.races if (speedup := of.speedup(cold=cold))]
        return statistics.geometric_mean(speedups) if speedups else None

    # -- JSON ---------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """All measurements, and the figures computed from them."""
        ways = {"warm": False, "compiling": True} if self.cold else {"warm": False}
        content = {
            "machine": self.machine,
            "missing": self.missing,
            "limit": self.limit,
            "seeds": self.seeds,
            "mean_speedup": {way: self.mean_speedup(cold=cold) for way, cold in ways.items()},
            "sets": [
                {
                    **asdict(of),
                    "seconds": {
                        way: {name: of.seconds(name, cold=cold) for name in of.curves}
                        for way, cold in ways.items()
                    },
                    "speedup": {way: of.speedup(cold=cold) for way, cold in ways.items()},
                }
                for of in self.races
            ],
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "QualityReport":
        """A report written by ``to_json``."""
        content = json.loads(text)
        races = []
        for of in content["sets"]:
            curves = {
                name: Curve(
                    curve["threads"],
                    [Point(*point) for point in curve["points"]],
                    None if curve["cold"] is None else Point(*curve["cold"]),
                )
                for name, curve in of["curves"].items()
            }
            races.append(Race(of["name"], of["size"], of["best"], of["target"], curves))
        return cls(content["machine"], races, content["missing"], content["limit"], content["seeds"])

    # -- for people ---------------------------------------------------------------------------------------------

    def header(self) -> list[str]:
        """Lines that describe the machine."""
        return machine_lines(self.machine)

    def notes(self) -> list[str]:
        """How to read the tables, and warnings about the run."""
        seeds = "One training" if self.seeds == 1 else f"The median of {self.seeds} trainings"
        lines = [
            f"Seconds from the call until the held-out error is within {WITHIN - 1:.0%} of the best known: 75/25 "
            "split, columns standardised by the training rows, code of n / 4 units. "
            f"{seeds} at each of 1/16, 1/8, ..., 8 times fastae's automatic budget; the first that reaches the target "
            f"counts. No training was begun that would have taken over {self.limit:g} s.",
            "Same recipe: fastae's network, start at PCA, batch, steps, cosine schedule and Adam's decay rates. "
            "Defaults: the same network from the library's random weights, Adam at a constant 0.001; for pyod, all its "
            "own. Each peer uses one thread or all, whichever is faster for it (JAX always all).",
            "Errors are multiples of the best known error; the target stands beside the set. Not reached (e): the "
            "lowest error was e.",
        ]
        if any(of.best is None for of in self.races):
            lines.append(
                f"Target of deep (784-1000-500-250-30 and mirrored, pixels from 0 to 1): the error that torch's Adam "
                f"at 0.001 reaches in {DEEP_EPOCHS} epochs; the budgets are multiples of {DEEP_EPOCHS} epochs."
            )
        if self.cold:
            lines.append(
                "Compilation included: the same training in a new process whose caches are empty, imports excluded; "
                "torch compiled or not, whichever is faster."
            )
        lines += [f"Skipped: {name} ({why})." for name, why in self.missing.items()]
        for cold in (False, True) if self.cold else (False,):
            if mean := self.mean_speedup(cold=cold):
                way = "compilation included" if cold else "everything compiled before"
                lines.append(f"Geometric mean of the speedups over the best peer, {way}: {mean:.1f}x.")
        for of in self.races:
            least = min(curve.least for curve in of.curves.values())
            if of.best and least < of.best:
                lines.append(f"{of.name}: an error below the best known was found, {least:.5f} ({of.best}).")
        if (self.machine["load"] or 0) > 0.7:
            lines.append(
                f"The machine was not idle in the minute before the run: load {self.machine['load']}."
            )
        return lines

    def details(self) -> Table:
        """A table of all contenders on all sets, with their targets; errors are multiples of the best known."""
        compiling = ["compiling"] if self.cold else []
        shown = table("set", "threads", "steps", "seconds", *compiling, "error", "speedup")
        for of in self.races:
            shown.add_row(f"{of.name} ({of.target:.3g})", style="bold")
            ours = of.seconds("fastae")
            for name, curve in of.curves.items():
                point = curve.reached(of.target)
                cells = [f"  {name}", str(curve.threads)]
                if point is None:
                    cells += ["", "not reached", *[""] * len(compiling), _over_best(of, curve.least), ""]
                else:
                    ratio = f"{point.seconds / ours:.1f}x" if ours and name != "fastae" else ""
                    cold = [_seconds(of.seconds(name, cold=True))] if compiling else []
                    cells += [str(point.steps), _seconds(point.seconds), *cold]
                    cells += [_over_best(of, point.error), ratio]
                shown.add_row(*cells)
        return shown

    def markdown(self) -> str:
        """The section for a document: a table in seconds for each way of timing, then notes and header."""
        parts = [self._markdown_table(False)]
        if self.cold:
            parts += ["Compilation included:", self._markdown_table(True)]
        return "\n\n".join([*parts, "\n".join(self.notes()), "\n".join(self.header())]) + "\n"

    def _markdown_table(self, cold: bool) -> str:
        lines = [["set (rows, widths)", *self.names, "speedup"]]
        lines.append(["---", *("---:" for _ in lines[0][1:])])
        for of in self.races:
            cells = [f"{of.name} ({of.size})"]
            for name in self.names:
                if name not in of.curves:
                    cells.append("")
                    continue
                seconds = of.seconds(name, cold=cold)
                reached = of.curves[name].reached(of.target)
                cells.append(
                    f"not reached ({_over_best(of, of.curves[name].least)})"
                    if reached is None
                    else _seconds(seconds)
                )
            speedup = of.speedup(cold=cold)
            cells.append(f"**{speedup:.1f}x** {of.best_peer(cold=cold)}" if speedup else "")
            lines.append(cells)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g}"


def _over_best(of: Race, error: float) -> str:
    """An error as a multiple of the best known or, where there is none, of the target."""
    return f"{error / (of.best or of.target):.2f}"
