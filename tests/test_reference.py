"""fastae.reference against what it must equal on paper: constants by hand, and each equation in its other forms.

Central differences, the oracle of the whole backward pass, are in test_gradient_check.py.
"""

import warnings
from itertools import pairwise
from math import log

import numpy as np
import pytest

import fastae
from fastae import reference

ACTIVATIONS = ("sigmoid", "tanh", "relu", "identity")


def random_network(widths, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    params = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        params[f"W{layer}"] = rng.normal(size=(fan_in, fan_out)).astype(dtype)
        params[f"b{layer}"] = rng.normal(size=fan_out).astype(dtype)
    return params


@pytest.fixture
def params():
    return random_network((5, 3, 5, 5))


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(7, 5))


# n = 2, k = 1, m = 2. Every pre-activation is ln 3, whose sigmoid is 3/4, or -ln 3, whose sigmoid is 1/4.
BY_HAND = {
    "W1": [[log(3)], [-log(3)]],
    "b1": [0],
    "W2": [[4 * log(3), 4 * log(3)]],
    "b2": [-2 * log(3), -2 * log(3)],
    "W3": [[2, 1], [-2, 3]],
    "b3": [1, -2],
}
X_BY_HAND = [[1, 0], [0, 1]]


def test_forward_and_cost_by_hand():
    t = reference.forward(X_BY_HAND, BY_HAND)
    expected = {
        "z1": [[log(3)], [-log(3)]],
        "h1": [[3 / 4], [1 / 4]],
        "z2": [[log(3), log(3)], [-log(3), -log(3)]],
        "h2": [[3 / 4, 3 / 4], [1 / 4, 1 / 4]],
        "z3": [[1, 1], [1, -1]],
        "xhat": [[1, 1], [1, -1]],
    }
    assert list(t) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(t[name], value, rtol=1e-14, err_msg=name)
    assert reference.cost(X_BY_HAND, t["xhat"]) == pytest.approx(3 / 2, rel=1e-14)


def test_backward_by_hand():
    d = reference.backward(X_BY_HAND, BY_HAND)
    expected = {
        "dxhat": [[0, 1 / 2], [1 / 2, -1]],
        "dz3": [[0, 1 / 2], [1 / 2, -1]],
        "dW3": [[1 / 8, 1 / 8], [1 / 8, 1 / 8]],
        "db3": [1 / 2, -1 / 2],
        "dh2": [[1 / 2, 3 / 2], [0, -4]],
        "dz2": [[3 / 32, 9 / 32], [0, -3 / 4]],
        "dW2": [[9 / 128, 3 / 128]],
        "db2": [3 / 32, -15 / 32],
        "dh1": [[3 / 2 * log(3)], [-3 * log(3)]],
        "dz1": [[9 / 32 * log(3)], [-9 / 16 * log(3)]],
        "dW1": [[9 / 32 * log(3)], [-9 / 16 * log(3)]],
        "db1": [-9 / 32 * log(3)],
    }
    assert list(d) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(d[name], value, rtol=1e-13, atol=1e-14, err_msg=name)


def test_trace_form_of_the_cost_equals_the_sum_form(params, x):
    r = reference.forward(x, params)["xhat"] - x
    assert reference.cost(x, r + x) == pytest.approx(np.trace(r.T @ r) / (2 * len(x)), rel=1e-14)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_column_of_ones_equals_a_bias_vector(params, x, layer):
    t, d = reference.forward(x, params), reference.backward(x, params)
    h = {1: x, 2: t["h1"], 3: t["h2"]}[layer]
    h_ones = np.column_stack([h, np.ones(len(x))])
    W_ones = np.vstack([params[f"W{layer}"], params[f"b{layer}"]])
    np.testing.assert_allclose(h_ones @ W_ones, t[f"z{layer}"], rtol=1e-13, atol=1e-13)

    dW_ones = h_ones.T @ d[f"dz{layer}"]
    np.testing.assert_allclose(dW_ones[:-1], d[f"dW{layer}"], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(dW_ones[-1], d[f"db{layer}"], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("layer", [1, 2])
def test_diagonal_jacobian_of_each_row_equals_the_elementwise_product(params, x, layer):
    t, d = reference.forward(x, params), reference.backward(x, params)
    for z, dh, dz in zip(t[f"z{layer}"], d[f"dh{layer}"], d[f"dz{layer}"], strict=True):
        s, n = 1e-6, len(z)
        moved = z + s * np.eye(n)  # row j: z with entry j moved
        jacobian = (reference.sigmoid(moved) - reference.sigmoid(2 * z - moved)).T / (2 * s)
        assert np.array_equal(jacobian, np.diag(np.diag(jacobian)))
        np.testing.assert_allclose(jacobian.T @ dh, dz, rtol=1e-8)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_mean_for_a_bias_gradient_is_wrong_by_the_factor_m(params, x, layer):
    d = reference.backward(x, params)
    np.testing.assert_allclose(len(x) * d[f"dz{layer}"].mean(axis=0), d[f"db{layer}"], rtol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_stays(activation, dtype):
    params, x = random_network((4, 3, 4), dtype=dtype), np.ones((5, 4), dtype)
    w = np.arange(5, dtype="float64")
    t = reference.forward(x, params, (activation,) * 2)
    d = reference.backward(x, params, (activation,) * 2, w)
    assert {a.dtype for a in (*t.values(), *d.values(), reference.cost(x, t["xhat"], w))} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "optimizer", [fastae.SGD(momentum=0.9), fastae.Adam(), fastae.AdamW(weight_decay=0.1)]
)
def test_dtype_stays_in_training(optimizer, dtype):
    """The demo and the benches of epochs time it: in float64 it would be no fair peer of float32."""
    params, x = random_network((4, 3, 4), dtype=dtype), np.ones((5, 4), dtype)
    after, _ = reference.train(params, x, optimizer=optimizer, epochs=2, batch_size=2, alpha=0.5)
    assert {array.dtype for array in after.values()} == {np.dtype(dtype)}


def test_float32_agrees_with_float64(x):
    x = x.astype("float32")
    single = reference.backward(x, random_network((5, 3, 5, 5), dtype="float32"))
    double = reference.backward(x.astype("float64"), random_network((5, 3, 5, 5)))
    for name in double:
        np.testing.assert_allclose(single[name], double[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_integer_rows_and_inputs_are_left_alone(params):
    x = np.arange(10).reshape(2, 5)
    kept = x.copy(), {name: a.copy() for name, a in params.items()}
    np.testing.assert_array_equal(
        reference.backward(x, params)["dW1"], reference.backward(x.astype("float64"), params)["dW1"]
    )
    np.testing.assert_array_equal(x, kept[0])
    for name in params:
        np.testing.assert_array_equal(params[name], kept[1][name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_neither_overflows_nor_warns(dtype):
    z = np.array([-np.inf, -1e4, -100, -1, 0, 1, 100, 1e4, np.inf, np.nan], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        h = reference.sigmoid(z)
    assert h.dtype == dtype
    np.testing.assert_array_equal(h[[0, 1, 4, 7, 8]], [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(h[2:7] + h[2:7][::-1], 1, rtol=1e-6)
    assert np.isnan(h[-1])
    np.testing.assert_allclose(h[2], np.exp(z[2]), rtol=1e-6)


def test_integer_weights_repeat_rows(params, x):
    w = np.array([1, 2, 0, 3, 1, 0, 1])
    repeated = np.repeat(x, w, axis=0)
    xhat = reference.forward(x, params)["xhat"]
    assert reference.cost(x, xhat, w) == pytest.approx(
        reference.cost(repeated, reference.forward(repeated, params)["xhat"]), rel=1e-13
    )
    weighted = reference.backward(x, params, sample_weight=w)
    plain = reference.backward(repeated, params)
    for name in params:
        np.testing.assert_allclose(weighted[f"d{name}"], plain[f"d{name}"], rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_rows_of_weight_zero_and_the_unit_of_weights_do_not_count(params, x):
    w = np.array([1.0, 0.0, 2.0, 1.0, 0.0, 3.0, 1.0])
    clean, holed = np.where(w[:, np.newaxis] > 0, x, 0), np.where(w[:, np.newaxis] > 0, x, np.nan)
    plain = reference.backward(clean, params, sample_weight=w)
    scaled = reference.backward(holed, params, sample_weight=w * 5e307)
    for name in plain:
        np.testing.assert_array_equal(scaled[name], plain[name], strict=True)
    cost = [
        reference.cost(x, reference.forward(x, params)["xhat"], weight)
        for x, weight in ((clean, w), (holed, w * 5e307))
    ]
    assert cost[0] == cost[1] > 0


def test_activations_are_the_networks_unless_given(params, x):
    class Parameters(dict):
        class network:
            activations = ("tanh", "relu", "identity")

    own = reference.forward(x, Parameters(params))
    for name, value in reference.forward(x, params, ("tanh", "relu", "identity")).items():
        np.testing.assert_array_equal(own[name], value)
    for name, value in reference.forward(x, params).items():
        named = reference.forward(x, Parameters(params), ("sigmoid", "sigmoid", "identity"))
        np.testing.assert_array_equal(named[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones(5)}, "x has 1 dimensions, but 2 are needed: rows and features"),
        ({"x": np.ones((0, 5))}, "x has 0 rows, but at least 1 is needed"),
        ({"x": np.ones((2, 4))}, "x has 4 features, but W1 takes 5"),
        ({"W1": np.ones(5)}, "W1 has 1 dimensions, but 2 are needed"),
        ({"W2": np.ones((4, 5))}, "W1 gives 3 features, but W2 takes 4"),
        ({"W3": np.ones((5, 4)), "b3": np.ones(4)}, "W3 gives 4 features, but x has 5"),
        ({"b2": np.ones((1, 5))}, r"b2 has shape \(1, 5\), but W2 wants \(5,\)"),
        ({"b2": None}, "params lacks b2"),
        ({"b4": np.ones(5)}, "params has b4, but 3 layers have W1, b1, ..., b3"),
        ({"activations": ("tanh",)}, "activations has 1 names, but params has 3 layers"),
        (
            {"activations": ("tanh", "elu", "tanh")},
            "activations has 'elu', but sigmoid, tanh, relu, identity are known",
        ),
        ({"sample_weight": np.ones(6)}, r"sample_weight has shape \(6,\), but x has 7 rows"),
        ({"sample_weight": -np.ones(7)}, "sample_weight has a negative"),
        ({"sample_weight": np.zeros(7)}, "sample_weight has .* all zero"),
        ({"sample_weight": np.full(7, np.nan)}, "sample_weight has .* not finite"),
    ],
)
def test_errors_name_the_argument(params, x, change, message):
    arguments = {"x": x, "params": params}
    for name, value in change.items():
        if name[0] in "Wb":
            params[name] = value
        else:
            arguments[name] = value
    arguments["params"] = {name: value for name, value in params.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        reference.backward(**arguments)


def test_params_without_layers_and_complex_rows_are_refused(params, x):
    with pytest.raises(ValueError, match="params lacks W1, b1"):
        reference.forward(x, {})
    with pytest.raises(TypeError, match="x has dtype complex128, but real numbers are needed"):
        reference.forward(x * 1j, params)
    with pytest.raises(ValueError, match=r"xhat has shape \(7, 4\), but x has shape \(7, 5\)"):
        reference.cost(x, x[:, :4])
