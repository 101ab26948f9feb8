"""The figures of --plot: images are drawn as images, and only images are."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

import fastae
from fastae.cli import figures

DIGITS = load_digits().data
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("columns", [None, "pixel_{}_{}"], ids=["no names", "numbered"])
def test_square_images_are_recognized(columns):
    X = DIGITS
    if columns:
        X = pd.DataFrame(X, columns=[columns.format(*divmod(i, 8)) for i in range(64)])
    assert figures.image_shape(fastae.open_rows(X)) == (8, 8)
    assert figures.image_shape(fastae.open_rows(X[:20])) == (8, 8)


@pytest.mark.parametrize(
    "X",
    [
        DIGITS[:, :63],
        RNG.normal(size=(300, 64)),
        RNG.normal(size=(300, 64)) * RNG.lognormal(sigma=2, size=64),  # every column of its own scale
        RNG.normal(size=(300, 64)).cumsum(axis=1),  # a series
        DIGITS[:, RNG.permutation(64)],
        load_breast_cancer().data[:, :25],
        pd.DataFrame(DIGITS, columns=[f"{chr(97 + i % 26)}{'x' * (i // 26)}" for i in range(64)]),
        np.full((3, 64), 1e300),
    ],
    ids=["63 columns", "unordered", "scales", "series", "shuffled", "25 columns", "named", "huge"],
)
def test_other_rows_are_not(X):
    assert figures.image_shape(fastae.open_rows(X)) is None


def test_training_on_digits_draws_digits(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    shapes = []

    def from_estimator(model, rows, *, image_shape, ax):
        shapes.append(image_shape)

    monkeypatch.setattr("fastae.plots.ReconstructionDisplay.from_estimator", from_estimator)
    for X in (DIGITS[:100], RNG.normal(size=(100, 64))):
        model = fastae.Autoencoder((3,), max_iter=1, random_state=0).fit(X)
        figures.save_training(tmp_path / "figure.png", model, fastae.open_rows(X))
    assert shapes == [(8, 8), None]
