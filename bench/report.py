"""The report of ``fastae bench``: all cases beside the peers, as tables, Markdown and JSON."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rich import box
from rich.table import Table

from fastae.bench import machine
from fastae.bench.cases import CASES, Case
from fastae.bench.compare import Comparison, measure
from fastae.bench.peers import available, peers_of
from fastae.bench.rounds import ROUNDS, STEADY, Timing

TARGET_MEAN = 2.2  # geometric mean of the ratios over the nine sizes
QUICK_ROUNDS, MANY_ROUNDS = 3, 5
SLOW = ("libtorch", "numpy MKL")  # left out by --quick: compiled anew, or like another column
WHAT = {
    "step": "One loss and gradient",
    "epoch": "An epoch of Adam",
    "many": "Adam on many networks at once: {epochs} epochs of all of them",
}


@dataclass(frozen=True)
class Report:
    """The machine, one comparison per case, and why peers were skipped."""

    machine: dict[str, Any]
    comparisons: list[Comparison]
    missing: dict[str, str]

    @classmethod
    def run(
        cls,
        cases: list[Case],
        peers: list[str] | None = None,
        tell: Callable[[str], Any] = lambda words: None,
        *,
        quick: bool = False,
    ) -> "Report":
        """Measure all `cases`, of one kind, beside `peers`, by default all that can run.

        `tell` receives progress messages. `quick` takes few rounds of one form of each peer, on all
        threads, and leaves slow peers out.
        """
        names, missing = available(cases[0], peers)
        if quick and peers is None:
            missing |= {name: "left out by --quick" for name in SLOW if name in names}
            names = [name for name in names if name not in missing]
        about = machine.describe()  # before our own load
        rounds = QUICK_ROUNDS if quick else MANY_ROUNDS if cases[0].kind == "many" else ROUNDS
        comparisons = []
        for case in cases:
            tell(f"timing {case.heads} = {case.label}")
            comparisons.append(measure(case, names, rounds=rounds, quick=quick))
        comparisons = _of_one_run(comparisons)
        for i, disturbed in enumerate(comparisons):
            if not (quick or disturbed.quotable):
                tell(f"timing {disturbed.case.heads} = {disturbed.case.label} again: it was disturbed")
                comparisons[i] = measure(disturbed.case, names, rounds=rounds)
        return cls(about, _of_one_run(comparisons), missing)

    @property
    def peers(self) -> list[str]:
        """The peers that were measured, in the order of their table."""
        first = self.comparisons[0]
        return [name for name in peers_of(first.case) if name in first.timings and name != "fastae"]

    @property
    def mean_ratio(self) -> float | None:
        """Geometric mean of the quotable cases' ratios to the best peer of our precision."""
        ratios = [c.ratios[best] for c, best in self._counted]
        return statistics.geometric_mean(ratios) if ratios else None

    @property
    def _counted(self) -> list[tuple[Comparison, str]]:
        """The quotable cases that have a peer of our precision, each with the best one."""
        return [(c, best) for c in self.comparisons if c.quotable and (best := c.best_peer)]

    # -- JSON ---------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """All measurements, and the figures computed from them."""
        content = {
            "machine": self.machine,
            "missing": self.missing,
            "mean_ratio": self.mean_ratio,
            "cases": [
                {
                    **asdict(c.case),
                    "seconds": {name: timing._asdict() for name, timing in c.timings.items()},
                    "settings": c.settings,
                    "peak_gflops": c.peak._asdict(),
                    "peak_best": c.peak_best,
                    "others": c.others,
                    "gigasigmoids": c.sigmoid_rate,
                    "gflops": c.gflops(),
                    "share_of_fma": c.share_of_peak(),
                    "share_of_fma_and_sigmoid": c.share_of_ceiling(),
                    "quotable": c.quotable,
                    "best_peer": c.best_peer,
                    "ratios": c.ratios,
                }
                for c in self.comparisons
            ],
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """A report written by ``to_json``."""
        content = json.loads(text)
        comparisons = [
            Comparison(
                Case(**{field.name: c[field.name] for field in fields(Case)}),
                {name: Timing(**timing) for name, timing in c["seconds"].items()},
                c["settings"],
                Timing(**c["peak_gflops"]),
                c["gigasigmoids"],
                c["peak_best"],
                c["others"],
            )
            for c in content["cases"]
        ]
        return cls(content["machine"], comparisons, content["missing"])

    # -- for people ---------------------------------------------------------------------------------------------

    def header(self) -> list[str]:
        """Lines that describe the machine."""
        return machine_lines(self.machine)

    @property
    def heads(self) -> str:
        """What the numbers in the first column are."""
        return self.comparisons[0].case.heads

    def notes(self) -> list[str]:
        """How to read the table, and warnings about the run."""
        first = self.comparisons[0]
        peaks = [c.peak.median for c in self.comparisons]
        sigmoids = [c.sigmoid_rate for c in self.comparisons]
        lines = [
            f"{WHAT[first.case.kind].format(epochs=first.case.epochs)} on {self.machine['threads']} threads in "
            f"{first.case.dtype}: medians of {first.timings['fastae'].rounds} interleaved rounds. Before "
            "timing, all libraries' results were checked to agree up to rounding. "
            "fastae and each peer count with the fastest of its forms and thread counts (JAX and Keras always use all "
            "threads).",
            f"Peak rates of {self.machine['threads']} threads in the same run: FMA {min(peaks):.0f} to "
            f"{max(peaks):.0f} GF/s; one sigmoid in {1 / max(sigmoids):.3f} to {1 / min(sigmoids):.3f} ns.",
            "FMA: achieved share of the peak FMA rate. + sigmoid: share of the rate possible if the sigmoids ran after "
            "the FMAs, each at its peak.",
        ]
        if any(label(name, first.case) != name for name in self.peers):
            lines.append("Columns marked * compute in another precision, and never count as the best peer.")
        halves = [
            c.timings["torch bf16"].median / c.timings["fastae bf16"].median
            for c in self.comparisons
            if c.quotable
            and {"torch bf16", "fastae bf16"} <= {name for name in c.timings if c.timings[name].steady}
        ]
        if halves:
            lines.append(
                f"In bfloat16, fastae is {min(halves):.2f} to {max(halves):.2f} times as fast as torch in bfloat16."
            )
        lines += [f"Skipped: {name} ({why})." for name, why in self.missing.items()]
        if self.mean_ratio:
            least = "" if all(c.timings[best].steady for c, best in self._counted) else "at least "
            lines.append(
                f"Geometric mean of the speedups: {least}{self.mean_ratio:.2f}x over {len(self._counted)} sizes."
            )
        shared = [f"{c.case.label} ({c.others:.0%})" for c in self.comparisons if c.shared_cores]
        if shared:
            lines.append(
                f"DO NOT QUOTE {'; '.join(shared)}: the cores were shared. Other processes took the time in brackets "
                "(over 5% counts), or the best FMA peak of the run is over 15% above the 10th percentile of the case."
            )
        varying = {
            name: [c.case.label for c in self.comparisons if name in c.timings and not c.timings[name].steady]
            for name in ("fastae", *self.peers)
        }
        unsteady = [f"{name} at {'; '.join(where)}" for name, where in varying.items() if where]
        if unsteady:
            lines.append(
                f"Times that vary, p90 over {STEADY:g} times p10: {'. '.join(unsteady)}. The table shows p10 to p90 "
                "instead of the median. A peer then counts with p10: the speedup is at least the one given (≥). Where "
                "fastae's times vary, none is given."
            )
        if (self.machine["load"] or 0) > 0.7:
            lines.append(
                f"The machine was not idle in the minute before the run: load {self.machine['load']}."
            )
        if any(name.startswith("OPENBLAS_") for name in self.machine["environment"]):
            lines.append("OPENBLAS_ variables are set and may slow NumPy and scikit-learn down.")
        return lines

    def details(self) -> Table:
        """A table of all times."""
        shown = table(self.heads, "ms", "p10", "p90", "FMA", "speedup", "threads, form")
        for c in self.comparisons:
            shown.add_row(c.case.label, style="bold")
            for name in ("fastae", *self.peers):
                low, middle, high = milliseconds(c.timings[name])
                shown.add_row(
                    f"  {label(name, c.case)}",
                    *(middle, low, high),
                    f"{c.share_of_peak(name):.0%}",
                    speedup(c, name, digits=2) if name != "fastae" and c.quotable else "",
                    c.settings[name],
                )
        return shown

    def standing(self) -> Table:
        """A table of our speed against the best peer and the ceilings, with the targets."""
        shown = table(self.heads, "best peer", "speedup", "target", "FMA", "target", "+ sigmoid")
        if self.comparisons[0].case in CASES:
            shown.caption = f"target for the mean speedup over all {len(CASES)} sizes: {TARGET_MEAN}x"
        for c in self.comparisons:
            best = c.best_peer
            shown.add_row(
                c.case.label,
                best or "",
                speedup(c, best, digits=2) if best and c.quotable else "",
                f"{c.case.target_ratio}x" if c.case.target_ratio else "",
                f"{c.share_of_peak():.0%}",
                f"{c.case.target:.0%}" if c.case.target else "",
                f"{c.share_of_ceiling():.0%}",
            )
        return shown

    def markdown(self) -> str:
        """The section for the README: the table in milliseconds, then notes and header."""
        names = ["fastae", *self.peers]
        first = self.comparisons[0].case
        heads = [self.heads, *(label(name, first) for name in names), "speedup", "FMA", "+ sigmoid"]
        lines = [heads, ["---", *("---:" for _ in heads[1:])]]
        for c in self.comparisons:
            lines.append(
                [
                    c.case.label,
                    *(span(c.timings[name]) for name in names),
                    f"**{speedup(c, c.best_peer)}** {c.best_peer}" if c.best_peer and c.quotable else "",
                    f"{c.share_of_peak():.0%}",
                    f"{c.share_of_ceiling():.0%}",
                ]
            )
        rows = ["| " + " | ".join(line) + " |" for line in lines]
        return (
            "\n".join([*rows, "", "Milliseconds. " + "\n".join(self.notes()), "", "\n".join(self.header())])
            + "\n"
        )


def _of_one_run(comparisons: list[Comparison]) -> list[Comparison]:
    best = max(c.peak_best for c in comparisons)
    return [replace(c, peak_best=best) for c in comparisons]


MARKS = "<!-- fastae bench -->\n", "<!-- end of fastae bench -->\n"


def splice(text: str, inner: str, marks: tuple[str, str] = MARKS) -> str:
    """`text` with the part between the two marks replaced; ValueError if a mark is missing."""
    if not all(text.count(mark) == 1 for mark in marks):
        raise ValueError(f"no lines {' and '.join(mark.strip() for mark in marks)}")
    head, rest = text.split(marks[0])
    return head + marks[0] + inner + marks[1] + rest.split(marks[1])[1]


def machine_lines(of: dict[str, Any]) -> list[str]:
    """Lines that describe a machine, from ``machine.describe``."""
    lines = [
        f"{of['cpu']} ({of['target']}, {of['features']}), {of['threads']} threads, load {of['load']}",
        f"Python {of['python']}, {', '.join(f'{name} {v}' for name, v in of['versions'].items())}",
        f"{of['system']}; BLAS: {'; '.join(of['blas'])}",
    ]
    if of["environment"]:
        lines.append("environment: " + " ".join(f"{name}={v}" for name, v in of["environment"].items()))
    return lines


def table(*heads: str) -> Table:
    """A table with these heads; columns of words are flush left."""
    shown = Table(box=box.SIMPLE, pad_edge=False)
    for head in heads:
        words = head in ("best peer", "set", "threads, form") or head.startswith(("n, k", "widths"))
        shown.add_column(head, justify="left" if words else "right", no_wrap=True)
    return shown


def label(name: str, case: Case) -> str:
    """The name with a star if the peer computes in another precision than the case."""
    return name if peers_of(case)[name].competes(case) else f"{name}*"


def milliseconds(timing: Timing) -> list[str]:
    """p10, median and p90, the median to three digits."""
    digits = max(0, 2 - math.floor(math.log10(timing.median * 1e3)))
    return [f"{seconds * 1e3:.{digits}f}" for seconds in (timing.p10, timing.median, timing.p90)]


def span(timing: Timing) -> str:
    """The median in milliseconds; p10 to p90 where the times vary too much."""
    low, middle, high = milliseconds(timing)
    return middle if timing.steady else f"{low} to {high}"


def speedup(of: Comparison, name: str, digits: int = 1) -> str:
    """Our speed as a multiple of the peer's, such as 2.5x; ≥2.5x where it is at least that."""
    return f"{'' if of.timings[name].steady else '≥'}{of.ratios[name]:.{digits}f}x"
