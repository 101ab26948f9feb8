"""The table that ``pytest bench`` ends with: each figure beside its peer and the peak."""

import re


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    benches = [bench for bench in getattr(session, "benchmarks", ()) if bench]
    by_name = {bench.name: bench for bench in benches}
    rows = []
    _epochs(terminalreporter, [bench for bench in benches if "ratio" in bench.extra_info])
    for bench in benches:
        if "ratio" in bench.extra_info or bench.name.endswith("-numpy]"):
            continue
        info, median = bench.extra_info, bench.stats.median
        peer = by_name.get(re.sub(r"-[^-]+\]$", "-numpy]", bench.name))
        rows.append(
            (
                re.sub(r"^test_", "", bench.name),
                f"{median * 1e3 / info.get('times', 1):.4g}",
                _number(info, "gflops", "{:.1f}"),
                _number(info, "share_of_peak", "{:.1%}"),
                _number(info, "target", "{:.0%}"),
                _number(info, "ns_per_element", "{:.3f}"),
                f"{peer.stats.median / median * info.get('times', 1):.1f}x" if peer else "",
            )
        )
    if not rows:
        return
    head = ("case", "median ms", "GF/s", "FMA peak", "target", "ns/element", "vs NumPy")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    terminalreporter.section("fastae: medians, share of the FMA peak of the same run, speed beside NumPy")
    for row in (head, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        terminalreporter.write_line("  ".join(cells))
    probed = [bench.extra_info for bench in benches if "peak_gflops" in bench.extra_info]
    for threads in sorted({info["threads"] for info in probed}):
        peaks = [info["peak_gflops"] for info in probed if info["threads"] == threads]
        line = (
            f"FMA peak of {threads} threads, read between rounds: {min(peaks):.0f} to {max(peaks):.0f} GF/s"
        )
        terminalreporter.write_line(line)
    shared = sum(info["peak_best"] > 1.15 * info["peak_gflops"] for info in probed)
    if shared:  # a share of such a peak says too much
        terminalreporter.write_line(
            f"DO NOT QUOTE: in {shared} benches the peak's median was far below its best reading; the cores were shared"
        )


def _number(info, name, form):
    return form.format(info[name]) if name in info else ""


def _epochs(terminalreporter, benches):
    """Ours beside all peers, timed in turn."""
    if not benches:
        return
    terminalreporter.section(
        "fastae: milliseconds an epoch, all timed in turn, and how many times as fast as the best peer"
    )
    for bench in benches:
        info = bench.extra_info
        times = "  ".join(f"{name} {value:.4g}" for name, value in info["milliseconds"].items())
        terminalreporter.write_line(
            f"{bench.name:32}  {times}  -> {info['ratio']:.2f}x {info['best_peer']} (target {info['target_ratio']}x)"
        )
