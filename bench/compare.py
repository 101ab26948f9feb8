"""One case: our step and the peers', each checked first, then timed in turn between readings of the two ceilings."""

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
    """What was measured for one case.

    `timings` holds ours ("fastae") and the peers', `threads` how many threads each did best on. `peak` is in GF/s,
    `sigmoid_rate` in 1e9 a second, of all threads together; `peak_best` is the peak's best reading.
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
        """Of the FMA peak."""
        return self.gflops(name) / self.peak

    def share_of_ceiling(self, name: str = "fastae") -> float:
        """Of FMA plus sigmoid."""
        return self.share_of_peak(name) / self.ceiling

    @property
    def ceiling(self) -> float:
        """The share of the FMA peak that a step could have whose only other work were its sigmoids."""
        products = self.case.flops / self.peak
        return products / (products + self.case.sigmoids / self.sigmoid_rate)

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as fast as each peer we are."""
        ours = self.timings["fastae"].median
        return {name: timing.median / ours for name, timing in self.timings.items() if name != "fastae"}

    @property
    def best_peer(self) -> str | None:
        """The fastest of those that compute in our precision."""
        ratios = {name: ratio for name, ratio in self.ratios.items() if PEERS[name].exact}
        return min(ratios, key=lambda name: ratios[name], default=None)

    @property
    def shared_cores(self) -> bool:
        """Whether something else took the cores: such figures are not to be quoted."""
        return self.peak_best > 1.15 * self.peak


def checked(peer: Peer, case: Case, threads: int) -> Contender:
    """The peer's step on so many threads, after a check of its loss and gradient."""
    set_threads(threads)
    step = peer.make(case, threads)
    check = case.check if peer.exact else case.check_roughly
    try:
        check(*step.answer(step.run()))
    except AssertionError as error:
        raise AssertionError(f"{peer.make.__name__}: {error}") from None
    return Contender(partial(_times, step.run), threads)


def measure(case: Case, names: list[str]) -> Comparison:
    """Compare with the peers of these names, each on one thread or on all, whichever is the faster for it."""
    everyone = thread_pool.available_cpus()
    contenders = {}
    for name, peer in {"fastae": OURS, **{name: PEERS[name] for name in names}}.items():
        sized = peer.sized and name != "fastae"
        settings = dict.fromkeys((1, everyone) if sized else (everyone,))
        contenders[name] = fastest([checked(peer, case, threads) for threads in settings])
    fma, sigmoid = Probe(everyone, case.dtype), Probe(everyone, case.dtype, "sigmoid")
    probing = Contender(lambda times: [(fma(), sigmoid()) for _ in range(times)], everyone)
    timings = in_turn({"ceilings": probing, **contenders})
    del timings["ceilings"]
    threads = {name: contender.threads for name, contender in contenders.items()}
    return Comparison(case, timings, threads, fma.median, max(fma.readings), sigmoid.median)


def _times(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()
