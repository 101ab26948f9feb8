"""The detector as an ensemble: networks trained side by side, out-of-bag errors, alarms, explanations."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

import fastae
from fastae import Autoencoder, AutoencoderDetector, open_rows, storage
from fastae.estimator import ensemble, ensemble_fit, ensemble_training
from fastae.estimator.alarms import Calibration, false_discoveries_limited
from fastae.estimator.automatic import ensemble_budget_of
from fastae.estimator.ensemble import FLOOR
from fastae.estimator.ensemble_training import Bags, lengths_without, residual_moments
from fastae.estimator.neighbours import Neighbours

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(4, 8))
X = RNG.normal(size=(300, 4)) @ MIX + 0.2 * RNG.normal(size=(300, 8)) + 5
NEW = RNG.normal(size=(500, 4)) @ MIX + 0.2 * RNG.normal(size=(500, 8)) + 5
HOLED = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
QUICK = {"n_estimators": 5, "max_iter": 30, "random_state": 0}


@pytest.fixture(scope="module")
def fitted():
    return AutoencoderDetector(random_state=0).fit(X)


def sum_of_errors(model, data):
    """E and D as their definitions say, in NumPy."""
    z = (data - model.shift_) * model.scale_
    errors = []
    for params in model.all_params_:
        h = 1 / (1 + np.exp(-(z @ params["W1"] + params["b1"])))
        errors.append(np.square(h @ params["W2"] + params["b2"] - z).mean(axis=1) + FLOOR)
    typical = model._ensemble.typical
    e = np.mean(
        [error * np.exp(np.log(typical).mean()) / c for error, c in zip(errors, typical, strict=True)], axis=0
    )
    d = np.square(z[:, None] - model._ensemble.kept[None]).mean(axis=2).min(axis=1) + FLOOR
    return e, d


# -- one network ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the error is 1.2 times")
def test_one_network_is_the_autoencoder_with_a_threshold():
    model = AutoencoderDetector(n_estimators=1, random_state=0, contamination=0.2).fit(X)
    plain = Autoencoder(random_state=0).fit(X)
    assert model.params_.flat.tobytes() == plain.params_.flat.tobytes()
    assert model.auto_ == plain.auto_
    assert model.error_over_pca_ == plain.error_over_pca_
    z = (X - plain.shift_) * plain.scale_
    error = np.square((plain.reconstruct(X) - plain.shift_) * plain.scale_ - z).mean(axis=1)
    np.testing.assert_allclose(model.score_samples(X), -error, rtol=1e-9)
    assert model.offset_ == np.percentile(model.score_samples(X), 20)
    assert (model.fit_predict(X) == -1).sum() == 60
    shares = model.explain(X, top=8)[1]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert not hasattr(model, "p_values")
    assert not hasattr(model, "oob_scores_")
    assert not hasattr(model, "novelty")
    with pytest.raises(ValueError, match="fdr needs out-of-bag errors, and so n_estimators of at least 2"):
        model.predict(X, fdr=0.1)


def test_one_network_may_follow_several_and_several_one():
    model = AutoencoderDetector(**QUICK).fit(X)
    several = model.score_samples(NEW)
    assert not hasattr(model.set_params(n_estimators=1).fit(X), "oob_scores_")
    assert len(model.all_params_) == 1
    assert np.array_equal(model.set_params(n_estimators=5).fit(X).score_samples(NEW), several)


# -- training ---------------------------------------------------------------------------------------------------------


def test_what_auto_stands_for_is_told(fitted):
    assert fitted.auto_ == {
        "hidden_layer_sizes": [16],
        "batch_size": 200,
        "learning_rate_init": 0.03,
        "max_iter": 1500,
        "n_iter_no_change": None,
        "output_layer": False,
        "init": "random",
        "noise": "mask",
        "noise_level": 0.3,
    }
    assert len(fitted.all_params_) == 15
    assert {params.network.widths for params in fitted.all_params_} == {(8, 16, 8)}
    assert fitted.params_ is fitted.all_params_[0]
    assert len({params.flat.tobytes() for params in fitted.all_params_}) == 15


def test_settings_keep_their_meaning_for_each_network():
    model = AutoencoderDetector(
        (3,), n_estimators=3, max_iter=4, batch_size=50, activation="tanh", noise="gaussian", random_state=0
    ).fit(X)
    assert {params.network.widths for params in model.all_params_} == {(8, 3, 8, 8)}
    assert set(model.auto_) == {
        "learning_rate_init",
        "n_iter_no_change",
        "output_layer",
        "init",
        "noise_level",
    }
    assert (model.auto_["output_layer"], model.auto_["noise_level"]) == (True, 0.1)
    assert (model.n_iter_, model._states[0].steps) == (4, 4 * 4)  # 200 of 300 rows in batches of 50


def test_each_network_is_the_one_that_is_trained_alone():
    model = AutoencoderDetector(**QUICK).fit(X)
    bags = Bags.drawn(5, 300, [np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=3).tolist()[0]])
    seeds = np.random.default_rng(
        [int(np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=3)[0]), 1]
    )
    weight_seed, step_seed = seeds.integers(np.iinfo(np.int32).max, size=(5, 2)).tolist()[2]
    params = fastae.Parameters.random(model.network_, weight_seed)
    fastae.train(
        params,
        X,
        optimizer=fastae.Adam(learning_rate=fastae.optimizers.cosine(0.03, 30 * 2), beta_2=0.99),
        epochs=30,
        batch_size=200,
        index=np.flatnonzero(~bags.left_out(2)),
        seed=step_seed,
        shift=model.shift_,
        scale=model.scale_,
        objective=fastae.Objective(alpha=1e-4, noise="mask", noise_level=0.3),
    )
    assert params.flat.tobytes() == model.all_params_[2].flat.tobytes()


@pytest.mark.parametrize(
    ("networks", "rows", "folds"), [(15, 300, 5), (7, 300, 5), (3, 100, 3), (2, 9, 2), (5, 3, 3)]
)
def test_each_row_is_left_out_by_one_network_of_a_round(networks, rows, folds):
    bags = Bags.drawn(networks, rows, [1])
    left_out = np.array([bags.left_out(i) for i in range(networks)])
    assert bags.count == folds
    assert (left_out[:folds].sum(axis=0) == 1).all()
    assert set(left_out.sum(axis=1)) <= {rows // folds, -(-rows // folds)}
    if networks >= 2 * folds:
        assert (left_out[:folds] != left_out[folds : 2 * folds]).any()


def test_the_same_bits_for_any_number_of_threads():
    one, two = (AutoencoderDetector(**QUICK, n_threads=threads).fit(X) for threads in (1, 2))
    for name in ("score_samples", "decision_function", "p_values", "transform", "reconstruct"):
        assert np.array_equal(getattr(one, name)(NEW), getattr(two, name)(NEW)), name
    assert np.array_equal(one.oob_scores_, two.oob_scores_)
    assert not np.array_equal(
        one.score_samples(NEW), AutoencoderDetector(**QUICK | {"random_state": 1}).fit(X).score_samples(NEW)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "lbfgs"},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 1e-2},
        {"early_stopping": True},
        {"init": "pca", "hidden_layer_sizes": (3,)},
        {"scale": None},
        {"scale": "minmax", "missing": "mask"},
        {"dtype": "float64", "noise": None, "hidden_layer_sizes": (6, 2)},
        {"warm_start": True},
    ],
)
def test_all_kinds_of_training_work_with_several_networks(options):
    data = HOLED if "missing" in options else X
    model = AutoencoderDetector(**{**QUICK, "n_estimators": 3, **options}).fit(data)
    losses = list(model.loss_curve_)
    assert model.loss_ < losses[0]
    assert np.isfinite(model.oob_scores_).all()
    far = data[:50] + 30 * MIX[0] * np.array([1, -1] * 4)
    assert roc_auc_score([0] * 300 + [1] * 50, -model.score_samples(np.concatenate([data, far]))) > 0.9
    if "warm_start" in options:
        assert model.fit(data).loss_curve_[0] < losses[0] / 1.5
    if "early_stopping" in options:
        assert len(model.validation_loss_curve_) == model.n_iter_


def test_validation_rows_are_used_by_every_network():
    model = AutoencoderDetector(**QUICK).fit(X, X_val=NEW)
    assert len(model.validation_loss_curve_) == 30
    assert model.validation_loss_curve_[-1] < model.validation_loss_curve_[0]


def test_a_callback_hears_of_every_network_and_may_stop():
    heard = []
    model = AutoencoderDetector(
        **QUICK, callback=lambda epoch: heard.append((epoch.number, epoch.epochs))
    ).fit(X)
    assert heard == [(i, 5) for i in range(1, 6)]
    assert model.stop_reason_ == "max_iter"
    stopped = AutoencoderDetector(**QUICK, n_threads=1, callback=lambda epoch: epoch.number == 2).fit(X)
    assert stopped.stop_reason_ == "callback"
    assert 2 <= len(stopped.all_params_) < 5
    assert np.isnan(stopped.oob_scores_).sum() == 60 * (5 - len(stopped.all_params_))
    assert np.isfinite(stopped.score_samples(NEW)).all()
    assert stopped.transform(NEW).shape == (500, 16 * len(stopped.all_params_))


def test_a_checkpoint_holds_whole_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble_fit.thread_pool, "available_cpus", lambda: 1)
    path, straight = tmp_path / "run", AutoencoderDetector(**QUICK).fit(X)

    class Interrupted(BaseException):
        pass

    def interrupt(epoch):
        if epoch.number == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        AutoencoderDetector(**QUICK, callback=interrupt).fit(X, checkpoint=path)
    began = []
    train_here = ensemble_fit.train_here
    monkeypatch.setattr(ensemble_fit, "train_here", lambda *args: (began.append(1), train_here(*args)))
    resumed = AutoencoderDetector(**QUICK).fit(X, checkpoint=path, resume=True)
    assert len(began) == 3  # two were in the file
    assert np.array_equal(resumed.score_samples(NEW), straight.score_samples(NEW))
    assert resumed.loss_curve_ == straight.loss_curve_
    for model in (resumed, straight):
        model.partial_fit(X)
    assert np.array_equal(resumed.score_samples(NEW), straight.score_samples(NEW))
    with pytest.raises(ValueError, match="belongs to another run: n_estimators was 5, and is 4 now"):
        AutoencoderDetector(**QUICK | {"n_estimators": 4}).fit(X, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="is a file of EnsembleCheckpoint, not of Checkpoint"):
        Autoencoder(max_iter=3).fit(X, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="resume=True needs checkpoint"):
        AutoencoderDetector(**QUICK).fit(X, resume=True)


def test_partial_fit_trains_all_networks_for_an_epoch_a_call(monkeypatch):
    monkeypatch.setattr(ensemble_fit, "KEPT_MOST", 400)
    model = AutoencoderDetector(**QUICK)
    losses = [model.partial_fit(part).loss_ for part in np.split(np.concatenate([X, NEW[:300]]), 4) * 20]
    assert losses[-1] < losses[0] / 1.5
    assert (model.n_iter_, len(model.loss_curve_), model._state.epochs) == (80, 80, 80)
    assert len(model._ensemble.kept) == 400
    assert model._ensemble.represented == 80 * 150
    assert len(model.oob_scores_) == 150
    assert np.isfinite(model.score_samples(NEW)).all()
    with pytest.raises(ValueError, match="n_estimators is 3, but the detector has 5 networks: fit it anew"):
        model.set_params(n_estimators=3).partial_fit(X)
    with pytest.raises(ValueError, match="n_estimators is 1, but the detector has 5 networks: fit it anew"):
        model.set_params(n_estimators=1).partial_fit(X)


def test_few_rows_work_and_one_says_what_to_do():
    for rows in (2, 3, 7):
        model = AutoencoderDetector(max_iter=3, random_state=0).fit(X[:rows])
        assert np.isfinite(model.score_samples(NEW)).all()
        assert np.isfinite(model.oob_scores_).all()
    with pytest.raises(ValueError, match=r"n_samples = 1, .*set n_estimators=1"):
        AutoencoderDetector().fit(X[:1])


# -- scores -----------------------------------------------------------------------------------------------------------


def lengths(model, data):
    """Of each network, the squared lengths of the whitened residuals per feature, (m, T), in NumPy."""
    z, result = (data - model.shift_) * model.scale_, []
    for params in model.all_params_:
        h = 1 / (1 + np.exp(-(z @ params["W1"] + params["b1"])))
        residual = h @ params["W2"] + params["b2"] - z
        result.append(np.square(residual @ model._ensemble.whitening().astype("f8")).mean(axis=1))
    return np.stack(result, axis=1)


def bags_of(model):
    seed = [int(np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=3)[0])]
    return Bags.drawn(len(model.all_params_), 300, seed)


def test_scores_are_what_their_definition_says(fitted):
    e, d = sum_of_errors(fitted, NEW)
    z = (NEW - fitted.shift_) * fitted.scale_
    r = [remoteness(row, fitted._ensemble.kept) for row in z]
    first, second = np.cbrt(e * d * r), lengths(fitted, NEW).mean(axis=1)
    assert 20 < (second > first).sum() < 480
    wanted = np.maximum(first, second)
    np.testing.assert_allclose(-fitted.score_samples(NEW), wanted, rtol=1e-3)
    assert fitted.threshold_ == -fitted.offset_
    assert np.array_equal(fitted.predict(NEW) == -1, -fitted.score_samples(NEW) > fitted.threshold_)


def test_out_of_bag_scores_are_those_of_networks_that_left_the_row_out(fitted):
    bags, own = bags_of(fitted), fitted._ensemble.kept
    z = (X - fitted.shift_) * fitted.scale_
    errors, _ = fitted._ensemble_model().network_errors(X)
    squared = lengths(fitted, X)
    for row in (0, 17, 299):
        left_out = [i for i in range(15) if bags.left_out(i)[row]]
        assert len(left_out) == 3
        e = np.mean([errors[row, i] * fitted._ensemble.balance[i] for i in left_out])
        others = np.delete(own, row, axis=0)  # all 300 rows are kept, in order
        d = np.square(z[row] - others).mean(axis=1).min() + FLOOR
        r = remoteness(z[row], own, without=row)
        first, inside = np.cbrt(e * d * r), squared[row, left_out].mean()
        # The row's own residuals are among the 900 that the whitening is made of; without them, it is longer
        assert (
            max(first, inside) * (1 - 1e-4) < -fitted.oob_scores_[row] < max(first * (1 + 1e-4), 1.2 * inside)
        )
    # Training rows look better than they are
    assert fitted.oob_scores_.mean() < 1.2 * fitted.score_samples(X).mean()


def test_whitening_is_by_the_second_moments_of_residuals_out_of_bag(fitted):
    bags, model = bags_of(fitted), fitted._ensemble_model()
    moments = np.zeros((8, 8))
    for i, residual in enumerate(model.residuals(X, slice(300))):
        r = residual[bags.left_out(i)].astype("f8")
        moments += r.T @ r / 900
    precision = np.linalg.inv(moments + 0.01 * np.diag(moments).mean() * np.eye(8))
    whitening = fitted._ensemble.whitening().astype("f8")
    ratio = whitening @ whitening.T / precision
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)


@pytest.mark.parametrize(("rows", "columns"), [(40, 4), (12, 30)])
def test_lengths_out_of_bag_are_those_of_a_whitening_without_the_row(rows, columns):
    """With three residuals for each row, of networks that agree more or less; rows of weight 0 do not count."""
    rng = np.random.default_rng(3)
    common = rng.normal(size=(rows, columns))
    residuals = [(common + 0.5 * rng.normal(size=(rows, columns))).astype("f4") for _ in range(4)]
    left_out = np.ones((rows, 4), bool)
    left_out[np.arange(rows), rng.integers(4, size=rows)] = False
    weight = rng.integers(0, 3, rows).astype("f8")
    weight[0] = 2

    class Model:
        whitening = None

        def residuals(self, X, here):
            for residual in residuals:
                yield residual[here]

        def whitened(self, residual):
            return residual @ self.whitening

    def moments_of(weights):
        found = np.zeros((columns, columns))
        for i, residual in enumerate(residuals):
            w = weights * left_out[:, i]
            found += (residual * w[:, None]).T @ residual.astype("f8")
        return found

    model, X = Model(), np.zeros((rows, columns))
    moments, share = residual_moments(model, X, left_out, weight)
    count = (weight[:, None] * left_out).sum()
    np.testing.assert_allclose(moments, moments_of(weight) / count, rtol=1e-5, atol=1e-6)
    ridge = ensemble.RIDGE * np.diag(moments).mean() * np.eye(columns)
    model.whitening = ensemble.whitening_of(moments)
    found = lengths_without(model, X, left_out, share)
    for row in (0, 1, rows - 1):
        others = weight.copy()
        others[row] = 0
        inverse = np.linalg.inv(moments_of(others) / count + ridge)
        r = np.array([residuals[i][row] for i in np.flatnonzero(left_out[row])], "f8")
        wanted = np.einsum("ij,jk,ik->i", r, inverse, r).mean() / columns
        assert found[row] == pytest.approx(wanted, rel=1e-3)


def sensors(rows, rng):
    """20 sensors that follow 4 hidden numbers, but for noise of 0.05."""
    mix = np.random.default_rng(8).normal(size=(4, 20))
    mix /= np.sqrt(np.square(mix).sum(axis=0))
    return rng.normal(size=(rows, 4)) @ mix + 0.05 * rng.normal(size=(rows, 20))


def test_missing_cells_are_no_broken_relations():
    rng = np.random.default_rng(4)
    model = AutoencoderDetector(contamination=0.05, missing="mask", random_state=0).fit(sensors(1000, rng))
    new, whole = sensors(500, rng), sensors(500, rng)
    new[np.arange(500), rng.integers(20, size=500)] = np.nan
    assert (model.predict(new) == -1).mean() < 0.08
    assert 0.02 < (model.predict(whole) == -1).mean() < 0.09
    shares = model.explain(new[:50], top=20)
    table = np.empty((50, 20))
    np.put_along_axis(table, shares[0].astype(int), shares[1], axis=1)
    assert (table[np.isnan(new[:50])] == 0).all()
    whole[:, 3] += 0.5
    assert (model.predict(whole) == -1).mean() > 0.9
    holed = np.where(rng.random((300, 20)) < 0.3, np.nan, sensors(300, rng))  # hardly a row has all cells
    model = AutoencoderDetector(missing="mask", random_state=0, max_iter=50).fit(holed)
    assert np.isfinite(model.score_samples(whole)).all()


def test_rows_of_weight_zero_leave_relations_alone():
    rng = np.random.default_rng(4)
    rows, wild = sensors(400, rng), 5 * rng.normal(size=(40, 20))
    weight = np.repeat([1.0, 0.0], [400, 40])
    model = AutoencoderDetector(random_state=0).fit(np.concatenate([rows, wild]), sample_weight=weight)
    new = sensors(200, rng)
    new[:, 3] += 0.5
    assert (model.predict(new) == -1).mean() > 0.9


def test_relations_are_remembered_between_calls_of_partial_fit():
    rng = np.random.default_rng(4)
    model = AutoencoderDetector(random_state=0, n_estimators=5)
    for _ in range(15):
        model.partial_fit(sensors(2000, rng))
    factor = model._ensemble.factor
    for _ in range(3):
        model.partial_fit(sensors(10, rng))
    assert 0.5 < model._ensemble.factor / factor < 2
    new = sensors(400, rng)
    new[:200, 3] += 1.5
    errors = -model.score_samples(new)
    assert (errors[:200, None] > errors[200:]).mean() > 0.99


def test_scores_do_not_depend_on_the_order_of_memory_or_the_rows_beside(fitted):
    whole = fitted.score_samples(NEW)
    assert np.array_equal(fitted.score_samples(np.asfortranarray(NEW)), whole)
    assert np.array_equal(
        np.concatenate([fitted.score_samples(NEW[i : i + 1]) for i in range(50)]), whole[:50]
    )
    same = AutoencoderDetector(random_state=0).fit(np.ones((100, 5)))
    assert len(set(same.score_samples(np.ones((10, 5))))) == 1


def test_a_broken_relation_is_found_and_explained():
    """One of 20 sensors moves by half a standard deviation: nothing about its row is unusual but a relation."""
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(4, 20))
    mix /= np.sqrt(np.square(mix).sum(axis=0))
    rows = rng.normal(size=(1500, 4)) @ mix + 0.05 * rng.normal(size=(1500, 20))
    train, test = rows[:1000], rows[1000:]
    moved = rng.integers(20, size=100)
    test[np.arange(100), moved] += 0.5
    model = AutoencoderDetector(random_state=0).fit(train)
    errors = -model.score_samples(test)
    assert (errors[:100, None] > errors[100:]).mean() > 0.97
    features, shares = model.explain(test[:100], top=1)
    assert (features[:, 0] == moved).mean() > 0.95
    assert np.median(shares) > 0.3


def test_many_features_are_whitened_one_by_one(monkeypatch):
    monkeypatch.setattr(ensemble, "WHITENED_MOST", 5)
    model = AutoencoderDetector(**QUICK).fit(X)
    assert model._ensemble.whitening().shape == (8,)
    assert np.isfinite(model.score_samples(NEW)).all()
    np.testing.assert_allclose(model.explain(NEW, top=8)[1].sum(axis=1), 1)


def test_the_nearest_point_is_found_exactly():
    points = RNG.normal(size=(333, 6)).astype("f4")
    rows = np.concatenate([RNG.normal(size=(2500, 6)), 1e4 + RNG.normal(size=(3, 6)), [[1e150] * 6]])
    near = Neighbours(points, 1)
    found, _ = near.distances(rows, shift=None, scale=None)
    wanted = np.square(rows[:, None] - points).mean(axis=2)
    np.testing.assert_allclose(found - FLOOR, wanted.min(axis=1), rtol=1e-5, atol=1e-9)
    second, _ = near.distances(rows, shift=None, scale=None, own=wanted.argmin(axis=1))
    np.testing.assert_allclose(second[:-1] - FLOOR, np.sort(wanted[:-1], axis=1)[:, 1], rtol=1e-5, atol=1e-9)
    holed = np.where(RNG.random((50, 6)) < 0.3, np.nan, rows[:50])
    holed[0] = np.nan
    found, _ = near.distances(holed, shift=np.ones(6), scale=np.full(6, 2.0), missing=True)
    wanted = np.nanmean(np.square((holed[1:, None] - 1) * 2 - points), axis=2).min(axis=1)
    np.testing.assert_allclose(found[1:] - FLOOR, wanted, rtol=1e-5, atol=1e-9)
    assert found[0] == FLOOR


def test_distances_do_not_depend_on_the_order_of_memory():
    points, rows = RNG.normal(size=(300, 6)).astype("f4"), RNG.normal(size=(700, 6))
    near = Neighbours(points, 2)
    for scaled in ({"shift": None, "scale": None}, {"shift": np.ones(6), "scale": np.full(6, 0.5)}):
        for found, wanted in zip(
            near.distances(np.asfortranarray(rows), **scaled), near.distances(rows, **scaled), strict=True
        ):
            assert np.array_equal(found, wanted)


def remoteness(z, points, without=None):
    """The geometric mean over the groups of the squared distance to the nearest member, per feature."""
    size = min(4, len(points))
    groups = min(64, len(points) // size)
    order = np.random.default_rng(8).permutation(len(points))[: size * groups].reshape(size, groups)
    there = ~np.isnan(z)
    square = np.square(np.where(there, z - points, 0))
    distances = square.sum(axis=1) / max(there.sum(), 1)
    if without is not None:
        distances[without] = np.inf
    return np.exp(np.log(distances[order].min(axis=0) + FLOOR).mean())


@pytest.mark.parametrize("count", [2, 3, 4, 9, 255, 333])
def test_the_remoteness_is_a_mean_over_groups(count):
    points = RNG.normal(size=(count, 6)).astype("f4")
    rows = np.concatenate(
        [RNG.normal(size=(1500, 6)), points, 1e4 + RNG.normal(size=(3, 6)), [[1e30] * 6, [1e150] * 6]]
    )
    near = Neighbours(points, 2)
    _, found = near.distances(rows, shift=None, scale=None)
    np.testing.assert_allclose(found, [remoteness(z, points) for z in rows], rtol=5e-3)
    own = RNG.integers(count, size=len(rows))
    _, found = near.distances(rows, shift=None, scale=None, own=own)
    wanted = [remoteness(z, points, i) for z, i in zip(rows, own, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=5e-3)
    holed = np.where(RNG.random((50, 6)) < 0.3, np.nan, rows[:50])
    holed[0] = np.nan
    _, found = near.distances(holed, shift=np.ones(6), scale=np.full(6, 2.0), missing=True)
    np.testing.assert_allclose(found, [remoteness((z - 1) * 2, points) for z in holed], rtol=5e-3)
    assert found[0] == pytest.approx(FLOOR)


def test_a_cluster_of_a_few_rows_is_remote():
    """A row of it has a near neighbour, but most groups of four hold none."""
    points = RNG.normal(size=(400, 5)).astype("f4")
    points[:20] = 6 + 0.1 * points[:20]
    nearest, found = Neighbours(points, 1).distances(points, shift=None, scale=None, own=np.arange(400))
    assert np.median(nearest[:20]) < np.median(nearest[20:])
    assert np.median(found[:20]) > 10 * np.median(found[20:])


def test_shares_of_distances_are_those_of_the_differences():
    points = RNG.normal(size=(333, 6)).astype("f4")
    order = np.random.default_rng(8).permutation(333)[:256].reshape(4, 64)
    points[order[1]] = points[order[0]]  # of equally near points, one counts
    rows = RNG.normal(size=(40, 6))
    rows[0, 2] = np.nan
    rows[1] += 100
    near = Neighbours(points, 1)
    *distances, nearest, remote = near.distances_and_shares(rows, shift=None, scale=None, missing=True)
    for found, wanted in zip(
        distances, near.distances(rows, shift=None, scale=None, missing=True), strict=True
    ):
        assert np.array_equal(found, wanted)
    for z, of_nearest, of_groups in zip(rows, nearest, remote, strict=True):
        square = np.nan_to_num(np.square(z - points)) * (6 / np.isfinite(z).sum())
        distances = square.sum(axis=1)
        np.testing.assert_allclose(of_nearest, square[distances.argmin()], rtol=1e-6)
        members = order[distances[order].argmin(axis=0), np.arange(64)]
        wanted = (square[members] / (distances[members, None] / 6 + FLOOR)).sum(axis=0)
        np.testing.assert_allclose(of_groups, wanted, rtol=1e-9, atol=1e-12)


def test_scores_depend_neither_on_the_rows_beside_nor_on_the_unit(fitted):
    whole = fitted.score_samples(NEW)
    alone = np.concatenate([fitted.score_samples(NEW[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, whole[:20], rtol=1e-5)
    other = AutoencoderDetector(random_state=0).fit(X * 1024)
    np.testing.assert_allclose(other.score_samples(NEW * 1024), whole, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_rows_that_are_far_have_finite_scores_as_long_as_float32_has(fitted):
    scores = fitted.score_samples(NEW[:1] * 10.0 ** np.arange(0, 16, 3)[:, None])
    assert (np.diff(scores) < 0).all()
    assert np.isfinite(scores).all()
    assert fitted.score_samples(NEW[:1] * 1e200) == -np.inf
    assert fitted.explain(NEW[:1] * 1e200, top=8)[1].sum() == pytest.approx(1)


def test_not_a_number_and_infinity_are_refused(fitted):
    for value, said in ((np.nan, "contains NaN"), (np.inf, "contains infinity")):
        bad = NEW.copy()
        bad[3, 2] = value
        for method in ("score_samples", "predict", "p_values", "explain", "transform", "reconstruct"):
            with pytest.raises(ValueError, match=said):
                getattr(fitted, method)(bad)


# -- alarms -----------------------------------------------------------------------------------------------------------


def test_new_rows_are_flagged_at_the_rate_that_was_asked_for(fitted):
    rows = (
        np.random.default_rng(9).normal(size=(20000, 4)) @ MIX
        + 0.2 * np.random.default_rng(8).normal(size=(20000, 8))
        + 5
    )
    many = AutoencoderDetector(n_estimators=5, max_iter=20, random_state=0).fit(rows[:3000])
    for share in (0.01, 0.05, 0.1):
        many.set_threshold(contamination=share)
        assert (many.predict(rows[3000:]) == -1).mean() == pytest.approx(share, abs=0.01)
        # In the mean over draws of the training rows
        assert (many.p_values(rows[3000:]) <= share).mean() == pytest.approx(share, abs=0.01)
    assert (fitted.fit_predict(X) == -1).sum() == 30


def test_p_values_count_the_rows_with_larger_errors(fitted):
    p, errors, scores = fitted.p_values(NEW), -fitted.oob_scores_, -fitted.score_samples(NEW)
    assert np.array_equal(p, [(1 + (errors >= score).sum()) / 301 for score in scores])
    assert fitted.p_values(X[:1] * 100) == 1 / 301
    assert fitted.p_values(NEW).min() >= 1 / 301


def test_weights_count_in_p_values_and_thresholds():
    errors, weight = np.array([4.0, 1, 3, 2, 9]), np.array([1.0, 2, 0, 3, 4])
    weighted, repeated = Calibration(errors, weight), Calibration(np.repeat(errors, weight.astype(int)))
    asked = np.array([0.5, 1, 2, 2.5, 3, 4, 9, 10])
    assert np.array_equal(weighted.p_values(asked), repeated.p_values(asked))
    small, smaller = (Calibration(errors, weight / divisor).p_values(asked) for divisor in (4, 16))
    assert np.array_equal(small, smaller)  # relative weights
    assert Calibration(np.arange(1.0, 100)).threshold(0.05) == 95  # the fifth largest of 99
    assert Calibration(np.arange(1.0, 100)).threshold(0.001) == 99
    with pytest.raises(ValueError, match="sample_weight is zero in every row"):
        Calibration(errors, np.zeros(5))


def test_false_discoveries_are_limited(fitted):
    assert np.array_equal(
        false_discoveries_limited(np.array([0.001, 0.9, 0.02, 0.04, 0.03]), 0.05), [1, 0, 1, 1, 1]
    )
    assert not false_discoveries_limited(np.array([0.06, 0.9]), 0.05).any()
    outliers = NEW[:100] + 8 * RNG.normal(size=(100, 8))
    mixed = np.concatenate([NEW[100:], outliers])
    flagged = fitted.predict(mixed, fdr=0.1) == -1
    assert flagged[400:].mean() > 0.9
    assert flagged[:400].sum() <= 0.2 * flagged.sum()
    assert not (fitted.predict(NEW[:5], fdr=0.01) == -1).any()
    with pytest.raises(ValueError, match=r"fdr must be in \(0, 1\), got 1.5"):
        fitted.predict(NEW, fdr=1.5)
    with pytest.raises(TypeError, match="fdr must be a number"):
        fitted.predict(NEW, fdr="0.1")


def test_rows_of_weight_zero_are_not_there():
    weight = np.ones(330)
    weight[300:] = 0
    data = np.concatenate([X, X[:30] * 50])
    model = AutoencoderDetector(**QUICK).fit(data, sample_weight=weight)
    assert np.abs(model.shift_ - X.mean(axis=0)).max() < 1e-6
    assert len(model._ensemble.kept) == 300
    assert (model.predict(X * 50) == -1).all()
    assert 0.05 < (model.predict(NEW) == -1).mean() < 0.2


# -- explanations -----------------------------------------------------------------------------------------------------


def test_shares_add_up_to_the_error_and_name_the_feature(fitted):
    moved = NEW[:50].copy()
    moved[:, 3] += 20
    features, shares = fitted.explain(moved, top=8)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (features[:, 0] == 3).mean() > 0.9
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    named = AutoencoderDetector(**QUICK).fit(frame)
    assert named.explain(frame.iloc[:4], top=2)[0].dtype == object
    same = AutoencoderDetector(**QUICK).fit(np.ones((20, 3)))
    np.testing.assert_allclose(same.explain(np.ones((2, 3)))[1].sum(axis=1), 1)


def test_explanations_are_stable_between_seeds():
    data = load_breast_cancer()
    benign, malign = data.data[data.target == 1], data.data[data.target == 0]
    tested = np.concatenate([benign[180:], malign])[::5]
    tables = []
    for seed in (0, 1):
        features, shares = AutoencoderDetector(random_state=seed).fit(benign[:178]).explain(tested, top=30)
        table = np.empty(shares.shape)
        np.put_along_axis(table, features, shares, axis=1)
        tables.append(table)
    correlations = [spearmanr(*rows).statistic for rows in zip(*tables, strict=True)]
    assert np.mean(correlations) >= 0.9


# -- with everything else ---------------------------------------------------------------------------------------------


def test_codes_are_side_by_side_and_decode_to_the_mean_reconstruction(fitted):
    codes = fitted.transform(NEW)
    assert codes.shape == (500, 15 * 16)
    np.testing.assert_array_equal(fitted.inverse_transform(codes), fitted.reconstruct(NEW))
    error, by_feature = fitted.reconstruction_error(NEW), fitted.reconstruction_error(NEW, per_feature=True)
    np.testing.assert_allclose(error, np.square(fitted.reconstruct(NEW) - NEW).mean(axis=1), rtol=1e-3)
    np.testing.assert_allclose(by_feature.mean(axis=1), error, rtol=1e-6)
    assert 0.8 < fitted.score(NEW) < 1
    assert 0 < fitted.error_over_mean_ < 0.2
    assert fitted.error_over_pca_ is None
    assert len(fitted.get_feature_names_out()) == 240


def test_pickles_and_clones_and_copies_for_one_thread(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.p_values(NEW), fitted.p_values(NEW))
    assert np.array_equal(fitted.for_one_thread().p_values(NEW), fitted.p_values(NEW))
    assert clone(AutoencoderDetector(n_estimators=3, noise="swap")).get_params()["noise"] == "swap"


def test_a_file_holds_the_ensemble(tmp_path, fitted):
    fitted.save(tmp_path / "a.safetensors")
    again = Autoencoder.load(tmp_path / "a.safetensors")
    assert type(again) is AutoencoderDetector
    for name in ("score_samples", "p_values", "transform", "predict", "reconstruct"):
        assert np.array_equal(getattr(again, name)(NEW), getattr(fitted, name)(NEW)), name
    assert (again.auto_, again.offset_) == (fitted.auto_, fitted.offset_)
    assert np.array_equal(again.oob_scores_, fitted.oob_scores_)
    assert again.set_threshold(contamination=0.01).threshold_ > fitted.threshold_
    assert again.partial_fit(X).n_iter_ == fitted.n_iter_ + 1
    assert fastae.Parameters.load(tmp_path / "a.safetensors").flat.tobytes() == fitted.params_.flat.tobytes()
    weighted = AutoencoderDetector(**QUICK).fit(X, sample_weight=np.arange(300.0))
    weighted.save(tmp_path / "a.safetensors")
    assert np.array_equal(
        AutoencoderDetector.load(tmp_path / "a.safetensors").p_values(NEW), weighted.p_values(NEW)
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda about, tensors: tensors.pop("2.W1"), "2.W1"),
        (lambda about, tensors: tensors.pop("kept"), "kept"),
        (lambda about, tensors: tensors.update(kept=np.zeros((4, 7), "f4")), "kept has shape"),
        (lambda about, tensors: tensors.update(typical=np.ones(3)), "typical has shape"),
        (lambda about, tensors: about["ensemble"].update(networks=0), "no networks"),
        (lambda about, tensors: about["ensemble"].update(networks=1 << 40), "5.W1"),
        (lambda about, tensors: about.update(ensemble=[]), "ensemble"),
    ],
)
def test_a_damaged_ensemble_is_an_error_that_names_the_file(tmp_path, damage, said):
    path = tmp_path / "a.safetensors"
    AutoencoderDetector(**QUICK | {"max_iter": 1}).fit(X).save(path)
    stored = storage.read(path)
    about = {name: value for name, value in stored.about.items() if name not in ("format", "kind", "fastae")}
    damage(about, stored.tensors)
    storage.write(path, stored.kind, about, stored.tensors)
    with pytest.raises(ValueError, match=rf"a\.safetensors is damaged: .*{said}"):
        AutoencoderDetector.load(path)


def test_files_and_pickles_of_detectors_before_ensembles_are_of_one_network(tmp_path):
    model = AutoencoderDetector((4,), n_estimators=1, max_iter=5, random_state=0, noise=None, init="pca").fit(
        X
    )
    model.save(tmp_path / "a.safetensors")
    stored = storage.read(tmp_path / "a.safetensors")
    del stored.about["settings"]["n_estimators"]
    storage.write(tmp_path / "a.safetensors", stored.kind, stored.about, stored.tensors)
    state = model.__getstate__()
    del state["n_estimators"]
    old = AutoencoderDetector.__new__(AutoencoderDetector)
    old.__setstate__(state)
    for again in (AutoencoderDetector.load(tmp_path / "a.safetensors"), old):
        assert again.n_estimators == 1
        assert np.array_equal(again.score_samples(NEW), model.score_samples(NEW))


@pytest.mark.parametrize("missing", [None, "mask"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_onnx_runtime_does_what_the_ensemble_does(tmp_path, dtype, missing):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    data = (HOLED if missing else X).astype(dtype)
    model = AutoencoderDetector(**{**QUICK, "n_estimators": 3}, dtype=dtype, missing=missing).fit(data)
    model.to_onnx(tmp_path / "a.onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "a.onnx").graph
    used = {name for node in graph.node for name in node.input}
    assert {constant.name for constant in graph.initializer} <= used, "the runtime warns of unused constants"
    results = session.run(None, {"X": data})
    outputs = dict(zip([output.name for output in session.get_outputs()], results, strict=True))
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-6, "atol": 1e-8}
    for output, method in {
        "code": "transform",
        "reconstruction": "reconstruct",
        "score": "score_samples",
        "decision": "decision_function",
    }.items():
        np.testing.assert_allclose(outputs[output], getattr(model, method)(data), **tolerance, err_msg=output)


def test_a_file_in_chunks_is_trained_on_as_an_array_is(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.concatenate([X] * 4))
    rows = open_rows(tmp_path / "x.npy", chunk_bytes=100 * 8 * 8)
    assert not rows.in_memory
    streamed, whole = (AutoencoderDetector(**QUICK).fit(data) for data in (rows, np.concatenate([X] * 4)))
    assert np.array_equal(streamed.all_params_[4].flat, whole.all_params_[4].flat)
    np.testing.assert_allclose(streamed.oob_scores_, whole.oob_scores_, rtol=1e-6)
    np.testing.assert_allclose(streamed.score_samples(rows), whole.score_samples(np.asarray(rows)), rtol=1e-6)
    monkeypatch.setattr(ensemble_training, "SAMPLE_BYTES", 200 * 8 * 8)
    sampled = AutoencoderDetector(**QUICK).fit(rows)
    assert sampled.oob_scores_.shape == (1200,)
    assert np.isfinite(sampled.oob_scores_).all()


def test_a_network_sees_the_rows_of_its_steps_at_most():
    many = np.concatenate([X] * 10)
    model = AutoencoderDetector(n_estimators=2, random_state=0, n_threads=2)
    budget = ensemble_budget_of(model, 10_000_000, 30)
    assert (budget.rows, budget.epochs, budget.batch_size) == (600_000, 1, 200)
    assert ensemble_budget_of(model, 1600, 30).epochs == 375
    assert ensemble_budget_of(model, 1600, 80).epochs == 188
    assert ensemble_budget_of(model, 1600, 5000).epochs == 25
    model.set_params(max_iter=1)
    assert model.fit(many)._states[0].steps == 8  # 1500 rows


def test_frames_of_pandas_and_polars(fitted):
    columns = list("abcdefgh")
    frame = pd.DataFrame(X, columns=columns)
    model = AutoencoderDetector(**QUICK).fit(frame)
    polars = pytest.importorskip("polars")
    other = AutoencoderDetector(**QUICK).fit(polars.DataFrame(X, schema=columns))
    assert np.array_equal(
        model.score_samples(frame), other.score_samples(polars.DataFrame(X, schema=columns))
    )


def test_the_floor_keeps_rows_that_fit_exactly_apart_from_nothing():
    assert ensemble.combined(*np.full((3, 1), FLOOR), np.zeros(1)) == pytest.approx([FLOOR])
