"""Pictures of the reports; they need matplotlib.

Of steps: all times at every size, and the share of the FMA peak against n. Of quality: error against seconds. Of
scaling: time against threads.
"""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from fastae.bench.compare import Comparison
from fastae.bench.curve import Curve
from fastae.bench.peers import peers_of
from fastae.bench.quality import Race
from fastae.bench.quality_report import QualityReport
from fastae.bench.report import Report, label, span, speedup

OURS, BEST, PEER, ROUGH, TEXT = "#d1495b", "#5b6b7b", "#a9b4bf", "#dfe4e9", "#333333"
ACROSS = 3  # panels in a row
TITLES = {"step": "One loss and gradient", "epoch": "An epoch of Adam", "many": "Adam on many networks"}
LIBRARIES = {"fastae": OURS, "sklearn": "#e09f3e", "torch": "#7b5ea7", "jax": "#2a9d8f", "pyod": "#5b6b7b"}


def save(report: Report, path: str | Path) -> None:
    """Draw the report into a file; its suffix sets the format."""
    comparisons = report.comparisons
    across = min(ACROSS, len(comparisons))
    down = -(-len(comparisons) // across)
    heights = [0.5 + down * (0.5 + 0.2 * (len(report.peers) + 1)), 3.8]
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(2, height_ratios=heights, hspace=0.03)
    upper, lower = parts
    upper.suptitle(
        f"{TITLES[comparisons[0].case.kind]}: milliseconds, and the multiple of fastae's time",
        color=TEXT,
        fontsize=12,
    )
    axes = list(upper.subplots(down, across, squeeze=False).flat)
    for axis, comparison in zip(axes, comparisons, strict=False):
        _draw_bars(axis, comparison)
    for axis in axes[len(comparisons) :]:
        axis.set_axis_off()
    _draw_roofline(lower.subplots(), comparisons)
    first = comparisons[0].case
    starred = "   * another precision" * any(label(name, first) != name for name in report.peers)
    lower.supxlabel(f"{_machine(report.machine)}{starred}", color=BEST, fontsize=8)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=150)


def save_quality(report: QualityReport, path: str | Path) -> None:
    """Draw the held-out error against seconds, both logarithmic: a panel per data set, a line per contender."""
    across = min(ACROSS, len(report.races))
    down = -(-len(report.races) // across)
    heights = [0.3 + 2.6 * down, 0.9]
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(2, height_ratios=heights)
    upper, lower = parts
    upper.suptitle("Held-out error against seconds of training", color=TEXT, fontsize=12)
    axes = list(upper.subplots(down, across, squeeze=False).flat)
    for axis, of in zip(axes, report.races, strict=False):
        _draw_race(axis, of)
    for axis in axes[len(report.races) :]:
        axis.set_axis_off()
    for axis in axes[len(report.races) - across : len(report.races)]:
        axis.set_xlabel("seconds", fontsize=8, color=TEXT)
    lines: dict[str, Any] = {
        str(line.get_label()): line for axis in axes[: len(report.races)] for line in axis.get_lines()
    }
    shown = {name: lines[name] for name in ["fastae", *report.names, "target"] if name in lines}
    lower.legend(shown.values(), shown.keys(), loc="upper center", ncols=5, frameon=False, fontsize=8)
    lower.supxlabel(_machine(report.machine), color=BEST, fontsize=8)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=150)


def save_scaling(curves: list[Curve], machine: dict[str, Any], path: str | Path) -> None:
    """Draw milliseconds against threads, both logarithmic: a panel per size, and what the FMA peak's growth allows."""
    across = min(ACROSS, len(curves))
    down = -(-len(curves) // across)
    figure = Figure(figsize=(10, 0.9 + 2.6 * down), layout="constrained")
    figure.suptitle("One loss and gradient: milliseconds against threads", color=TEXT, fontsize=12)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis, curve in zip(axes, curves, strict=False):
        _draw_curve(axis, curve)
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel(_machine(machine), color=BEST, fontsize=8)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=150)


def _draw_curve(axis: Any, curve: Curve) -> None:
    counts = list(curve.seconds)
    allowed = [1e3 * curve.seconds[1] / curve.growth(count) for count in counts]
    axis.plot(counts, allowed, "--", color=BEST, linewidth=1, label="one thread / growth of the FMA peak")
    axis.plot(
        counts, [1e3 * s for s in curve.seconds.values()], "o-", color=OURS, markersize=5, label="fastae"
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(counts, map(str, counts))
    for side in (axis.xaxis, axis.yaxis):
        side.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    case = curve.case
    axis.set_title(f"n = {case.n}, k = {case.k}, m = {case.m:,}", fontsize=9, color=TEXT, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", colors=TEXT, labelsize=8)


def _machine(of: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in of["versions"].items())
    return f"{of['cpu']} ({of['target']}), {of['threads']} threads; {versions}"


def _draw_race(axis: Any, of: Race) -> None:
    axis.axhline(of.target, color=TEXT, linewidth=0.8, linestyle=":", label="target")
    for name, curve in of.curves.items():
        points, ours = curve.points, name == "fastae"
        axis.plot(
            [point.seconds for point in points],
            [point.error for point in points],
            "--" if name.endswith("defaults") else "-",
            marker="o", markersize=3, linewidth=2 if ours else 1.2, zorder=3 if ours else 2,
            color=LIBRARIES[name.split(",")[0]], label=name,
        )  # fmt: skip
        if point := curve.reached(of.target):
            axis.plot(point.seconds, point.error, "o", markersize=7, color=LIBRARIES[name.split(",")[0]])
    axis.set_xscale("log")
    axis.set_yscale("log")
    for side, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        few = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
        side.set_major_locator(LogLocator(subs=few, numticks=20))
        side.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())
    axis.set_title(of.name, fontsize=9, color=TEXT, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", colors=TEXT, labelsize=7)


def _draw_bars(axis: Any, comparison: Comparison) -> None:
    case, timings = comparison.case, comparison.timings
    for place, (name, timing) in enumerate(timings.items()):
        exact = peers_of(case)[name].competes(case)
        color = (
            OURS if name == "fastae" else BEST if name == comparison.best_peer else PEER if exact else ROUGH
        )
        axis.barh(place, comparison.seconds(name), color=color, height=0.78)
        words = f" {span(timing)} ms" + (
            f"   {speedup(comparison, name)}" if name != "fastae" and comparison.quotable else ""
        )
        axis.text(comparison.seconds(name), place, words, va="center", fontsize=8, color=TEXT)
    axis.set_xlim(0, 1.6 * max(map(comparison.seconds, timings)))
    axis.set_yticks(range(len(timings)), [label(name, case) for name in timings], fontsize=8, color=TEXT)
    axis.invert_yaxis()
    usual = f"n = {case.n}, k = {case.k}, m = {case.m:,}"
    axis.set_title(usual if case.usual and not case.batch else case.label, fontsize=9, color=TEXT, loc="left")
    axis.tick_params(length=0)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_roofline(axis: Any, comparisons: list[Comparison]) -> None:
    """Our share, the best peer's and the ceiling at each size, from the narrowest network to the widest."""
    ordered = sorted(comparisons, key=lambda c: (c.case.n, c.case.k))
    places = range(len(ordered))
    peaks = [c.peak.median for c in ordered]
    axis.axhline(1, color=TEXT, linewidth=1)
    words = f"FMA peak, {min(peaks):.0f} to {max(peaks):.0f} GF/s"
    axis.text(-0.45, 1.015, words, fontsize=8, color=TEXT, va="bottom")
    axis.bar(
        places, [c.ceiling for c in ordered], width=0.7, color="#edf0f3", label="ceiling: FMA and sigmoids"
    )
    axis.plot(places, [c.share_of_peak() for c in ordered], "o-", color=OURS, markersize=7, label="fastae")
    for place, c in zip(places, ordered, strict=True):
        share = c.share_of_peak()
        up = 1 if share < 0.9 else -1  # above, where the best peer's line is not, but clear of the peak's
        axis.annotate(
            f"{share:.0%}", (place, share), (0, 7 * up), textcoords="offset points",
            ha="center", va="bottom" if up > 0 else "top", fontsize=8, color=OURS,
        )  # fmt: skip
    if all(c.best_peer for c in ordered):
        best = [c.share_of_peak(c.best_peer) for c in ordered if c.best_peer]
        axis.plot(places, best, "s--", color=BEST, markersize=5, linewidth=1, label="best peer")
    axis.set_xticks(places, [f"n = {c.case.n}\nk = {c.case.k}" for c in ordered], fontsize=8, color=TEXT)
    axis.set_xlim(-0.5, len(ordered) - 0.5)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ylim(0, 1.08)
    axis.set_title("Share of the FMA peak, useful operations only", fontsize=12, color=TEXT, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=0, colors=TEXT, labelsize=8)
    axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3)
