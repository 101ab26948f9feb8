"""check_gradients finds every gradient of the reference right, and a broken one wrong by as much as it is."""

from itertools import pairwise

import numpy as np
import pytest

from fastae import reference
from fastae.gradient_check import CENTRAL, LEFT, RIGHT, _difference, check_gradients

SIGMOID = ("sigmoid", "sigmoid", "identity")


def random_problem(widths, seed=0, m=7, dtype="float64"):
    """Parameters that saturate no unit, and rows of one scale."""
    rng = np.random.default_rng(seed)
    params = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        params[f"W{layer}"] = (rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)).astype(dtype)
        params[f"b{layer}"] = (0.3 * rng.normal(size=fan_out)).astype(dtype)
    return params, rng.normal(size=(m, widths[0])).astype(dtype)


class BrokenEngine:
    """The reference's gradient, after `damage(params, X, t, d)` has changed the results t and d of its two passes."""

    def __init__(self, damage):
        self.damage = damage

    def loss_and_gradient(self, params, X, *, sample_weight=None):
        t = reference.forward(X, params)
        d = reference.backward(X, params, sample_weight=sample_weight)
        self.damage(params, X, t, d)
        return reference.cost(X, t["xhat"], sample_weight), {name: d[f"d{name}"] for name in params}


@pytest.mark.parametrize(
    ("widths", "activations"),
    [
        ((6, 6), ("identity",)),
        ((6, 6), ("sigmoid",)),
        ((6, 2, 6), ("sigmoid", "identity")),
        ((5, 3, 5, 5), SIGMOID),
        ((5, 3, 5, 5), ("tanh", "tanh", "identity")),
        ((5, 3, 5, 5), ("relu", "relu", "identity")),
        ((5, 3, 5, 5), ("tanh", "relu", "sigmoid")),
        ((5, 3, 5, 5), ("identity", "identity", "tanh")),
        ((4, 6, 1, 3, 7, 4), ("relu", "sigmoid", "tanh", "identity", "relu")),
        ((1, 1, 1), ("tanh", "sigmoid")),
    ],
    ids=lambda value: "-".join(str(part) for part in value),
)
@pytest.mark.parametrize("m", [1, 7])
def test_gradient_matches_finite_differences(widths, activations, m):
    for seed in range(3):
        params, X = random_problem(widths, seed, m)
        errors = check_gradients(params, X, activations=activations)
        assert list(errors) == list(params)
        assert max(errors.values()) < 1e-7, errors


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_of_the_rows_does_not_matter(scale):
    params, X = random_problem((5, 3, 5, 5))
    params["W1"] /= scale
    errors = check_gradients(params, scale * X)
    assert max(errors.values()) < 1e-7, errors


def test_weighted_gradient_matches_finite_differences():
    params, X = random_problem((5, 3, 5, 5))
    w = np.array([0, 1, 2, 0.5, 10, 0, 3])
    errors = check_gradients(params, X, sample_weight=w)
    assert max(errors.values()) < 1e-7, errors


def test_float32_gradient_is_held_to_float64_differences():
    params, X = random_problem((5, 3, 5, 5), dtype="float32")
    errors = check_gradients(params, X)
    assert 1e-9 < max(errors.values()) < 1e-5, errors


def test_step_stays_between_the_kinks_of_a_relu():
    """One unit, z = x W1 + b1 = 1e-4: a probe by the whole step would cross 0."""
    params = {"W1": np.array([[1.0]]), "b1": np.array([1e-4]), "W2": np.array([[1.0]]), "b2": np.array([0.0])}
    errors = check_gradients(params, np.zeros((1, 1)) + 1e-6, activations=("relu", "identity"))
    assert max(errors.values()) < 1e-7, errors


@pytest.mark.parametrize("seed", range(6))
def test_a_row_on_the_kink_of_a_relu_has_slope_zero(seed):
    """Biases of 0, and a row that no unit of the first layer is on for: all its pre-activations of the second are 0."""
    params, X = random_problem((12, 5, 12, 12), seed, m=40)
    params["b1"][:] = params["b2"][:] = 0
    X[3] = 0
    errors = check_gradients(params, X, activations=("relu", "relu", "identity"))
    assert max(errors.values()) < 1e-7, errors


def test_one_sided_differences_are_as_exact():
    for factors in (CENTRAL, LEFT, RIGHT):
        for power in range(5):  # of fourth order: exact for these
            costs = [(1 + place * 0.01) ** power for place in factors]
            assert _difference(factors, costs, 0.01) == pytest.approx(power, abs=1e-11)


def test_a_gradient_of_ones_own():
    params, X = random_problem((5, 3, 5, 5))
    d = reference.backward(X, params)
    assert max(check_gradients(params, X, gradient=d).values()) < 1e-7
    own = {name: d[f"d{name}"] for name in params}
    assert max(check_gradients(params, X, gradient=own).values()) < 1e-7
    own["b2"] = d["dz2"].mean(axis=0)
    errors = check_gradients(params, X, gradient=own)
    assert errors.pop("b2") == pytest.approx(1 - 1 / 7, rel=1e-6)
    assert max(errors.values()) < 1e-7
    del own["W3"]
    with pytest.raises(ValueError, match="gradient lacks W3: arrays are named W3 or dW3"):
        check_gradients(params, X, gradient=own)
    with pytest.raises(TypeError, match="gradient must be a mapping of arrays by name, got list"):
        check_gradients(params, X, gradient=[d["dW1"]])
    with pytest.raises(ValueError, match="gradient and engine exclude each other"):
        check_gradients(params, X, gradient=d, engine=BrokenEngine(lambda *_: None))
    with pytest.raises(TypeError, match="engine must have a method loss_and_gradient, got function"):
        check_gradients(params, X, engine=lambda params, X: d)
    with pytest.raises(
        TypeError, match=r"params must be a mapping.*the order is check_gradients\(params, X\)"
    ):
        check_gradients(X, params)


def test_gradient_that_is_zero_has_no_error():
    params, X = random_problem((5, 3, 5))
    X[:, 2] = 0
    params["b1"][:] = -100  # every relu is off
    errors = check_gradients(params, X, activations=("relu", "identity"))
    assert errors["W1"] == errors["b1"] == errors["W2"] == 0
    assert 0 < errors["b2"] < 1e-7


def test_matrix_product_for_dz_is_caught():
    """With m = n = k the matrix product runs where the elementwise product is meant; every shape fits."""

    def damage(params, X, t, d):
        dz2 = d["dh2"] @ (t["h2"] * (1 - t["h2"]))
        d["dW2"], d["db2"] = t["h1"].T @ dz2, dz2.sum(axis=0)

    params, X = random_problem((4, 4, 4, 4), m=4)
    errors = check_gradients(params, X, engine=BrokenEngine(damage))
    assert min(errors["W2"], errors["b2"]) > 0.1
    assert max(errors["W1"], errors["b1"], errors["W3"], errors["b3"]) < 1e-7


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_mean_for_a_bias_gradient_is_caught(layer):
    def damage(params, X, t, d):
        d[f"db{layer}"] = d[f"dz{layer}"].mean(axis=0)

    params, X = random_problem((5, 3, 5, 5), m=8)
    errors = check_gradients(params, X, engine=BrokenEngine(damage))
    assert errors.pop(f"b{layer}") == pytest.approx(1 - 1 / 8, rel=1e-7)
    assert max(errors.values()) < 1e-7


def test_nan_is_never_a_small_error():
    def damage(params, X, t, d):
        d["dW2"][1, 2] = np.nan

    params, X = random_problem((5, 3, 5, 5))
    assert np.isnan(check_gradients(params, X, engine=BrokenEngine(damage))["W2"])


def test_one_wrong_entry_is_caught_by_all_probes_and_by_few_only_if_drawn():
    def damage(params, X, t, d):
        d["dW3"][0, 0] += 1

    params, X = random_problem((5, 3, 5, 5))
    engine = BrokenEngine(damage)
    assert check_gradients(params, X, engine=engine)["W3"] > 0.1
    detected = [
        check_gradients(params, X, engine=engine, n_samples=3, seed=seed)["W3"] > 0.1 for seed in range(20)
    ]
    assert 0 < sum(detected) < 20
    assert check_gradients(params, X, engine=engine, n_samples=10**6)["W3"] > 0.1


def test_engine_gets_the_callers_params_rows_and_weights_and_none_is_written():
    params, X = random_problem((5, 3, 5, 5))
    for array in (*params.values(), X):
        array.flags.writeable = False
    w = np.ones(7)

    class Recorder(BrokenEngine):
        def loss_and_gradient(self, params, X, *, sample_weight=None):
            self.arguments = params, X, sample_weight
            return super().loss_and_gradient(params, X, sample_weight=sample_weight)

    engine = Recorder(lambda *arrays: None)
    check_gradients(params, X, engine=engine, sample_weight=w)
    assert engine.arguments[0] is params
    assert engine.arguments[1] is X
    assert engine.arguments[2] is w


def test_errors_name_the_argument():
    params, X = random_problem((5, 3, 5, 5))

    def damage(params, X, t, d):
        d["db2"] = d["db2"][:, np.newaxis]

    with pytest.raises(ValueError, match="step must be positive and finite, got 0"):
        check_gradients(params, X, step=0)
    with pytest.raises(TypeError, match="step must be a number, got 'a'"):
        check_gradients(params, X, step="a")
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        check_gradients(params, X, n_samples=0)
    for n_samples in (2.5, True):
        with pytest.raises(TypeError, match=f"n_samples must be an integer, got {n_samples}"):
            check_gradients(params, X, n_samples=n_samples)
    with pytest.raises(TypeError, match=r"seed must be an integer or a Generator, got -3.7"):
        check_gradients(params, X, seed=-3.7)
    with pytest.raises(ValueError, match="x has 4 features, but W1 takes 5"):
        check_gradients(params, X[:, :4])
    with pytest.raises(ValueError, match=r"gradient of b2 has shape \(5, 1\), but \(5,\) is needed"):
        check_gradients(params, X, engine=BrokenEngine(damage))
