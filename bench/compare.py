"""One case: our step and the peers', each checked first, then timed in turn with readings of the two ceilings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastae.bench.cases import Case
from fastae.bench.pools import set_threads
from fastae.bench.probe import Probe
from fastae.bench.rounds import Contender, Timing, fastest, in_turn
from fastae.bench.step_peers import PEERS, Peer, by_fastae
from fastae.engine import thread_pool

OURS = Peer("fastae", by_fastae)


@dataclass(frozen=True)
class Comparison:
    """The measurements of one case.

    `timings` holds ours ("fastae") and the peers', `threads` the thread count of each. `peak` (GF/s) and `sigmoid_rate`
    (1e9 per second) are totals over all threads; `peak_best` is the best reading of the peak.
    """

    case: Case
    timings: dict[str, Timing]
    threads: dict[str, int]
    peak: float
    peak_best: float
    sigmoid_rate: float

    def gflops(self, name: str = "fastae") -> float:
        """Useful GF/s."""
        return self.case.flops / self.timings[name].median / 1e9

    def share_of_peak(self, name: str = "fastae") -> float:
        """Useful operations as a share of the FMA peak."""
        return self.gflops(name) / self.peak

    def share_of_ceiling(self, name: str = "fastae") -> float:
        """The same as a share of the ceiling."""
        return self.share_of_peak(name) / self.ceiling

    @property
    def ceiling(self) -> float:
        """The share of the FMA peak of an ideal step that spends time only on products and then on sigmoids."""
        products = self.case.flops / self.peak
        return products / (products + self.case.sigmoids / self.sigmoid_rate)

    @property
    def ratios(self) -> dict[str, float]:
        """Our speed as a multiple of each peer's."""
        ours = self.timings["fastae"].median
        return {name: timing.median / ours for name, timing in self.timings.items() if name != "fastae"}

    @property
    def best_peer(self) -> str | None:
        """The fastest peer of our precision."""
        ratios = {name: ratio for name, ratio in self.ratios.items() if PEERS[name].exact}
        return min(ratios, key=lambda name: ratios[name], default=None)

    @property
    def shared_cores(self) -> bool:
        """Whether other work shared the cores: do not quote such figures."""
        return self.peak_best > 1.15 * self.peak


def checked(peer: Peer, case: Case, threads: int) -> Contender:
    """The peer's step on `threads` threads, after a check of its loss and gradient."""
    set_threads(threads)
    step = peer.make(case, threads)
    check = case.check if peer.exact else case.check_roughly
    try:
        check(*step.answer(step.run()))
    except AssertionError as error:
        raise AssertionError(f"{peer.make.__name__}: {error}") from None
    return Contender(partial(_times, step.run), threads)


def measure(case: Case, names: list[str]) -> Comparison:
    """Compare with the named peers, each on one thread or on all, whichever is faster for it."""
    cpus = thread_pool.available_cpus()
    contenders = {}
    for name, peer in {"fastae": OURS, **{name: PEERS[name] for name in names}}.items():
        sized = peer.sized and name != "fastae"
        settings = dict.fromkeys((1, cpus) if sized else (cpus,))
        contenders[name] = fastest([checked(peer, case, threads) for threads in settings])
    fma, sigmoid = Probe(cpus, case.dtype), Probe(cpus, case.dtype, "sigmoid")
    probing = Contender(lambda times: [(fma(), sigmoid()) for _ in range(times)], cpus)
    timings = in_turn({"ceilings": probing, **contenders})
    del timings["ceilings"]
    threads = {name: contender.threads for name, contender in contenders.items()}
    return Comparison(case, timings, threads, fma.median, max(fma.readings), sigmoid.median)


def _times(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()
