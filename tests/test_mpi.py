"""MPI: the same bits as on one machine for any number of ranks."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastae
from fastae.blocks import LocalEngine

pytest.importorskip("mpi4py")
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
pytestmark = pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed")

PROGRAM = """
import hashlib, sys
import numpy as np
import fastae
from mpi4py import MPI
from fastae.mpi import MPIBlocks, MPIEngine

X = np.random.default_rng(0).normal(size=(2500, 9))
cuts = [0, 700, 701, 1500, 1500, 2200, 2500]
blocks = [X[first:last] for first, last in zip(cuts[:-1], cuts[1:])]
network = fastae.Network.autoencoder(9, 4)
params = fastae.Parameters.random(network, 3)
engine = MPIEngine(network, blocks, objective=fastae.Objective(alpha=0.1, noise="gaussian"))
history = engine.train(params, epochs=4, batch_size=300, checkpoint=sys.argv[1])
model = fastae.Autoencoder((3,), max_iter=3, random_state=0).fit(MPIBlocks(blocks))
bits = [params.flat.tobytes(), model.params_.flat.tobytes(), np.array(history.loss).tobytes()]
found = MPI.COMM_WORLD.gather(hashlib.sha256(b"".join(bits)).hexdigest())
if MPI.COMM_WORLD.rank == 0:
    print("bits", *found)
"""


def run(ranks, *command):
    options = ["--oversubscribe", "-n", str(ranks)]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.insert(0, "--allow-run-as-root")
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    if "Open MPI" not in version:
        options = ["-n", str(ranks)]
    done = subprocess.run(
        [MPIRUN, *options, sys.executable, *command], capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stdout, done.stderr


def test_same_bits_for_any_number_of_ranks(tmp_path):
    X = np.random.default_rng(0).normal(size=(2500, 9))
    cuts = [0, 700, 701, 1500, 1500, 2200, 2500]
    blocks = [X[first:last] for first, last in itertools.pairwise(cuts)]
    network = fastae.Network.autoencoder(9, 4)
    params = fastae.Parameters.random(network, 3)
    engine = LocalEngine(network, blocks, objective=fastae.Objective(alpha=0.1, noise="gaussian"))
    history = engine.train(params, epochs=4, batch_size=300)
    seen = set()
    for ranks in (1, 2, 3):
        file = tmp_path / f"run-{ranks}"
        code, out, error = run(ranks, "-c", PROGRAM, file)
        assert code == 0, error
        digests = next(line for line in out.splitlines() if "bits" in line).split("bits")[1].split()
        assert len(digests) == ranks
        seen |= set(digests)
        resumed = fastae.Parameters(network)
        engine.train(resumed, epochs=4, batch_size=300, checkpoint=file, resume=True)
        assert resumed.flat.tobytes() == params.flat.tobytes()
    assert len(seen) == 1
    assert np.isfinite(history.loss).all()


def test_the_command_trains_over_ranks_and_ends_all_where_one_fails(tmp_path):
    X = np.random.default_rng(0).normal(size=(3000, 6)).astype("f4")
    np.save(tmp_path / "x.npy", X)
    main = "from fastae.cli import main; main()"
    files = []
    for ranks in (1, 2):
        files.append(tmp_path / f"model-{ranks}.safetensors")
        command = ["train", tmp_path / "x.npy", "--out", files[-1], "--epochs", "3", "--mpi", "--json"]
        code, out, error = run(ranks, "-c", main, *command)
        assert code == 0, error
        assert out.count('"rows": 3000') == 1
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert len(digests) == 1
    code, _, error = run(2, "-c", main, "train", tmp_path / "no.npy", "--out", files[0], "--mpi")
    assert code != 0
    assert "no.npy" in error
