"""Settings that are "auto": what they stand for, and that defaults give a trained model."""

import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from fastae import Autoencoder, AutoencoderDetector, open_rows
from fastae.estimator.automatic import budget_of, patience

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 4)) @ RNG.normal(size=(4, 12)) + 0.3 * RNG.normal(size=(400, 12))
CURVED = np.column_stack((X[:, :6], X[:, :6] ** 2))  # what PCA alone cannot do


@dataclass
class Asked:
    """The settings that a budget depends on."""

    batch_size: object = "auto"
    max_iter: object = "auto"
    learning_rate_init: object = "auto"
    learning_rate: str = "cosine"
    n_iter_no_change: object = "auto"
    early_stopping: bool = False
    solver: str = "adam"
    activation: str = "sigmoid"
    loss: str = "squared_error"


@pytest.mark.parametrize(
    ("rows", "widest", "steps", "batch", "epochs", "rate"),
    [
        (10, 5, 200, 10, 200, 0.012),  # the least
        (300, 30, 1500, 128, 500, 0.06),  # five steps a row
        (10_000, 64, 10_000, 128, 127, 0.06),
        (10_000, 256, 5_000, 128, 63, 0.024),  # wide layers: fewer and smaller steps
        (10_000, 32, 20_000, 128, 253, 0.06),
        (100_000, 4, 50_000, 128, 64, 0.06),  # the most
        (10_000_000, 64, 3_578, 1000, 1, 0.06),  # all rows once, in larger batches
    ],
)
def test_the_budget_grows_with_rows_and_falls_with_columns(rows, widest, steps, batch, epochs, rate):
    budget = budget_of(Asked(), rows, (widest, 2, widest, widest), min(128, rows))
    assert (budget.batch_size, budget.epochs, budget.rate) == (batch, epochs, rate)
    assert budget.steps == pytest.approx(steps, abs=1)


def test_rows_of_many_cells_per_parameter_bear_more_steps():
    def steps_per_row(rows):
        return budget_of(Asked(), rows, (8, 2, 8, 8), 128).steps / rows

    parameters = 9 * 2 + 3 * 8 + 9 * 8
    assert steps_per_row(14 * parameters // 8) == pytest.approx(5, rel=0.01)
    assert steps_per_row(28 * parameters // 8) == pytest.approx(10, rel=0.01)
    assert steps_per_row(80 * parameters // 8) == 20


WIDTHS = (64, 16, 64, 64)


def test_deep_networks_take_smaller_rates():
    deep = (64, 32, 16, 32, 64, 64)
    assert budget_of(Asked(), 10_000, deep, 128).rate == 0.022  # 0.06 (3 / 5)^2
    assert budget_of(Asked(), 10_000, (64, 16, 64), 128).rate == 0.06


def test_the_first_layer_of_saturating_units_takes_smaller_rates():
    def of(**settings):
        budget = budget_of(Asked(**settings), 10_000, WIDTHS, 128)
        return budget.rate, budget.rate_factors

    assert of() == of(activation="logistic") == (0.06, {"W1": 0.125, "b1": 0.125})
    assert of(activation="tanh") == (0.03, {"W1": 0.5, "b1": 0.5})
    assert of(activation="relu") == (0.03, {})
    assert of(solver="sgd") == (0.01, {})
    assert of(learning_rate_init=0.02) == (0.02, {})  # as asked for, in all layers
    optimizer = Autoencoder(16)._optimizer(budget_of(Asked(), 10_000, WIDTHS, 128))
    assert optimizer.rate_factors == {"W1": 0.125, "b1": 0.125}
    assert (
        Autoencoder(16)._optimizer(budget_of(Asked(learning_rate_init=0.1), 500, WIDTHS, 128)).rate_factors
        is None
    )


def test_rates_of_first_and_last_layer_go_by_the_unit_of_the_columns():
    def of(unit, widths=WIDTHS, **settings):
        return budget_of(Asked(**settings), 10_000, widths, 128, unit=unit).rate_factors

    last = {"W3": 4, "b3": 4}
    assert of(4) == {"W1": 0.125 / 4, "b1": 0.125, **last}
    assert of(4, activation="relu") == {"W1": 0.25, **last}
    assert of(4, widths=(64, 16, 64)) == {"W1": 0.125 / 4, "b1": 0.125, "W2": 4, "b2": 4}
    assert of(0.5) == {"W1": 0.125, "b1": 0.125, "W3": 0.5, "b3": 0.5}
    assert of(0.5, loss="bernoulli") == of(4, solver="adamw") == {"W1": 0.125, "b1": 0.125}
    assert of(4, solver="sgd") == of(4, solver="lbfgs") == of(4, learning_rate_init=0.1) == {}


@pytest.mark.parametrize("unit", [0.01, 0.1, 10, 1000, 1e5])
def test_unscaled_columns_are_trained_in_many_units(unit):
    in_ones = (CURVED - CURVED.mean(0)) / CURVED.std(0).max()
    model = Autoencoder(3, scale=None, random_state=0).fit(in_ones * unit)
    assert model.unit_ == unit
    assert model.error_over_pca_ < 1.1


def test_the_unit_is_that_of_the_first_training():
    columns = X / X.std(0).max()
    model = Autoencoder(3, scale=None, max_iter=2, warm_start=True, random_state=0)
    assert model.fit(3 * columns).unit_ == 3
    assert model.fit(5 * columns).unit_ == model.partial_fit(columns).unit_ == 3
    assert model.set_params(warm_start=False).fit(5 * columns).unit_ == 5
    assert model.set_params(scale="standard").fit(5 * columns).unit_ == 1


def test_what_the_user_sets_is_taken_and_the_rest_follows():
    asked = Asked(batch_size=2048, learning_rate_init=0.5)
    budget = budget_of(asked, 100_000, WIDTHS, 128)
    assert (budget.batch_size, budget.rate) == (2048, 0.5)
    assert budget.epochs == round(2500 / 49)  # four times fewer steps for batches sixteen times as large
    assert budget_of(Asked(max_iter=7), 100_000, WIDTHS, 128).epochs == 7
    assert (
        budget_of(Asked(max_iter=7), 1000, WIDTHS, 128).rate == 0.0034
    )  # 56 steps do not take it far from PCA
    assert budget_of(Asked(max_iter=7), 1000, WIDTHS, 128, start="random").rate == 0.06
    assert budget_of(Asked(max_iter=7), 1000, WIDTHS, 128, start="warm").rate == 0.014
    assert budget_of(Asked(solver="sgd"), 100_000, WIDTHS, 128).rate == 0.01
    assert budget_of(Asked(solver="lbfgs"), 100_000, WIDTHS, 128).epochs == 1000
    assert budget_of(Asked(batch_size=500), 20, WIDTHS, 20).batch_size == 20


def test_patience_goes_with_the_schedule():
    def of(epochs=1000, validates=False, **settings):
        return patience(Asked(**settings), epochs, validates=validates)

    assert of() is None
    assert of(learning_rate="constant") == 10
    assert of(early_stopping=True, validates=True) == 100
    assert of(20, early_stopping=True, validates=True) == 10
    assert of(n_iter_no_change=3) == 3
    assert of(n_iter_no_change=np.inf, learning_rate="constant") is None


def test_what_was_chosen_is_an_attribute_and_printed(capsys):
    model = Autoencoder(random_state=0, verbose=1).fit(X)
    assert model.auto_ == {
        "hidden_layer_sizes": [4],
        "batch_size": 128,
        "learning_rate_init": 0.06,
        "rate_factors": {"W1": 0.125, "b1": 0.125},
        "max_iter": 640,
        "n_iter_no_change": None,
    }
    assert model.n_iter_ == 640
    said = capsys.readouterr().err
    assert "auto: hidden_layer_sizes=[4], batch_size=128, learning_rate_init=0.06, max_iter=640" in said
    model = Autoencoder(
        3, max_iter=5, batch_size=50, learning_rate_init=0.01, n_iter_no_change=5, verbose=1, random_state=0
    )
    assert model.fit(X).auto_ == {}
    assert "auto" not in capsys.readouterr().err
    assert Autoencoder(solver="lbfgs", random_state=0).fit(X).auto_.keys() == {
        "hidden_layer_sizes",
        "max_iter",
        "n_iter_no_change",
    }
    model = Autoencoder(random_state=0).partial_fit(X)
    assert (model.auto_["learning_rate_init"], model.auto_["max_iter"]) == (0.006, 1)


def test_a_patience_that_is_not_used_is_none():
    constant = {"max_iter": 30, "learning_rate": "constant", "random_state": 0}

    def chosen(*, data=None, **settings):
        return Autoencoder(3, **(constant | settings)).fit(X, **(data or {})).auto_["n_iter_no_change"]

    assert chosen() == 10
    assert chosen(data={"X_val": X[:50]}) is None  # keeps the best parameters, but never stops
    assert chosen(data={"X_val": X[:50]}, early_stopping=True) == 10
    assert chosen(solver="lbfgs") is None
    assert chosen(solver="lbfgs", early_stopping=True) == 10
    model = Autoencoder(3, **constant).partial_fit(X)
    assert model.auto_["n_iter_no_change"] is None


def test_a_warm_start_takes_larger_steps_than_a_start_at_pca():
    model = Autoencoder(3, max_iter=5, warm_start=True, random_state=0).fit(X)
    assert model.auto_["learning_rate_init"] == 0.0012  # 20 steps
    assert model.fit(X).auto_["learning_rate_init"] == 0.0085
    other = Autoencoder(4, max_iter=5, warm_start=True, random_state=0).fit(X)
    other.set_params(hidden_layer_sizes=3).fit(X)  # another network: it starts at PCA
    assert other.auto_["learning_rate_init"] == 0.0012


@pytest.mark.parametrize("rows", [20, 400])
def test_the_rate_of_partial_fit_depends_on_neither_max_iter_nor_the_rows_of_a_call(rows):
    for max_iter in ("auto", 1):
        model = Autoencoder(3, max_iter=max_iter, random_state=0).partial_fit(X[:rows])
        assert model.auto_["learning_rate_init"] == 0.006


def test_the_code_holds_nine_tenths_of_the_variance():
    variances = PCA().fit(X / X.std(0)).explained_variance_ratio_.cumsum()
    (units,) = Autoencoder(random_state=0).fit(X).auto_["hidden_layer_sizes"]
    assert variances[units - 1] >= 0.9 > variances[units - 2]
    noise = RNG.normal(size=(300, 8))
    assert Autoencoder(max_iter=1).fit(noise).auto_["hidden_layer_sizes"] == [4]  # half the columns at most
    assert Autoencoder(max_iter=1).fit(noise[:, :1]).auto_["hidden_layer_sizes"] == [1]
    model = Autoencoder(max_iter=1, warm_start=True).fit(X)
    assert model.fit(X + RNG.normal(size=X.shape)).auto_["hidden_layer_sizes"] == [4]  # warm starts keep it


def test_the_error_is_compared_with_that_of_the_mean_and_of_pca():
    model = Autoencoder(3, random_state=0).fit(X)
    scaled, pca = (X - X.mean(0)) / X.std(0), PCA(3).fit(X / X.std(0))
    error = np.square((model.reconstruct(X) - X) / X.std(0)).sum(1).mean()
    residual = np.square(scaled - scaled @ pca.components_.T @ pca.components_).sum(1).mean()
    assert model.error_over_mean_ == pytest.approx(error / 12, rel=1e-6)
    assert model.error_over_pca_ == pytest.approx(error / residual, rel=1e-6)
    assert model.error_over_pca_ < 1.02
    alike = Autoencoder(random_state=0).fit(np.ones((30, 4)))
    assert alike.error_over_mean_ is alike.error_over_pca_ is None
    assert model.partial_fit(X).error_over_pca_ is None


@pytest.mark.parametrize("scale", ["standard", "minmax", None])
@pytest.mark.parametrize("kind", [Autoencoder, partial(AutoencoderDetector, n_estimators=1)])
def test_missing_cells_count_neither_in_the_models_error_nor_in_that_of_pca(kind, scale):
    weight = RNG.integers(0, 3, len(X))
    holes = np.where(RNG.random(X.shape) < 0.2, np.nan, X)
    model = kind(3, missing="mask", scale=scale, dtype="float64", max_iter=20, random_state=0)
    model.fit(holes, sample_weight=weight)
    factor = 1.0 if scale is None else model.scale_
    repeated = np.repeat(holes * factor, weight, axis=0)
    filled = np.nan_to_num(repeated - np.nanmean(repeated, axis=0))
    _, directions = np.linalg.eigh(np.cov(filled.T, bias=True))
    by_pca = filled @ directions[:, -3:] @ directions[:, -3:].T
    seen = ~np.isnan(repeated)
    theirs = np.square(by_pca - filled)[seen].sum()
    ours = (np.square(model.reconstruct(holes) - holes) * np.square(factor) * weight[:, np.newaxis])[
        ~np.isnan(holes)
    ].sum()
    assert model.error_over_pca_ == pytest.approx(ours / theirs, rel=1e-6)
    assert model.error_over_mean_ == pytest.approx(ours / np.square(filled).sum(), rel=1e-6)


def test_what_counts_as_an_improvement_does_not_depend_on_units():
    small = 0.01 * X / X.std(0)  # its loss per feature is half of tol, and less
    options = {"scale": None, "init": "random", "early_stopping": True, "max_iter": 300, "random_state": 0}
    model = Autoencoder(3, dtype="float64", **options).fit(small)
    assert model.n_iter_ > 100
    assert model.set_params(tol=1.0).fit(small).n_iter_ < 60


@pytest.mark.parametrize("missing", [None, "mask"])
def test_rows_that_are_alike_have_no_error_to_compare_with(missing):
    alike = np.tile(RNG.normal(size=6), (50, 1))
    if missing:
        alike[RNG.random(alike.shape) < 0.1] = np.nan
    model = Autoencoder(
        (5, 2), activation="relu", missing=missing, dtype="float32", max_iter=3, random_state=0
    )
    model.fit(alike, sample_weight=RNG.random(50))
    assert model.error_over_mean_ is model.error_over_pca_ is None
    assert np.array_equal(model.shift_, np.nanmax(alike, axis=0))


def test_pca_of_some_of_the_rows_is_no_measure():
    noise = RNG.normal(size=(1300, 4100)).astype(
        "f4"
    )  # which 256 components of 1024 rows fit better than those of all
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = Autoencoder(256, output_layer=False, max_iter=1, random_state=0).fit(noise)
    assert model.error_over_mean_ < 1
    assert model.error_over_pca_ is None


def test_the_narrowest_layer_is_what_pca_is_compared_with():
    model = Autoencoder((5, 2, 7), random_state=0).fit(X)
    residual = 12 * (1 - PCA(2).fit(X / X.std(0)).explained_variance_ratio_.sum())
    assert model.error_over_pca_ == pytest.approx(model.error_over_mean_ * 12 / residual, rel=1e-6)


def test_a_model_worse_than_pca_says_so():
    with pytest.warns(ConvergenceWarning, match=r"error is \d+\.\d times that of PCA .*learning_rate_init"):
        Autoencoder(3, scale=None, random_state=0).fit(X * 100 + 1e6)
    holes = np.where(RNG.random(X.shape) < 0.2, np.nan, X)
    with pytest.warns(ConvergenceWarning, match="or set scale='standard', with which a missing cell"):
        Autoencoder(4, scale="minmax", missing="mask", max_iter=20, random_state=0).fit(holes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Autoencoder(3, noise="mask", noise_level=0.5, random_state=0).fit(X)


@pytest.mark.parametrize("load", [load_digits, load_breast_cancer, load_wine])
def test_defaults_are_not_worse_than_pca_on_rows_held_out(load):
    data = load().data
    ratios = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(data))
        train, test = data[order[: len(data) * 3 // 4]], data[order[len(data) * 3 // 4 :]]
        model = Autoencoder(data.shape[1] // 4, random_state=seed).fit(train)
        pca = PCA(data.shape[1] // 4).fit((train - model.shift_) * model.scale_)
        scaled = (test - model.shift_) * model.scale_
        by_pca = np.square(pca.inverse_transform(pca.transform(scaled)) - scaled).mean()
        ours = (model.reconstruction_error(test, per_feature=True) * np.square(model.scale_)).mean()
        ratios.append(ours / by_pca)
    assert np.mean(ratios) < 1.02


def test_a_hundred_rows_work():
    assert Autoencoder(random_state=0).fit(X[:100]).score(X[100:]) > 0.75


# -- everything else holds with the defaults --------------------------------------------------------------------------


def test_defaults_have_the_same_bits_on_any_number_of_threads_and_after_an_interruption(tmp_path):
    def stop(epoch):
        if epoch.number == 300:
            raise KeyboardInterrupt

    model = Autoencoder(random_state=0).fit(X)
    assert np.array_equal(Autoencoder(random_state=0, n_threads=1).fit(X).params_.flat, model.params_.flat)
    interrupted = Autoencoder(random_state=0, callback=stop)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(X, checkpoint=tmp_path / "c")
    resumed = Autoencoder(random_state=0).fit(X, checkpoint=tmp_path / "c", resume=True)
    assert np.array_equal(resumed.params_.flat, model.params_.flat)
    assert resumed.loss_curve_ == model.loss_curve_


@pytest.mark.parametrize("noise", [None, "gaussian", "mask", "swap"])
def test_epochs_in_one_run_are_those_one_by_one(noise):
    options = {"hidden_layer_sizes": 3, "max_iter": 70, "noise": noise, "random_state": 0, "batch_size": 150}
    at_once = Autoencoder(**options).fit(X)
    one_by_one = Autoencoder(callback=lambda epoch: False, **options).fit(X)
    assert np.array_equal(at_once.params_.flat, one_by_one.params_.flat)
    assert at_once.loss_curve_ == one_by_one.loss_curve_


def test_a_stream_is_trained_as_well_as_an_array(tmp_path):
    many = np.concatenate([X] * 5)
    np.save(tmp_path / "x.npy", many)
    rows = open_rows(tmp_path / "x.npy", chunk_bytes=500 * 12 * 8)
    assert not rows.in_memory
    streamed, whole = (AutoencoderDetector(n_estimators=1, random_state=0).fit(data) for data in (rows, many))
    assert streamed.auto_ == whole.auto_
    assert streamed.error_over_pca_ == pytest.approx(whole.error_over_pca_, rel=0.05)


def test_float64_data_is_trained_in_float32_from_a_thousand_rows_on():
    many = np.concatenate([X] * 3)
    model = Autoencoder(3, max_iter=20, random_state=0).fit(many)
    assert model.params_.dtype == np.float32
    for method in ("transform", "reconstruct"):
        assert getattr(model, method)(many).dtype == np.float64
        assert getattr(model, method)(many.astype("f4")).dtype == np.float32
    assert model.inverse_transform(model.transform(many)).dtype == np.float64
    assert Autoencoder(3, max_iter=1).fit(many[:999]).params_.dtype == np.float64
    assert Autoencoder(3, max_iter=1, scale=None).fit(many).params_.dtype == np.float64
    assert Autoencoder(3, max_iter=1, solver="lbfgs").fit(many).params_.dtype == np.float64
    assert Autoencoder(3, max_iter=1, dtype="float64").fit(many).params_.dtype == np.float64
    exact = Autoencoder(3, max_iter=20, random_state=0, dtype="float64").fit(many + 1e9)
    rounded = Autoencoder(3, max_iter=20, random_state=0).fit(many + 1e9)
    assert rounded.params_.dtype == np.float32
    np.testing.assert_allclose(
        rounded.reconstruct(many + 1e9), exact.reconstruct(many + 1e9), rtol=0, atol=0.05
    )
