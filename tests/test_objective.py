"""Options of the cost: penalty, sparse codes, noise in the input, missing cells; each against NumPy and differences."""

import numpy as np
import pytest
from objectives import OBJECTIVES
from threads import pretend_cpus

import fastae
from fastae import reference

N, K, M = 21, 6, 700
NETWORK = fastae.Network.autoencoder(N, K)
X = np.random.default_rng(2).normal(size=(M, N))
HOLED = np.where(np.random.default_rng(4).random((M, N)) < 0.2, np.nan, X)
WEIGHT = np.random.default_rng(5).integers(0, 4, M).astype(float)


def setting(dtype="float64", network=NETWORK, n_threads=2):
    return fastae.Parameters.random(network, 1, dtype), fastae.Engine(network, n_threads, dtype)


@pytest.mark.parametrize(
    "network", [NETWORK, fastae.Network((N, 9, K, 9, N), ("tanh", "sigmoid", "tanh", "sigmoid"))]
)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_matches_finite_differences(name, network):
    params, engine = setting(network=network)
    options = {"objective": OBJECTIVES[name], "sample_weight": WEIGHT, "seed": 3, "epoch": 4}
    data = HOLED if OBJECTIVES[name].missing else X
    _, gradient = engine.loss_and_gradient(params, data, **options)
    rng = np.random.default_rng(0)
    for key, array in params.items():
        direction = rng.normal(size=array.shape)
        losses = []
        for step in (1e-5, -1e-5):
            moved = params.copy()
            moved[key] = array + step * direction
            losses.append(engine.loss_and_gradient(moved, data, **options)[0])
        slope = (losses[0] - losses[1]) / 2e-5
        assert np.sum(gradient[key] * direction) == pytest.approx(slope, rel=2e-6, abs=1e-8), key


def test_sparsity_is_the_divergence_of_the_mean_code():
    params, engine = setting()
    objective = fastae.Objective(sparsity_weight=0.7, sparsity_target=0.1)
    plain, _ = engine.loss_and_gradient(params, X, sample_weight=WEIGHT)
    loss, _ = engine.loss_and_gradient(params, X, sample_weight=WEIGHT, objective=objective)
    p, q = 0.1, np.average(reference.forward(X, params)["h1"], axis=0, weights=WEIGHT)
    divergence = np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert loss - plain == pytest.approx(0.7 * divergence, rel=1e-11)


def test_sparsity_pulls_the_mean_code_to_its_target():
    objective = fastae.Objective(sparsity_weight=5.0, sparsity_target=0.1)
    params, engine = setting()
    fastae.train(
        params, X, engine=engine, epochs=300, optimizer=fastae.Adam(learning_rate=0.02), objective=objective
    )
    mean = engine.encode(params, X).mean(axis=0)
    assert np.abs(mean - 0.1).max() < 0.02


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_sparsity_needs_a_sigmoid_code(activation):
    network = fastae.Network((N, K, N), (activation, "identity"))
    params, engine = setting(network=network)
    with pytest.raises(ValueError, match="sparsity_weight needs a code"):
        engine.loss_and_gradient(params, X, objective=OBJECTIVES["sparse"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_missing_cells_are_0_in_the_input_and_no_part_of_the_error(dtype):
    params, engine = setting(dtype)
    shift, scale = np.nanmean(HOLED, axis=0), 1 / np.nanstd(HOLED, axis=0)
    seen = (HOLED - shift) * scale
    filled = np.nan_to_num(seen)
    xhat = reference.forward(filled, dict(params))["xhat"]
    residual = np.where(np.isnan(seen), 0, xhat - filled)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    options = {"shift": shift, "scale": scale}
    loss, gradient = engine.loss_and_gradient(params, HOLED, objective=OBJECTIVES["missing"], **options)
    assert loss == pytest.approx(np.sum(residual**2) / (2 * M), rel=tolerance)
    h2 = reference.forward(filled, dict(params))["h2"]
    np.testing.assert_allclose(gradient["W3"], h2.T @ residual / M, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        engine.errors(params, HOLED, missing=True, **options), (residual**2).sum(axis=1), rtol=10 * tolerance
    )
    np.testing.assert_allclose(
        engine.reconstruct(params, HOLED, missing=True, **options), xhat, rtol=0, atol=10 * tolerance
    )
    assert np.isnan(engine.loss_and_gradient(params, HOLED, **options)[0])
    assert np.isnan(engine.errors(params, HOLED)).any()


def inputs(objective, data=X, *, seed=0, epoch=0, dtype="float64", n_threads=2, **options):
    """The input that the network sees, from dW of a single linear layer whose residual is one at the row asked for."""
    n = data.shape[1]
    network = fastae.Network((n, n), ("identity",))
    params = fastae.Parameters(network, dtype)
    engine = fastae.Engine(network, n_threads, dtype)
    seen = np.empty((len(data), n))
    for row in range(len(data)):
        weight = np.zeros(len(data))
        weight[row] = 1
        _, g = engine.loss_and_gradient(
            params, data, sample_weight=weight, objective=objective, seed=seed, epoch=epoch, **options
        )
        seen[row] = -g["W1"][:, 0] / data[row, 0]  # dW1 = x' (0 - target)
    return seen


DATA = np.random.default_rng(8).normal(size=(300, 40)) + 3


def test_gaussian_noise_is_standard_normal_times_its_level():
    noise = (inputs(fastae.Objective(noise="gaussian", noise_level=0.5)) - X) / 0.5
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs((noise**3).mean()) < 0.1
    assert abs((noise**4).mean() - 3) < 0.3
    for lag in (1, 2, 7):
        assert abs(np.mean(noise[:, lag:] * noise[:, :-lag])) < 5 / np.sqrt(noise.size)
        assert abs(np.mean(noise[lag:] * noise[:-lag])) < 5 / np.sqrt(noise.size)
    assert 3.3 < np.abs(noise).max() < 5.4


def test_mask_zeroes_its_share_of_cells():
    seen = inputs(fastae.Objective(noise="mask", noise_level=0.3), DATA)
    masked = seen == 0
    np.testing.assert_allclose(seen[~masked], DATA[~masked], rtol=1e-12)
    assert abs(masked.mean() - 0.3) < 5 * np.sqrt(0.21 / masked.size)
    assert masked.mean(axis=0).std() < 0.06
    assert masked.mean(axis=1).std() < 0.12
    assert (inputs(fastae.Objective(noise="mask", noise_level=1.0), DATA[:9]) == 0).all()
    np.testing.assert_allclose(
        inputs(fastae.Objective(noise="mask", noise_level=0.0), DATA[:9]), DATA[:9], rtol=1e-12
    )


def test_swap_takes_cells_of_the_same_column():
    seen = inputs(fastae.Objective(noise="swap", noise_level=0.3), DATA)
    kept = np.isclose(seen, DATA, rtol=1e-12)
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / kept.size)
    sources = []
    for i, j in zip(*np.nonzero(~kept), strict=True):
        candidates = np.flatnonzero(np.isclose(DATA[:, j], seen[i, j], rtol=1e-12))
        assert candidates.size >= 1
        sources.append(candidates[0])
    assert np.bincount(sources, minlength=300).min() > 0
    index = np.arange(100, 150)
    seen = inputs(fastae.Objective(noise="swap", noise_level=1.0), DATA[100:150])
    assert np.isin(seen.round(9), DATA[index].round(9)).all()


@pytest.mark.parametrize("name", ["gaussian", "mask", "swap"])
def test_noise_is_that_of_seed_epoch_row_and_column_alone(name):
    objective = OBJECTIVES[name]
    data = DATA[:20]
    first = inputs(objective, data)
    assert np.array_equal(first, inputs(objective, data, n_threads=1))
    assert not np.array_equal(first, inputs(objective, data, seed=1))
    assert not np.array_equal(first, inputs(objective, data, epoch=1))
    if name != "swap":  # whose source rows are those of the batch
        np.testing.assert_allclose(first[:7], inputs(objective, data[:7]), rtol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_same_bits_for_any_thread_count(name, monkeypatch):
    pretend_cpus(monkeypatch, 3)
    big = np.random.default_rng(0).normal(size=(5000, N)).astype("f4")
    results = []
    for n_threads in (1, 2, 3):
        params, engine = setting("float32", n_threads=n_threads)
        history = fastae.train(
            params, big, engine=engine, epochs=3, batch_size=2000, objective=OBJECTIVES[name]
        )
        results.append((history.loss, params.flat.copy()))
    for loss, flat in results[1:]:
        assert loss == results[0][0]
        assert np.array_equal(flat, results[0][1])


def test_noise_is_new_in_every_epoch_and_goes_on_with_the_state():
    objective = OBJECTIVES["gaussian"]
    whole, parts = setting()[0], setting()[0]
    one = fastae.train(whole, X, epochs=6, objective=objective)
    first = fastae.train(parts, X, epochs=2, objective=objective)
    second = fastae.train(parts, X, epochs=4, objective=objective, state=first.state)
    assert first.loss + second.loss == one.loss
    assert np.array_equal(whole.flat, parts.flat)
    again, engine = setting()
    losses = {engine.loss_and_gradient(again, X, objective=objective, epoch=epoch)[0] for epoch in range(5)}
    assert len(losses) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha must be finite and not negative"),
        ({"alpha": float("nan")}, "alpha must be finite"),
        ({"noise": "salt"}, "noise must be among gaussian, mask, swap or None, got 'salt'"),
        ({"noise": "mask", "noise_level": 1.5}, "noise_level must be a probability"),
        ({"noise_level": -0.1}, "noise_level must be finite"),
        ({"sparsity_weight": float("inf")}, "sparsity_weight must be finite"),
        ({"sparsity_target": 1.0}, r"sparsity_target must be in \(0, 1\)"),
        ({"alpha": "0.1"}, "alpha must be a number, got '0.1'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fastae.Objective(**options)
