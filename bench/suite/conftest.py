"""The closing tables of ``pytest bench``: each figure beside the peers' and the peak."""

import re


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    benches = [bench for bench in getattr(session, "benchmarks", ()) if bench]
    scaling = [bench for bench in benches if "scaling" in bench.extra_info]
    turns = [bench for bench in benches if "milliseconds" in bench.extra_info and bench not in scaling]
    _turns(terminalreporter, turns)
    _scaling(terminalreporter, scaling)
    _kernels(
        terminalreporter, [bench for bench in benches if bench.group == "kernels" and bench not in turns]
    )


def _turns(terminalreporter, benches):
    """Our times beside the peers', timed in turn."""
    if not benches:
        return
    terminalreporter.section("fastae: milliseconds, timed in turn")
    for bench in benches:
        info = bench.extra_info
        others = {name: ms / info["milliseconds"]["fastae"] for name, ms in info["milliseconds"].items()}
        times = ", ".join(f"{name} {ms:.4g}" for name, ms in info["milliseconds"].items())
        ratios = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in others.items() if name != "fastae")
        target = f" (target {info['target_ratio']}x the best)" if "target_ratio" in info else ""
        shares = "".join(
            f"; {info[key]:.0%} of {words}"
            for key, words in (("share_of_peak", "FMA"), ("share_of_ceiling", "FMA + sigmoid"))
            if key in info
        )
        note = f"; {info['note']}" if "note" in info else ""
        terminalreporter.write_line(f"{_name(bench):34} {times}\n    {ratios}{target}{shares}{note}")


def _scaling(terminalreporter, benches):
    for bench in benches:
        table = bench.extra_info["scaling"]
        heads = list(next(iter(table.values())))
        terminalreporter.section(f"fastae: {_name(bench)}")
        terminalreporter.write_line(" " * 28 + "".join(f"{head:>20}" for head in heads))
        for case, figures in table.items():
            terminalreporter.write_line(f"{case:28}" + "".join(f"{figures[head]:20.4g}" for head in heads))


def _name(bench):
    return re.sub(r"^test_", "", bench.name)


def _kernels(terminalreporter, benches):
    by_name = {bench.name: bench for bench in benches}
    rows = []
    for bench in benches:
        if bench.name.endswith("-numpy]"):
            continue
        info, median = bench.extra_info, bench.stats.median
        peer = by_name.get(re.sub(r"-[^-]+\]$", "-numpy]", bench.name))
        rows.append(
            (
                _name(bench),
                f"{median * 1e3 / info.get('times', 1):.4g}",
                _number(info, "gflops", "{:.1f}"),
                _number(info, "share_of_peak", "{:.1%}"),
                _number(info, "ns_per_element", "{:.3f}"),
                f"{peer.stats.median / median * info.get('times', 1):.1f}x" if peer else "",
            )
        )
    if not rows:
        return
    head = ("case", "median ms", "GF/s", "FMA peak", "ns/element", "vs NumPy")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    terminalreporter.section(
        "fastae: medians, share of the FMA peak in the same run, speed relative to NumPy"
    )
    for row in (head, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        terminalreporter.write_line("  ".join(cells))
    probed = [bench.extra_info for bench in benches if "peak_gflops" in bench.extra_info]
    for threads in sorted({info["threads"] for info in probed}):
        peaks = [info["peak_gflops"] for info in probed if info["threads"] == threads]
        line = f"FMA peak of {threads} threads, measured between rounds: {min(peaks):.0f} to {max(peaks):.0f} GF/s"
        terminalreporter.write_line(line)
    shared = sum(info["disturbed"] for info in probed)
    if shared:  # shares of such a peak are too high
        terminalreporter.write_line(
            f"DO NOT QUOTE: in {shared} benches, readings of the FMA peak vary by over 15%: the cores were shared"
        )


def _number(info, name, form):
    return form.format(info[name]) if name in info else ""
