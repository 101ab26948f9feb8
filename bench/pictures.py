"""A picture of the report: all times at every size, and the share of the FMA peak against n. Needs matplotlib."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fastae.bench.compare import Comparison
from fastae.bench.report import Report, label, milliseconds
from fastae.bench.step_peers import PEERS

OURS, BEST, PEER, ROUGH, TEXT = "#d1495b", "#5b6b7b", "#a9b4bf", "#dfe4e9", "#333333"
ACROSS = 3  # panels in a row


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
        "One loss and gradient: milliseconds, and the multiple of fastae's time", color=TEXT, fontsize=12
    )
    axes = list(upper.subplots(down, across, squeeze=False).flat)
    for axis, comparison in zip(axes, comparisons, strict=False):
        _draw_bars(axis, comparison)
    for axis in axes[len(comparisons) :]:
        axis.set_axis_off()
    _draw_roofline(lower.subplots(), comparisons)
    cpu, target, threads = (report.machine[name] for name in ("cpu", "target", "threads"))
    versions = ", ".join(f"{name} {v}" for name, v in report.machine["versions"].items())
    starred = "   * lower precision" if any(not PEERS[name].exact for name in report.peers) else ""
    lower.supxlabel(f"{cpu} ({target}), {threads} threads; {versions}{starred}", color=BEST, fontsize=8)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=150)


def _draw_bars(axis: Any, comparison: Comparison) -> None:
    case, timings = comparison.case, comparison.timings
    for place, (name, timing) in enumerate(timings.items()):
        exact = name == "fastae" or PEERS[name].exact
        color = (
            OURS if name == "fastae" else BEST if name == comparison.best_peer else PEER if exact else ROUGH
        )
        axis.barh(place, timing.median, color=color, height=0.78)
        words = f" {milliseconds(timing)[1]} ms"
        if name in comparison.ratios:
            words += f"   {comparison.ratios[name]:.1f}x"
        axis.text(timing.median, place, words, va="center", fontsize=8, color=TEXT)
    axis.set_xlim(0, 1.6 * max(timing.median for timing in timings.values()))
    axis.set_yticks(range(len(timings)), map(label, timings), fontsize=8, color=TEXT)
    axis.invert_yaxis()
    axis.set_title(f"n = {case.n}, k = {case.k}, m = {case.m:,}", fontsize=9, color=TEXT, loc="left")
    axis.tick_params(length=0)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_roofline(axis: Any, comparisons: list[Comparison]) -> None:
    """Our share, the best peer's and the ceiling at each size, from the narrowest network to the widest."""
    ordered = sorted(comparisons, key=lambda c: (c.case.n, c.case.k))
    places = range(len(ordered))
    peaks = [c.peak for c in ordered]
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
        axis.plot(places, best, "s--", color=BEST, markersize=5, linewidth=1, label="best peer in float32")
    axis.set_xticks(places, [f"n = {c.case.n}\nk = {c.case.k}" for c in ordered], fontsize=8, color=TEXT)
    axis.set_xlim(-0.5, len(ordered) - 0.5)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ylim(0, 1.08)
    axis.set_title("Share of the FMA peak, useful operations only", fontsize=12, color=TEXT, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=0, colors=TEXT, labelsize=8)
    axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3)
