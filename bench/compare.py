"""One case: fastae and the peers, each checked first, then timed in turn with readings of the two ceilings."""

from dataclasses import dataclass

from fastae.bench import peers
from fastae.bench.cases import Case
from fastae.bench.machine import OtherWork
from fastae.bench.peer import Maker, Peer
from fastae.bench.pools import set_threads
from fastae.bench.probe import STEADY, Probe
from fastae.bench.rounds import ROUNDS, Contender, Timing, in_turn
from fastae.engine import thread_pool

OTHERS = 0.05  # largest share of the CPUs' time that other processes may take


@dataclass(frozen=True)
class Comparison:
    """The measurements of one case.

    `timings` holds ours ("fastae") and the peers', `settings` the thread count and form of each. `peak` (GF/s) and
    `sigmoid_rate` (1e9 per second) are totals over all threads: median, 10th and 90th percentile of the readings.
    `peak_best` is the highest 90th percentile of the peak in the whole run, of this and of other cases. `others` is the
    share of the CPUs' time that other processes took.
    """

    case: Case
    timings: dict[str, Timing]
    settings: dict[str, str]
    peak: Timing
    sigmoid_rate: float
    peak_best: float
    others: float

    def seconds(self, name: str = "fastae") -> float:
        """What the speed is computed from: our median; ``counted`` of a peer."""
        timing = self.timings[name]
        return timing.median if name == "fastae" else timing.counted

    def gflops(self, name: str = "fastae") -> float:
        """Useful GF/s."""
        return self.case.flops / self.seconds(name) / 1e9

    def share_of_peak(self, name: str = "fastae") -> float:
        """Useful operations as a share of the FMA peak."""
        return self.gflops(name) / self.peak.median

    def share_of_ceiling(self, name: str = "fastae") -> float:
        """The same as a share of the ceiling."""
        return self.share_of_peak(name) / self.ceiling

    @property
    def ceiling(self) -> float:
        """The share of the FMA peak of an ideal program that spends time only on products and then on sigmoids."""
        products = self.case.flops / self.peak.median
        return products / (products + self.case.sigmoids / self.sigmoid_rate)

    @property
    def ratios(self) -> dict[str, float]:
        """Our speed as a multiple of each peer's; at least that, where the peer's times are not steady."""
        return {name: self.seconds(name) / self.seconds() for name in self.timings if name != "fastae"}

    @property
    def best_peer(self) -> str | None:
        """The fastest peer of our precision; None without any."""
        known = peers.peers_of(self.case)
        ratios = self.ratios
        return min(
            (name for name in ratios if known[name].competes(self.case)),
            key=lambda name: ratios[name],
            default=None,
        )

    @property
    def shared_cores(self) -> bool:
        """Whether other work shared the cores: by its CPU time, and by the readings of the peak in the whole run."""
        return self.others > OTHERS or self.peak_best > STEADY * self.peak.p10

    @property
    def quotable(self) -> bool:
        """Whether the figures of this case may be quoted."""
        return self.timings["fastae"].steady and not self.shared_cores


def checked(peer: Peer, make: Maker, case: Case, threads: int) -> Contender | None:
    """The peer's work on `threads` threads, after a check of its result; None where the form does not suit the case."""
    set_threads(threads)
    work = make(case, threads)
    if work is None:
        return None
    check = case.check_roughly if peer.rough(case) else case.check
    try:
        check(work.answer(work.run(1)))
    except AssertionError as error:
        raise AssertionError(f"{getattr(make, 'func', make).__name__}: {error}") from None
    return Contender(work.run, threads)


def measure(case: Case, names: list[str], *, rounds: int = ROUNDS, quick: bool = False) -> Comparison:
    """Compare with the named peers.

    Every form of a peer, on one thread and on all, takes its turn in every round, and the one of the least time
    counts: which is best depends on conditions, and these may change within a run. With `quick`, a peer only has its
    first form and all threads.
    """
    cpus = thread_pool.available_cpus()
    known = peers.peers_of(case)
    contenders: dict[tuple[str, str], Contender] = {}
    for name in ("fastae", *names):
        several = known[name].sized and name != "fastae" and not quick
        for threads in dict.fromkeys((1, cpus) if several else (cpus,)):
            for form, make in list(known[name].forms.items())[: 1 if quick else None]:
                contender = checked(known[name], make, case, threads)
                if contender:
                    contenders[name, f"{threads}{form and f', {form}'}"] = contender
    ceilings = {of: Probe(cpus, case.array_dtype, of) for of in ("fma", "sigmoid")}
    other_work = OtherWork()
    timings = in_turn(
        {**{(of, ""): Contender(probe, cpus) for of, probe in ceilings.items()}, **contenders}, rounds=rounds
    )
    best: dict[str, tuple[str, str]] = {}
    for key in contenders:
        best[key[0]] = min(best.get(key[0], key), key, key=lambda each: timings[each].counted)
    fma, sigmoid = (timings[of, ""].rates(probe.work) for of, probe in ceilings.items())
    return Comparison(
        case,
        {name: timings[key] for name, key in best.items()},
        dict(best.values()),
        fma,
        sigmoid.median,
        fma.p90,
        other_work.share(),
    )
