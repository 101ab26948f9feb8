"""In a new process: the import, a first step with a warm cache, and compiling all kernels with a cold one."""

import subprocess
import sys
from functools import partial

import pytest

from fastae.bench.rounds import Contender, recorded

pytestmark = pytest.mark.benchmark(group="startup")

OURS = """
import numpy as np, fastae
X = np.ones((100, 30), "f4")
net = fastae.Network.autoencoder(30, 8)
loss, gradient = fastae.Engine(net).loss_and_gradient(fastae.Parameters.random(net), X)
assert np.isfinite(gradient["W1"]).all()
"""
NUMPY = """
import numpy as np
from fastae import reference
r = np.random.default_rng(0)
shapes = {"W1": (30, 8), "b1": 8, "W2": (8, 30), "b2": 30, "W3": (30, 30), "b3": 30}
gradient = reference.backward(np.ones((100, 30)), {name: r.normal(size=shape) for name, shape in shapes.items()})
assert np.isfinite(gradient["dW1"]).all()
"""


def python(*arguments, **options):
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, **options)


def program(code):
    def run(times):
        for _ in range(times):
            python("-c", code)

    return Contender(run, 1)


def test_import(benchmark):
    """The target is at most 150 ms more than importing NumPy."""
    timings = recorded(
        benchmark, {"fastae": program("import numpy, fastae"), "numpy": program("import numpy")}
    )
    if timings:
        over = timings["fastae"].median - timings["numpy"].median
        benchmark.extra_info["note"] = f"{over * 1e3:.0f} ms over NumPy (target 150)"


def test_first_step(benchmark):
    """From a new process to a gradient, with imports, the kernels in the cache; the target is 800 ms."""
    python("-c", OURS)  # fills the cache
    recorded(benchmark, {"fastae": program(OURS), "numpy": program(NUMPY)}, note="target 800 ms")


def test_compiling_everything(benchmark, tmp_path, monkeypatch):
    """All dtypes with an empty cache; the target is 10 s."""
    if benchmark.enabled:
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    benchmark.pedantic(partial(python, "-c", "from fastae.cli import app; app(['warmup'])"), rounds=1)
    benchmark.extra_info |= {"note": "target 10 s"}
