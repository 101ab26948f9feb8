"""dtype="bfloat16": the reference with its operands rounded, and as near to float32 as that can be."""

import ctypes
import dataclasses
import os
import sys
import textwrap
import warnings

import numpy as np
import processes
import pytest
from guard import guard_buffers, guarded
from layers import blocked
from objectives import OBJECTIVES
from threads import pretend_cpus

import fastae
from fastae import reference
from fastae.kernels import forms, layout, target
from fastae.kernels.amx import AMX
from fastae.kernels.bfloat16 import BFLOAT16
from fastae.kernels.target import TARGET

needs_bfloat16 = pytest.mark.skipif(not TARGET.bfloat16, reason="needs AVX512_BF16")


needs_tiles = pytest.mark.skipif(not AMX.available, reason="the system does not grant AMX")


@pytest.fixture
def form(request, monkeypatch):
    """Has engines compute in this form of products: in that of AMX, with tile registers emulated on other CPUs."""
    every = forms.forms_of
    monkeypatch.setattr(
        forms, "forms_of", lambda dtype: [request.param] if dtype == "bfloat16" else every(dtype)
    )


def every_form(test):
    """Run a test in each form of products in bfloat16."""
    cases = (
        pytest.param(BFLOAT16, id="bfloat16", marks=needs_bfloat16),
        pytest.param(AMX, id="amx", marks=needs_tiles),
    )
    return pytest.mark.usefixtures("form")(pytest.mark.parametrize("form", cases, indirect=True)(test))


G = {
    "sigmoid": (reference.sigmoid, lambda h: h * (1 - h)),
    "tanh": (np.tanh, lambda h: 1 - h * h),
    "relu": (lambda z: np.maximum(z, 0), lambda h: (h > 0).astype(float)),
    "identity": (lambda z: z, np.ones_like),
}


def rounded(x):
    """To the nearest bfloat16, ties to even, as float64; subnormals are zero."""
    bits = np.asarray(x, "f4").view("u4")
    near = ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view("f4").astype("f8")
    return np.where(np.isfinite(x), np.where(np.abs(near) < 2.0**-126, np.copysign(0, near), near), x)


def by_hand(params, x, weight=None):
    """Loss, gradient, code and xhat in float64, every operand of every product rounded."""
    weight = np.ones(len(x)) if weight is None else weight
    activations = params.network.activations
    h, last = [np.asarray(x, "f8")], len(activations)
    for i, activation in enumerate(activations, start=1):
        h.append(G[activation][0](rounded(h[-1]) @ rounded(params[f"W{i}"]) + params[f"b{i}"].astype("f8")))
    residual = h[-1] - x
    loss = np.sum(weight[:, None] * residual**2) / (2 * weight.sum())
    delta = weight[:, None] * residual * G[activations[-1]][1](h[-1])
    gradient = {}
    for i in range(last, 0, -1):
        gradient[f"W{i}"] = rounded(h[i - 1]).T @ rounded(delta) / weight.sum()
        gradient[f"b{i}"] = delta.sum(axis=0) / weight.sum()
        if i > 1:
            slope = G[activations[i - 2]][1](rounded(h[i - 1]))
            delta = rounded(delta) @ rounded(params[f"W{i}"]).T * slope
    return loss, gradient, h[params.network.code_layer], h[-1]


def problem(network, m, seed=0):
    rng = np.random.default_rng(seed)
    params = fastae.Parameters.random(network, rng)
    for name, shape in network.shapes().items():
        if name.startswith("b"):
            params[name] = rng.normal(scale=0.3, size=shape)
    return params, rng.normal(size=(m, network.widths[0])).astype("f4")


def cosine(a, b):
    a, b = np.ravel(a).astype("f8"), np.ravel(b).astype("f8")
    return a @ b / np.sqrt((a @ a) * (b @ b))


def bits(result):
    loss, gradient = result
    return np.float64(loss).tobytes() + gradient.flat.tobytes()


def assert_by_hand(engine, params, X, **options):
    """A value near a tie may be rounded the other way: one part in 256 of one element among many."""
    loss, gradient = engine.loss_and_gradient(params, X, **options)
    wanted_loss, wanted, _, _ = by_hand(params, X, options.get("sample_weight"))
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    assert gradient.dtype == np.float32
    for name in gradient:
        error = np.linalg.norm(gradient[name] - wanted[name])
        assert error <= 5e-4 * np.linalg.norm(wanted[name]), name


SIZES = [
    (1, 1, 1),
    (1, 3, 5),
    (2, 1, 33),
    (15, 16, 17),
    (16, 16, 64),
    (17, 15, 101),
    (30, 8, 511),
    (31, 9, 513),
    (33, 47, 1025),
    (65, 80, 300),
    (130, 70, 151),
    (784, 64, 71),
]


@every_form
@pytest.mark.parametrize(("n", "k", "m"), SIZES)
def test_gradient_matches_rounded_reference_at_any_size(n, k, m):
    network = fastae.Network.autoencoder(n, k)
    assert_by_hand(fastae.Engine(network, 2, "bfloat16"), *problem(network, m))


STACKS = [
    ((20, 20), ("identity",)),
    ((20, 20), ("sigmoid",)),
    ((20, 7, 20), ("tanh", "identity")),
    ((9, 40, 9), ("sigmoid", "sigmoid")),
    ((20, 9, 9, 20), ("tanh", "tanh", "tanh")),
    ((20, 17, 5, 17, 20), ("tanh", "sigmoid", "relu", "identity")),
    ((33, 64, 16, 3, 50, 33), ("sigmoid", "relu", "identity", "tanh", "tanh")),
]


@every_form
@pytest.mark.parametrize(("widths", "activations"), STACKS)
def test_gradient_matches_rounded_reference_for_any_stack(widths, activations):
    network = fastae.Network(widths, activations)
    engine = fastae.Engine(network, 2, "bfloat16")
    params, X = problem(network, 701)
    assert_by_hand(engine, params, X)
    assert_by_hand(engine, params, X, sample_weight=np.random.default_rng(1).random(701))
    assert_by_hand(engine, params, X[:3])


@every_form
@pytest.mark.parametrize(("n", "k"), [(30, 8), (64, 32), (128, 64), (784, 64), (784, 256)])
def test_gradient_points_where_that_in_float32_does(n, k):
    network = fastae.Network.autoencoder(n, k)
    params, X = problem(network, 1000)
    loss, gradient = fastae.Engine(network, 2, "bfloat16").loss_and_gradient(params, X)
    exact_loss, exact = fastae.Engine(network, 2).loss_and_gradient(params, X)
    assert loss == pytest.approx(exact_loss, rel=1e-3)
    for name in exact:
        assert cosine(gradient[name], exact[name]) >= 0.9999, name


@every_form
@pytest.mark.parametrize("last", ["identity", "sigmoid"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_that_of_float32(name, last):
    network = fastae.Network((21, 40, 6, 21), ("tanh", "sigmoid", last))
    params, X = problem(network, 701)
    if OBJECTIVES[name].missing:
        X[np.random.default_rng(4).random(X.shape) < 0.2] = np.nan
    rng = np.random.default_rng(5)
    options = {
        "objective": OBJECTIVES[name],
        "sample_weight": rng.integers(0, 4, 701).astype(float),
        "index": rng.permutation(701)[:333],
        "shift": rng.normal(size=21),
        "scale": 1 + rng.random(21),
        "seed": 3,
    }
    loss, gradient = fastae.Engine(network, 2, "bfloat16").loss_and_gradient(params, X, **options)
    exact_loss, exact = fastae.Engine(network, 2).loss_and_gradient(params, X, **options)
    assert loss == pytest.approx(exact_loss, rel=1e-3)
    for key in exact:
        assert cosine(gradient[key], exact[key]) >= 0.9999, key
        assert np.linalg.norm(gradient[key]) == pytest.approx(np.linalg.norm(exact[key]), rel=1e-2), key


@every_form
@pytest.mark.parametrize(("n", "k", "m"), [(30, 8, 20_001), (100, 40, 3000), (64, 64, 700)])
def test_same_bits_for_any_thread_count_and_across_calls(n, k, m, monkeypatch):
    pretend_cpus(monkeypatch, 3)
    network = fastae.Network.autoencoder(n, k)
    params, X = problem(network, m)
    seen = set()
    for n_threads in (1, 2, 3):
        engine = fastae.Engine(network, n_threads, "bfloat16")
        for _ in range(2):
            seen.add(bits(engine.loss_and_gradient(params, X)))
    assert len(seen) == 1


@every_form
def test_same_bits_whatever_the_engine_did_before():
    network = fastae.Network.autoencoder(30, 8)
    engine = fastae.Engine(network, 1, "bfloat16")
    params, X = problem(network, 333)
    fresh = bits(engine.loss_and_gradient(params, X))
    wrong = params.copy()
    for name in wrong:
        wrong[name] = wrong[name] * np.nan
    engine.loss_and_gradient(wrong, np.full((400, 30), np.nan))
    engine.reconstruct(wrong, np.full((400, 30), np.nan))
    engine.decode(wrong, np.full((400, 8), np.nan))
    assert bits(engine.loss_and_gradient(params, X)) == fresh


@every_form
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(
    ("widths", "activations"),
    [
        ((1, 1), ("sigmoid",)),
        ((5, 3, 5, 5), ("sigmoid", "sigmoid", "identity")),
        ((17, 40, 6, 17), ("tanh", "sigmoid", "tanh")),
        ((9, 40, 33, 9), ("tanh", "sigmoid", "relu")),
    ],
)
def test_touches_its_own_memory_alone(widths, activations, end, monkeypatch):
    network = fastae.Network(widths, activations)
    params, X = problem(network, 401)
    sparse = {"sparsity_weight": 1.0} if network.code_layer < network.n_layers else {}
    noisy = fastae.Objective(noise="gaussian", **sparse)

    def results(engine, X):
        return [
            bits(engine.loss_and_gradient(params, X)),
            bits(engine.loss_and_gradient(params, X, objective=noisy)),
            engine.reconstruct(params, X, missing=True).tobytes(),
            engine.encode(params, X).tobytes(),
            engine.errors(params, X).tobytes(),
        ]

    wanted = results(fastae.Engine(network, 1, "bfloat16"), X)
    guard_buffers(monkeypatch, end)
    assert results(fastae.Engine(network, 1, "bfloat16"), guarded(X, end)) == wanted


@every_form
@pytest.mark.parametrize("activations", [("sigmoid", "sigmoid", "identity"), ("tanh", "relu", "sigmoid")])
def test_reconstruct_encode_decode_and_errors(activations):
    network = fastae.Network((30, 8, 40, 30), activations)
    params, X = problem(network, 701)
    engine = fastae.Engine(network, 2, "bfloat16")
    _, _, code, xhat = by_hand(params, X)
    reconstruction = engine.reconstruct(params, X)
    assert reconstruction.dtype == np.float32
    np.testing.assert_allclose(reconstruction, xhat, rtol=0, atol=2e-3)
    assert np.abs(reconstruction - xhat).mean() < 1e-5
    np.testing.assert_allclose(engine.encode(params, X), code, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        engine.decode(params, engine.encode(params, X)), reconstruction, rtol=0, atol=2e-6
    )
    errors = ((reconstruction.astype("f8") - X) ** 2).sum(axis=1)
    np.testing.assert_allclose(engine.errors(params, X), errors, rtol=1e-6)
    X[::3, 1] = np.nan
    holed = np.where(np.isnan(X), 0, engine.reconstruct(params, X, missing=True).astype("f8") - X)
    np.testing.assert_allclose(engine.errors(params, X, missing=True), (holed**2).sum(axis=1), rtol=1e-6)


@every_form
@pytest.mark.parametrize("batch_size", [None, 100])
def test_training_gets_as_far_as_in_float32(batch_size):
    network = fastae.Network.autoencoder(20, 6)
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(1500, 6)) @ rng.normal(size=(6, 20))).astype("f4")
    X /= X.std()
    losses, flats = [], []
    for dtype, n_threads in (("float32", 2), ("bfloat16", 2), ("bfloat16", 1)):
        params = fastae.Parameters.random(network)
        engine = fastae.Engine(network, n_threads, dtype)
        options = {"epochs": 100, "batch_size": batch_size, "optimizer": fastae.Adam(learning_rate=0.01)}
        losses.append(fastae.train(params, X, engine=engine, **options).loss)
        flats.append(params.flat)
    assert losses[1][-1] < 0.3 * losses[1][0]
    assert losses[1][-1] == pytest.approx(losses[0][-1], rel=0.15)
    assert losses[1] == losses[2]
    assert np.array_equal(flats[1], flats[2])


@needs_bfloat16
def test_rounds_to_nearest_even_into_both_forms():
    from fastae.kernels import bfloat16

    x = np.random.default_rng(0).normal(size=(2, 32, 16)).astype("f4")
    x[0, :4, :3] = [
        [0.0, -0.0, np.inf],
        [-np.inf, 1 + 2.0**-8, 1 + 3 * 2.0**-8],
        [3e38, -3.4e38, 1e-45],
        [1, 2, 3],
    ]
    source, target = layout.aligned_zeros(x.size, "f4"), layout.aligned_zeros(x.size, "f4")
    source[:] = x.ravel()
    by_address = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(bfloat16.to_bfloat16.address("float32"))
    by_address(target.ctypes.data, source.ctypes.data, 32, 32, 2)
    tile = target.view("u2").reshape(2, 2, -1)
    with np.errstate(over="ignore"):
        wanted = (rounded(x).astype("f4").view("u4") >> 16).astype("u2")
    wanted[0, 2, 1] = 0xFF80  # -3.4e38 is rounded to -inf
    np.testing.assert_array_equal(tile[:, 0].reshape(x.shape), wanted)
    np.testing.assert_array_equal(tile[:, 1].reshape(2, 16, 16, 2).swapaxes(2, 3).reshape(x.shape), wanted)


@needs_bfloat16
@pytest.mark.parametrize("turned", [True, False])
def test_weights_are_rounded_as_w_and_as_its_transpose(turned):
    from fastae.kernels import bfloat16

    W = np.random.default_rng(0).normal(size=(40, 20)).astype("f4")
    source = blocked(W)
    w, wt = (guarded(np.zeros(source.size // 2, "f4")) for _ in range(2))
    by_address = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(bfloat16.prepare_weights.address("float32"))
    places = w.ctypes.data, wt.ctypes.data if turned else 0, source.ctypes.data
    for first, last in ((0, 2), (2, 6)):  # three squares of 16 x 16 in each of two columns of squares
        by_address(*places, *W.shape, first, last)
    for buffer, dense in ((w, W), (wt, W.T if turned else np.zeros_like(W.T))):
        columns = -(-dense.shape[1] // 16)
        pairs = buffer.view("u2").reshape(columns, -1, 16, 2)  # (blocks, rows / 2, 16, 2)
        widened = (pairs.astype("u4") << 16).view("f4").transpose(1, 3, 0, 2).reshape(-1, columns * 16)
        padded = np.zeros_like(widened)
        padded[: dense.shape[0], : dense.shape[1]] = rounded(dense)
        np.testing.assert_array_equal(widened, padded)


def run(code, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")} | environment
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = processes.run(command, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not TARGET.x86, reason="a name of an x86 CPU")
def test_a_cpu_without_it_is_a_clear_error():
    code = """
        import fastae
        try:
            fastae.Engine(fastae.Network.autoencoder(4, 2), dtype="bfloat16")
        except RuntimeError as error:
            print(error)
    """
    assert run(code, NUMBA_CPU_NAME="haswell") == (
        "dtype bfloat16 requires a CPU with AVX512_BF16, but kernels are compiled for haswell"
    )


@needs_bfloat16
def test_a_warning_once_where_it_is_slower_than_float32(monkeypatch):
    network, this = fastae.Network.autoencoder(4, 2), dataclasses.replace(TARGET)
    for cpu in ("sapphirerapids", "cooperlake"):
        monkeypatch.setattr(target, "TARGET", dataclasses.replace(this, cpu=cpu))
        with pytest.warns(RuntimeWarning, match=f"slower than float32 on {cpu}") as caught:
            fastae.Engine(network, dtype="bfloat16")
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fastae.Engine(network, dtype="bfloat16")
            fastae.Engine(network)
            monkeypatch.setattr(target, "TARGET", dataclasses.replace(this, cpu="znver4"))
            fastae.Engine(network, dtype="bfloat16")


def test_is_not_compiled_where_not_asked_for():
    code = """
        from fastae.kernels import bfloat16, compiler, gemm
        compile, asked = compiler.ByAddress.address, []
        compiler.ByAddress.address = lambda function, dtype: asked.append(function) or compile(function, dtype)

        import numpy as np, fastae
        network = fastae.Network.autoencoder(4, 2)
        engine, params = fastae.Engine(network), fastae.Parameters.random(network)
        fastae.train(params, np.ones((9, 4), "f4"), epochs=2, engine=engine)
        engine.reconstruct(params, np.ones((9, 4), "f4"))
        for form in (gemm, bfloat16):
            print(any(function in vars(form).values() for function in asked))
    """
    assert run(code).split() == ["True", "False"]
