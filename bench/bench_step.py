"""One loss and gradient, the step of training: ours beside the NumPy reference, under the FMA peak of the same run."""

import pytest

import fastae
from fastae import team
from fastae.bench.cases import CASES
from fastae.bench.probe import Probe, against_peak

pytestmark = pytest.mark.benchmark(group="step")


@pytest.mark.parametrize("by", ["fused", "numpy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_step(benchmark, case, by):
    if by == "numpy":
        case.check(*case.numpy_step())
        benchmark.pedantic(case.numpy_step, rounds=5, warmup_rounds=1)
        return
    threads = team.available_cpus()
    engine = fastae.Engine(case.network, threads, case.dtype)
    case.check(*engine.loss_and_gradient(case.parameters, case.X))
    probe = Probe(threads, case.dtype)
    benchmark.extra_info["target"] = case.target
    against_peak(benchmark, lambda: engine.loss_and_gradient(case.parameters, case.X), case.flops, probe)
