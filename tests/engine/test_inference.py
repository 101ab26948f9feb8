"""reconstruct, encode, decode and errors: what the reference computes, and errors of the reconstruction."""

import os

import numpy as np
import pytest
from engines import STACKS, TOLERANCE, double, problem
from guard import guard_buffers, guarded

import fastae
from fastae import reference
from fastae.kernels import forms, gemm, rowlanes

posix = pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
NARROW = [
    fastae.Network.autoencoder(10, 3),
    fastae.Network.autoencoder(30, 8),
    fastae.Network.autoencoder(1, 1),
    fastae.Network((13, 7, 2, 7, 13), ("tanh", "relu", "identity", "sigmoid")),
    fastae.Network((2, 40, 2), ("sigmoid", "identity"), 1),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", [1, 65, 3000])
@pytest.mark.parametrize(
    ("widths", "activations"), [((30, 8, 30, 30), ("sigmoid", "sigmoid", "identity")), STACKS[2], *STACKS[4:]]
)
def test_reconstruct_encode_and_decode_match_reference(widths, activations, m, dtype):
    network = fastae.Network(widths, activations)
    engine = fastae.Engine(network, 2, dtype)
    parameters, X = problem(network, m, dtype)
    wanted = reference.forward(X.astype("f8"), double(parameters), activations)
    code = engine.encode(parameters, X)
    for output, name in (
        (engine.reconstruct(parameters, X), "xhat"),
        (code, f"h{network.code_layer}"),
        (engine.decode(parameters, code), "xhat"),
    ):
        assert output.dtype == dtype
        assert output.shape == wanted[name].shape
        assert np.abs(output - wanted[name]).max() <= TOLERANCE[dtype] * np.abs(wanted[name]).max()


@pytest.mark.parametrize(("n", "k", "m"), [(30, 8, 2000), (5, 2, 3), (100, 40, 700)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_are_those_of_the_reconstruction(dtype, n, k, m):
    network = fastae.Network.autoencoder(n, k)
    engine, params = fastae.Engine(network, 2, dtype), fastae.Parameters.random(network, dtype=dtype)
    rng = np.random.default_rng(0)
    X, shift, weight = rng.random((m, n)), rng.random(n), rng.random(n)
    index = rng.permutation(m)[: m // 2 + 1]
    residual = engine.reconstruct(params, X, shift=shift).astype("f8") - (X - shift)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(
        engine.errors(params, X, shift=shift, column_weight=weight), residual**2 @ weight, rtol=tolerance
    )
    errors = engine.errors(params, X, shift=shift, index=index)
    np.testing.assert_allclose(errors, (residual**2).sum(axis=1)[index], rtol=tolerance)
    loss, _ = engine.loss_and_gradient(params, X, shift=shift)
    assert engine.errors(params, X, shift=shift).mean() / 2 == pytest.approx(loss, rel=tolerance)


def test_a_network_that_does_not_reconstruct_encodes_but_has_no_loss():
    network = fastae.Network((6, 3, 4), ("tanh", "identity"))
    engine = fastae.Engine(network, 1)
    parameters, X = problem(network, 10)
    wanted = reference.forward(X, parameters)["xhat"]
    np.testing.assert_allclose(engine.reconstruct(parameters, X), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="network puts out 4 features, but X has 6"):
        engine.loss_and_gradient(parameters, X)


def test_a_network_that_ends_in_its_code_has_nothing_to_decode_with():
    network = fastae.Network((6, 3), ("tanh",))
    with pytest.raises(ValueError, match="network has no layer above its code"):
        fastae.Engine(network, 1).decode(fastae.Parameters(network), np.zeros((2, 3)))


def results(engine, params, X, rng):
    """What inference computes from rows of X, with every option."""
    n, m = X.shape[1], len(X)
    seen = {"shift": rng.normal(size=n), "scale": rng.uniform(0.5, 2, n)}
    yield engine.reconstruct(params, X)
    yield engine.encode(params, X, **seen)
    yield engine.decode(params, engine.encode(params, X))
    yield engine.errors(params, X, column_weight=rng.random(n), **seen)
    yield engine.errors(params, X, index=rng.permutation(m)[: m // 2 + 1])
    yield engine.reconstruct(params, X, missing=True, index=rng.permutation(m))
    yield engine.errors(params, X, missing=True, **seen)


@pytest.mark.parametrize("network", NARROW, ids=lambda network: str(network.widths))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_in_lanes_have_the_same_bits_as_in_blocks(network, dtype, monkeypatch):
    """Rows of any number, dtype and stride, on either form, each against the reference."""
    engine, params = fastae.Engine(network, 2, dtype), problem(network, 1, dtype)[0]
    wanted_of = double(params)
    for m in (1, 127, 128, 1000):
        rows = np.random.default_rng(m).normal(size=(2 * m, network.widths[0] + 3))
        rows[m // 2, 0] = np.nan
        for X in (rows[:m, :-3].astype(dtype), np.asfortranarray(rows[:m, :-3]), rows[::2, 1:-2]):
            found = []
            for form in (rowlanes.ROW_LANES, gemm.COLUMN_BLOCKS):
                monkeypatch.setattr(forms, "choose_for_inference", lambda *_, form=form: form)
                found.append(list(results(engine, params, X, np.random.default_rng(1))))
            for lanes, blocks in zip(*found, strict=True):
                assert lanes.tobytes() == blocks.tobytes()
            wanted = reference.forward(X.astype(dtype).astype("f8"), wanted_of, network.activations)["xhat"]
            error = np.abs(found[0][0] - wanted)[~np.isnan(wanted)].max(initial=0.0)
            assert error <= 10 * TOLERANCE[dtype] * np.abs(wanted[~np.isnan(wanted)]).max(initial=1.0)


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("network", NARROW, ids=lambda network: str(network.widths))
def test_inference_stays_within_its_memory_in_either_form(network, dtype, end, monkeypatch):
    params = fastae.Parameters.random(network, dtype=dtype)
    guard_buffers(monkeypatch, end)
    engine = fastae.Engine(network, 2, dtype)
    for m in (1, 300, 1500):
        X = guarded(np.random.default_rng(m).normal(size=(m, network.widths[0])).astype(dtype), end)
        for form in (rowlanes.ROW_LANES, gemm.COLUMN_BLOCKS):
            monkeypatch.setattr(forms, "choose_for_inference", lambda *_, form=form: form)
            assert all(
                np.isfinite(result).all() for result in results(engine, params, X, np.random.default_rng(1))
            )


def test_where_rows_in_lanes_pay_in_inference():
    f4, f8 = np.dtype("f4"), np.dtype("f8")
    assert rowlanes.pays_in_inference((30, 8, 30, 30), 1_000_000, f4)
    assert rowlanes.pays_in_inference((10, 3), 128, f4)
    assert not rowlanes.pays_in_inference((30, 8, 30, 30), 1, f4)  # rows would be padding
    assert not rowlanes.pays_in_inference((32, 16, 32, 32), 1_000_000, f4)  # nothing is padding
    assert not rowlanes.pays_in_inference((100, 10, 100, 100), 1_000_000, f4)  # too wide
    assert not rowlanes.pays_in_inference((16, 8, 16, 16), 1_000_000, f8)  # blocks of 8: nothing is padding


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_has_the_same_bits_beside_any_others_and_on_any_threads(dtype):
    network = fastae.Network.autoencoder(30, 8)
    params, X = problem(network, 1000, dtype)
    for method in ("errors", "reconstruct", "encode"):
        one, two = (getattr(fastae.Engine(network, threads, dtype), method) for threads in (1, 2))
        together = one(params, X)
        assert together.tobytes() == two(params, X).tobytes()
        for rows in (slice(0, 1), slice(5, 135), slice(3, 900, 7)):
            assert one(params, X[rows]).tobytes() == together[rows].tobytes()


@pytest.mark.parametrize("n", [5, 30, 200])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_cells_that_are_not_finite_are_told_of(n, missing, bad):
    """Wherever they are; those beyond float32, too, since the network sees infinity."""
    network = fastae.Network.autoencoder(n, 3)
    engine, params = fastae.Engine(network, 2), fastae.Parameters.random(network)
    for m, row, column in ((1, 0, 0), (1000, 999, n - 1), (1000, 130, n // 2)):
        X, told = np.random.default_rng(0).normal(size=(m, n)), []
        options = {"missing": missing, "on_not_finite": lambda told=told: told.append(1)}
        for method in (engine.reconstruct, engine.encode, engine.errors):
            method(params, X, **options)
            assert not told
        X[row, column] = bad
        expected = [] if missing and np.isnan(bad) else [1]
        for method in (engine.reconstruct, engine.encode, engine.errors):
            method(params, X, **options)
            assert told == expected
            told.clear()
        method(params, X, index=np.delete(np.arange(m), row) if m > 1 else None, **options)
        assert told == (expected if m == 1 else [])


def test_an_error_about_cells_that_are_not_finite_leaves_the_engine_usable():
    network = fastae.Network.autoencoder(5, 2)
    engine, params = fastae.Engine(network, 1), fastae.Parameters.random(network)

    def refuse():
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        engine.errors(params, np.full((3, 5), np.nan), on_not_finite=refuse)
    assert np.isfinite(engine.errors(params, np.ones((3, 5)), on_not_finite=refuse)).all()
