"""The same bits for any number of threads, across calls, and whatever was computed before."""

import numpy as np
import pytest
from engines import autoencoder, bits, problem
from threads import Helpers, pretend_cpus

import fastae


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "k", "m"), [(30, 8, 20_001), (100, 40, 3000), (64, 64, 700)])
def test_same_bits_for_any_thread_count_and_across_calls(n, k, m, dtype, monkeypatch):
    pretend_cpus(monkeypatch, 5)
    helpers = Helpers(monkeypatch)
    network = fastae.Network.autoencoder(n, k)
    parameters, X = problem(network, m, dtype)
    seen = set()
    for n_threads in (1, 2, 3, 5):
        engine = fastae.Engine(network, n_threads, dtype)
        before = helpers.lent
        for _ in range(3):
            seen.add(bits(engine.loss_and_gradient(parameters, X)))
        assert helpers.lent - before >= n_threads - 1, "not all threads took part"
    assert len(seen) == 1


def test_same_bits_whatever_the_engine_did_before():
    engine, parameters, X = autoencoder(m=9000)
    fresh = bits(engine.loss_and_gradient(parameters, X))
    engine.loss_and_gradient(parameters, 100 * X[:777])
    engine.encode(parameters, X[:333])
    engine.reconstruct(parameters, X)
    engine.decode(parameters, X[:50, :8])
    assert bits(engine.loss_and_gradient(parameters, X)) == fresh


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "identity"])
def test_rows_that_are_not_finite_do_not_poison_the_next_call(activation, bad):
    network = fastae.Network((19, 5, 19, 19), (activation, activation, "identity"))
    engine = fastae.Engine(network, 2)
    parameters, X = problem(network, 2000)
    wanted, code = bits(engine.loss_and_gradient(parameters, X)), engine.encode(parameters, X)
    spoilt = X.copy()
    spoilt[::3, ::2] = bad
    loss, _ = engine.loss_and_gradient(parameters, spoilt)
    assert not np.isfinite(loss)
    spoilt_code = engine.encode(parameters, spoilt)
    np.testing.assert_array_equal(spoilt_code[1::3], code[1::3])  # rows do not touch each other
    assert np.isnan(spoilt_code[::3]).any() or bad == np.inf
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted
    np.testing.assert_array_equal(engine.encode(parameters, X), code)
    spoilt_parameters = parameters.copy()
    spoilt_parameters["W2"] = np.full((5, 19), np.nan)
    engine.loss_and_gradient(spoilt_parameters, X)
    assert bits(engine.loss_and_gradient(parameters, X[:1999])) == bits(
        fastae.Engine(network, 2).loss_and_gradient(parameters, X[:1999])
    )
