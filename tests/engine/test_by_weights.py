"""Steps that are cut by weights (kernels/split.py): the same results as by rows, for any network, on any threads."""

import numpy as np
import pytest
from engines import STACKS, assert_matches_reference, bits, problem
from guard import guard_buffers
from objectives import OBJECTIVES
from threads import Helpers, pretend_cpus

import fastae
from fastae.engine import runner
from fastae.kernels import layout, split
from fastae.kernels.target import TARGET
from fastae.optimizers import State

OPTIMIZERS = [
    fastae.Adam(),
    fastae.AdamW(),
    fastae.SGD(momentum=0.9),
    fastae.SGD(momentum=0.9, nesterov=True),
    fastae.SGD(momentum=0.9, clip_norm=0.3),
    fastae.AdamW(clip_norm=0.3, rate_factors={"W2": 0, "b1": 0.5, "b3": 0}),
]
CLIPPED = fastae.Adam(clip_norm=0.05, rate_factors={"W2": 0, "b1": 0.5})
DTYPES = [
    "float32",
    "float64",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not TARGET.bfloat16, reason="no")),
]
ROWS = [1, 15, 16, 64, 65, 203]


@pytest.fixture
def cut(monkeypatch):
    """A function that has engines cut by weights, in slabs of up to 64 rows, or by rows."""

    def force(by_weights):
        monkeypatch.setattr(split, "WEIGHTS_MANY", 0 if by_weights else 1 << 62)

    monkeypatch.setattr(split, "SLAB", 64)
    # narrow networks would use rows in lanes, which are never cut by weights
    monkeypatch.setattr("fastae.kernels.forms.forms_of", only_the_first_form(monkeypatch))
    force(True)
    return force


def only_the_first_form(monkeypatch):
    from fastae.kernels import forms

    every = forms.forms_of
    return lambda dtype: every(dtype)[:1]


def take_steps(network, dtype, m, optimizer, objective, steps=5, batch=50, n_threads=2, calls=1):
    """Losses, and parameters, moments and the last gradient, after so many steps, in so many calls."""
    engine = fastae.Engine(network, n_threads, dtype)
    parameters, X = problem(network, m, engine.dtype)
    if objective.missing:
        X[::3, ::4] = np.nan
    state, gradient, losses = State.zeros(parameters), fastae.Parameters(network, engine.dtype), []
    weights = np.random.default_rng(3).random(m)
    for rates in np.array_split(np.full(steps, 0.01), calls):
        index = np.arange(m)
        if calls > 1:  # each call takes the next batch
            index = np.arange(m)[len(losses) * batch :][:batch]
        found = engine.run_steps(
            parameters,
            X,
            index=index,
            gradient=gradient,
            sample_weight=weights,
            batch_size=batch,
            optimizer=optimizer,
            state=state,
            rates=rates,
            objective=objective,
            seed=5,
        )
        losses += found.tolist()
        state = State(state.steps + len(found), state.moments)
    return np.array(losses), parameters, state.moments, gradient


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("widths", "activations"), STACKS)
def test_gradient_matches_reference(widths, activations, dtype, cut):
    network = fastae.Network(widths, activations)
    engine = fastae.Engine(network, 2, dtype)
    for m in ROWS:
        assert_matches_reference(engine, *problem(network, m, dtype))


@pytest.mark.parametrize("widths", [(300, 20, 300, 300), (40, 530, 40)], ids=str)
def test_gradient_matches_reference_where_a_layer_has_several_patches(widths, cut):
    network = fastae.Network(widths, ("sigmoid",) * (len(widths) - 2) + ("identity",))
    assert_matches_reference(fastae.Engine(network, 2), *problem(network, 150))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_steps_are_those_by_rows(optimizer, dtype, cut):
    network = fastae.Network((37, 21, 6, 37), ("sigmoid", "tanh", "identity"))
    by_weights = take_steps(network, dtype, 230, optimizer, fastae.Objective(alpha=0.5))
    cut(by_weights=False)
    by_rows = take_steps(network, dtype, 230, optimizer, fastae.Objective(alpha=0.5))
    tolerance = {"float32": 2e-5, "float64": 1e-12, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(by_weights[0], by_rows[0], rtol=tolerance)
    for found, wanted in zip(by_weights[1:], by_rows[1:], strict=True):
        found, wanted = (
            getattr(array, "flat", array) if hasattr(array, "network") else array for array in (found, wanted)
        )
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
        assert not found[(wanted == 0)].any(), "padding is not zero"


@pytest.mark.parametrize("last", ["identity", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_that_by_rows(name, dtype, last, cut):
    network = fastae.Network((37, 21, 6, 37), ("tanh", "sigmoid", last))
    if OBJECTIVES[name].sparsity_weight:
        network = fastae.Network((37, 6, 21, 37), ("sigmoid", "tanh", last))
    by_weights = take_steps(network, dtype, 203, fastae.Adam(), OBJECTIVES[name], steps=1, batch=203)
    cut(by_weights=False)
    by_rows = take_steps(network, dtype, 203, fastae.Adam(), OBJECTIVES[name], steps=1, batch=203)
    tolerance = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(by_weights[0], by_rows[0], rtol=tolerance)
    found, wanted = by_weights[3].flat, by_rows[3].flat
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("optimizer", [fastae.Adam(), CLIPPED], ids=["adam", "clipped"])
@pytest.mark.parametrize("batch", [50, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads_calls_or_pace(dtype, batch, optimizer, cut, monkeypatch):
    """A slab or several; the gradient in the thread's memory, or in that of the caller, who gets the last one."""
    pretend_cpus(monkeypatch, 5)
    helpers, network, seen = Helpers(monkeypatch), fastae.Network.autoencoder(60, 20), set()
    problem_of = network, dtype, 5 * batch, optimizer, fastae.Objective(noise="gaussian", noise_level=0.2)
    for n_threads, calls, first_call in (
        (1, 1, 2e7),
        (1, 5, 2e7),
        (2, 1, 0),
        (3, 1, 2e7),
        (5, 1, 0),
        (5, 5, 0),
    ):
        monkeypatch.setattr(runner, "FIRST_CALL", first_call)
        monkeypatch.setattr(runner, "SMALL_JOB", 0)
        before = helpers.lent
        losses, parameters, moments, gradient = take_steps(
            *problem_of, batch=batch, n_threads=n_threads, calls=calls
        )
        assert helpers.lent - before >= n_threads - 1, "not all threads took part"
        seen.add((losses.tobytes(), parameters.flat.tobytes(), moments.tobytes(), gradient.flat.tobytes()))
    assert len(seen) == 1


@pytest.mark.parametrize("optimizer", [fastae.Adam(), CLIPPED], ids=["adam", "clipped"])
def test_a_short_last_batch_has_fewer_slabs(optimizer, cut):
    """Batches of 130, 130 and 10 rows: three slabs, three, and one."""
    network = fastae.Network.autoencoder(60, 20)
    by_weights = take_steps(network, "float64", 270, optimizer, fastae.Objective(), steps=6, batch=130)
    cut(by_weights=False)
    by_rows = take_steps(network, "float64", 270, optimizer, fastae.Objective(), steps=6, batch=130)
    np.testing.assert_allclose(by_weights[0], by_rows[0], rtol=1e-12)
    np.testing.assert_allclose(by_weights[1].flat, by_rows[1].flat, rtol=0, atol=1e-12)


@pytest.mark.parametrize("end", [True, False], ids=["end", "begin"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_or_written_beyond_a_buffer(dtype, end, cut, monkeypatch):
    guard_buffers(monkeypatch, end)
    for widths in ((17, 3, 17), (16, 48, 16), (33, 64, 5, 33)):
        for last in ("identity", "sigmoid"):
            network = fastae.Network(widths, ("sigmoid",) * (len(widths) - 2) + (last,))
            engine = fastae.Engine(network, 2, dtype)
            parameters, X = problem(network, 100, engine.dtype)
            names = ["swap", "missing"] + (["all"] if widths == (17, 3, 17) else [])
            for objective in (fastae.Objective(), *(OBJECTIVES[name] for name in names)):
                for m in (1, 16, 31, 65, 100):
                    assert np.isfinite(engine.loss_and_gradient(parameters, X[:m], objective=objective)[0])
            optimizer = fastae.Adam(clip_norm=0.01, rate_factors={"W1": 0, "b2": 2})
            for by_weights in (True, False):
                cut(by_weights)
                assert np.isfinite(
                    take_steps(network, dtype, 100, optimizer, fastae.Objective(), steps=4)[0]
                ).all()
            cut(by_weights=True)


def test_a_loss_that_is_not_finite_takes_no_step(cut):
    network = fastae.Network.autoencoder(60, 20)
    engine = fastae.Engine(network, 2)
    parameters, X = problem(network, 300)
    X[250, 3] = np.inf  # in the second slab of the second batch
    state, gradient, before = State.zeros(parameters), fastae.Parameters(network), parameters.copy()
    first = engine.run_steps(
        before,
        X[:150],
        gradient=gradient,
        optimizer=fastae.Adam(),
        state=State.zeros(parameters),
        rates=[0.01],
    )
    losses = engine.run_steps(
        parameters,
        X,
        gradient=gradient,
        batch_size=150,
        optimizer=fastae.Adam(),
        state=state,
        rates=[0.01, 0.01],
    )
    assert losses[0, 0] == first[0, 0]
    assert not np.isfinite(losses[1, 0])
    np.testing.assert_array_equal(parameters.flat, before.flat)


def test_wide_networks_are_cut_by_weights_and_their_memory_does_not_grow_with_the_batch():
    network = fastae.Network.autoencoder(300, 40)
    engine = fastae.Engine(network, 2)
    parameters, X = problem(network, 5000)
    engine.loss_and_gradient(parameters, X[:2048])
    kept = engine._runner.kept.size
    assert kept > 0
    assert engine._runner._gradients.size == 0
    wanted = bits(engine.loss_and_gradient(parameters, X))
    assert engine._runner.kept.size == kept
    assert bits(fastae.Engine(network, 1).loss_and_gradient(parameters, X)) == wanted


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_allocation_that_fails_does_not_leave_buffers_that_are_too_small(failing, cut, monkeypatch):
    guard_buffers(monkeypatch)  # a write beyond a buffer crashes
    network = fastae.Network.autoencoder(60, 20)
    parameters, X = problem(network, 60)
    engine, gradient = fastae.Engine(network, 1), fastae.Parameters(network)
    engine.run_steps(parameters, X[:16], gradient=gradient)
    guarded_zeros, calls = layout.aligned_zeros, []

    def fail_once(size, dtype):
        calls.append(size)
        if len(calls) == failing:
            raise MemoryError
        return guarded_zeros(size, dtype)

    monkeypatch.setattr(layout, "aligned_zeros", fail_once)
    with pytest.raises(MemoryError):
        engine.run_steps(parameters, X, gradient=gradient)
    wanted = fastae.Parameters(network)
    losses = engine.run_steps(parameters, X, gradient=gradient)
    assert losses.tobytes() == fastae.Engine(network, 1).run_steps(parameters, X, gradient=wanted).tobytes()
    assert gradient.flat.tobytes() == wanted.flat.tobytes()
