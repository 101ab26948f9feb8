"""A model of steps on more threads than this machine has. Its figures are predictions, never measurements.

``python -m fastae.bench.scaling_model`` prints how well the model reproduces times that were measured on 16 threads,
what it predicts for 1 to 192 threads, and how a step is divided: hand-overs, items per phase, bytes moved.

What is real: the items of each phase and their rows and weights (kernels/split.py), and the order in which threads look
for them. What is modelled, by the constants of ``Machine``:

    threads    events in the order of their times: claims, each an atomic operation on a cache line that other threads
               use as well; items; the count of finished items; and the opening of the next phase, a *hand-over*
    items      the larger of two times: arithmetic, and bytes from other cores' caches or the shared cache; and on top
               of it the time of bytes from memory
    caches     Each core has a private cache. What was used last stays there until another core writes it. What leaves
               it is in the shared cache, as long as that has room.
"""

import argparse
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import count, pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import fastae
from fastae.engine.runner import Runner
from fastae.kernels import job as fields
from fastae.kernels import split
from fastae.kernels.job import Job
from fastae.kernels.layout import LINE
from fastae.kernels.rounding import in_blocks
from fastae.network import Activation

THREADS = 1, 2, 4, 8, 16, 32, 64, 96, 128, 192
LANES = 16  # of float32
CLAIMS_PER_LINE = LINE // 8  # of job.taken

# use(data, elements, write=False): read elements of some data, or write them as well
Use = Callable[..., None]


class Machine(NamedTuple):
    """A server as the model sees it: times in seconds, sizes in bytes, rates in bytes or FLOPs per second.

    The defaults are of EMR, the 16-core server of the measured times (``MEASURED``). Where these do not determine a
    constant, it is typical of such servers. A machine with more cores is assumed to have as much of each per core.
    """

    cores: int = 16
    peak: float = 168e9  # FMA, one thread
    slowest: float = 0.64  # speed of a core when all are busy, as a share of that of a single one
    sigmoid: float = 0.43e-9
    adam: float = 0.25e-9  # per weight, beside its traffic
    private_cache: int = 2 << 20
    shared_cache: int = 5 << 20  # per core
    cache_rate: float = 20e9  # per thread, from the shared cache or another core's
    memory_rate: float = 4e9  # per core of the machine
    thread_memory_rate: float = 12e9  # per thread at most
    near: float = 70e-9  # one cache line from core to core, within a socket
    far: float = 140e-9  # the same between two sockets
    socket: int = 64  # cores of a socket
    broadcast: float = 5e-9  # per further core that reads the same line
    local_atomic: float = 6e-9
    load: float = 0.5e-9
    hand_over: float = 30e-6  # until waiting threads run on, by the small steps that were measured

    def speed(self, busy: int) -> float:
        """The speed of each of `busy` cores, as a share of that of a single one."""
        return self.slowest + (1 - self.slowest) * busy**-0.8

    def growth(self, threads: int) -> float:
        """How many times the FMA peak of one thread `threads` threads reach."""
        return threads * self.speed(threads)


EMR = Machine()


class Workload:
    """Steps on batches of `batch` of `rows` rows in a network of `widths`, with or without Adam.

    `rate` is what the products of one thread reach, in FLOPs per second. `by_weights` replaces the engine's own choice.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        batch: int,
        *,
        rows: int | None = None,
        adam: bool = False,
        rate: float = 0.85 * EMR.peak,
        by_weights: bool | None = None,
        steps: int = 2,
    ) -> None:
        hidden: list[Activation] = ["sigmoid" for _ in widths[2:]]
        runner = Runner(fastae.Network(widths, (*hidden, "identity")), 1)
        form = runner.form_for_steps(batch, codes=False)
        self.plan, self.adam, self.rate = runner.plan, adam, rate
        self.job = Job.from_buffer_copy(runner.blanks[form])
        self.job.rows, self.job.batch, self.job.steps = rows or batch, batch, steps
        if by_weights is None:
            by_weights = split.by_weights(runner.size)
        if by_weights and form.stored_row is not None:
            runner.cut_by_weights(self.job, batch)
        self.by_weights = self.job.cut == fields.BY_WEIGHTS
        self.pairs = list(pairwise(widths))

    def phases(self) -> Iterator[tuple[int, int, int]]:
        """(round, phase, items) of all steps, in order: as step.py goes through them, but without TRANSPOSE."""
        for round_ in range(self.job.steps * self.job.slabs):
            for phase in (fields.ROWS, fields.WEIGHTS):
                items = split.items_of(self.job, round_, phase)
                if items:
                    yield round_, phase, items

    @property
    def flops(self) -> float:
        """FLOPs of the products of one row."""
        return sum(self._row_flops(i, gradient=True) for i in range(len(self.pairs)))

    def _row_flops(self, layer: int, *, gradient: bool) -> float:
        """FLOPs of one row in a layer: forward, backward unless it is the first, and its gradient or not."""
        a, b = self.pairs[layer]
        return 2.0 * a * b * (1 + (layer > 0) + gradient)

    @cached_property
    def parts(self) -> list[tuple[int, int, int, int, int, int]]:
        """(layer, elements, first row, rows, first column, columns of W) of each patch; of a stretch, the first two."""
        if not self.by_weights:
            places = [split.stretch(self.plan, item, LANES) for item in range(self.job.stretches)]
            return [(int(layer), int(last - first), 0, 0, 0, 0) for layer, _, _, first, last in places]
        found = []
        for item in range(self.job.patches):
            layer, top, bottom, left, right = (int(n) for n in split.patch(self.plan, item, LANES))
            rows, columns = (bottom - top) * LANES, (right - left) * LANES
            found.append((layer, rows * columns, top, rows, left, columns))
        return found

    @cached_property
    def kept(self) -> list[tuple[str, int, int, int]]:
        """(array, layer, first column, columns) of what a band keeps, in the parts that patches read."""
        inputs = {("h", layer, top, rows) for layer, _, top, rows, _, _ in self.parts}
        deltas = {("delta", layer, left, columns) for layer, _, _, _, left, columns in self.parts}
        return sorted(inputs | deltas)

    @cached_property
    def row_cost(self) -> tuple[float, int]:
        """FLOPs, and sigmoids, of one row in the phase ROWS."""
        layers = range(len(self.pairs))
        flops = sum(self._row_flops(i, gradient=not self.by_weights) for i in layers)
        return flops, sum(b for _, b in self.pairs[:-1])

    def cost(self, round_: int, phase: int, item: int, use: Use, machine: Machine) -> tuple[float, float]:
        """FLOPs of an item's products, and seconds of its other arithmetic. Calls `use` for all data, in order."""
        if phase == fields.ROWS:
            first, rows = split.rows_of_item(self.job, round_, phase, item)
            use(("x", int(first)), rows * self.pairs[0][0])
            if self.by_weights:
                self._use_weights(use)
                for array, layer, left, columns in self.kept:
                    use((array, layer, left, item), rows * columns, True)
            else:
                columns = self.pairs[0][0] + sum(b for _, b in self.pairs)
                for _ in range(-(-rows // self.job.height)):
                    use(("tile", item), self.job.height * columns)
                    self._use_weights(use)
                    for part, (_, elements, *_) in enumerate(self.parts):
                        use(("gradient", item, part), elements, True)
            return rows * self.row_cost[0], rows * self.row_cost[1] * machine.sigmoid
        layer, elements, top, down, left, across = self.parts[item]
        flops = seconds = 0.0
        if self.by_weights:
            _, rows = split.rows_in_round(self.job, round_)
            flops = 2.0 * rows * down * across
            for band in range(split.items_of(self.job, round_, fields.ROWS)):
                _, of_band = split.band_of(band, rows, self.job.row_multiple)
                use(("h", layer, top, band), of_band * down)
                use(("delta", layer, left, band), of_band * across)
            if self.job.slabs > 1 or not self.adam:
                use(("gradient", item), elements, True)
        else:
            for shard in range(split.items_of(self.job, round_, fields.ROWS)):
                use(("gradient", shard, item), elements)
            use(("sum", item), elements, True)
        if self.adam and split.is_last_round(self.job, round_):
            seconds = elements * machine.adam
            for array in ("w", "moment 1", "moment 2") + (("w'",) if layer else ()):
                use((array, item), elements, True)
        return flops, seconds

    def _use_weights(self, use: Use) -> None:
        """Use W of all layers, then W' of all but the first, from the last on."""
        for part, (_, elements, *_) in enumerate(self.parts):
            use(("w", part), elements)
        for part, (layer, elements, *_) in reversed(list(enumerate(self.parts))):
            if layer:
                use(("w'", part), elements)


class Caches:
    """Which data each core's private cache and the shared cache hold; both forget what was used longest ago."""

    def __init__(self, machine: Machine, threads: int) -> None:
        self._machine = machine
        self._private = [_Cache(machine.private_cache) for _ in range(threads)]
        self._shared = _Cache(machine.shared_cache * max(machine.cores, threads))
        self._versions: dict[tuple[Any, ...], int] = {}
        self.cached = self.from_memory = 0.0  # bytes moved so far

    def use(self, thread: int, data: tuple[Any, ...], size: float, *, write: bool = False) -> None:
        """Have `thread` read `size` bytes, or write them as well; later readers then need them anew."""
        mine, version = self._private[thread], self._versions.get(data, 0)
        if mine.get(data) != version:
            if self._shared.get(data) is None:
                self.from_memory += size
            else:
                self.cached += size
        if write:
            version += 1
            self._versions[data] = version
        mine.put(data, version, size)
        self._shared.put(data, 0, size)


class _Cache:
    """Up to `room` bytes of data, each with a number."""

    def __init__(self, room: float) -> None:
        self._held: OrderedDict[tuple[Any, ...], tuple[int, float]] = OrderedDict()
        self._room = room

    def get(self, data: tuple[Any, ...]) -> int | None:
        return self._held[data][0] if data in self._held else None

    def put(self, data: tuple[Any, ...], number: int, size: float) -> None:
        before = self._held.pop(data, None)
        self._room += (before[1] if before else 0) - size
        self._held[data] = number, size
        while self._room < 0 and len(self._held) > 1:
            self._room += self._held.popitem(last=False)[1][1]


class Phase(NamedTuple):
    """A phase as it went: seconds from its opening to that of the next, and who claimed each item."""

    round: int
    phase: int
    seconds: float
    claimed_by: list[int]
    cached: float  # bytes moved to the threads from other cores or the shared cache
    from_memory: float


def simulate(
    work: Workload, threads: int, machine: Machine = EMR, *, late: dict[int, float] | None = None
) -> list[Phase]:
    """The phases of a job on so many threads, in order; `late` has the seconds at which a thread arrives, if not 0."""
    caches, now, done = Caches(machine, threads), [0.0] * threads, []
    for thread, seconds in (late or {}).items():
        now[thread] = seconds
    opened = 0.0
    for round_, phase, items in work.phases():
        before = caches.cached, caches.from_memory
        end, claimed_by = _phase(work, machine, caches, (round_, phase, items), now)
        moved = caches.cached - before[0], caches.from_memory - before[1]
        done.append(Phase(round_, phase, end - opened, claimed_by, *moved))
        opened = end
    return done


def _phase(
    work: Workload, machine: Machine, caches: Caches, which: tuple[int, int, int], now: list[float]
) -> tuple[float, list[int]]:
    """Let threads, free at the times `now`, claim and process the items of a phase; when the next one opens, and who.

    Updates `now`: the times from which on each thread can look for an item of the next phase.
    """
    round_, phase, items = which
    threads, busy = len(now), min(len(now), items)
    hop = machine.near if threads <= machine.socket else machine.far
    speed, share = machine.speed(busy), max(machine.cores, threads) * machine.memory_rate / busy
    memory_rate = min(machine.thread_memory_rate, share)
    claimed_by, passed = [-1] * items, [0] * threads
    lines: dict[int, tuple[float, int]] = {}  # cache line of claims: when it is free, and whose it is
    # counter, of a group or -1 of all groups: when it is free, whose it is, and its count
    counters: dict[int, tuple[float, int, int]] = {}
    end = 0.0
    order = count()
    events = [(now[thread], next(order), thread, 0) for thread in range(threads)]
    heapq.heapify(events)
    while events:
        time, _, thread, holds = heapq.heappop(events)
        if holds:  # 1 + the item that is done: count it
            group, size = split.group_of(holds - 1, items)
            for counter, full in ((group, size), (-1, in_blocks(items, split.GROUP))):
                free, owner, counted = counters.get(counter, (0.0, thread, 0))
                time = max(time, free) + (hop if owner != thread else machine.local_atomic)
                counters[counter] = time, thread, counted + 1
                if counted + 1 < full:
                    break
            else:
                end = time
        begin = split.share_begin(thread, threads, items)
        seen = -1
        while passed[thread] < items:
            item = (begin + passed[thread]) % items
            passed[thread] += 1
            line = item // CLAIMS_PER_LINE
            free, owner = lines.get(line, (0.0, thread))
            if line != seen and owner != thread:
                time += hop
            seen, time = line, time + machine.load
            if claimed_by[item] < 0:
                claimed_by[item] = thread
                time = max(time, free) + (hop if owner != thread else machine.local_atomic)
                lines[line] = time, thread
                cached, from_memory = caches.cached, caches.from_memory

                def use(
                    data: tuple[Any, ...], elements: float, write: bool = False, thread: int = thread
                ) -> None:
                    caches.use(thread, data, 4.0 * elements, write=write)

                flops, seconds = work.cost(round_, phase, item, use, machine)
                arithmetic = (flops / work.rate + seconds) / speed
                time += max(arithmetic, (caches.cached - cached) / machine.cache_rate)
                time += (caches.from_memory - from_memory) / memory_rate
                heapq.heappush(events, (time, next(order), thread, 1 + item))
                break
        else:
            now[thread] = time
    # The thread that finished the phase goes on at once; the others see it one after another.
    if threads > 1:
        end += hop
        for thread in range(threads):
            now[thread] = max(now[thread], end + machine.hand_over + thread * machine.broadcast)
    return end, claimed_by


def step_seconds(work: Workload, threads: int, machine: Machine = EMR) -> float:
    """Seconds of the last step of a job, when the caches hold what the steps before left."""
    last = (work.job.steps - 1) * work.job.slabs
    return sum(phase.seconds for phase in simulate(work, threads, machine) if phase.round >= last)


class Case(NamedTuple):
    """A step on `batch` rows of n -> k -> n -> n, or an epoch of such steps of Adam on `rows` rows."""

    n: int
    k: int
    batch: int
    rate: float  # FLOPs per second of one thread's products
    rows: int | None = None
    shard: int = 0  # rows of a shard when this was measured; 0 for what is predicted
    measured: dict[int, float] = {}  # noqa: RUF012  # threads -> milliseconds

    def __str__(self) -> str:
        what = f"{self.n}, {self.k}, {self.batch}"
        return f"step of {what}" if self.rows is None else f"epoch of {what} ({self.rows} rows)"

    def workload(self) -> Workload:
        widths, by_weights = (self.n, self.k, self.n, self.n), False if self.shard else None
        adam = self.rows is not None
        return Workload(widths, self.batch, rows=self.rows, adam=adam, rate=self.rate, by_weights=by_weights)

    @property
    def steps(self) -> float:
        return 1.0 if self.rows is None else self.rows / self.batch


# Times on EMR when every step was cut by rows, in shards of these sizes; `rate` is such that the model takes as long as
# was measured on one thread
MEASURED = [
    Case(784, 64, 4096, 115e9, None, 512, {1: 152, 16: 28.5}),
    Case(784, 256, 4096, 168e9, None, 512, {1: 142, 16: 35.3}),
    Case(1000, 100, 3000, 157e9, None, 752, {1: 136, 16: 49.6}),
    Case(128, 64, 65_536, 93e9, None, 2048, {1: 133, 16: 12.5}),
    Case(784, 64, 256, 118e9, 10_000, 128, {1: 401, 4: 193, 16: 201}),
    Case(784, 64, 2048, 144e9, 20_000, 512, {1: 605, 4: 200, 16: 204}),
    Case(128, 64, 1024, 152e9, 60_000, 256, {1: 80, 4: 32, 16: 30}),
    Case(30, 8, 4096, 58e9, 100_000, 512, {1: 16.2, 4: 6.7, 16: 4.9}),
]
PREDICTED = [
    Case(64, 32, 16_384, 93e9),
    Case(128, 64, 16_384, 93e9),
    Case(200, 20, 10_000, 118e9),
    Case(784, 64, 4096, 144e9),
    Case(784, 256, 4096, 160e9),
    Case(1000, 100, 3000, 155e9),
    Case(784, 64, 2048, 144e9, 20_000),
    Case(784, 64, 256, 144e9, 10_000),
    Case(128, 64, 1024, 152e9, 60_000),
    Case(30, 8, 4096, 58e9, 100_000),
    Case(500, 50, 300, 144e9, 20_000),
]


def calibration(machine: Machine = EMR) -> Iterator[tuple[Case, int, float, float]]:
    """(case, threads, modelled milliseconds, measured milliseconds) of all measured times."""
    for case in MEASURED:
        work = case.workload()
        for threads, milliseconds in case.measured.items():
            with patch.object(split, "shard_rows", lambda *_, rows=case.shard: rows):
                seconds = step_seconds(work, threads, machine)
            yield case, threads, 1e3 * case.steps * seconds, milliseconds


def division(work: Workload, threads: int, machine: Machine = EMR) -> tuple[list[int], float, float]:
    """Of the last step: items of each phase, and bytes moved to threads from caches and from memory."""
    last = (work.job.steps - 1) * work.job.slabs
    phases = [phase for phase in simulate(work, threads, machine) if phase.round >= last]
    return (
        [len(phase.claimed_by) for phase in phases],
        sum(phase.cached for phase in phases),
        sum(phase.from_memory for phase in phases),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS, help="default: 1 to 192")
    parser.add_argument(
        "--hand-over", type=float, default=30.0, help="microseconds until waiting threads run on"
    )
    given = parser.parse_args()
    machine = Machine(hand_over=given.hand_over * 1e-6)
    print("Reproduced: milliseconds on EMR when every step was cut by rows\n")
    print(f"{'':38}{'threads':>8}{'model':>9}{'measured':>9}{'ratio':>7}")
    for case, threads, modelled, measured in calibration(machine):
        print(f"{case!s:38}{threads:>8}{modelled:9.1f}{measured:9.1f}{modelled / measured:7.2f}")

    heads = "".join(f"{threads:>9}" for threads in given.threads)
    growths = "".join(f"{machine.growth(threads):9.2f}" for threads in given.threads)
    print(
        "\n\nPredictions, not measurements, for the steps of today: milliseconds, and the speedup over one thread as a"
    )
    print(
        f"share of the growth of the FMA peak, by threads\n\n{'':38}{heads}\n{'growth of the FMA peak':38}{growths}"
    )
    for case in PREDICTED:
        work = case.workload()
        seconds = [case.steps * step_seconds(work, threads, machine) for threads in given.threads]
        one = case.steps * step_seconds(work, 1, machine)
        shares = [
            one / s / machine.growth(threads) for s, threads in zip(seconds, given.threads, strict=True)
        ]
        print(f"{case!s:38}" + "".join(f"{1e3 * s:9.2f}" for s in seconds))
        print(f"{'':38}" + "".join(f"{share:9.0%}" for share in shares))

    print(
        "\n\nA step: hand-overs, items of its phases in order, and predicted megabytes moved to threads, by threads:"
    )
    print(f"from other cores or the shared cache + from memory\n\n{'':38}{heads}")
    for case in PREDICTED:
        work = case.workload()
        divided = [division(work, threads, machine) for threads in given.threads]
        items = divided[0][0]
        print(
            f"{case!s:38}"
            + "".join(f"{cached / 1e6:5.0f}+{memory / 1e6:<3.0f}" for _, cached, memory in divided)
        )
        print(f"    {len(items)} hand-overs; items {', '.join(map(str, items))}")


if __name__ == "__main__":
    main()
