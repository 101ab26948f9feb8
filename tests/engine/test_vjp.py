"""Engine.vjp: the gradient from given derivatives of the output and the code, and that of the input."""

import numpy as np
import pytest
from engines import STACKS, TOLERANCE, away_from_kinks, bits, double, problem
from guard import guard_buffers, guarded
from targets import LINEAR, OTHER_WIDTHS, SHAPES, VIEWS, S
from threads import pretend_cpus

import fastae
from fastae import reference
from fastae.kernels import forms

CASES = [(*shape[:2], shape[2]) for shape in SHAPES + OTHER_WIDTHS] + [(*stack, 70) for stack in STACKS]


def given(network, m, dtype="f8", seed=3):
    """dS/dxhat and, if the code is not the output, dS/dcode."""
    rng, k = np.random.default_rng(seed), network.code_layer
    d_xhat = rng.normal(size=(m, network.widths[-1])).astype(dtype)
    d_code = None if k == network.n_layers else rng.normal(size=(m, network.widths[k])).astype(dtype)
    return d_xhat, d_code


def assert_right(engine, parameters, X, d_xhat, d_code):
    """With and without d_code, with and without the derivatives of the input."""
    network, tolerance = engine.network, TOLERANCE[engine.dtype.name]
    for code in (None, d_code):
        d = reference.vjp(
            np.asarray(X, "f8"),
            double(parameters),
            np.asarray(d_xhat, "f8"),
            code if code is None else np.asarray(code, "f8"),
            code_layer=network.code_layer,
            activations=network.activations,
        )
        alone = engine.vjp(parameters, X, d_xhat, code)
        gradient, d_X = engine.vjp(parameters, X, d_xhat, code, with_input=True)
        assert np.array_equal(alone.flat, gradient.flat)
        assert d_X.shape == np.shape(X)
        assert d_X.dtype == engine.dtype
        for found, wanted in [(gradient[name], d[f"d{name}"]) for name in gradient] + [(d_X, d["dx"])]:
            assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
        dense = fastae.Parameters.from_arrays(network, dict(gradient), engine.dtype)
        assert np.array_equal(dense.flat, gradient.flat), "padding is not zero"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("widths", "activations", "m"), CASES)
def test_the_product_is_the_references(widths, activations, m, dtype):
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m, dtype)
    assert_right(fastae.Engine(network, 2, dtype), parameters, X, *given(network, m, dtype))


@pytest.mark.parametrize(
    ("widths", "activations", "m"), [CASES[2], CASES[5], CASES[7], OTHER_WIDTHS[4], CASES[-2]]
)
def test_the_product_matches_finite_differences(widths, activations, m):
    """S = sum sin(xhat) + sum code^3: every parameter in one direction, and every cell of the input."""
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, 5, "float64")
    rng, k, last = np.random.default_rng(0), network.code_layer, network.n_layers
    names = (f"h{k}" if k < last else "xhat"), "xhat"

    def S_of(theta, x):
        t = reference.forward(x, theta, activations)
        return np.sin(t["xhat"]).sum() + (t[names[0]] ** 3).sum()

    t = reference.forward(X, double(parameters), activations)
    d_xhat, d_code = np.cos(t["xhat"]), 3 * t[names[0]] ** 2
    if k == last:
        d_xhat, d_code = d_xhat + d_code, None
    engine = fastae.Engine(network, 2, "float64")
    gradient, d_X = engine.vjp(parameters, X, d_xhat, d_code, with_input=True)
    theta, step = double(parameters), 1e-5

    def difference(name, direction):
        moved = [
            ({**theta, name: theta[name] + s * direction}, X) if name in theta else (theta, X + s * direction)
            for s in (step, -step, 2 * step, -2 * step)
        ]
        right, left, far_right, far_left = (S_of(*each) for each in moved)
        return (8 * (right - left) - (far_right - far_left)) / (12 * step)

    for name, found in [*((name, gradient[name]) for name in gradient), ("X", d_X)]:
        for _ in range(3):
            direction = rng.normal(size=found.shape)
            wanted = difference(name, direction)
            assert np.sum(found * direction) == pytest.approx(wanted, rel=1e-7, abs=1e-7), name


@pytest.mark.parametrize("activations", [(S, S, LINEAR), (S, "tanh", S)])
@pytest.mark.parametrize("n", [30, 300])
def test_the_product_of_the_costs_own_derivative_is_its_gradient(n, activations):
    network = fastae.Network((n, 8, n, n), activations)
    parameters, X = problem(network, 400, "float64")
    engine = fastae.Engine(network, 2, "float64")
    d_xhat = (engine.reconstruct(parameters, X) - X) / len(X)
    _, gradient = engine.loss_and_gradient(parameters, X)
    found = engine.vjp(parameters, X, d_xhat)
    np.testing.assert_allclose(
        found.flat, gradient.flat, rtol=0, atol=1e-14 * np.abs(gradient.flat).max() * 400
    )


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("widths", [(30, 8, 30, 30), (30, 8, 31), (300, 40, 290)])
def test_given_derivatives_of_any_dtype_and_strides(widths, view):
    network = fastae.Network(widths, (S,) * (len(widths) - 2) + (LINEAR,))
    parameters, X = problem(network, 100)
    X, d_xhat, d_code = (VIEWS[view](each) for each in (X, *given(network, 100, "f4")))
    X = away_from_kinks(np.asarray(X, "f4"), parameters)
    assert_right(fastae.Engine(network, 2), parameters, X, d_xhat, d_code)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i1"])
@pytest.mark.parametrize(("widths", "activations", "m"), [*SHAPES[:4], SHAPES[7], *OTHER_WIDTHS])
def test_given_derivatives_are_read_up_to_guard_pages(widths, activations, m, dtype, end):
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, m)
    d_xhat, d_code = (
        None if each is None else guarded((9 * each).astype(dtype), end) for each in given(network, m)
    )
    assert_right(fastae.Engine(network, 2), parameters, guarded(X, end), d_xhat, d_code)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_same_bits_for_any_thread_count(dtype, monkeypatch):
    if not forms.forms_of(dtype):
        pytest.skip("the CPU lacks its instructions")
    pretend_cpus(monkeypatch, 5)
    for widths, activations in (
        ((30, 8, 30, 30), (S, S, LINEAR)),
        ((31, 8, 3), (S, S)),
        ((300, 40, 250), ("tanh", S)),
    ):
        network = fastae.Network(widths, activations)
        parameters, X = problem(network, 3001, "float64" if dtype == "float64" else "float32")
        found = set()
        for n_threads in range(1, 6):
            engine = fastae.Engine(network, n_threads, dtype)
            gradient, d_X = engine.vjp(parameters, X, *given(network, 3001), with_input=True)
            found.add(gradient.flat.tobytes() + d_X.tobytes())
        assert len(found) == 1


@pytest.mark.skipif(not forms.forms_of("bfloat16"), reason="the CPU lacks its instructions")
@pytest.mark.parametrize("widths", [(30, 8, 30, 30), (300, 40, 250)])
def test_bfloat16_is_near_the_reference(widths):
    """Operands are rounded to 8 bits; derivatives of the input leave the network in float32."""
    network = fastae.Network(widths, (S,) * (len(widths) - 1))
    parameters, X = problem(network, 300)
    d_xhat, d_code = given(network, 300)
    d = reference.vjp(X, parameters, d_xhat, d_code)
    gradient, d_X = fastae.Engine(network, 2, "bfloat16").vjp(parameters, X, d_xhat, d_code, with_input=True)
    for found, wanted in [(gradient[name], d[f"d{name}"]) for name in gradient] + [(d_X, d["dx"])]:
        assert np.abs(found - wanted).max() <= 0.03 * np.abs(wanted).max()
    assert len(np.unique(d_X.view("u4") & 0xFFFF)) > 100, "rounded to bfloat16"


def test_a_product_leaves_the_next_step_as_it_was():
    """Transposed weights of the first layer, and all that the job sets, are of that call alone."""
    for widths in ((30, 8, 30, 30), (300, 40, 300)):
        network = fastae.Network(widths, (S,) * (len(widths) - 2) + (LINEAR,))
        parameters, X = problem(network, 500)
        engine = fastae.Engine(network, 2)
        before = bits(engine.loss_and_gradient(parameters, X))
        engine.vjp(parameters, X, *given(network, 500), with_input=True)
        assert bits(engine.loss_and_gradient(parameters, X)) == before


def test_the_reference_catches_a_wrong_product():
    network = fastae.Network.autoencoder(30, 8)
    parameters, X = problem(network, 50)
    d_xhat, d_code = given(network, 50)

    class WithoutCode(fastae.Engine):
        def vjp(self, params, X, d_xhat, d_code=None, **options):
            return super().vjp(params, X, d_xhat, None, **options)

    with pytest.raises(AssertionError):
        assert_right(WithoutCode(network), parameters, X, d_xhat, d_code)


def test_errors_name_the_argument():
    network = fastae.Network((5, 2, 3), (S, LINEAR))
    parameters, X = problem(network, 10)
    engine, good = fastae.Engine(network), np.zeros((10, 3))
    for arguments, message in (
        ((X, np.zeros((10, 5))), "d_xhat has 5 features, but the network puts out 3"),
        ((X, np.zeros((9, 3))), "d_xhat has 9 rows, but X has 10"),
        ((X, good, np.zeros((10, 3))), "d_code has 3 features, but the code has 2"),
        ((X, good, np.zeros((11, 2))), "d_code has 11 rows, but X has 10"),
        ((X[:, :4], good), "X has 4 features, but the network takes 5"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.vjp(parameters, *arguments)
    with pytest.raises(TypeError, match="d_xhat has dtype complex128"):
        engine.vjp(parameters, X, good.astype(complex))
    with pytest.raises(TypeError, match="with_input must be True or False, got 'no'"):
        engine.vjp(parameters, X, good, with_input="no")
    encoder = fastae.Network((5, 3), (S,))
    with pytest.raises(ValueError, match=r"d_code must be None, because the network's code is its output"):
        fastae.Engine(encoder).vjp(fastae.Parameters(encoder), X, np.zeros((10, 3)), np.zeros((10, 3)))
    with pytest.raises(ValueError, match=r"dxhat has shape \(10, 5\)"):
        reference.vjp(X, parameters, X)
    with pytest.raises(ValueError, match=r"dcode has shape \(10, 3\)"):
        reference.vjp(X, parameters, good, good)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("widths", "activations", "m"),
    [*SHAPES[2:], *OTHER_WIDTHS, ((20, 5, 90, 7), ("tanh", S, LINEAR), 70), ((4, 3, 20), (S, LINEAR), 600)],
)
def test_the_memory_of_an_engine_holds_whatever_a_call_needs(widths, activations, m, dtype, monkeypatch):
    """All of it ends at guard pages: tiles of Y, of derivatives that are given, and of outputs wider than inputs."""
    if not forms.forms_of(dtype):
        pytest.skip("the CPU lacks its instructions")

    guard_buffers(monkeypatch)
    network = fastae.Network(widths, activations)
    engine = fastae.Engine(network, 2, dtype)
    parameters, X = problem(network, m, engine.dtype.name)
    engine.vjp(parameters, X, *given(network, m), with_input=True)
    Y = np.random.default_rng(0).random((m, widths[-1]))
    for loss in ("squared_error", "huber", "bernoulli"):
        if loss != "bernoulli" or activations[-1] == S:
            for noise in (None, "swap"):
                objective = fastae.Objective(loss=loss, noise=noise, missing=True)
                found, _ = engine.loss_and_gradient(parameters, X, Y=Y, objective=objective)
                assert np.isfinite(found)
