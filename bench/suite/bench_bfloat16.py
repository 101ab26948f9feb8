"""A step in bfloat16 beside our float32 step and torch in bfloat16, on CPUs with AVX512_BF16."""

import pytest

import fastae
from fastae.bench import compare
from fastae.bench.cases import CASES
from fastae.bench.rounds import recorded
from fastae.bench.step_peers import PEERS, Peer, PeerStep, installed
from fastae.engine import thread_pool
from fastae.kernels.target import TARGET

pytestmark = pytest.mark.benchmark(group="step")


def by_bfloat16(case, threads):
    """Ours, in bfloat16."""
    engine = fastae.Engine(case.network, threads, "bfloat16")
    return PeerStep(lambda: engine.loss_and_gradient(case.parameters, case.X), lambda result: result)


if TARGET.bfloat16:

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
    def test_step_in_bfloat16(benchmark, case):
        peers = {"fastae": Peer("fastae", by_bfloat16, exact=False), "fastae float32": compare.OURS}
        peers |= {name: PEERS[name] for name in installed(["torch bf16"])[0]}
        threads = thread_pool.available_cpus()
        recorded(benchmark, {name: compare.checked(peer, case, threads) for name, peer in peers.items()})
