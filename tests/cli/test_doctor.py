"""The doctor's account of the cache: only files that can be loaded count."""

import json
import os
import shutil
import stat
import sys

import pytest
from llvmlite import binding
from processes import HOME, run

from fastae.cli import doctor

COMMAND = [sys.executable, "-c", "from fastae.cli import main; main()"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")


def cache(place):
    """What the doctor says of the cache below `place`."""
    ran = run(
        [*COMMAND, "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(HOME), "NUMBA_CACHE_DIR": str(place)},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)["cache"]


@pytest.fixture
def files(tmp_path):
    """Two files in the place of compiled versions of the main kernel."""
    place = cache(tmp_path)["place"]
    files = [os.path.join(place, f"shard.shard_item-1.py3.{number}.nbc") for number in (1, 2)]
    for file in files:
        with open(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as opened:
            opened.write(b"compiled")
    return files


def test_files_that_can_be_loaded_count(files, tmp_path):
    facts = cache(tmp_path)
    assert facts["state"] == "holds 2 compiled versions of the main kernel"
    assert facts["files"] == 2
    assert facts["bytes"] == 16


@pytest.mark.parametrize("what", ["unreadable", "another user's", "others write", "a dangling link"])
def test_files_that_cannot_be_loaded_do_not_count(files, tmp_path, what):
    first = files[0]
    if what == "unreadable":
        os.chmod(first, 0)
        if os.geteuid() == 0:
            pytest.skip("root reads every file")
    elif what == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(first, 65_534, -1)
    elif what == "others write":
        os.chmod(first, 0o666)
    else:
        os.unlink(first)
        os.symlink(tmp_path / "nothing", first)
    facts = cache(tmp_path)
    assert facts["state"].startswith("holds 1 compiled versions of the main kernel; 1 files cannot be read")
    assert facts["files"] == 1
    assert facts["bytes"] == 8


def test_a_directory_that_others_can_write_to_is_named(files, tmp_path):
    refused = os.path.dirname(files[0])
    os.chmod(refused, 0o777)
    facts = cache(tmp_path)
    assert facts["place"] != refused
    assert any(refused in line and "others can write to it" in line for line in facts["not_used"])
    assert stat.S_IMODE(os.stat(facts["place"]).st_mode) == 0o700
    shutil.rmtree(refused)


def test_features_that_llvm_cannot_tell_are_none(monkeypatch):
    def cannot_tell():
        raise RuntimeError("failed to get host cpu features.")

    monkeypatch.setattr(binding, "get_host_cpu_features", cannot_tell)
    assert doctor.report()["cpu"]["features"] == []
