"""PCA by the gradient of a linear network, and networks that start where PCA ends."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

import fastae
from fastae import reference
from fastae.data.row_source import ArrayRows
from fastae.training import pca
from fastae.training.pca import principal_components, start_at_pca

RNG = np.random.default_rng(0)
X = RNG.normal(size=(700, 5)) @ RNG.normal(size=(5, 9)) + 0.1 * RNG.normal(size=(700, 9)) + 3.0


def components_of(X, most=9, dtype=np.float64, **data):
    options = {"shift": None, "scale": None, "missing": False, "n_threads": 2} | data
    return principal_components(ArrayRows(X), most, dtype, **options)


def network(widths, activation="sigmoid", code_layer=1):
    return fastae.Network(widths, (activation,) * (len(widths) - 2) + ("identity",), code_layer)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)])
def test_components_are_those_of_scikit_learn(dtype, tolerance):
    ours, theirs = components_of(X, dtype=dtype), PCA().fit(X)
    scale = theirs.explained_variance_[0] * 699 / 700
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_ * 699 / 700, atol=tolerance * scale)
    np.testing.assert_allclose(ours.mean, X.mean(0), rtol=tolerance)
    np.testing.assert_allclose(ours.deviation, X.std(0), rtol=tolerance)
    for mine, other in zip(ours.directions.T[:5], theirs.components_[:5], strict=True):
        assert abs(mine @ other) == pytest.approx(1, abs=tolerance)
        assert mine[np.abs(mine).argmax()] > 0
    residual = X - theirs.mean_ - (X - theirs.mean_) @ theirs.components_[:3].T @ theirs.components_[:3]
    assert ours.error(3) == pytest.approx(np.square(residual).sum(1).mean(), rel=100 * tolerance)
    assert ours.error(9) == pytest.approx(0, abs=tolerance * scale)


def test_components_follow_scale_and_weights():
    scale, weight = np.linspace(0.5, 2, 9), RNG.integers(0, 3, len(X)).astype(float)
    weighted = components_of(X, shift=X.mean(0), scale=scale, sample_weight=weight)
    repeated = PCA().fit(np.repeat((X - X.mean(0)) * scale, weight.astype(int), axis=0))
    count = weight.sum()
    np.testing.assert_allclose(
        weighted.variances, repeated.explained_variance_ * (count - 1) / count, rtol=1e-9
    )


def test_a_missing_cell_counts_as_the_mean_and_a_row_of_weight_0_as_nothing():
    holes = np.where(RNG.random(X.shape) < 0.2, np.nan, X)
    least, spread = np.nanmin(holes, axis=0), np.nanmax(holes, axis=0) - np.nanmin(holes, axis=0)
    scaled = (holes - least) / spread
    ours = components_of(holes, shift=least, scale=1 / spread, missing=True)
    filled = components_of(np.where(np.isnan(scaled), np.nanmean(scaled, axis=0), scaled))
    np.testing.assert_allclose(ours.variances, filled.variances, rtol=1e-9)
    np.testing.assert_allclose(ours.mean, np.nanmean(scaled, axis=0), rtol=1e-9)
    weight, strange = np.repeat([1.0, 0.0], 350), X.copy()
    strange[350:] = 1e30
    ours = components_of(strange, sample_weight=weight)
    np.testing.assert_allclose(ours.variances, components_of(X[:350]).variances, rtol=1e-9)


def test_means_that_the_scale_has_computed_are_not_computed_again(monkeypatch):
    holes, passes = np.where(RNG.random(X.shape) < 0.2, np.nan, X), []
    count = ArrayRows.column_statistics
    monkeypatch.setattr(ArrayRows, "column_statistics", lambda rows: (passes.append(1), count(rows))[1])
    for scale, expected in (("standard", 1), ("minmax", 2), (None, 1)):
        passes.clear()
        model = fastae.Autoencoder(3, scale=scale, missing="mask", max_iter=1, warm_start=True).fit(holes)
        assert len(passes) == expected, scale
    model.set_params(scale="standard", hidden_layer_sizes=2).fit(holes)
    ratio = model.error_over_mean_
    passes.clear()
    moved = model.set_params(learning_rate_init=1e-30).fit(holes + 1)  # a warm start keeps the old shift
    assert len(passes) == 1
    assert moved.error_over_mean_ > 1.5 * ratio


def test_components_are_those_of_a_file_and_of_any_number_of_threads(tmp_path):
    np.save(tmp_path / "x.npy", X)
    rows = fastae.open_rows(tmp_path / "x.npy", chunk_bytes=100 * 9 * 8)
    assert not rows.in_memory
    streamed = principal_components(rows, 9, np.float64, shift=None, scale=None, missing=False, n_threads=2)
    whole = components_of(X)
    np.testing.assert_allclose(streamed.variances, whole.variances, rtol=1e-10)
    assert np.array_equal(whole.variances, components_of(X, n_threads=1).variances)


def test_the_rank_counts_and_wide_rows_have_as_many_components_as_asked_for():
    thin = RNG.normal(size=(300, 3)) @ RNG.normal(size=(3, 9))
    assert components_of(thin).directions.shape == (9, 3)
    assert components_of(np.ones((20, 4))).directions.shape == (4, 0)
    wide = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 1100)) + 0.01 * RNG.normal(size=(50, 1100))
    ours, theirs = components_of(wide, 4, np.float32), PCA(4).fit(wide)
    assert ours.directions.shape == (1100, 4)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_ * 49 / 50, rtol=1e-3)
    assert ours.error(4) == pytest.approx(wide.var(0).sum() - ours.variances.sum(), rel=1e-3)
    assert components_of(X * 1e30, dtype=np.float32) is None


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "identity"])
@pytest.mark.parametrize(
    ("widths", "code_layer"),
    [
        ((9, 3, 9, 9), 1),
        ((9, 3, 9), 1),
        ((9, 6, 3, 6, 9, 9), 2),
        ((9, 20, 3, 20, 9, 9), 2),
        ((9, 3, 12, 9), 1),
    ],
)
def test_a_network_starts_where_pca_ends(widths, code_layer, activation):
    components = components_of(X)
    params = start_at_pca(network(widths, activation, code_layer), components, 0, np.float64)
    engine = fastae.Engine(params.network, dtype=np.float64)
    pca = PCA(3).fit(X)
    by_pca = pca.inverse_transform(pca.transform(X))
    # The others are only nearly linear there, layer upon layer.
    tolerance = 1e-10 if activation == "identity" else 0.05 * len(widths) * X.std()
    assert np.sqrt(np.square(engine.reconstruct(params, X) - by_pca).mean()) < tolerance
    loss, gradient = engine.loss_and_gradient(params, X)
    assert loss < components.error(3) / 2 + tolerance * components.total / 20
    assert all(np.abs(gradient[name]).max() > 0 for name in gradient)  # nothing is cut off


def test_units_beyond_the_rank_are_drawn_at_random():
    components = components_of(RNG.normal(size=(300, 2)) @ RNG.normal(size=(2, 9)))
    first, second = (start_at_pca(network((9, 5, 9, 9)), components, seed, np.float32) for seed in (0, 1))
    assert np.array_equal(first["W1"][:, :2], second["W1"][:, :2])
    assert not np.array_equal(first["W1"][:, 2:], second["W1"][:, 2:])
    assert not first["W2"][2:].any()


@pytest.mark.filterwarnings("error")
def test_rows_too_close_together_for_the_dtype_have_no_components():
    components = components_of(X * 1e-20, dtype=np.float32)
    assert components.directions.shape == (9, 0)
    params = start_at_pca(network((9, 6, 3, 6, 9, 9), "tanh", 2), components, 0, np.float32)
    assert np.abs(params.flat).max() < 10
    assert components_of(X * 1e-20).directions.shape == (9, 9)


@pytest.mark.parametrize("where", ["array", "file", "weights", "missing"])
def test_few_components_of_many_columns_need_no_matrix_of_all_columns(where, tmp_path, monkeypatch):
    parameters, data = [], {}
    original = pca.loss_and_gradient_of
    monkeypatch.setattr(
        pca, "loss_and_gradient_of", lambda *args, **options: (
            parameters.append(args[1].flat.size), original(*args, **options))[1],
    )  # fmt: skip
    wide = RNG.normal(size=(150, 6)) @ RNG.normal(size=(6, 1200)) + 0.3 * RNG.normal(size=(150, 1200)) + 5
    rows = expected = wide = wide.astype("f4")
    if where == "file":
        np.save(tmp_path / "x.npy", wide)
        rows = fastae.open_rows(tmp_path / "x.npy", chunk_bytes=40 * 1200 * 4)
    elif where == "weights":
        data["sample_weight"] = RNG.integers(0, 3, 150).astype(float)
        expected = np.repeat(wide, data["sample_weight"].astype(int), axis=0)
    elif where == "missing":
        rows = np.where(RNG.random(wide.shape) < 0.1, np.nan, wide)
        expected = np.where(np.isnan(rows), np.nanmean(rows, axis=0), rows)
        data["missing"] = True
    source = rows if where == "file" else ArrayRows(rows)
    options = {"shift": None, "scale": None, "missing": False, "n_threads": 2} | data
    ours = principal_components(source, 8, np.float32, **options)
    assert max(parameters) < 1200 * 1200 / 10
    theirs = PCA(8, svd_solver="full").fit(expected)
    count = len(expected)
    np.testing.assert_allclose(
        ours.variances[:6], theirs.explained_variance_[:6] * (count - 1) / count, rtol=1e-3
    )
    np.testing.assert_allclose(np.abs((ours.directions.T[:6] * theirs.components_[:6]).sum(1)), 1, rtol=1e-3)
    np.testing.assert_allclose(ours.mean, expected.mean(0), rtol=1e-4)
    assert ours.total == pytest.approx(expected.astype("f8").var(0).sum(), rel=1e-4)
    residual = ours.total - theirs.explained_variance_.sum() * (count - 1) / count
    assert residual * 0.999 < ours.error(8) < 1.02 * residual
    assert start_at_pca(network((1200, 8, 1200, 1200)), ours, 0, np.float32).flat.size > 1200 * 1200
    parameters.clear()
    all_moments = components_of(wide, 200, np.float32)  # many components: all moments in one pass
    assert parameters == [1200 * 1201]
    assert all_moments.directions.shape[1] >= 149


def test_more_columns_than_a_matrix_may_have_go_by_some_of_the_rows(tmp_path):
    wide = RNG.normal(size=(80, 6)) @ RNG.normal(size=(6, 5000)) + 0.01 * RNG.normal(size=(80, 5000)) + 9
    wide = wide.astype("f4")
    theirs = PCA(4, svd_solver="full").fit(wide)
    np.save(tmp_path / "x.npy", wide)
    rows = fastae.open_rows(tmp_path / "x.npy", chunk_bytes=10 * 5000 * 4)
    of_file = principal_components(rows, 4, np.float32, shift=None, scale=None, missing=False, n_threads=1)
    for ours in (components_of(wide, 4, np.float32), of_file):
        np.testing.assert_allclose(ours.variances, theirs.explained_variance_ * 79 / 80, rtol=1e-4)
        np.testing.assert_allclose(np.abs((ours.directions.T * theirs.components_).sum(1)), 1, rtol=1e-4)
        assert ours.error(4) == pytest.approx(wide.var(0).sum() - ours.variances.sum(), rel=1e-3)
        np.testing.assert_allclose(ours.mean, wide.mean(0), rtol=1e-4)
    weight = RNG.integers(0, 3, 80)
    weighted = components_of(wide, 4, np.float32, sample_weight=weight.astype(float))
    np.testing.assert_allclose(weighted.deviation, np.repeat(wide, weight, axis=0).std(0), rtol=1e-3)
    many = components_of(np.concatenate([wide] * 20), 4, np.float32)
    np.testing.assert_allclose(many.variances, of_file.variances, rtol=0.1)
    assert of_file.of_all_rows
    assert not many.of_all_rows


def test_the_last_layer_must_be_linear_or_a_sigmoid():
    relu = fastae.Network((9, 3, 9), ("sigmoid", "relu"), 1)
    with pytest.raises(ValueError, match="linear or sigmoid, got 'relu'"):
        start_at_pca(relu, components_of(X), 0, np.float32)


@pytest.mark.parametrize("widths", [(9, 3, 9), (9, 3, 9, 9)])
def test_a_sigmoid_output_starts_near_pca_of_data_in_0_to_1(widths):
    """g(4 (x - 1/2)) of the x that a linear last layer reconstructs."""
    data = reference.sigmoid(X)
    hidden = ("sigmoid",) * (len(widths) - 2)
    linear, sigmoid = (
        start_at_pca(fastae.Network(widths, (*hidden, last), 1), components_of(data), 0, np.float64)
        for last in ("identity", "sigmoid")
    )
    by_linear, by_sigmoid = (reference.forward(data, each)["xhat"] for each in (linear, sigmoid))
    np.testing.assert_allclose(by_sigmoid, reference.sigmoid(4 * (by_linear - 0.5)), atol=1e-10)
