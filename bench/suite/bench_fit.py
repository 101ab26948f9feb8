"""A whole fit: Autoencoder beside scikit-learn's MLPRegressor, with the same Adam steps on the same batches."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPRegressor

import fastae
from fastae.bench.rounds import Contender, fastest, recorded
from fastae.engine.thread_pool import available_cpus

pytestmark = pytest.mark.benchmark(group="fit")

EPOCHS = 10
CASES = {
    "digits-float64": (lambda: load_digits().data / 16, 32),
    "20000x30-float32": (lambda: np.random.default_rng(0).random((20_000, 30), dtype=np.float32), 8),
}


@pytest.mark.parametrize("case", CASES)
def test_fit(benchmark, case):
    make, k = CASES[case]
    X = make()
    n = X.shape[1]
    common: dict[str, Any] = {
        "batch_size": 200,
        "shuffle": False,
        "tol": 0.0,
        "n_iter_no_change": 10**6,
        "alpha": 0.0,
    }
    common |= {"activation": "logistic", "random_state": 0, "warm_start": True, "beta_2": 0.999}
    ours = fastae.Autoencoder((k,), scale=None, learning_rate="constant", dtype=X.dtype, **common)
    theirs = MLPRegressor(hidden_layer_sizes=(k, n), **common)
    models = {"fastae": (ours, (X,)), "sklearn": (theirs, (X, X))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few epochs do not converge
        for model, data in models.values():
            model.set_params(max_iter=1, learning_rate_init=1e-30).fit(*data)
            model.set_params(max_iter=EPOCHS, learning_rate_init=0.001)
        for i in range(3):
            theirs.coefs_[i][...] = ours.params_[f"W{i + 1}"]
            theirs.intercepts_[i][...] = ours.params_[f"b{i + 1}"]
        del ours._state  # a new Adam state, as theirs
        for model, data in models.values():
            model.fit(*data)
        curve = np.array(theirs.loss_curve_[-EPOCHS:]) * n
        np.testing.assert_allclose(ours.loss_curve_[-EPOCHS:], curve, rtol=1e-4)

        contenders = {
            name: Contender(partial(_fits, model, data), available_cpus())
            for name, (model, data) in models.items()
        }
        if benchmark.enabled:
            settings = dict.fromkeys((1, available_cpus()))
            run = contenders["sklearn"].run
            contenders["sklearn"] = fastest([Contender(run, threads) for threads in settings])
        recorded(benchmark, contenders)


def _fits(model, data, times):
    for _ in range(times):
        model.fit(*data)
