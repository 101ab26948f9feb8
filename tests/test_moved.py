"""Programs and pickles that name a module where it was before still find it."""

import importlib
import pickle
import sys

import pytest
from processes import run

import fastae
from fastae._moved import MOVED


@pytest.mark.parametrize("former", MOVED)
def test_a_former_path_is_the_module_that_took_its_place(former):
    try:
        module = importlib.import_module(MOVED[former])
    except ImportError as missing:
        if (missing.name or "").startswith("fastae"):
            raise
        pytest.skip(str(missing))  # an extra
    assert importlib.import_module(former) is module


def test_a_pickle_that_names_a_former_path_loads_in_a_new_process():
    params = fastae.Parameters(fastae.Network.autoencoder(3, 2))
    history = fastae.History(fastae.optimizers.State.zeros(params), loss=[0.5])
    saved = pickle.dumps(history, protocol=0)
    former = saved.replace(b"fastae.training.history", b"fastae.history")
    assert former != saved
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).loss)"
    loaded = run([sys.executable, "-c", code], input=former, text=False)
    assert loaded.stdout.split() == [b"[0.5]"]


def test_a_path_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"fastae\.never"):
        importlib.import_module("fastae.never")
