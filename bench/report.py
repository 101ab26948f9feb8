"""The report of ``fastae bench``: all cases beside the peers, as tables, Markdown and JSON."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from fastae.bench import machine
from fastae.bench.cases import CASES, Case
from fastae.bench.compare import Comparison, measure
from fastae.bench.rounds import Timing
from fastae.bench.step_peers import PEERS, installed

QUICK = [case for case in CASES if (case.n, case.k) in ((30, 8), (128, 64), (784, 64))]
TARGET_MEAN = 2.2  # geometric mean of the ratios over all cases


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
    ) -> "Report":
        """Measure all `cases` beside `peers`, by default all that are installed. `tell` receives progress messages."""
        names, missing = installed(peers)
        about = machine.describe()  # before our own load
        comparisons = []
        for case in cases:
            tell(f"timing n, k, m = {_size(case)}")
            comparisons.append(measure(case, names))
        return cls(about, comparisons, missing)

    @property
    def peers(self) -> list[str]:
        """The peers that were measured, in the order of PEERS."""
        return [name for name in PEERS if name in self.comparisons[0].timings]

    @property
    def mean_ratio(self) -> float | None:
        """Geometric mean of the cases' ratios to the best peer of our precision."""
        ratios = [c.ratios[c.best_peer] for c in self.comparisons if c.best_peer]
        return statistics.geometric_mean(ratios) if ratios else None

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
                    "threads": c.threads,
                    "peak_gflops": c.peak,
                    "peak_best": c.peak_best,
                    "gigasigmoids": c.sigmoid_rate,
                    "gflops": c.gflops(),
                    "share_of_fma": c.share_of_peak(),
                    "share_of_fma_and_sigmoid": c.share_of_ceiling(),
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
                Case(c["n"], c["k"], c["m"], c["target"], c["dtype"]),
                {name: Timing(**timing) for name, timing in c["seconds"].items()},
                c["threads"],
                c["peak_gflops"],
                c["peak_best"],
                c["gigasigmoids"],
            )
            for c in content["cases"]
        ]
        return cls(content["machine"], comparisons, content["missing"])

    # -- for people ---------------------------------------------------------------------------------------------

    def header(self) -> list[str]:
        """Lines that describe the machine."""
        return machine_lines(self.machine)

    def notes(self) -> list[str]:
        """How to read the table, and warnings about the run."""
        first = self.comparisons[0]
        peaks = [c.peak for c in self.comparisons]
        sigmoids = [c.sigmoid_rate for c in self.comparisons]
        lines = [
            f"One loss and gradient on {self.machine['threads']} threads: medians of "
            f"{first.timings['fastae'].rounds} interleaved rounds. Before "
            "timing, all libraries' results were checked to agree up to rounding. "
            "Each peer uses one thread or all, whichever is faster for it (JAX always all).",
            f"Peak rates of {self.machine['threads']} threads in the same run: FMA {min(peaks):.0f} to "
            f"{max(peaks):.0f} GF/s; one sigmoid in {1 / max(sigmoids):.3f} to {1 / min(sigmoids):.3f} ns.",
            "FMA: achieved share of the peak FMA rate. + sigmoid: share of the rate possible if the sigmoids ran after "
            "the FMAs, each at its peak.",
        ]
        if not all(PEERS[name].exact for name in self.peers):
            lines.append("Columns marked * compute in lower precision, and never count as the best peer.")
        lines += [f"Skipped: {name} ({why})." for name, why in self.missing.items()]
        if self.mean_ratio:
            lines.append(
                f"Geometric mean of the speedups: {self.mean_ratio:.2f}x over {len(self.comparisons)} sizes."
            )
        shared = [_size(c.case) for c in self.comparisons if c.shared_cores]
        if shared:
            lines.append(
                f"DO NOT QUOTE {'; '.join(shared)}: the median FMA peak was far below its best: the cores were shared."
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
        shown = table("n, k, m", "threads", "ms", "p10", "p90", "GF/s", "FMA", "speedup")
        for c in self.comparisons:
            shown.add_row(_size(c.case), style="bold")
            for name in ("fastae", *self.peers):
                low, middle, high = milliseconds(c.timings[name])
                shown.add_row(
                    f"  {label(name)}",
                    str(c.threads[name]),
                    *(middle, low, high),
                    f"{c.gflops(name):.0f}",
                    f"{c.share_of_peak(name):.0%}",
                    f"{c.ratios[name]:.2f}x" if name in c.ratios else "",
                )
        return shown

    def standing(self) -> Table:
        """A table of our speed against the best peer and the ceilings, with the targets."""
        shown = table("n, k, m", "best peer", "speedup", "target", "FMA", "target", "+ sigmoid")
        shown.caption = f"target for the mean speedup over all {len(CASES)} sizes: {TARGET_MEAN}x"
        for c in self.comparisons:
            best = c.best_peer
            shown.add_row(
                _size(c.case),
                best or "",
                f"{c.ratios[best]:.2f}x" if best else "",
                f"{c.case.target_ratio}x",
                f"{c.share_of_peak():.0%}",
                f"{c.case.target:.0%}" if c.case.target else "",
                f"{c.share_of_ceiling():.0%}",
            )
        return shown

    def markdown(self) -> str:
        """The section for the README: the table in milliseconds, then notes and header."""
        names = ["fastae", *self.peers]
        heads = ["n, k, m", *map(label, names), "speedup", "FMA", "+ sigmoid"]
        lines = [heads, ["---", *("---:" for _ in heads[1:])]]
        for c in self.comparisons:
            lines.append(
                [
                    _size(c.case),
                    *(milliseconds(c.timings[name])[1] for name in names),
                    f"**{c.ratios[c.best_peer]:.1f}x** {c.best_peer}" if c.best_peer else "",
                    f"{c.share_of_peak():.0%}",
                    f"{c.share_of_ceiling():.0%}",
                ]
            )
        rows = ["| " + " | ".join(line) + " |" for line in lines]
        return (
            "\n".join([*rows, "", "Milliseconds. " + "\n".join(self.notes()), "", "\n".join(self.header())])
            + "\n"
        )


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
        words = head in ("n, k, m", "best peer", "set")
        shown.add_column(head, justify="left" if words else "right", no_wrap=True)
    return shown


def _size(case: Case) -> str:
    return f"{case.n}, {case.k}, {case.m}"


def label(name: str) -> str:
    return name if name == "fastae" or PEERS[name].exact else f"{name}*"


def milliseconds(timing: Timing) -> list[str]:
    """p10, median and p90, the median to three digits."""
    digits = max(0, 2 - math.floor(math.log10(timing.median * 1e3)))
    return [f"{seconds * 1e3:.{digits}f}" for seconds in (timing.p10, timing.median, timing.p90)]
