"""Ratios kept of an earlier run, by CPU, and whether today's fall behind them. Never a bare time.

Run by hand, or as ``pytest bench -m baseline``:

    python -m fastae.bench.baseline                 measure; fail where a ratio fell by more than 15%
    python -m fastae.bench.baseline --keep FIGURES  keep the ratios of a ``fastae bench --json FIGURES`` as this CPU's
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastae.bench.cases import CASES, Case
from fastae.bench.machine import describe
from fastae.bench.report import Report

FILE = Path(__file__).with_name("baseline.json")
ALLOWED = 0.15  # fall of a ratio


def ratios_of(report: Report) -> dict[str, dict[str, float]]:
    """By case: how many times as fast as each peer ours was, and the share of the FMA peak ("peak")."""
    return {
        c.case.id: {
            name: float(f"{ratio:.4g}") for name, ratio in {**c.ratios, "peak": c.share_of_peak()}.items()
        }
        for c in report.comparisons
    }


def key(machine: dict[str, Any] | None = None) -> str:
    """The machine that ratios belong to, this one by default: kind of CPU, and threads."""
    machine = machine or describe()
    return "{target}, {features}, {threads} threads".format(**machine)


def stored() -> dict[str, Any]:
    """All baselines, by machine."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def keep(report: Report) -> None:
    """Make the report's ratios its machine's baseline."""
    found = stored() | {
        key(report.machine): {"versions": report.machine["versions"], "ratios": ratios_of(report)}
    }
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def fallen(report: Report, kept: dict[str, dict[str, float]]) -> dict[tuple[str, str], str]:
    """By (case, name): a line for each ratio that fell by more than ALLOWED."""
    return {
        (case, name): f"{case} beside {name}: {now:.2f}, was {kept[case][name]:.2f}"
        for case, ratios in ratios_of(report).items()
        for name, now in ratios.items()
        if now < (1 - ALLOWED) * kept.get(case, {}).get(name, 0)
    }


def check(cases: list[Case], tell: Callable[[str], Any] = lambda words: None) -> list[str] | None:
    """A line for each ratio that fell, in two measurements on end; None where no baseline is of this machine."""
    kept = stored().get(key())
    if kept is None:
        return None
    lines = []
    for case in cases:
        once = fallen(Report.run([case], tell=tell), kept["ratios"])
        if once:
            again = fallen(Report.run([case], tell=tell), kept["ratios"])
            lines += [again[place] for place in once if place in again]
    now = describe()["versions"]
    changed = [f"{name} {v} -> {now.get(name)}" for name, v in kept["versions"].items() if now.get(name) != v]
    return lines + ["versions changed: " + ", ".join(changed)] * bool(lines and changed)


def main(arguments: list[str]) -> int:
    """The exit status: 1 where a ratio fell, 2 where there is nothing to compare with."""
    if arguments[:1] == ["--keep"]:
        keep(Report.from_json(Path(arguments[1]).read_text()))
        return 0
    lines = check(CASES, partial(print, file=sys.stderr))
    if lines is None:
        print(f"no baseline of {key()}: see --keep")
        return 2
    print("\n".join(lines or ["no ratio fell"]))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
