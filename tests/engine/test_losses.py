"""Huber's loss, the Bernoulli cross-entropy, and targets other than X: against the reference and finite differences."""

import warnings

import numpy as np
import pytest
from engines import TOLERANCE, bits, double, problem
from guard import guarded
from targets import LINEAR, OTHER_WIDTHS, SHAPES, VIEWS, S
from threads import pretend_cpus

import fastae
from fastae import Objective, reference
from fastae.kernels import forms

DTYPES = ["float32", "float64"]
LOSSES = [Objective(), Objective(loss="huber", huber_delta=0.7), Objective(loss="bernoulli")]
every_loss = pytest.mark.parametrize("objective", LOSSES, ids=lambda objective: objective.loss)


def a_target(rng, m, q, objective):
    return rng.random((m, q)) if objective.loss == "bernoulli" else rng.normal(scale=2, size=(m, q))


def exact(parameters, x, y, objective, sample_weight=None):
    """Loss and derivatives by the reference, in float64; cells of y that are NaN do not count."""
    params, activations = double(parameters), parameters.network.activations
    t = reference.forward(x, params, activations)
    z = t[f"z{len(activations)}"]
    missing, options = np.isnan(y), {"loss": objective.loss, "huber_delta": objective.huber_delta}
    if missing.any():
        # the cost of a missing cell is that of a target at which it is least
        y = np.where(missing, t["xhat"], y)
        least = np.where(missing, y, 0.0)
        extra = reference.cost(least, np.where(missing, t["xhat"], 0.0), sample_weight, **options)
        if objective.loss == "bernoulli":
            extra = reference.cost(y, t["xhat"], sample_weight, z=z, **options) - reference.cost(
                np.where(missing, 0.0, y), t["xhat"], sample_weight, z=np.where(missing, -700.0, z), **options
            )
    else:
        extra = 0.0
    loss = reference.cost(y, t["xhat"], sample_weight, z=z, **options) - extra
    return loss, reference.backward(x, params, activations, sample_weight, Y=y, **options)


def assert_right(engine, parameters, X, y, objective, *, sample_weight=None, seen=None, **options):
    loss, gradient = engine.loss_and_gradient(
        parameters, X, objective=objective, sample_weight=sample_weight, **options
    )
    seen = np.asarray(X if seen is None else seen, "f8")
    wanted, d = exact(parameters, seen, np.asarray(y, "f8"), objective, sample_weight)
    tolerance = TOLERANCE[engine.dtype.name]
    assert loss == pytest.approx(float(wanted), rel=tolerance)
    for name in gradient:
        error = np.abs(gradient[name] - d[f"d{name}"]).max()
        assert error <= tolerance * np.abs(d[f"d{name}"]).max(), name


def fits(objective, activations):
    return objective.loss != "bernoulli" or activations[-1] == S


@every_loss
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("widths", "activations", "m"), SHAPES)
def test_every_loss_is_the_references(widths, activations, m, dtype, objective):
    if not fits(objective, activations):
        pytest.skip("the last layer is no sigmoid")
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m, dtype)
    if objective.loss == "bernoulli":
        X = reference.sigmoid(X)
    assert_right(fastae.Engine(network, 2, dtype), parameters, X, X, objective)


@every_loss
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("widths", "activations", "m"), SHAPES + OTHER_WIDTHS)
def test_targets_may_be_another_matrix(widths, activations, m, dtype, objective):
    if not fits(objective, activations):
        pytest.skip("the last layer is no sigmoid")
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m, dtype)
    Y = a_target(np.random.default_rng(m), m, widths[-1], objective).astype(dtype)
    assert_right(fastae.Engine(network, 2, dtype), parameters, X, Y, objective, Y=Y)


@every_loss
@pytest.mark.parametrize(("widths", "activations", "m"), [SHAPES[2], SHAPES[4], SHAPES[7], OTHER_WIDTHS[6]])
def test_gradients_match_finite_differences(widths, activations, m, objective):
    if not fits(objective, activations):
        pytest.skip("the last layer is no sigmoid")
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, 11, "float64")
    Y = a_target(np.random.default_rng(0), 11, widths[-1], objective)
    options = {"Y": Y, "loss": objective.loss, "huber_delta": 0.7, "n_samples": 10}
    # a residual that crosses huber_delta within a step costs the differences their order
    limit = 1e-4 if objective.loss == "huber" else 1e-7
    for engine in (None, fastae.Engine(network, 2, "float64")):
        errors = fastae.check_gradients(parameters, X, engine=engine, **options)
        assert max(errors.values()) < limit, errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("widths", "activations", "m"), SHAPES)
def test_huber_within_its_bound_is_the_squared_error_to_the_bit(widths, activations, m, dtype):
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m, dtype)
    engine = fastae.Engine(network, 2, dtype)
    wide = Objective(loss="huber", huber_delta=1e6)
    assert bits(engine.loss_and_gradient(parameters, X, objective=wide)) == bits(
        engine.loss_and_gradient(parameters, X)
    )


@every_loss
@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
def test_same_bits_for_any_thread_count(dtype, objective, monkeypatch):
    pretend_cpus(monkeypatch, 5)
    if not forms.forms_of(dtype):
        pytest.skip("the CPU lacks its instructions")
    for widths, activations in (
        ((30, 8, 30, 30), (S, S, LINEAR)),
        ((30, 8, 31), (S, S)),
        ((300, 40, 250), ("tanh", S)),
    ):
        if not fits(objective, activations):
            continue
        network = fastae.Network(widths, activations)
        parameters, X = problem(network, 3001, "float64" if dtype == "float64" else "float32")
        Y = a_target(np.random.default_rng(0), 3001, widths[-1], objective)
        found = set()
        for n_threads in range(1, 6):
            engine = fastae.Engine(network, n_threads, dtype)
            found.add(bits(engine.loss_and_gradient(parameters, X, Y=Y, objective=objective)))
        assert len(found) == 1


@every_loss
def test_a_target_that_equals_x_changes_no_bit(objective):
    for widths, activations in (
        ((30, 8, 30, 30), (S, S, LINEAR)),
        ((31, 8, 31), (S, S)),
        ((300, 40, 300), (S, S)),
    ):
        if not fits(objective, activations):
            continue
        network = fastae.Network(widths, activations)
        parameters, X = problem(network, 700)
        X = reference.sigmoid(X)
        engine = fastae.Engine(network, 2)
        once = engine.loss_and_gradient(parameters, X, objective=objective)
        assert bits(engine.loss_and_gradient(parameters, X, Y=X.copy(), objective=objective)) == bits(once)


# -- accuracy of the Bernoulli loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli_is_accurate_where_the_output_rounds_to_0_or_1(dtype):
    """The cost of a cell, for each z and target: no log of 0, and no 1 - h; targets of 0 and 1 fitted very well."""
    z = np.concatenate([np.linspace(-60, 60, 241), [-80.0, 80.0, -1e-3, 1e-3, 0.0]])
    network = fastae.Network((1, 1, z.size), (LINEAR, S))
    parameters = fastae.Parameters(network, dtype)
    parameters["b2"] = z
    engine, z = fastae.Engine(network, 1, dtype), parameters["b2"].astype("f8")
    tolerance = {"float32": 1e-6, "float64": 2e-15}[dtype]
    for target in (0.0, 1.0, 0.25, 0.999):
        for j in range(0, z.size, 5):
            Y = np.full((1, z.size), np.nan)
            Y[0, j] = target
            loss, gradient = engine.loss_and_gradient(
                parameters, [[0.0]], Y=Y, objective=Objective(loss="bernoulli", missing=True)
            )
            small = np.log1p(np.exp(-abs(z[j])))
            seen = float(np.dtype(dtype).type(target))
            # rounded once: (1 - target) z, which is 0 for a target of 1
            linear = (1 - seen) * z[j] if z[j] > 0 else -seen * z[j]
            assert loss == pytest.approx(linear + small, rel=tolerance), (z[j], target)
            h = np.exp(-np.log1p(np.exp(-z[j])))
            assert gradient["b2"][j] == pytest.approx(h - seen, rel=tolerance, abs=tolerance * h), (
                z[j],
                target,
            )
            assert not np.delete(gradient["b2"], j).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_stays_zero_with_the_bernoulli_loss(dtype):
    """g(0) is not 0: padding columns would get a delta of their own."""
    for widths in ((3, 5, 3), (17, 2, 17), (300, 250, 300)):
        network = fastae.Network(widths, (S, S))
        parameters, X = problem(network, 50, dtype)
        _, gradient = fastae.Engine(network, 1, dtype).loss_and_gradient(
            parameters, reference.sigmoid(X), objective=Objective(loss="bernoulli")
        )
        dense = fastae.Parameters.from_arrays(network, dict(gradient), dtype)
        assert np.array_equal(dense.flat, gradient.flat)


def test_bernoulli_needs_a_sigmoid_output():
    network = fastae.Network((4, 2, 4), (S, LINEAR))
    parameters, X = problem(network, 10)
    objective = Objective(loss="bernoulli")
    with pytest.raises(ValueError, match="last activation is 'sigmoid', but it is 'identity'"):
        fastae.Engine(network).loss_and_gradient(parameters, X, objective=objective)
    with pytest.raises(ValueError, match="last activation is 'sigmoid'"):
        fastae.train(parameters, X, objective=objective, epochs=1)
    with pytest.raises(ValueError, match="last activation of 'sigmoid'"):
        reference.backward(X, parameters, loss="bernoulli")


def test_a_bound_that_float32_does_not_have_is_refused_or_the_largest_it_has():
    parameters, X = problem(fastae.Network.autoencoder(4, 2), 10)
    engine = fastae.Engine(parameters.network)
    with pytest.raises(ValueError, match=r"huber_delta must be at least 1.17\S* in float32, got 1e-50"):
        engine.loss_and_gradient(parameters, X, objective=Objective(loss="huber", huber_delta=1e-50))
    wide = Objective(loss="huber", huber_delta=1e300)
    with warnings.catch_warnings(action="error"):
        found = engine.loss_and_gradient(parameters, X, objective=wide)
    assert bits(found) == bits(engine.loss_and_gradient(parameters, X))


@pytest.mark.parametrize("bad", [-1e-3, 1.001, np.inf, -np.inf])
@pytest.mark.parametrize("widths", [(4, 2, 4), (300, 40, 300)])
def test_targets_outside_0_and_1_are_named_and_nothing_is_lost(widths, bad):
    network = fastae.Network(widths, (S, S))
    parameters, X = problem(network, 100)
    X = reference.sigmoid(X)
    engine, objective, before = fastae.Engine(network), Objective(loss="bernoulli"), parameters.flat.copy()
    wrong = X.copy()
    wrong[77, 3] = bad
    for options, name in (({"X": wrong}, "X"), ({"X": X, "Y": wrong}, "Y")):
        with pytest.raises(ValueError, match=rf"^{name} has cells outside \[0, 1\]"):
            engine.loss_and_gradient(parameters, **options, objective=objective)
        with pytest.raises(ValueError, match=rf"^{name} has cells outside \[0, 1\]"):
            fastae.train(parameters, **options, objective=objective, epochs=2, batch_size=10, engine=engine)
        assert np.array_equal(parameters.flat, before)
        weight = np.ones(100)
        weight[77] = 0
        loss, _ = engine.loss_and_gradient(parameters, **options, objective=objective, sample_weight=weight)
        assert np.isfinite(loss)
    # scaling rounds
    edge = X.copy()
    edge[3, 1], edge[4, 1] = 1 + 2e-7, -2e-7
    assert np.isfinite(engine.loss_and_gradient(parameters, edge, objective=objective)[0])


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("widths", "activations", "m"), [OTHER_WIDTHS[3], OTHER_WIDTHS[2], OTHER_WIDTHS[5]])
def test_targets_of_any_dtype_and_strides_by_index_scaled_and_weighted(widths, activations, m, view):
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m)
    rng = np.random.default_rng(1)
    Y = VIEWS[view](rng.normal(size=(m, widths[-1])).astype("f4"))
    index, weight = rng.integers(m, size=2 * m), rng.random(m)
    engine, huber = fastae.Engine(network, 2), Objective(loss="huber", huber_delta=0.7)
    assert_right(engine, parameters, X, Y, huber, Y=Y)
    shift, scale = rng.normal(size=widths[-1]), rng.random(widths[-1]) + 0.5
    seen = ((Y.astype("f8") - shift) * scale)[index]
    loss, gradient = engine.loss_and_gradient(
        parameters,
        X,
        Y=Y,
        index=index,
        objective=huber,
        sample_weight=weight,
        target_shift=shift,
        target_scale=scale,
    )
    wanted, d = exact(parameters, X[index].astype("f8"), seen, huber, weight[index])
    assert loss == pytest.approx(float(wanted), rel=4e-6)
    for name in gradient:
        assert np.abs(gradient[name] - d[f"d{name}"]).max() <= 4e-6 * np.abs(d[f"d{name}"]).max(), name


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8", "u1"])
@pytest.mark.parametrize(("widths", "activations", "m"), [*OTHER_WIDTHS[:4], OTHER_WIDTHS[6]])
def test_targets_are_read_up_to_guard_pages_and_no_further(widths, activations, m, dtype, end):
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m)
    Y = guarded(np.random.default_rng(0).integers(2, size=(m, widths[-1])).astype(dtype), end)
    engine = fastae.Engine(network, 2)
    for objective in LOSSES:
        if fits(objective, activations):
            assert_right(engine, parameters, X, Y, objective, Y=Y)
            engine.loss_and_gradient(parameters, X, Y=Y, objective=objective, index=np.arange(m)[::-1])


@every_loss
@pytest.mark.parametrize(("widths", "activations", "m"), [SHAPES[2], SHAPES[4], SHAPES[7], *OTHER_WIDTHS[2:]])
def test_missing_cells_of_the_target_do_not_count(widths, activations, m, objective):
    if not fits(objective, activations):
        pytest.skip("the last layer is no sigmoid")
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m)
    rng = np.random.default_rng(2)
    Y = a_target(rng, m, widths[-1], objective)
    Y[rng.random(Y.shape) < 0.3] = np.nan
    engine = fastae.Engine(network, 2)
    missing = Objective(loss=objective.loss, huber_delta=0.7, missing=True)
    assert_right(engine, parameters, X, Y, missing, Y=Y)
    holed = X.copy()
    holed[rng.random(X.shape) < 0.3] = np.nan
    assert_right(
        engine, parameters, holed, Y, missing, Y=Y, seen=np.nan_to_num(holed), sample_weight=rng.random(m)
    )


@every_loss
@pytest.mark.parametrize(("widths", "activations", "m"), [SHAPES[2], SHAPES[4], SHAPES[7], *OTHER_WIDTHS[2:]])
def test_nan_in_a_target_is_not_overlooked(widths, activations, m, objective):
    """Without `missing`, the loss and the gradient are NaN, no step is taken, and a row of weight 0 does not count."""
    if not fits(objective, activations):
        pytest.skip("the last layer is no sigmoid")
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m)
    Y = a_target(np.random.default_rng(0), m, widths[-1], objective)
    Y[m // 2, -1] = np.nan
    engine, weight = fastae.Engine(network, 2), np.ones(m)
    loss, gradient = engine.loss_and_gradient(parameters, X, Y=Y, objective=objective)
    assert np.isnan(loss)
    assert all(np.isnan(gradient[name]).any() for name in gradient)
    before = parameters.flat.copy()
    with pytest.raises(fastae.DivergenceError):
        fastae.train(parameters, X, Y=Y, objective=objective, epochs=2, engine=engine)
    assert np.array_equal(parameters.flat, before)
    weight[m // 2] = 0
    assert np.isfinite(
        engine.loss_and_gradient(parameters, X, Y=Y, objective=objective, sample_weight=weight)[0]
    )


@pytest.mark.parametrize("noise", ["gaussian", "mask", "swap"])
@pytest.mark.parametrize("widths", [(20, 8, 20), (20, 8, 33), (300, 40, 310)])
def test_noise_and_penalties_are_of_the_input_not_of_the_target(noise, widths):
    """The corrupted input is the same with a target as without: recovered from dW1 and a delta that is known."""
    network = fastae.Network(widths, (S, LINEAR))
    parameters, X = problem(network, 90, "float64")
    Y = np.random.default_rng(0).normal(size=(90, widths[-1]))
    objective = Objective(noise=noise, noise_level=0.4, alpha=2.0, sparsity_weight=0.3)
    engine = fastae.Engine(network, 2, "float64")
    loss, gradient = engine.loss_and_gradient(parameters, X, Y=Y, objective=objective, seed=5, epoch=3)
    corrupted = _input(X, objective)
    t = reference.forward(corrupted, parameters)
    code, p = t["h1"].mean(axis=0), objective.sparsity_target
    kl = np.sum(p * np.log(p / code) + (1 - p) * np.log((1 - p) / (1 - code)))
    norm = sum(np.sum(parameters[name] ** 2) for name in ("W1", "W2"))
    wanted = reference.cost(Y, t["xhat"]) + 0.3 * kl + 2.0 * norm / (2 * 90)
    assert loss == pytest.approx(float(wanted), rel=1e-12)
    slope = 0.3 * ((1 - p) / (1 - code) - p / code) / 90
    d = reference.vjp(corrupted, parameters, (t["xhat"] - Y) / 90, np.tile(slope, (90, 1)))
    for name in gradient:
        wanted = d[f"d{name}"] + (2.0 / 90 * parameters[name] if name.startswith("W") else 0)
        assert np.abs(gradient[name] - wanted).max() <= 1e-12 * np.abs(wanted).max(), name


def _input(X, objective):
    """The input that a network sees, from dW1 of a linear one: dS/dW1 = x' (x W1 - x) with one row at a time."""
    n = X.shape[1]
    network = fastae.Network((n, 1), (LINEAR,))
    parameters = fastae.Parameters(network, "float64")
    engine = fastae.Engine(network, 1, "float64")
    rows = []
    for i in range(len(X)):
        weight = np.zeros(len(X))
        weight[i] = 1
        noise = Objective(noise=objective.noise, noise_level=objective.noise_level)
        _, gradient = engine.loss_and_gradient(
            parameters,
            X,
            Y=np.full((len(X), 1), -1.0),
            objective=noise,
            seed=5,
            epoch=3,
            sample_weight=np.where(weight, 1.0, 1e-300),
        )
        rows.append(gradient["W1"][:, 0])
    return np.array(rows)


def test_a_network_of_another_width_needs_a_target():
    network = fastae.Network((5, 3, 2), (S, LINEAR))
    parameters, X = problem(network, 10)
    engine = fastae.Engine(network)
    for call in (engine.loss_and_gradient, lambda p, X: fastae.train(p, X, engine=engine, epochs=1)):
        with pytest.raises(
            ValueError, match="puts out 2 features, but X has 5: pass targets of 2 features as Y"
        ):
            call(parameters, X)
    with pytest.raises(ValueError, match="Y has 3 features, but the network puts out 2"):
        engine.loss_and_gradient(parameters, X, Y=np.zeros((10, 3)))
    with pytest.raises(ValueError, match="Y has 9 rows, but X has 10"):
        engine.loss_and_gradient(parameters, X, Y=np.zeros((9, 2)))
    with pytest.raises(ValueError, match="target_shift and target_scale are of Y"):
        engine.loss_and_gradient(parameters, X, target_shift=np.zeros(2))
    with pytest.raises(ValueError, match=r"target_scale has shape \(5,\), but \(2,\)"):
        engine.loss_and_gradient(parameters, X, Y=np.zeros((10, 2)), target_scale=np.ones(5))
    with pytest.raises(TypeError, match="Y has dtype complex128"):
        engine.loss_and_gradient(parameters, X, Y=np.zeros((10, 2), complex))


@every_loss
@pytest.mark.parametrize("widths", [(6, 3, 6), (6, 3, 2), (300, 40, 250)])
def test_training_on_targets_takes_the_steps_of_the_reference(widths, objective):
    network = fastae.Network(widths, (S, S))
    parameters, X = problem(network, 70, "float64")
    Y = np.random.default_rng(0).random((70, widths[-1]))
    theta = {name: parameters[name] for name in parameters}
    optimizer = fastae.SGD(learning_rate=0.3, momentum=0.0)
    losses, options = [], {"loss": objective.loss, "huber_delta": objective.huber_delta}
    for _ in range(3):
        total = 0.0
        for first in range(0, 70, 32):
            x, y = X[first : first + 32], Y[first : first + 32]
            t = reference.forward(x, theta, (S, S))
            total += len(x) * float(reference.cost(y, t["xhat"], z=t["z2"], **options))
            d = reference.backward(x, theta, (S, S), Y=y, **options)
            theta = reference.step(theta, d, {}, 1, optimizer)
        losses.append(total / 70)
    history = fastae.train(
        parameters, X, Y=Y, optimizer=optimizer, epochs=3, batch_size=32, shuffle=False, objective=objective
    )
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    for name in theta:
        np.testing.assert_allclose(parameters[name], theta[name], rtol=0, atol=1e-12)


def test_shuffled_training_takes_x_and_y_together(tmp_path):
    """A linear map is learned from rows that are drawn in random order; and a checkpoint resumes to the same bits."""
    rng = np.random.default_rng(0)
    network = fastae.Network((4, 3), (LINEAR,))
    W, X = rng.normal(size=(4, 3)), rng.normal(size=(200, 4))
    options = {
        "Y": X @ W,
        "batch_size": 16,
        "optimizer": fastae.Adam(learning_rate=0.05),
        "index": np.arange(150),
    }
    parameters = fastae.Parameters.random(network, 0, "float64")
    again = parameters.copy()
    fastae.train(parameters, X, epochs=100, **options)
    np.testing.assert_allclose(parameters["W1"], W, atol=1e-4)
    place = tmp_path / "run"
    fastae.train(again, X, epochs=40, checkpoint=place, **options)
    with pytest.raises(ValueError, match="belongs to another run: target_scale was None"):
        fastae.train(
            again, X, epochs=100, checkpoint=place, resume=True, target_scale=2 * np.ones(3), **options
        )
    fastae.train(again, X, epochs=100, checkpoint=place, resume=True, **options)
    assert np.array_equal(again.flat, parameters.flat)
