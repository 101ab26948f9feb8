"""What ``pytest fastae/bench --benchmark-enable`` prints at the end: one table, each figure beside its peer and the peak."""

import re


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    benches = [bench for bench in getattr(session, "benchmarks", ()) if bench]
    by_name = {bench.name: bench for bench in benches}
    rows = []
    for bench in benches:
        if bench.name.endswith("-numpy]"):
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
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    peaks = {round(b.extra_info["peak_gflops"], 1) for b in benches if "peak_gflops" in b.extra_info}
    terminalreporter.section("fastae: medians, share of the FMA peak of the same run, speed beside NumPy")
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        terminalreporter.write_line("  ".join(cells))
    if peaks:
        terminalreporter.write_line(f"FMA peak as measured between rounds: {min(peaks)} to {max(peaks)} GF/s")


def _number(info, name, form):
    return form.format(info[name]) if name in info else ""
