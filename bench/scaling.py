"""The scaling curve: time of a step against threads, from 1 to all CPUs, beside the growth of the FMA peak.

``python -m fastae.bench.scaling`` times the six largest sizes (``cases.py``), with all thread counts in turn, and
prints how much faster a step is than on one thread, also as a share of how much faster the FMA peak is. ``--plot
curve.png`` draws it. For more threads than this machine has, scaling_model.py predicts.
"""

import argparse
from typing import Any

from fastae.bench import machine
from fastae.bench.cases import CASES, Case
from fastae.bench.curve import Curve, measure, thread_counts
from fastae.bench.report import machine_lines
from fastae.engine.thread_pool import available_cpus


def lines(curves: list[Curve], of: dict[str, Any]) -> list[str]:
    """The table, and the machine that it holds for."""
    counts = list(curves[0].seconds)
    shown = [
        f"{'step of n, k, m':24}"
        + "".join(f"{count:>4} thread{'s' if count > 1 else ' '}" for count in counts)
    ]
    for curve in curves:
        case, rest = curve.case, " " * 20
        shown += [
            f"{f'{case.n}, {case.k}, {case.m}':20} ms "
            + "".join(f"{1e3 * s:12.2f}" for s in curve.seconds.values()),
            f"{rest} x  " + "".join(f"{curve.speedup(count):12.2f}" for count in counts),
            f"{rest} %  " + "".join(f"{curve.share_of_growth(count):12.0%}" for count in counts),
        ]
    return [
        *shown,
        "",
        "ms: medians. x: speed, as a multiple of that on one thread. %: this as a share of the growth of the FMA peak.",
        *machine_lines(of),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", action="append", type=Case.parse, metavar="N,K,M", help="time this size instead"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", help="thread counts beside 1; default: powers of two, and all"
    )
    parser.add_argument("--plot", help="draw the curves into this image file; needs matplotlib")
    given = parser.parse_args()
    cpus = available_cpus()
    counts = sorted({1, *given.threads}) if given.threads else thread_counts(cpus)
    if not 1 <= counts[0] <= counts[-1] <= cpus:
        parser.error(f"--threads must be from 1 to {cpus}, the CPUs of this process")
    of = machine.describe()
    curves = [measure(case, counts) for case in given.size or CASES[3:]]
    print("\n".join(lines(curves, of)))
    if given.plot:
        from fastae.bench import pictures

        pictures.save_scaling(curves, of, given.plot)


if __name__ == "__main__":
    main()
