"""Fits that train without an error, but to a model that is not what the user wants, warn."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from fastae import Autoencoder, AutoencoderDetector

RNG = np.random.default_rng(0)
X = RNG.normal(size=(500, 3)) @ RNG.normal(size=(3, 12))


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_fit_that_ends_while_the_loss_falls_warns(solver, early_stopping):
    model = AutoencoderDetector(
        3,
        n_estimators=1,
        max_iter=8,
        solver=solver,
        early_stopping=early_stopping,
        init="random",
        random_state=0,
    )
    with pytest.warns(ConvergenceWarning, match="still falling after 8 epochs: raise max_iter"):
        model.fit(X)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_iter": 2000, "learning_rate": "constant", "n_iter_no_change": 2},  # stopped by tol
        {"max_iter": 300, "init": "random"},
        {"max_iter": 1},
        {"max_iter": 5, "callback": lambda epoch: epoch.number == 4},
    ],
)
def test_other_fits_do_not(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Autoencoder(3, random_state=0, **settings).fit(X)
        Autoencoder(3, random_state=0).partial_fit(X).partial_fit(X)


def test_a_code_wider_than_the_data_warns_unless_there_is_noise_or_sparsity():
    for settings in ({"hidden_layer_sizes": 32}, {"hidden_layer_sizes": (4, 13)}):
        with pytest.warns(UserWarning, match=r"wider than the data: (32|13) units for 12 columns") as caught:
            Autoencoder(max_iter=1, **settings).fit(X)
        assert {Path(warning.filename).name for warning in caught} == {"autoencoder.py"}  # not scikit-learn's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for settings in ({"noise": "mask"}, {"sparsity_weight": 0.1}, {"hidden_layer_sizes": (32, 12)}):
            Autoencoder(**({"hidden_layer_sizes": 32, "max_iter": 1} | settings)).fit(X)
        Autoencoder().fit(X)
