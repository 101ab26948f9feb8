"""Compare today's ratios with those stored for this kind of CPU. Bare times are never stored.

Run as ``pytest bench -m baseline`` or by hand:

    python -m fastae.bench.baseline                 measure; fail if a ratio has fallen by more than 15%
    python -m fastae.bench.baseline n=30 n=64-      only the cases whose id contains one of these words
    python -m fastae.bench.baseline --keep FIGURES  store the ratios of ``fastae bench --out FIGURES`` for its CPU
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastae.bench.cases import CASES, Case, chosen
from fastae.bench.machine import describe
from fastae.bench.report import Report

FILE = Path(__file__).with_name("baseline.json")
ALLOWED = 0.15  # largest accepted fall of a ratio


def ratios_of(report: Report) -> dict[str, dict[str, float]]:
    """By case: our speed as a multiple of each peer's, and as a share of the FMA peak ("peak").

    Cases that may not be quoted are left out, and peers whose times vary too much.
    """
    return {
        c.case.id: {
            name: float(f"{ratio:.4g}")
            for name, ratio in {**c.ratios, "peak": c.share_of_peak()}.items()
            if name == "peak" or c.timings[name].steady
        }
        for c in report.comparisons
        if c.quotable
    }


def key(machine: dict[str, Any] | None = None) -> str:
    """The name of a machine in the baseline, by default this one: kind of CPU and thread count."""
    machine = machine or describe()
    return "{target}, {features}, {threads} threads".format(**machine)


def stored() -> dict[str, Any]:
    """All baselines, by machine."""
    baselines: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return baselines


def keep(report: Report) -> None:
    """Store the report's ratios as the baseline of its machine."""
    baselines = stored() | {
        key(report.machine): {"versions": report.machine["versions"], "ratios": ratios_of(report)}
    }
    FILE.write_text(json.dumps(baselines, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def fallen(report: Report, before: dict[str, dict[str, float]]) -> dict[tuple[str, str], str]:
    """By (case, peer): a message for each ratio that has fallen by more than ALLOWED."""
    return {
        (case, name): f"{case} beside {name}: {now:.2f}, was {before[case][name]:.2f}"
        for case, ratios in ratios_of(report).items()
        for name, now in ratios.items()
        if now < (1 - ALLOWED) * before.get(case, {}).get(name, 0)
    }


def check(cases: list[Case], tell: Callable[[str], Any] = lambda words: None) -> list[str] | None:
    """A message for each ratio that fell in two consecutive measurements; None without a baseline of this machine."""
    baseline = stored().get(key())
    if baseline is None:
        return None
    lines = []
    for case in cases:
        once = fallen(Report.run([case], tell=tell), baseline["ratios"])
        if once:
            again = fallen(Report.run([case], tell=tell), baseline["ratios"])
            lines += [again[place] for place in once if place in again]
    now = describe()["versions"]
    changed = [
        f"{name} {v} -> {now.get(name)}" for name, v in baseline["versions"].items() if now.get(name) != v
    ]
    return lines + ["versions changed: " + ", ".join(changed)] * bool(lines and changed)


def main(arguments: list[str]) -> int:
    """Returns the exit status: 1 if a ratio has fallen, 2 without a baseline of this machine or a case."""
    parser = argparse.ArgumentParser(
        prog="python -m fastae.bench.baseline", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("cases", nargs="*", help="parts of the names of cases, such as n=30; default: all")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="store a report of fastae bench --out instead"
    )
    asked = parser.parse_args(arguments)
    if asked.keep is not None:
        keep(Report.from_json(asked.keep.read_text(encoding="utf-8")))
        return 0
    try:
        cases = chosen(CASES, asked.cases)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    lines = check(cases, partial(print, file=sys.stderr))
    if lines is None:
        print(f"no baseline for {key()}: store one with --keep")
        return 2
    print("\n".join(lines or ["no ratio has fallen"]))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
