"""Time to quality: seconds until the held-out error is within 10% of the best known, beside other libraries."""

from functools import partial

import pytest

from fastae.bench.quality import race
from fastae.bench.quality_cases import SETS, SIX, directory
from fastae.bench.quality_peers import installed

pytestmark = pytest.mark.benchmark(group="quality")

CASES = [name for name in SIX if SETS[name].missing(directory()) is None]


@pytest.mark.parametrize("name", CASES)
def test_time_to_quality(benchmark, name):
    task = SETS[name].task(directory())
    names = installed()[0]
    if not benchmark.enabled:  # a short training, without torch's compiler
        of = benchmark.pedantic(
            partial(race, task, names, factors=(40 / task.unit, 200 / task.unit), compiled=False), rounds=1
        )
        assert all(curve.points[-1].error < curve.points[0].error for curve in of.curves.values())
        return
    of = race(task, names)
    reached = of.curves["fastae"].reached(of.target)
    steps = reached.steps if reached else task.unit
    model = task.model(max(1, round(steps / task.steps_per_epoch)), 0)
    benchmark.pedantic(model.fit, args=(task.train,), rounds=3)
    seconds = {name: of.seconds(name) for name in of.curves}
    benchmark.extra_info["curves"] = {name: curve.points for name, curve in of.curves.items()}
    late = [name for name in of.curves if seconds[name] is None]
    benchmark.extra_info["note"] = f"not reached: {', '.join(late) or 'none'}"
    if reached:
        benchmark.extra_info["target_ratio"] = 3.0
        benchmark.extra_info["milliseconds"] = {name: s * 1e3 for name, s in seconds.items() if s is not None}
