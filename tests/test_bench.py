"""Each bench runs once, untimed: it checks its own result against the reference first."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_bench_runs_and_is_right():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench", "--benchmark-disable"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed.group(1)) >= 60
    assert "skipped" not in done.stdout


def test_the_cost_model_of_several_machines_is_fitted():
    from fastae.bench import distributed

    a, b, out, c, back = 2e-4, 5e-4, 1 / 1.2e9, 1e-5, 1 / 4e9
    measured = {}
    for name, size in distributed.SIZES.items():
        for workers in (1, 2, 4):
            traffic = workers * distributed.size_in_bytes(*size)
            without = a + b * workers + out * traffic
            rounds = -(-workers // distributed.available_cpus())
            whole = without + c * workers + back * traffic + rounds * 3e-3
            measured[workers, name] = {"no rows": without, "whole": whole, "one thread": 3e-3}
    found = distributed.fit(measured)
    assert found[0] == pytest.approx([a, b, out], rel=1e-6)
    assert found[1] == pytest.approx([c, back], rel=1e-6)
