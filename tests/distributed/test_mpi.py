"""MPI: the same bits as on one machine for any number of ranks."""

import itertools
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import run as run_to_its_end

import fastae
from fastae.distributed.partitions import LocalEngine

pytest.importorskip("mpi4py")
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
pytestmark = pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed")

PROGRAM = """
import hashlib, sys
import numpy as np
import fastae
from mpi4py import MPI
from fastae.distributed.mpi import MPIPartitions, MPIEngine

X = np.random.default_rng(0).normal(size=(2500, 9))
cuts = [0, 700, 701, 1500, 1500, 2200, 2500]
partitions = [X[first:last] for first, last in zip(cuts[:-1], cuts[1:])]
network = fastae.Network.autoencoder(9, 4)
rank = MPI.COMM_WORLD.rank  # parameters and seed are to be the first rank's
params = fastae.Parameters.random(network, 3 + rank)
engine = MPIEngine(network, partitions, objective=fastae.Objective(alpha=0.1, noise="gaussian"))
history = engine.train(params, epochs=4, batch_size=300, seed=5 + rank, checkpoint=sys.argv[1])
model = fastae.Autoencoder((3,), max_iter=3, random_state=0).fit(MPIPartitions(partitions))
bits = [params.flat.tobytes(), model.params_.flat.tobytes(), np.array(history.loss).tobytes()]
drawn = fastae.Autoencoder((3,), batch_size=300, callback=lambda epoch: rank == 0 and epoch.number == 3)
drawn.fit(MPIPartitions(partitions), X_val=X[: 5 + rank])
known = [drawn.params_.flat.tobytes(), np.array(drawn.validation_loss_curve_).tobytes()]
same = set(MPI.COMM_WORLD.allgather(hashlib.sha256(b"".join(known)).hexdigest()))
assert len(same) == 1 and drawn.n_iter_ == 3, (same, drawn.n_iter_)
try:
    MPIPartitions([X[:9], X[:9, :4]])
except ValueError as error:  # on all ranks, whoever has which part
    refused = str(error)
else:
    refused = "nothing"
assert "different numbers of columns: 4, 9" in refused, refused
digests = MPI.COMM_WORLD.gather(hashlib.sha256(b"".join(bits)).hexdigest())
if rank == 0:
    print("bits", *digests)
"""


def run(ranks, *command):
    """The exit status and what this Python and the arguments print on so many ranks."""
    options = ["-n", str(ranks)]
    if "Open MPI" in run_to_its_end([MPIRUN, "--version"]).stdout:
        options.append("--oversubscribe")
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--allow-run-as-root")
    done = run_to_its_end([MPIRUN, *options, sys.executable, *command], timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("counts", [(2, 3), pytest.param((1, 4), marks=pytest.mark.exhaustive)])
def test_same_bits_for_any_number_of_ranks(tmp_path, counts):
    X = np.random.default_rng(0).normal(size=(2500, 9))
    cuts = [0, 700, 701, 1500, 1500, 2200, 2500]
    partitions = [X[first:last] for first, last in itertools.pairwise(cuts)]
    network = fastae.Network.autoencoder(9, 4)
    params = fastae.Parameters.random(network, 3)
    engine = LocalEngine(network, partitions, objective=fastae.Objective(alpha=0.1, noise="gaussian"))
    options = {"epochs": 4, "batch_size": 300, "seed": 5}
    history = engine.train(params, **options)
    seen = set()
    for ranks in counts:
        file = tmp_path / f"run-{ranks}"
        code, out, error = run(ranks, "-c", PROGRAM, file)
        assert code == 0, error
        digests = next(line for line in out.splitlines() if "bits" in line).split("bits")[1].split()
        assert len(digests) == ranks
        assert file.exists()
        seen |= set(digests)
        resumed = fastae.Parameters(network)
        engine.train(resumed, **options, checkpoint=file, resume=True)
        assert resumed.flat.tobytes() == params.flat.tobytes()
    assert len(seen) == 1
    assert np.isfinite(history.loss).all()


def test_the_command_trains_over_ranks(tmp_path):
    X = np.random.default_rng(0).normal(size=(3000, 6)).astype("f4")
    np.save(tmp_path / "x.npy", X)
    file = tmp_path / "model.safetensors"
    command = ["train", tmp_path / "x.npy", "--out", file, "--epochs", "3", "--mpi", "--json"]
    code, out, error = run(2, "-c", "from fastae.cli import main; main()", *command)
    assert code == 0, error
    assert out.count('"rows": 3000') == 1
    model = fastae.AutoencoderDetector.load(file)
    assert (model.predict(X) == -1).mean() == pytest.approx(0.1, abs=0.001)


def test_the_command_ends_all_ranks_where_one_fails(tmp_path):
    """The others would wait for the one that failed."""
    np.save(tmp_path / "x.npy", np.ones((300, 6), "f4"))
    program = """if True:
        import sys
        from mpi4py import MPI
        from fastae.cli import main
        if MPI.COMM_WORLD.rank == 1:
            sys.argv[2] = "no.npy"
        main()
    """
    file = tmp_path / "model.safetensors"
    code, _, error = run(2, "-c", program, "train", tmp_path / "x.npy", "--out", file, "--mpi")
    assert code != 0
    assert "no.npy" in error
    assert not file.exists()
