"""Threads: an engine used from several Python threads, its helpers, and what their floating-point state is after."""

import threading

import numpy as np
import pytest
from engines import assert_matches_reference, autoencoder, bits
from threads import Helpers, in_threads, pretend_cpus

import fastae
from fastae.engine import thread_pool


def test_several_python_threads_on_one_engine():
    engine, parameters, X = autoencoder(m=6000)
    parts = [X[i * 100 : 5000 + i * 100] for i in range(4)]
    wanted = [bits(engine.loss_and_gradient(parameters, part)) for part in parts]
    codes = [engine.encode(parameters, part) for part in parts]

    def work(i):
        for _ in range(10):
            assert bits(engine.loss_and_gradient(parameters, parts[i])) == wanted[i]
            np.testing.assert_array_equal(engine.encode(parameters, parts[i]), codes[i])

    in_threads(4, work)


def test_several_python_threads_on_engines_of_their_own():
    sizes = [(30, 8, 6000), (17, 3, 9000), (64, 20, 3000), (5, 2, 200)]
    cases = [autoencoder(*size) for size in sizes]
    wanted = [bits(engine.loss_and_gradient(parameters, X)) for engine, parameters, X in cases]

    def work(i):
        engine, parameters, X = cases[i]
        return {bits(engine.loss_and_gradient(parameters, X)) for _ in range(10)}

    assert in_threads(4, work) == [{one} for one in wanted]


def test_tiny_steps_stay_on_the_calling_thread_and_are_right(monkeypatch):
    helpers = Helpers(monkeypatch)
    engine, parameters, X = autoencoder(4, 2, 300, "float64", n_threads=2)
    for m in (1, 2, 3, 15, 16, 17, 63, 64, 65, 300):
        assert_matches_reference(engine, parameters, X[:m])
        engine.encode(parameters, X[:m])
    assert helpers.lent == 0
    assert_matches_reference(*autoencoder(m=100_000, n_threads=2))
    assert helpers.lent == 1, "a large step was not shared out: helpers are not seen at all"


def test_small_steps_take_no_more_threads_than_there_are_cpus(monkeypatch):
    pretend_cpus(monkeypatch, 3)
    helpers = Helpers(monkeypatch)
    assert_matches_reference(*autoencoder(m=2560, n_threads=16))
    assert helpers.lent == 3 - 1


@pytest.mark.parametrize("m", [2560, 200_000])
def test_no_step_takes_more_threads_than_there_are_cpus_however_many_are_asked_for(m, monkeypatch):
    pretend_cpus(monkeypatch, 2)
    helpers = Helpers(monkeypatch)
    # Memory for a million threads would take minutes
    assert_matches_reference(*autoencoder(m=m, n_threads=10**6))
    assert helpers.lent == 2 - 1


def test_threads_default_to_the_cpus_this_process_may_use(monkeypatch):
    network = fastae.Network.autoencoder(4, 2)
    assert fastae.Engine(network).n_threads == thread_pool.available_cpus()
    pretend_cpus(monkeypatch, 7)
    assert fastae.Engine(network).n_threads == 7


LEAST = {dtype: np.full(40, np.finfo(dtype).smallest_subnormal) for dtype in ("f4", "f8")}


def computes_with_subnormal_numbers():
    """Whether this thread neither takes subnormal numbers for zero nor makes zeros of them."""
    halved = np.full(40, np.finfo("f4").tiny) / np.float32(4)
    return all((least * 3 > 0).all() for least in LEAST.values()) and (halved > 0).all()


def test_floating_point_state_of_the_caller_is_unchanged():
    engine, parameters, X = autoencoder(m=20_000)
    for _ in range(3):
        engine.loss_and_gradient(parameters, X)
        engine.encode(parameters, X)
        assert computes_with_subnormal_numbers()


def test_floating_point_state_of_helpers_is_unchanged(monkeypatch):
    seen = []
    helpers = Helpers(monkeypatch, after=lambda: seen.append(computes_with_subnormal_numbers()))
    pretend_cpus(monkeypatch, 3)
    engine, parameters, X = autoencoder(m=100_000, n_threads=3)
    for _ in range(3):
        engine.loss_and_gradient(parameters, X)
    helpers.wait()
    assert len(seen) == helpers.lent > 1
    assert all(seen)


def test_where_no_thread_can_be_started_the_threads_there_are_do_the_work(monkeypatch):
    pretend_cpus(monkeypatch, 3)
    engine, parameters, X = autoencoder(m=100_000, n_threads=3)  # large: on all threads
    wanted = bits(fastae.Engine(engine.network, 1).loss_and_gradient(parameters, X))
    refused = []

    def refuse(thread):
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(thread_pool, "_idle", [])
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            assert bits(engine.loss_and_gradient(parameters, X)) == wanted
    assert len(refused) == 2 * 2
    helpers = Helpers(monkeypatch)
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted
    assert helpers.lent == 2  # it asks again
    helpers.wait()
