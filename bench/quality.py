"""Time to quality: seconds from the call until the held-out error is near the best known, beside other libraries.

A library's curve consists of whole trainings of 1/16, 1/8, ..., 8 times fastae's automatic budget, each with a schedule
of its own; the time to the target is that of the first one that reaches it. Where the learning rate is constant, a
longer training is the shorter one continued. Compilation is included by repeating that training in a new process whose
caches are empty; otherwise, everything has been compiled before. The report is in ``quality_report.py``.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fastae.bench.pools import set_threads
from fastae.bench.quality_cases import SETS, WITHIN, Task
from fastae.bench.quality_peers import CONTENDERS, Advance
from fastae.bench.rounds import REST
from fastae.engine import thread_pool

FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # of the unit of steps
LIMIT = 4.0  # seconds that a training may be expected to take
SHORT = 1.0  # the same for one beyond the target, which only completes the curve
TRIAL = 20  # steps of the trial of a number of threads
SETS_TARGET = "torch, defaults"  # whose error is the target where no best error is known


class Point(NamedTuple):
    """A training: its steps, its seconds, and the held-out error after it; medians over the seeds."""

    steps: int
    seconds: float
    error: float


@dataclass
class Curve:
    """The trainings of one contender; `cold` is the first that reached the target, compilation included."""

    threads: int
    points: list[Point] = field(default_factory=list)
    cold: Point | None = None

    def reached(self, target: float) -> Point | None:
        """The first training that reached the target."""
        return next((point for point in self.points if point.error <= target), None)

    @property
    def least(self) -> float:
        """The lowest error of all trainings."""
        return min(point.error for point in self.points)


@dataclass
class Race:
    """The curves of all contenders on one data set."""

    name: str
    size: str
    best: float | None
    target: float
    curves: dict[str, Curve]

    def seconds(self, name: str, *, cold: bool = False) -> float | None:
        """Seconds to the target; None: not reached, or not measured."""
        curve = self.curves[name]
        point = curve.reached(self.target)
        if cold and point is not None:
            point = curve.cold
        return None if point is None else point.seconds

    def best_peer(self, *, cold: bool = False) -> str | None:
        """The peer that reached the target first."""
        times = {name: self.seconds(name, cold=cold) for name in self.curves if name != "fastae"}
        reached = {name: seconds for name, seconds in times.items() if seconds is not None}
        return min(reached, key=lambda name: reached[name], default=None)

    def speedup(self, *, cold: bool = False) -> float | None:
        """Seconds of the best peer, as a multiple of ours; None if one of both did not reach the target."""
        ours, peer = self.seconds("fastae", cold=cold), self.best_peer(cold=cold)
        theirs = None if peer is None else self.seconds(peer, cold=cold)
        return None if ours is None or theirs is None else theirs / ours


class _Runner:
    """A contender on its way up the budgets of a task."""

    def __init__(self, name: str, task: Task, seeds: int, compiled: bool) -> None:
        self.contender, self.task, self.compiled = CONTENDERS[name], task, compiled
        self.seeds = range(seeds)
        self.most = round(FACTORS[-1] * task.unit)
        self.running: dict[int, tuple[Advance, float]] = {}
        self.curve = Curve(self._threads())
        set_threads(self.curve.threads)
        self._begin(0, TRIAL)(TRIAL)  # compiles

    def _begin(self, seed: int, steps: int) -> Advance:
        return self.contender.start(self.task, seed, steps, self.compiled)

    def _threads(self) -> int:
        """One thread or all, whichever is faster; torch is tried uncompiled."""
        cpus = thread_pool.available_cpus()
        if not self.contender.sized:
            return cpus
        best = {}
        for threads in dict.fromkeys((1, cpus)):
            set_threads(threads)
            taken = []
            for _ in range(3):
                advance = self.contender.start(self.task, 0, TRIAL, False)
                began = time.perf_counter()
                advance(TRIAL)
                taken.append(time.perf_counter() - began)
            best[threads] = min(taken)
        return min(best, key=lambda threads: best[threads])

    def next_takes(self, steps: int) -> float:
        """Seconds that a training of so many steps will take, as far as can be told."""
        if not self.curve.points:
            return 0.0
        last = self.curve.points[-1]
        return last.seconds * steps / last.steps

    def run(self, steps: int) -> None:
        """Train for so many steps in all, and add the point."""
        before = self.curve.points[-1].steps if self.curve.points and self.contender.continues else 0
        if self.contender.ahead:
            self.contender.ahead(self.task, steps - before)
        set_threads(self.curve.threads)
        seconds, errors = [], []
        for seed in self.seeds:
            time.sleep(REST)
            began = time.perf_counter()
            if before:
                advance, spent = self.running[seed]
            else:
                total = self.most if self.contender.continues else steps
                advance, spent = self._begin(seed, total), 0.0
            reconstruct = advance(steps - before)
            spent += time.perf_counter() - began
            if self.contender.continues:
                self.running[seed] = advance, spent
            seconds.append(spent)
            errors.append(self.task.error(reconstruct))
        self.curve.points.append(Point(steps, statistics.median(seconds), statistics.median(errors)))


def race(
    task: Task,
    names: Sequence[str],
    *,
    factors: Sequence[float] = FACTORS,
    limit: float = LIMIT,
    seeds: int = 1,
    compiled: bool = True,
    tell: Callable[[str], Any] = lambda words: None,
) -> Race:
    """The curves of the named contenders on a task; they take turns at each budget.

    Parameters
    ----------
    factors : sequence of float
        Budgets, as multiples of ``task.unit``.
    limit : float
        Seconds: a contender stops before a training that would take longer.
    seeds : int
        Trainings at each budget, of which the median counts.
    compiled : bool
        Whether torch compiles.
    """
    best = task.data_set.best
    if best is None and SETS_TARGET not in names:
        raise ValueError(f"the target of {task.data_set.name!r} needs torch, which sets it")
    budgets = [max(1, round(factor * task.unit)) for factor in factors]
    runners = {}
    for name in names:
        tell(f"{task.data_set.name}: {name} compiles")
        runners[name] = _Runner(name, task, seeds, compiled)
    target = None if best is None else WITHIN * best
    if target is None:
        tell(f"{task.data_set.name}: {SETS_TARGET} sets the target")
        for steps in [steps for steps in budgets if steps < task.unit] + [task.unit]:
            runners[SETS_TARGET].run(steps)
        target = runners[SETS_TARGET].curve.points[-1].error
    live = [name for name in names if not runners[name].curve.points]
    for steps in budgets:
        tell(f"{task.data_set.name}: {steps} steps of {', '.join(live)}")
        for name in list(live):
            runner = runners[name]
            most = SHORT if runner.curve.points and runner.curve.least <= target else limit
            if runner.next_takes(steps) > most:
                live.remove(name)
            else:
                runner.run(steps)
    return Race(task.data_set.name, task.size, best, target, {name: runners[name].curve for name in names})


# -- compilation included ---------------------------------------------------------------------------------------------


def add_cold(of: Race, folder: Path | None, tell: Callable[[str], Any] = lambda words: None) -> None:
    """For each contender that reached the target, the same training in a new process whose caches are empty."""
    for name, curve in of.curves.items():
        point = curve.reached(of.target)
        if point is None:
            continue
        tell(f"{of.name}: {name} in a new process, compilation included")
        ways = (True, False) if CONTENDERS[name].compiles else (True,)
        runs = [_in_new_process(of.name, name, point.steps, curve.threads, way, folder) for way in ways]
        curve.cold = min(runs, key=lambda run: run.seconds)


def _in_new_process(*arguments: Any) -> Point:
    data_set, name, steps, threads, compiled, folder = arguments
    words = [data_set, name, steps, threads, compiled, None if folder is None else str(folder)]
    with tempfile.TemporaryDirectory() as empty:
        caches = dict.fromkeys(("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), empty)
        done = subprocess.run(
            [sys.executable, "-c", "from fastae.bench.quality import once; once()", json.dumps(words)],
            env={**os.environ, **caches, "JAX_ENABLE_COMPILATION_CACHE": "false"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{name} failed in a new process: {done.stderr.strip()[-500:]}")
    return Point(*json.loads(done.stdout.splitlines()[-1]))


def once() -> None:
    """What the new process does: one training, from the call on, after the imports; prints its point."""
    data_set, name, steps, threads, compiled, folder = json.loads(sys.argv[1])
    task = SETS[data_set].task(None if folder is None else Path(folder))
    contender = CONTENDERS[name]
    import_module(contender.imports)
    set_threads(threads)
    began = time.perf_counter()
    reconstruct = contender.start(task, 0, steps, compiled)(steps)
    seconds = time.perf_counter() - began
    print(json.dumps([steps, seconds, task.error(reconstruct)]))
