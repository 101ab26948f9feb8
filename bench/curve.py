"""Time of a step, and the FMA peak, on several numbers of threads in turn: a curve of ``scaling.py``."""

from functools import partial
from typing import NamedTuple

import fastae
from fastae.bench.cases import Case
from fastae.bench.probe import Probe
from fastae.bench.rounds import ROUNDS, Contender, in_turn


class Curve(NamedTuple):
    """Seconds of a step of a case, and the FMA peak in GF/s, by thread count."""

    case: Case
    seconds: dict[int, float]
    peaks: dict[int, float]

    def speedup(self, threads: int) -> float:
        """How much faster than on one thread a step is."""
        return self.seconds[1] / self.seconds[threads]

    def growth(self, threads: int) -> float:
        """How much higher than that of one thread the FMA peak is."""
        return self.peaks[threads] / self.peaks[1]

    def share_of_growth(self, threads: int) -> float:
        return self.speedup(threads) / self.growth(threads)


def thread_counts(most: int) -> list[int]:
    """1, powers of two, and `most`."""
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})


def measure(case: Case, counts: list[int], rounds: int = ROUNDS) -> Curve:
    """Time a step on each number of threads, and the FMA peak of as many, all in turn; `counts` includes 1."""
    contenders: dict[tuple[str, int], Contender] = {}
    probes = {}
    for count in counts:
        engine = fastae.Engine(case.network, count, case.dtype)
        loss, gradient = engine.loss_and_gradient(case.parameters, case.X)
        case.check({"loss": loss, **gradient})
        contenders["step", count] = Contender(partial(_steps, engine, case), count)
        probes[count] = Probe(count, case.array_dtype)
        contenders["peak", count] = Contender(probes[count], count)
    timings = in_turn(contenders, rounds=rounds)
    seconds = {count: timings["step", count].median for count in counts}
    peaks = {count: probe.work / timings["peak", count].median for count, probe in probes.items()}
    return Curve(case, seconds, peaks)


def _steps(engine: fastae.Engine, case: Case, times: int) -> None:
    for _ in range(times):
        engine.loss_and_gradient(case.parameters, case.X)
