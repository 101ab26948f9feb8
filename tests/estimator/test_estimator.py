"""The estimators: scikit-learn's checks and tools, MLPRegressor's steps, quality on real data, what users rely on."""

import copy
import pickle
import tracemalloc

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastae
from fastae import Autoencoder, AutoencoderDetector
from fastae.data.row_source import NanError

X = np.random.default_rng(0).normal(size=(260, 7)) @ np.random.default_rng(1).normal(size=(7, 12)) + 5
HOLED = np.where(np.random.default_rng(2).random(X.shape) < 0.1, np.nan, X)
QUICK = {"hidden_layer_sizes": (4,), "max_iter": 20, "random_state": 0}


def one_network(*widths, **settings):
    """The detector with one network, which is like an autoencoder."""
    return AutoencoderDetector(*widths, n_estimators=1, **settings)


@parametrize_with_checks(
    [
        Autoencoder(),
        AutoencoderDetector(max_iter=20),
        AutoencoderDetector(n_estimators=1),
        Autoencoder(dtype="float32", output_layer=False, scale=None),
        AutoencoderDetector(solver="lbfgs", missing="mask", max_iter=50, n_estimators=1),
    ],
    expected_failed_checks=lambda estimator: (
        {"check_sample_weight_equivalence_on_dense_data": "float32 does not add up to 7 digits"}
        if estimator.dtype == "float32"
        else {}
        if getattr(estimator, "n_estimators", 1) == 1
        else {
            "check_sample_weight_equivalence_on_dense_data": "which rows a network leaves out is drawn at random",
            "check_outliers_fit_predict": "the threshold is for new rows; fit_predict goes by out-of-bag scores",
        }
    ),
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


# -- MLPRegressor's steps ---------------------------------------------------------------------------------------------


# The defaults of MLPRegressor where ours differ
OF_MLPREGRESSOR = {
    "learning_rate": "constant",
    "learning_rate_init": 0.001,
    "n_iter_no_change": 10,
    "beta_2": 0.999,
}


def side_by_side(steps, **options):
    """MLPRegressor(X, X) and ours after the same full-batch steps from the same weights."""
    data, n, k = X[:200] / 10, X.shape[1], 4
    common = {"batch_size": 200, "shuffle": False, "n_iter_no_change": 1000, "random_state": 0, **options}
    theirs = MLPRegressor(
        hidden_layer_sizes=(k, n),
        activation="logistic",
        max_iter=1,
        **{**common, "learning_rate_init": 1e-300},
    )
    theirs.fit(data, data)
    first = [array.copy() for array in (*theirs.coefs_, *theirs.intercepts_)]
    theirs = MLPRegressor(hidden_layer_sizes=(k, n), activation="logistic", max_iter=steps, **common).fit(
        data, data
    )
    ours = Autoencoder(
        (k,), activation="logistic", max_iter=1, scale=None, warm_start=True, **(OF_MLPREGRESSOR | common)
    )
    ours.set_params(learning_rate_init=1e-300).fit(data)
    for name, array in zip(("W1", "W2", "W3", "b1", "b2", "b3"), first, strict=True):
        ours.params_[name] = array
    del ours._state
    ours.set_params(max_iter=steps, learning_rate_init=common.get("learning_rate_init", 0.001)).fit(data)
    return ours, theirs, data


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (1, {"solver": "sgd", "alpha": 0, "momentum": 0, "learning_rate_init": 0.1}),
        (20, {"solver": "sgd", "alpha": 0, "momentum": 0.9, "learning_rate_init": 0.1}),
        (20, {"solver": "sgd", "alpha": 0.5, "nesterovs_momentum": False, "learning_rate_init": 0.1}),
        (20, {"solver": "sgd", "alpha": 0, "learning_rate": "invscaling", "learning_rate_init": 0.1}),
        (20, {"solver": "adam", "alpha": 0}),
        (20, {"solver": "adam", "alpha": 0.5, "learning_rate_init": 0.01}),
    ],
)
def test_steps_are_those_of_mlpregressor(steps, options):
    ours, theirs, data = side_by_side(steps, **options)
    for i in range(3):
        np.testing.assert_allclose(ours.params_[f"W{i + 1}"], theirs.coefs_[i], rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours.params_[f"b{i + 1}"], theirs.intercepts_[i], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.reconstruct(data), theirs.predict(data), rtol=0, atol=1e-12)
    assert ours.score(data) == pytest.approx(theirs.score(data, data), abs=1e-10)
    if options["alpha"] == 0:
        assert ours.loss_ / X.shape[1] == pytest.approx(theirs.loss_, abs=1e-12)


def test_tol_stops_where_mlpregressor_does():
    ours, theirs, _ = side_by_side(500, solver="adam", alpha=0, tol=0.01, n_iter_no_change=5)
    assert ours.stop_reason_ == "tol"
    assert ours.n_iter_ == theirs.n_iter_ < 100


def test_another_step_would_be_seen():
    ours, theirs, _ = side_by_side(1, solver="sgd", alpha=0, momentum=0, learning_rate_init=0.1)
    assert np.abs(ours.params_["W1"] - theirs.coefs_[0]).max() < 1e-12
    ours.set_params(max_iter=2).fit(X[:200] / 10)
    assert np.abs(ours.params_["W1"] - theirs.coefs_[0]).max() > 1e-9


# -- quality on real data, with fixed settings ------------------------------------------------------------------------


def test_held_out_digits_come_back_better_than_by_pca():
    digits = load_digits().data / 16
    train, test = digits[:1300], digits[1300:]
    model = Autoencoder(
        (16,), activation="tanh", max_iter=600, learning_rate_init=0.003, learning_rate="cosine", alpha=1e-4,
        tol=0, scale=None, random_state=0,
    ).fit(train)  # fmt: skip
    pca = PCA(16).fit(train)
    by_pca = np.mean((test - pca.inverse_transform(pca.transform(test))) ** 2)
    assert model.reconstruction_error(test).mean() < by_pca


def test_malign_tumours_are_outliers_among_benign_ones():
    data = load_breast_cancer()
    benign = data.data[data.target == 1]
    train, held_out = benign[:250], benign[250:]
    malign = data.data[data.target == 0]
    model = one_network(
        (4,), activation="tanh", alpha=1.0, max_iter=300, learning_rate_init=0.003, tol=0, random_state=0
    ).fit(train)
    scores = model.score_samples(np.vstack([held_out, malign]))
    truth = np.repeat([1, 0], [len(held_out), len(malign)])
    assert roc_auc_score(truth, scores) > 0.93


def test_zeros_are_outliers_among_the_other_digits():
    digits = load_digits()
    normal, zeros = digits.data[digits.target != 0], digits.data[digits.target == 0]
    model = one_network(
        (8,), max_iter=600, learning_rate_init=0.003, tol=0, scale="minmax", random_state=0
    ).fit(normal[:1200])
    scores = model.score_samples(np.vstack([normal[1200:], zeros]))
    assert roc_auc_score(np.repeat([1, 0], [len(normal) - 1200, len(zeros)]), scores) > 0.85


@pytest.mark.exhaustive
def test_shuttle_anomalies_are_outliers_among_normal_rows():
    datasets = pytest.importorskip("river.datasets")
    rows = [(list(x.values()), y) for x, y in datasets.Shuttle()]
    data, anomalous = np.array([x for x, _ in rows], "f4"), np.array([bool(y) for _, y in rows])
    normal = np.random.default_rng(0).permutation(np.flatnonzero(~anomalous))
    held_out = np.concatenate([normal[20_000:], np.flatnonzero(anomalous)])
    model = one_network((4,), max_iter=100, learning_rate_init=0.003, tol=0, random_state=0)
    scores = model.fit(data[normal[:20_000]]).score_samples(data[held_out])
    assert roc_auc_score(~anomalous[held_out], scores) > 0.98


# -- scale, dtype, missing cells --------------------------------------------------------------------------------------


def test_scale_is_that_of_scikit_learn_and_is_undone():
    for scale, theirs in (("standard", StandardScaler()), ("minmax", MinMaxScaler())):
        model = Autoencoder(scale=scale, **QUICK).fit(X)
        seen = (X - model.shift_) * model.scale_
        np.testing.assert_allclose(seen, theirs.fit_transform(X), rtol=0, atol=1e-12)
        bare = Autoencoder(scale=None, **QUICK).fit(seen)
        np.testing.assert_allclose(model.transform(X), bare.transform(seen), atol=1e-10)
        np.testing.assert_allclose(
            model.reconstruct(X), theirs.inverse_transform(bare.reconstruct(seen)), atol=1e-9
        )


def test_a_constant_column_does_no_harm():
    data = np.column_stack([X, np.full(len(X), 0.1)])
    for scale in ("standard", "minmax", None):
        model = Autoencoder(scale=scale, **QUICK).fit(data)
        assert np.isfinite(model.reconstruct(data)).all()
        assert model.scale_ is None or model.scale_[-1] == 1


def test_errors_are_those_of_the_reconstruction():
    for model in (Autoencoder(**QUICK).fit(X), Autoencoder(scale=None, dtype="float32", **QUICK).fit(X)):
        squares = (model.reconstruct(X).astype("f8") - X) ** 2
        np.testing.assert_allclose(model.reconstruction_error(X), squares.mean(axis=1), rtol=1e-4)
        np.testing.assert_allclose(model.reconstruction_error(X, per_feature=True), squares, rtol=1e-9)
        assert model.reconstruction_error(X).dtype == np.float64
        assert model.score(X) == pytest.approx(r2_score(X, model.reconstruct(X)))


def test_memory_order_does_not_matter():
    model = Autoencoder(**QUICK).fit(X)
    for other in (np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X[::-1].copy()[::-1]):
        other.flags.writeable = False
        assert np.array_equal(Autoencoder(**QUICK).fit(other).params_.flat, model.params_.flat)


def test_dtype_is_kept_or_chosen():
    for given in ("float32", "float64"):
        model = Autoencoder(**QUICK).fit(X.astype(given))
        assert model.transform(X.astype(given)).dtype == model.params_.dtype == given
    assert Autoencoder(**QUICK).fit((X * 10).astype(int)).params_.dtype == "float64"
    assert Autoencoder(dtype="float32", **QUICK).fit(X).reconstruct(X).dtype == "float32"


def test_missing_cells_are_filled_in_from_the_rest():
    with pytest.raises(ValueError, match="Input X contains NaN"):
        Autoencoder(**QUICK).fit(HOLED)
    options = {
        "hidden_layer_sizes": (7,),
        "activation": "tanh",
        "max_iter": 400,
        "learning_rate_init": 0.01,
        "tol": 0,
    }
    model = Autoencoder(missing="mask", random_state=0, **options).fit(HOLED)
    filled = model.reconstruct(HOLED)
    holes = np.isnan(HOLED)
    assert np.isfinite(filled).all()
    by_mean = np.broadcast_to(np.nanmean(HOLED, axis=0), X.shape)
    assert np.mean((filled - X)[holes] ** 2) < 0.5 * np.mean((by_mean - X)[holes] ** 2)
    error = model.reconstruction_error(HOLED)
    np.testing.assert_allclose(error, np.nanmean((filled - HOLED) ** 2, axis=1), rtol=1e-6)
    assert (model.reconstruction_error(HOLED, per_feature=True)[holes] == 0).all()
    assert model.score(HOLED) > 0.5
    assert np.isfinite(one_network(missing="mask", **QUICK).fit(HOLED).score_samples(HOLED)).all()


@pytest.mark.parametrize("scale", ["standard", "minmax", None])
def test_a_column_that_is_missing_throughout_does_no_harm(scale):
    data = np.column_stack([HOLED, np.full(len(X), np.nan)])
    model = one_network(missing="mask", scale=scale, **QUICK).fit(data)
    assert np.isfinite(model.score(data))
    for result in (model.reconstruct(data), model.score_samples(data), model.explain(data)[1]):
        assert np.isfinite(result).all()


def test_a_masked_array_is_not_taken_for_its_data():
    masked = np.ma.masked_invalid(HOLED)
    with pytest.raises(TypeError, match=r"X is a masked array: pass X.filled\(np.nan\)"):
        Autoencoder(missing="mask", **QUICK).fit(masked)
    with pytest.raises(TypeError, match="X_val is a masked array"):
        Autoencoder(missing="mask", **QUICK).fit(HOLED, X_val=masked)


def test_errors_keep_what_float32_could_not():
    far = X + 1e9  # float32 values are 64 apart there
    model = one_network(dtype="float32", **QUICK).fit(far)
    cells = model.reconstruction_error(far, per_feature=True)
    np.testing.assert_allclose(cells.mean(axis=1), model.reconstruction_error(far), rtol=1e-4)
    near = one_network(dtype="float32", **QUICK).fit(X)
    np.testing.assert_allclose(model.explain(far)[1], near.explain(X)[1], atol=1e-4)
    small = (X * 1e-40).astype("f4")  # 1 / spread is no float32
    plain = X.astype("f4")
    expected = Autoencoder(**QUICK).fit(plain).score(plain)
    assert Autoencoder(**QUICK).fit(small).score(small) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scale", ["standard", "minmax"])
@pytest.mark.parametrize("unit", [1e-170, 1e170, 1e300])
def test_data_of_any_size_are_scaled_alike(scale, unit):
    options = {**QUICK, "scale": scale}
    plain, model = Autoencoder(**options).fit(X), Autoencoder(**options).fit(X * unit)
    np.testing.assert_allclose(model.scale_ * unit, plain.scale_, rtol=1e-12)
    np.testing.assert_allclose(model.transform(X * unit), plain.transform(X), rtol=1e-7)
    assert model.score(X * unit) == pytest.approx(plain.score(X), rel=1e-6)
    in_chunks = fastae.open_rows(X * unit)
    assert model.score(in_chunks) == model.score(X * unit)


@pytest.mark.parametrize("scale", ["standard", "minmax", None])
def test_a_spread_too_small_for_a_scale_counts_as_none(scale):
    data = np.column_stack([X, np.where(np.arange(len(X)) % 2, 5e-320, 1e-319)])
    model = one_network(**{**QUICK, "scale": scale}).fit(data)
    assert np.isfinite(model.score(data))
    assert model.scale_ is None or model.scale_[-1] == 1
    for result in (model.reconstruct(data), model.score_samples(data), model.reconstruction_error(data)):
        assert np.isfinite(result).all()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda: Autoencoder(epochs=3),
            TypeError,
            "Autoencoder has no argument 'epochs': it is called 'max_iter'",
        ),
        (lambda: one_network((3,), lr=1), TypeError, "it is called 'learning_rate_init'"),
        (lambda: Autoencoder(nonsense=3), TypeError, "nonsense"),
        (
            lambda: Autoencoder().fit("a.csv"),
            TypeError,
            r"X is the name of a file: pass fastae.open_rows\('a.csv'\)",
        ),
        (lambda: Autoencoder().fit(["a.csv", "b.csv"]), TypeError, "pass fastae.open_rows"),
        (lambda: Autoencoder(**QUICK).fit(X).transform("a.csv"), TypeError, "pass fastae.open_rows"),
        (
            lambda: Autoencoder().fit(HOLED),
            ValueError,
            "Input X contains NaN: missing='mask' allows missing cells$",
        ),
        (
            lambda: Autoencoder().fit(fastae.open_rows(HOLED)),
            ValueError,
            "in column 1: missing='mask' allows",
        ),
        (lambda: Autoencoder(**QUICK).fit(X).score(HOLED), ValueError, "missing='mask' allows"),
        (
            lambda: Autoencoder(**QUICK).fit(X, X_val=HOLED),
            ValueError,
            "X_val contains NaN: missing='mask' allows",
        ),
        (lambda: Autoencoder().fit(X * np.inf), ValueError, "Input X contains infinity"),
        (lambda: Autoencoder().fit(scipy.sparse.csr_array(X)), TypeError, "toarray"),
        (
            lambda: fastae.open_rows(scipy.sparse.csr_array(X)),
            TypeError,
            r"X is a sparse matrix.*X.toarray\(\)",
        ),
        (lambda: fastae.Objective(missing="mask"), TypeError, "missing must be True or False, got 'mask'"),
    ],
)
def test_errors_say_what_helps(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_an_option_out_of_range_leaves_no_model_behind():
    model = Autoencoder(noise="mask", noise_level=2, **QUICK)
    for fit in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match="noise_level must be a probability"):
            fit(X)
        assert not hasattr(model, "params_")


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "adamw", "sgd", "lbfgs"])
def test_every_solver_learns_and_repeats_itself(solver):
    options = {"solver": solver, "hidden_layer_sizes": (6,), "max_iter": 60, "learning_rate_init": 0.01}
    options["init"] = "random"
    model = Autoencoder(random_state=3, **options).fit(X)
    again = Autoencoder(random_state=3, **options).fit(X)
    assert np.array_equal(model.params_.flat, again.params_.flat)
    assert model.loss_curve_ == again.loss_curve_
    assert model.loss_curve_[-1] < 0.7 * model.loss_curve_[0]
    assert model.n_iter_ == len(model.loss_curve_)
    assert model.loss_ == model.loss_curve_[-1]
    other = Autoencoder(random_state=4, **options).fit(X)
    assert not np.array_equal(model.params_.flat, other.params_.flat)


def test_lbfgs_gets_further_than_adam_on_few_rows():
    by_lbfgs = Autoencoder((6,), solver="lbfgs", max_iter=300, tol=0, random_state=0).fit(X)
    by_adam = Autoencoder((6,), max_iter=300, tol=0, random_state=0).fit(X)
    assert by_lbfgs.loss_ < by_adam.loss_
    assert by_lbfgs.stop_reason_ in ("max_iter", "tol")


@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive", "cosine"])
def test_every_schedule_learns(schedule):
    rates = []
    model = Autoencoder(
        (6,), learning_rate=schedule, learning_rate_init=0.02, power_t=0.1, max_iter=60, random_state=0,
        callback=lambda epoch: rates.append(epoch.learning_rate), init="random", n_iter_no_change=np.inf,
    ).fit(X)  # fmt: skip
    assert model.loss_ < 0.7 * model.loss_curve_[0]
    assert rates[0] == pytest.approx(0.02, rel=0.01)
    assert (rates[-1] < 0.5 * rates[0]) == (schedule in ("invscaling", "cosine"))


def test_adaptive_lowers_the_rate_before_it_stops():
    rates = []
    model = Autoencoder(
        (4,), solver="sgd", learning_rate="adaptive", learning_rate_init=0.1, max_iter=2000, tol=1e-2,
        n_iter_no_change=2, random_state=0, callback=lambda epoch: rates.append(epoch.learning_rate),
    ).fit(X)  # fmt: skip
    assert model.stop_reason_ == "tol"
    assert rates[-1] <= 1e-6 < rates[-4]
    np.testing.assert_allclose(sorted(set(rates), reverse=True)[:3], [0.1, 0.02, 0.004])


def test_training_stops_by_tol():
    model = Autoencoder((4,), max_iter=1000, tol=0.02, n_iter_no_change=3, random_state=0).fit(X)
    assert model.stop_reason_ == "tol"
    curve = np.array(model.loss_curve_)
    assert len(curve) < 1000
    assert (curve[-4:] > curve[:-4].min() - 0.02 * X.shape[1]).all()
    assert curve.min() > 0.02 * X.shape[1]
    assert Autoencoder((4,), max_iter=5, random_state=0).fit(X).stop_reason_ == "max_iter"


def test_early_stopping_goes_by_validation_loss_and_keeps_the_best_weights():
    noisy = np.random.default_rng(0).normal(size=(60, 12))
    options = {
        "max_iter": 3000,
        "learning_rate_init": 0.02,
        "tol": 0,
        "random_state": 0,
        "n_iter_no_change": 10,
    }
    model = Autoencoder((10,), activation="tanh", early_stopping=True, validation_fraction=0.3, **options)
    seen = []
    model.set_params(
        callback=lambda epoch: seen.append((epoch.validation_loss, epoch.params.flat.copy()))
    ).fit(noisy)
    assert model.stop_reason_ == "tol"
    best = int(np.argmin(model.validation_loss_curve_))
    assert best < model.n_iter_ - 1
    assert np.array_equal(model.params_.flat, seen[best][1])
    assert [loss for loss, _ in seen] == model.validation_loss_curve_


def test_lbfgs_stops_early_too():
    noisy = np.random.default_rng(0).normal(size=(60, 12))
    seconds = []
    model = Autoencoder(
        (10,), solver="lbfgs", early_stopping=True, validation_fraction=0.3, max_iter=3000, tol=0, alpha=0,
        n_iter_no_change=10, random_state=0, callback=lambda epoch: seconds.append(epoch.seconds),
    ).fit(noisy)  # fmt: skip
    assert model.stop_reason_ == "tol"
    assert model.n_iter_ == 1 + int(np.argmin(model.validation_loss_curve_)) + 11
    assert 0 < seconds[0] < seconds[-1]


def test_validation_rows_can_be_given():
    model = Autoencoder(scale="standard", **QUICK).fit(X[:200], X_val=X[200:])
    assert len(model.validation_loss_curve_) == model.n_iter_ == 20
    seen = (X[200:] - model.shift_) * model.scale_
    loss = fastae.reference.cost(seen, fastae.reference.forward(seen, dict(model.params_))["xhat"])
    assert min(model.validation_loss_curve_) == pytest.approx(loss, rel=1e-10)
    with pytest.raises(ValueError, match="X_val has 11 features, but X has 12"):
        Autoencoder(**QUICK).fit(X, X_val=X[:, :11])
    frame = pd.DataFrame(X, columns=list("abcdefghijkl"))
    with pytest.raises(ValueError, match="in the same order"):
        Autoencoder(**QUICK).fit(frame, X_val=frame[frame.columns[::-1]])


def test_partial_fit_is_an_epoch_a_call():
    options = {"hidden_layer_sizes": (4,), "batch_size": 300, "random_state": 0}
    options |= {"learning_rate": "constant", "learning_rate_init": 0.01}
    whole = Autoencoder(max_iter=7, tol=0, n_iter_no_change=100, **options).fit(X)
    parts = Autoencoder(**options)
    for _ in range(7):
        parts.partial_fit(X)
    np.testing.assert_allclose(parts.params_.flat, whole.params_.flat, rtol=0, atol=1e-13)
    np.testing.assert_allclose(parts.loss_curve_, whole.loss_curve_)
    assert parts.n_iter_ == 7
    with pytest.raises(AttributeError, match="partial_fit"):
        Autoencoder(solver="lbfgs").partial_fit(X)
    with pytest.raises(ValueError, match="early_stopping"):
        Autoencoder(early_stopping=True).partial_fit(X)
    detector = one_network(random_state=0).partial_fit(X).partial_fit(X)
    assert np.mean(detector.predict(X) == -1) == pytest.approx(0.1, abs=0.01)


def test_warm_start_goes_on_and_fit_starts_anew():
    model = Autoencoder(warm_start=True, **QUICK).fit(X)
    first = model.loss_curve_
    model.set_params(learning_rate_init=1e-3).fit(X)
    assert model.loss_curve_[0] < first[-1] * 1.05
    model.set_params(learning_rate_init="auto")
    model.set_params(warm_start=False).fit(X)
    assert model.loss_curve_ == first
    model.set_params(warm_start=True, hidden_layer_sizes=(3,)).fit(X)
    assert model.transform(X).shape == (260, 3)


def test_warm_start_begins_its_schedule_anew():
    model = Autoencoder(warm_start=True, learning_rate="cosine", **QUICK).fit(X)
    before = model.params_.flat.copy()
    model.fit(X)
    assert np.abs(model.params_.flat - before).max() > 1e-3


def test_a_callback_can_stop():
    model = Autoencoder(callback=lambda epoch: epoch.number == 3, **QUICK).fit(X)
    assert model.n_iter_ == 3
    assert model.stop_reason_ == "callback"
    model = Autoencoder(solver="lbfgs", callback=lambda epoch: epoch.number == 3, **QUICK).fit(X)
    assert (model.n_iter_, model.stop_reason_) == (3, "callback")


def recorder():
    """A callback of scikit-learn's that keeps a log."""
    pytest.importorskip("sklearn.callback")

    class Recorder:
        def __init__(self):
            self.log, self.scores = [], []

        def setup(self, estimator, context):
            self.log.append("setup")

        def teardown(self, estimator, context):
            self.log.append("teardown")

        def on_fit_task_begin(self, estimator, context, **kwargs):
            self.log.append(f"begin {context.task_name}")

        def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
            self.log.append(f"end {context.task_name}")
            self.scores.append(fitted_estimator.score(X))

    return Recorder()


@pytest.mark.parametrize(
    "options",
    [
        {"max_iter": 2},
        {"tol": 1e9, "n_iter_no_change": 1},
        {"callback": lambda epoch: epoch.number == 2},
        {"max_iter": 2, "solver": "lbfgs"},
        {"tol": 0.3, "solver": "lbfgs"},
    ],
)
def test_scikit_learns_callbacks_are_told(options):
    callback = recorder()
    model = Autoencoder(hidden_layer_sizes=(3,), random_state=0, **options).set_callbacks(callback).fit(X)
    epochs = ["begin epoch", "end epoch"] * model.n_iter_
    assert callback.log == ["setup", "begin fit", *epochs, "end fit", "teardown"]
    assert callback.scores[-1] == model.score(X)
    assert len(set(callback.scores)) == model.n_iter_


def test_scikit_learns_callbacks_are_told_of_partial_fits():
    callback = recorder()
    Autoencoder(hidden_layer_sizes=(3,), random_state=0).set_callbacks(callback).partial_fit(X).partial_fit(X)
    assert callback.log == ["setup", "begin fit", "begin epoch", "end epoch", "end fit", "teardown"] * 2


def test_a_progress_bar_only_where_asked_for(capsys):
    Autoencoder(**QUICK).fit(X)
    assert capsys.readouterr() == ("", "")
    Autoencoder(verbose=1, **QUICK).fit(X)
    assert "20/20" in capsys.readouterr().err
    Autoencoder(verbose=1, solver="lbfgs", **QUICK).fit(X)
    assert "20/20" in capsys.readouterr().err


def test_the_error_about_nan_does_not_go_by_the_words_of_scikit_learn(monkeypatch):
    def reworded(X, **_):
        raise ValueError("not finite")

    monkeypatch.setattr("fastae.estimator.inputs.assert_all_finite", reworded)
    for data in (HOLED, HOLED.tolist(), pd.DataFrame(HOLED), pd.DataFrame(HOLED, dtype="Float64")):
        with pytest.raises(NanError, match=r"^Input X contains NaN: missing='mask' allows missing cells$"):
            Autoencoder(**QUICK).fit(data)
    with pytest.raises(ValueError, match=r"^not finite$"):
        Autoencoder(**QUICK).fit(X * np.inf)


def test_a_divergence_says_what_to_do():
    options = {
        "solver": "sgd",
        "learning_rate": "constant",
        "learning_rate_init": 1e6,
        "max_iter": 50,
        "random_state": 0,
        "dtype": "float32",
    }
    several = AutoencoderDetector((4,), n_estimators=3, **options)
    for model in (Autoencoder((4,), **options), one_network((4,), **options), several):
        with pytest.raises(
            fastae.DivergenceError, match=r"epoch \d+, at learning rate 1e\+06: lower learning_rate_init"
        ) as caught:
            model.fit(X)
        assert "parameters are back" not in str(caught.value)
    model = Autoencoder((4,), solver="lbfgs", scale=None, activation="relu", max_iter=50, random_state=0)
    with pytest.raises(fastae.DivergenceError, match=r"not finite in iteration \d+: scale the data"):
        model.fit(X * 1e100)


# -- a fit takes effect as a whole ------------------------------------------------------------------------------------


class Interrupted(BaseException):
    pass


def interrupt(epoch):
    if epoch.number == 3:
        raise Interrupted


def forbid_threshold(self, *_):
    raise Interrupted


DIVERGES = {"solver": "sgd", "learning_rate_init": 1e6, "max_iter": 50, "scale": None}
FAILURES = {
    "interrupted": ({"callback": interrupt}, lambda model: model.fit(X), Interrupted),
    "interrupted-lbfgs": (
        {"callback": interrupt, "solver": "lbfgs"},
        lambda model: model.fit(X),
        Interrupted,
    ),
    "diverged": (DIVERGES, lambda model: model.fit(X), fastae.DivergenceError),
    "diverged-partly": (DIVERGES, lambda model: model.partial_fit(X * 1e200), fastae.DivergenceError),
    "other-columns": ({}, lambda model: model.fit(X[:, :5] * np.inf), ValueError),
    "refused-option": ({"noise": "mask", "noise_level": 2}, lambda model: model.fit(X[:, :5]), ValueError),
    "frame-refused": (
        {"noise": "mask", "noise_level": 2},
        lambda model: model.fit(pd.DataFrame(X[:, :5], columns=list("abcde"))),
        ValueError,
    ),
    "refused-weight": ({}, lambda model: model.fit(X[:, :5], sample_weight=-np.ones(len(X))), ValueError),
    "partial-fit-refused": ({"early_stopping": True}, lambda model: model.partial_fit(X), ValueError),
}


def state_of(model):
    """All attributes of a model, with the bits of its arrays."""
    state = {}
    for name, value in vars(model).items():
        if name.startswith("_kept") or name.endswith("_key"):
            continue
        if name == "params_":
            value = value.flat
        elif name == "_state":
            value = (value.steps, value.epochs, value.moments.tobytes())
        state[name] = value.tobytes() if isinstance(value, np.ndarray) else copy.copy(value)
    return state


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("before", ["unfitted", "fitted", "partly-fitted", "warm"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", [Autoencoder, AutoencoderDetector])
def test_a_fit_that_fails_changes_nothing(kind, failure, before):
    options, fit, error = FAILURES[failure]
    model = kind(**QUICK, warm_start=before == "warm")
    if before in ("fitted", "warm"):
        model.fit(X)
    elif before == "partly-fitted":
        model.partial_fit(X).partial_fit(X)
    model.set_params(**options)
    state = state_of(model)
    with pytest.raises(error):
        fit(model)
    assert state_of(model) == state
    if before == "unfitted":
        with pytest.raises(NotFittedError):
            model.transform(X)


def test_a_detector_without_its_new_threshold_is_the_old_one(monkeypatch):
    model = one_network(**QUICK).fit(X)
    state, flagged = state_of(model), model.predict(X)
    monkeypatch.setattr(AutoencoderDetector, "_set_threshold", forbid_threshold)
    for fit in (model.set_params(contamination=0.3).fit, model.partial_fit):
        with pytest.raises(Interrupted):
            fit(X[:100] * 3)
    assert state_of(model.set_params(contamination=0.1)) == state
    assert (model.predict(X) == flagged).all()


def test_after_a_failed_fit_the_next_one_and_a_checkpoint_go_on(tmp_path):
    model = one_network(**QUICK, callback=interrupt)
    with pytest.raises(Interrupted):
        model.fit(X, checkpoint=tmp_path / "a")
    model.set_params(callback=None).fit(X, checkpoint=tmp_path / "a", resume=True)
    straight = one_network(**QUICK).fit(X)
    assert model.params_.flat.tobytes() == straight.params_.flat.tobytes()
    assert model.loss_curve_ == straight.loss_curve_
    assert model.offset_ == straight.offset_


def test_a_fit_replaces_parameters_and_keeps_what_others_set_meanwhile():
    model = Autoencoder(**QUICK).fit(pd.DataFrame(X, columns=list("abcdefghijkl")))
    old, flat = model.params_, model.params_.flat.copy()

    def meddle(epoch):
        model.set_params(verbose=0, tol=0.5)
        model.note_ = epoch.number

    model.set_params(callback=meddle, warm_start=True).fit(X)
    assert (model.tol, model.note_) == (0.5, 20)
    assert not hasattr(model, "feature_names_in_")
    assert model.params_ is not old
    assert (old.flat == flat).all()
    model.partial_fit(X)
    assert (old.flat == flat).all()


def test_a_fit_takes_no_memory_to_go_back_to():
    wide = np.random.default_rng(0).random((40, 1200), "f4")
    options = {"hidden_layer_sizes": (4,), "max_iter": 3, "n_threads": 1, "random_state": 0}
    size = Autoencoder(**options).fit(wide).params_.flat.nbytes
    tracemalloc.start()
    try:
        Autoencoder(**options).fit(wide)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # parameters, gradient, those of two shards, W' and two moments are 7; two runs to go back to would be 6 more
    assert peak < 8.5 * size


# -- sample_weight ----------------------------------------------------------------------------------------------------

COUNTS = np.random.default_rng(5).integers(0, 4, len(X))


@pytest.mark.parametrize(
    "options", [{}, {"solver": "lbfgs"}, {"missing": "mask"}, {"scale": "minmax"}, {"scale": None}]
)
def test_a_row_of_weight_two_counts_like_two_rows(options):
    data = HOLED if "missing" in options else X
    options = {**QUICK, "batch_size": 10_000, **options}
    repeated = one_network(**options).fit(data.repeat(COUNTS, axis=0))
    weighted = one_network(**options).fit(data, sample_weight=COUNTS)
    np.testing.assert_allclose(weighted.transform(data), repeated.transform(data), rtol=1e-7)
    np.testing.assert_allclose(weighted.loss_curve_, repeated.loss_curve_, rtol=1e-7)
    assert weighted.offset_ == pytest.approx(repeated.offset_, rel=1e-7)
    if weighted.scale_ is not None:
        np.testing.assert_allclose(weighted.scale_, repeated.scale_, rtol=1e-12)
    parts = one_network(**options).set_params(solver="adam").partial_fit(data, sample_weight=COUNTS)
    wholes = one_network(**options).set_params(solver="adam").partial_fit(data.repeat(COUNTS, axis=0))
    np.testing.assert_allclose(parts.transform(data), wholes.transform(data), rtol=1e-7)


def test_weights_of_rows_that_are_set_aside_count_in_the_validation_loss():
    options = {**QUICK, "early_stopping": True, "validation_fraction": 0.3, "alpha": 0, "init": "random"}
    plain = Autoencoder(**options).fit(X)
    ones = Autoencoder(**options).fit(X, sample_weight=np.full(len(X), 2.0))
    np.testing.assert_allclose(ones.validation_loss_curve_, plain.validation_loss_curve_, rtol=1e-9)
    weight = np.where(np.arange(len(X)) < 130, 1.0, 3.0)
    model = Autoencoder(**options, tol=0).fit(X, sample_weight=weight)
    seed = np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=3)[2]
    aside = fastae.open_rows(X).split(0.3, int(seed))[1].index
    assert model.n_iter_ == 1 + int(np.argmin(model.validation_loss_curve_)), (
        "the last epoch is the best here"
    )
    errors = model._errors(X, aside, model.params_)
    assert model.validation_loss_curve_[-1] == pytest.approx(np.average(errors, weights=weight[aside]) / 2)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"solver": "lbfgs"}, {"scale": "minmax"}])
def test_weights_whose_sum_is_infinite_are_weights_like_any_other(options):
    options = {**QUICK, "alpha": 0, **options}
    wanted = one_network(**options).fit(X, sample_weight=COUNTS)
    model = one_network(**options).fit(X, sample_weight=COUNTS * 2.0**1022)
    assert model.loss_curve_ == wanted.loss_curve_
    assert model.validation_loss_curve_ == wanted.validation_loss_curve_
    assert model.offset_ == pytest.approx(
        np.quantile(np.repeat(wanted.score_samples(X), 10_000 * COUNTS), 0.1)
    )


@pytest.mark.parametrize("total", [1e-300, 1.0, 100.0])
def test_weights_that_add_up_to_little_still_flag_the_contamination(total):
    model = one_network(**QUICK, alpha=0, contamination=0.2)
    plain = model.fit(X).offset_
    assert model.fit(X, sample_weight=np.full(len(X), total / len(X))).offset_ == pytest.approx(
        plain, rel=1e-9
    )
    weight = np.random.default_rng(0).random(len(X))
    flagged = model.fit(X, sample_weight=weight * (total / weight.sum())).predict(X) < 0
    assert np.average(flagged, weights=weight) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (np.ones(259), r"sample_weight has shape \(259,\)"),
        (np.ones((260, 1)), "sample_weight has shape"),
        (np.full(260, np.nan), "sample_weight must be finite and not negative"),
        (-np.ones(260), "sample_weight must be finite and not negative"),
        (np.zeros(260), "sample_weight is zero in every row"),
    ],
)
def test_errors_of_weights_name_them(weight, said):
    for fit in (Autoencoder(**QUICK).fit, Autoencoder(**QUICK).partial_fit):
        with pytest.raises(ValueError, match=said):
            fit(X, sample_weight=weight)


def test_weights_need_rows_in_memory(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(ValueError, match="sample_weight needs X in memory"):
        Autoencoder(**QUICK).fit(
            fastae.open_rows(tmp_path / "a.npy", chunk_bytes=2000), sample_weight=np.ones(260)
        )
    Autoencoder(**QUICK).fit(fastae.open_rows(tmp_path / "a.npy"), sample_weight=np.ones(260))


# -- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_bfloat16_reaches_the_engine_and_the_file(tmp_path, monkeypatch):
    asked = []

    class Engine(fastae.Engine):
        def __init__(self, network, n_threads=None, dtype="float32"):
            asked.append(dtype)
            super().__init__(network, n_threads, "float32")

    monkeypatch.setattr("fastae.engine.engine.Engine", Engine)
    model = Autoencoder(dtype="bfloat16", **QUICK).fit(X)
    assert asked == ["bfloat16"]
    assert model.params_.dtype == np.float32
    model.save(tmp_path / "a")
    again = Autoencoder.load(tmp_path / "a")
    assert again.dtype == "bfloat16"
    assert np.array_equal(again.transform(X), model.transform(X))
    assert set(asked) == {"bfloat16"}


def test_objectives_reach_training():
    plain = Autoencoder(**QUICK).fit(X).loss_curve_
    for options in (
        {"noise": "gaussian"},
        {"noise": "mask"},
        {"noise": "swap"},
        {"sparsity_weight": 1.0},
        {"alpha": 5.0},
    ):
        curve = Autoencoder(**QUICK, **options).fit(X).loss_curve_
        assert curve != plain
        assert curve == Autoencoder(n_threads=1, **QUICK, **options).fit(X).loss_curve_


def test_networks_are_as_asked_for():
    model = Autoencoder((9, 4), **{k: v for k, v in QUICK.items() if k != "hidden_layer_sizes"}).fit(X)
    assert model.network_.widths == (12, 9, 4, 9, 12, 12)
    assert model.network_.activations == ("sigmoid",) * 4 + ("identity",)
    assert model.transform(X).shape == (260, 4)
    model.set_params(output_layer=False, activation="relu").fit(X)
    assert model.network_ == fastae.Network((12, 9, 4, 9, 12), ("relu", "relu", "relu", "identity"))
    wide = Autoencoder((20,), max_iter=3).fit(X)  # an overcomplete code is still the first hidden layer
    assert wide.transform(X).shape == (260, 20)
    assert wide.inverse_transform(wide.transform(X)).shape == X.shape
    for bad in ((0,), (3, -1), (), (2.5,)):
        with pytest.raises(ValueError, match="hidden_layer_sizes must be 'auto' or positive integers"):
            Autoencoder(bad).fit(X)


def test_decoding_a_code_is_reconstructing():
    for options in ({}, {"scale": None}, {"output_layer": False}):
        model = Autoencoder(**QUICK, **options).fit(X)
        np.testing.assert_allclose(
            model.inverse_transform(model.transform(X)), model.reconstruct(X), atol=1e-12
        )
    with pytest.raises(ValueError, match="X has 3 features, but the code has 4"):
        model.inverse_transform(X[:, :3])


# -- tools ------------------------------------------------------------------------------------------------------------


def test_copies_are_as_good():
    model = one_network(**QUICK).fit(X)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert np.array_equal(twin.score_samples(X), model.score_samples(X))
        assert np.array_equal(twin.predict(X), model.predict(X))
    assert not hasattr(clone(model), "params_")
    for shift in range(1, 40):  # wherever a buffer lands
        junk = bytearray(shift)
        assert pickle.loads(pickle.dumps(model.params_)).flat.ctypes.data % 64 == 0
        del junk


def test_joblib(tmp_path):
    model = Autoencoder(**QUICK).fit(X)
    joblib.dump(model, tmp_path / "model.joblib")
    assert np.array_equal(joblib.load(tmp_path / "model.joblib").transform(X), model.transform(X))


def test_pipeline_and_grid_search_in_two_processes():
    pipeline = make_pipeline(StandardScaler(), Autoencoder(scale=None, **QUICK))
    assert pipeline.fit_transform(X).shape == (260, 4)
    search = GridSearchCV(
        Autoencoder(max_iter=30, learning_rate_init=0.01, random_state=0),
        {"hidden_layer_sizes": [(1,), (7,)]},
        n_jobs=2,
        cv=2,
    ).fit(X)
    assert search.best_params_ == {"hidden_layer_sizes": (7,)}


def test_names_and_frames():
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(12)])
    model = Autoencoder(**QUICK).set_output(transform="pandas").fit(frame)
    assert list(model.get_feature_names_out()) == [f"autoencoder{i}" for i in range(4)]
    assert list(model.transform(frame).columns) == list(model.get_feature_names_out())
    assert list(model.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(frame.rename(columns={"c3": "other"}))


# -- detector ---------------------------------------------------------------------------------------------------------


def test_detector_signs_and_threshold():
    model = one_network(contamination=0.2, **QUICK).fit(X)
    scores = model.score_samples(X)
    assert scores.dtype == np.float64
    assert (scores <= 0).all()
    np.testing.assert_allclose(model.decision_function(X), scores - model.offset_)
    assert np.mean(model.predict(X) == -1) == pytest.approx(0.2, abs=0.01)
    assert set(model.predict(X)) == {-1, 1}
    assert np.array_equal(model.fit_predict(X), model.predict(X))
    far = X.mean(axis=0) + 50 * X.std(axis=0) * np.where(np.arange(12) % 2, 1, -1)
    assert model.predict(far[None])[0] == -1
    seen = (X - model.shift_) * model.scale_
    xhat = (model.reconstruct(X) - model.shift_) * model.scale_
    np.testing.assert_allclose(-scores, ((xhat - seen) ** 2).mean(axis=1), rtol=1e-9)


def test_the_threshold_can_be_set_after_fitting():
    model = one_network(**QUICK).fit(X)
    error = -model.score_samples(X)
    model.set_threshold(float(np.median(error)))
    assert np.mean(model.predict(X) == -1) == pytest.approx(0.5, abs=0.01)
    model.set_threshold(contamination=0.05, X=X)
    assert np.mean(model.predict(X) == -1) == pytest.approx(0.05, abs=0.01)
    for wrong in (
        {},
        {"error": 1.0, "contamination": 0.1},
        {"contamination": 0.1},
        {"contamination": 0.7, "X": X},
        {"error": np.nan},
        {"error": -1.0},
        {"error": 1.0, "X": X},
    ):
        with pytest.raises(
            ValueError,
            match=r"set_threshold needs|contamination (must be|needs X)|error must not be negative",
        ):
            model.set_threshold(**wrong)
    for wrong in ({"error": "much"}, {"contamination": "few", "X": X}):
        with pytest.raises(TypeError, match=r"(error|contamination) must be a number"):
            model.set_threshold(**wrong)


def test_explain_names_the_features_that_made_a_row_an_outlier():
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(12)])
    options = {"hidden_layer_sizes": (7,), "max_iter": 300, "learning_rate_init": 0.01, "random_state": 0}
    model = one_network(**options).fit(frame)
    odd = frame.iloc[:5].copy()
    odd["c8"] += 30 * frame["c8"].std()
    features, shares = model.explain(odd, top=3)
    assert features.shape == shares.shape == (5, 3)
    assert (features[:, 0] == "c8").mean() >= 0.8
    assert (np.diff(shares, axis=1) <= 0).all()
    everything, shares = model.explain(odd, top=50)
    assert everything.shape == (5, 12)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert one_network(**QUICK).fit(X).explain(X[:2])[0].dtype.kind == "i"
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        model.explain(odd, top=0)
    for top in (2.5, "3", True):
        with pytest.raises(TypeError, match=f"top must be an integer, got {top!r}"):
            model.explain(odd, top=top)


def test_parameters_out_of_range_are_named():
    for name, value in [
        ("solver", "rmsprop"), ("activation", "gelu"), ("alpha", -1), ("scale", "robust"), ("noise", "salt"),
        ("noise_level", -1), ("sparsity_target", 1.0), ("missing", "mean"), ("n_threads", 0), ("max_iter", 0),
        ("learning_rate", "linear"), ("dtype", "float16"), ("callback", 3), ("batch_size", 0),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            Autoencoder(**{name: value}).fit(X)
    with pytest.raises(ValueError, match="contamination"):
        one_network(contamination=0.6).fit(X)


@pytest.mark.parametrize("kind", [np.float32, np.float64, "list", "frame", "file"])
@pytest.mark.parametrize(("bad", "missing"), [(np.nan, None), (np.inf, None), (-np.inf, "mask")])
def test_a_fitted_model_refuses_cells_that_are_not_finite_as_fit_does(bad, missing, kind, tmp_path):
    """With the message of ``fit``, though the engine looks for them in its pass over the rows."""
    X = np.random.default_rng(0).normal(size=(500, 6))
    columns = [f"c{i}" for i in range(6)]

    def of_kind(rows):
        if kind == "file":
            np.save(tmp_path / "x.npy", rows)
            return fastae.open_rows(tmp_path / "x.npy", chunk_bytes=8192)
        if kind == "list":
            return rows.tolist()
        return pd.DataFrame(rows, columns=columns) if kind == "frame" else rows.astype(kind)

    model = one_network((3,), missing=missing, max_iter=1, random_state=0).fit(of_kind(X))
    worse = X.copy()
    worse[321, 4] = bad
    with pytest.raises(ValueError, match="contains") as of_fit:
        clone(model).fit(of_kind(worse))
    methods = [
        *("transform", "reconstruct", "reconstruction_error", "score", "score_samples", "predict"),
        *("decision_function", "explain"),
    ]
    for name in methods:
        getattr(model, name)(of_kind(X))
        with pytest.raises(ValueError, match="contains") as error:
            getattr(model, name)(of_kind(worse))
        assert str(error.value) == str(of_fit.value), name
    with pytest.raises(ValueError, match="contains") as error:
        model.reconstruction_error(of_kind(worse), per_feature=True)
    assert str(error.value) == str(of_fit.value)


def test_a_large_finite_cell_is_not_refused():
    """It is infinite to a network in float32 only."""
    X = np.random.default_rng(0).normal(size=(100, 4))
    model = one_network((2,), scale=None, dtype="float32", max_iter=1).fit(X)
    X[3, 1] = 1e300
    scores = model.score_samples(X)
    assert np.isneginf(scores[3])
    assert np.isfinite(np.delete(scores, 3)).all()


def test_an_array_without_names_still_gets_the_warning_about_names():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3)), columns=list("abc"))
    model = one_network((2,), max_iter=1).fit(frame)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        scores = model.score_samples(frame.to_numpy())
    assert scores.tobytes() == model.score_samples(frame).tobytes()


# -- losses ------------------------------------------------------------------------------------------------------------


def binary(rows=600, columns=20, seed=0):
    """Binary rows whose probabilities have rank 3."""
    rng = np.random.default_rng(seed)
    probability = rng.random((rows, 3)) @ rng.random((3, columns))
    return (rng.random((rows, columns)) < probability / probability.max()).astype("f4")


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize(
    ("loss", "scale"), [("huber", "standard"), ("bernoulli", None), ("bernoulli", "minmax")]
)
def test_the_estimators_minimise_the_loss_that_they_are_asked_for(loss, scale, solver):
    """The last loss is that of the reference at the parameters found, penalty included, but for the last steps."""
    data = binary() if loss == "bernoulli" else X
    model = Autoencoder(
        4,
        loss=loss,
        huber_delta=0.5,
        scale=scale,
        solver=solver,
        max_iter=30,
        random_state=0,
        alpha=0.0,
        dtype="float64",
    ).fit(data)
    seen = data if scale is None else (data - model.shift_) * model.scale_
    t = fastae.reference.forward(seen, model.params_)
    last = f"z{model.network_.n_layers}"
    S = fastae.reference.cost(seen, t["xhat"], loss=loss, huber_delta=0.5, z=t[last])
    assert model.loss_ == pytest.approx(float(S), rel=0.05)
    assert model.loss_ < model.loss_curve_[0]
    assert model.network_.activations[-1] == ("sigmoid" if loss == "bernoulli" else "identity")
    if loss == "bernoulli":
        found = model.reconstruct(data)
        assert 0 <= found.min() < found.max() <= 1


def test_huber_is_not_led_astray_by_outliers():
    """A few cells are far off. The error on the other rows is lower than with the squared error."""
    rng = np.random.default_rng(0)
    spoilt = X.copy()
    rows = rng.random(len(X)) < 0.1
    spoilt[rows, rng.integers(X.shape[1], size=rows.sum())] += 300
    shift, scale = X.mean(0), 1 / X.std(0)
    errors = {}
    for loss in ("squared_error", "huber"):
        model = Autoencoder(4, loss=loss, huber_delta=0.3, scale=None, max_iter=300, random_state=0)
        model.fit((spoilt - shift) * scale)
        errors[loss] = model.reconstruction_error((X[~rows] - shift) * scale).mean()
    assert errors["huber"] < 0.8 * errors["squared_error"], errors


def test_losses_are_settings_like_any_other(tmp_path):
    model = Autoencoder(4, loss="bernoulli", scale="minmax", max_iter=5, random_state=0).fit(binary())
    model.save(tmp_path / "model")
    again = Autoencoder.load(tmp_path / "model")
    assert again.loss == "bernoulli"
    assert np.array_equal(again.reconstruct(binary()), model.reconstruct(binary()))
    with pytest.raises(ValueError, match="scale must be 'minmax' or, for such data, None, got 'standard'"):
        Autoencoder(4, loss="bernoulli").fit(binary())
    with pytest.raises(ValueError, match=r"^X has cells outside \[0, 1\]"):
        Autoencoder(4, loss="bernoulli", scale=None, max_iter=2).fit(binary() - 0.5)
    with pytest.raises(ValueError, match="'loss' parameter"):
        Autoencoder(4, loss="hinge").fit(X)
    with pytest.raises(ValueError, match="'huber_delta' parameter"):
        Autoencoder(4, huber_delta=0).fit(X)
    detector = AutoencoderDetector(loss="bernoulli", scale=None, max_iter=5, random_state=0).fit(binary())
    assert {each.network.activations[-1] for each in detector.all_params_} == {"sigmoid"}


def test_a_checkpoint_holds_the_loss(tmp_path):
    def stop(epoch):
        return epoch.number == 3

    options = {
        "hidden_layer_sizes": 4,
        "scale": "minmax",
        "max_iter": 6,
        "random_state": 0,
        "learning_rate": "constant",
    }
    Autoencoder(**options, loss="bernoulli", callback=stop).fit(binary(), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="loss was 'bernoulli', and is 'huber' now"):
        Autoencoder(**options, loss="huber").fit(binary(), checkpoint=tmp_path / "run", resume=True)
    resumed = Autoencoder(**options, loss="bernoulli").fit(binary(), checkpoint=tmp_path / "run", resume=True)
    whole = Autoencoder(**options, loss="bernoulli").fit(binary())
    assert np.array_equal(resumed.params_.flat, whole.params_.flat)
