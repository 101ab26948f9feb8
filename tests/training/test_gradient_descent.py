"""Training: the steps of `reference.train`, callbacks, and what is left after a divergence or an interrupt."""

import _thread
import threading
from functools import partial

import numpy as np
import pytest
from processes import interruptible
from threads import pretend_cpus

import fastae
from fastae import reference
from fastae.distributed.partitions import LocalEngine
from fastae.optimizers import State, cosine, inverse_scaling

NETWORK = fastae.Network.autoencoder(12, 5)
X = np.random.default_rng(7).random((330, 12))

OPTIMIZERS = {
    "sgd": fastae.SGD(learning_rate=0.3),
    "momentum": fastae.SGD(learning_rate=0.05, momentum=0.9),
    "nesterov": fastae.SGD(learning_rate=0.05, momentum=0.9, nesterov=True),
    "decay": fastae.SGD(learning_rate=0.3, weight_decay=0.01),
    "schedule": fastae.SGD(learning_rate=cosine(0.3, 60, warmup=7)),
    "adam": fastae.Adam(learning_rate=0.01),
    "adam-betas": fastae.Adam(learning_rate=0.01, beta_1=0.5, beta_2=0.9, epsilon=1e-3),
    "adamw": fastae.AdamW(learning_rate=0.01, weight_decay=0.1),
    "rates": fastae.AdamW(learning_rate=0.01, rate_factors={"W1": 0.0, "b1": 0.5, "W3": 2}),
    "rates-sgd": fastae.SGD(momentum=0.9, rate_factors={"b3": 0, "W2": 0.3, "b2": 0}),
    "clipped": fastae.SGD(learning_rate=0.3, momentum=0.5, clip_norm=0.2),
    "clipped-adam": fastae.Adam(clip_norm=0.05, rate_factors={"W2": 0, "b1": 0.1}),
}


def start(dtype="float64", seed=3):
    return fastae.Parameters.random(NETWORK, seed=seed, dtype=dtype)


def same(ours, theirs, tolerance):
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("batch_size", [None, 330, 100, 7, 1000])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_the_steps_of_the_reference(name, batch_size):
    params = start()
    epochs = 20 if batch_size != 7 else 2
    expected, losses = reference.train(
        params, X, optimizer=OPTIMIZERS[name], epochs=epochs, batch_size=batch_size
    )
    history = fastae.train(params, X, optimizer=OPTIMIZERS[name], epochs=epochs, batch_size=batch_size)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    same(params, expected, 1e-12)
    assert history.rows == epochs * len(X)
    assert history.state.steps == epochs * -(-len(X) // min(batch_size or len(X), len(X)))
    assert history.stop_reason == "epochs"


@pytest.mark.parametrize("batch_size", [None, 100])
def test_the_penalty_is_that_of_the_reference(batch_size):
    params, free = start(), start()
    options = {"optimizer": fastae.Adam(), "epochs": 10, "batch_size": batch_size}
    expected, losses = reference.train(params, X, alpha=2.0, **options)
    history = fastae.train(params, X, objective=fastae.Objective(alpha=2.0), **options)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    same(params, expected, 1e-12)
    assert fastae.train(free, X, **options).loss[0] < 0.99 * losses[0]


@pytest.mark.parametrize("optimizer", [fastae.Adam, fastae.SGD])
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_frozen_parameters_and_their_moments_keep_their_bits(optimizer, clip_norm):
    factors = {"W1": 0, "b2": 0.0, "b3": 0}
    params, before = start("float32"), start("float32")
    options = {"clip_norm": clip_norm, "weight_decay": 0.1}
    first = fastae.train(params, X, optimizer=optimizer(**options), epochs=2, batch_size=100)
    before.flat[:], moments = params.flat, first.state.moments.copy()
    fastae.train(
        params,
        X,
        optimizer=optimizer(rate_factors=factors, **options),
        epochs=2,
        batch_size=100,
        state=first.state,
    )
    moved = fastae.Parameters(NETWORK)
    for name in params:
        for old, new in [(before.flat, params.flat), *zip(moments, first.state.moments, strict=True)]:
            moved.flat[:] = old != new
            if new is params.flat or (old.any() and name in factors):
                assert moved[name].any() == (name not in factors), name


def test_a_large_norm_clips_nothing_and_a_small_one_holds():
    free, loose, tight = start(), start(), start()
    options = {"epochs": 3, "batch_size": 50}
    fastae.train(free, X, optimizer=fastae.SGD(), **options)
    fastae.train(loose, X, optimizer=fastae.SGD(clip_norm=1e9), **options)
    assert np.array_equal(free.flat, loose.flat)
    fastae.train(tight, X, optimizer=fastae.SGD(clip_norm=1e-3, learning_rate=1.0), epochs=1)
    moved = np.linalg.norm(tight.flat - start().flat)
    assert moved == pytest.approx(1e-3, rel=1e-9)


def test_a_wrong_step_would_be_seen():
    params = start()
    _, losses = reference.train(params, X, optimizer=fastae.Adam(beta_2=0.998), epochs=20)
    history = fastae.train(params, X, optimizer=fastae.Adam(), epochs=20)
    assert np.abs(np.array(history.loss) / losses - 1).max() > 1e-9


def test_200_float32_steps_of_sgd_agree_with_a_float64_numpy_loop_to_1e_5():
    params, optimizer = start("float32"), fastae.SGD(learning_rate=0.5)
    exact = {name: array.astype("f8") for name, array in params.items()}
    _, losses = reference.train(exact, X, optimizer=optimizer, epochs=200)
    history = fastae.train(params, X, optimizer=optimizer, epochs=200)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-5)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 100, "shuffle": False}, {"batch_size": 7, "shuffle": False}]
)
def test_watching_changes_nothing(options):
    alone, watched = start(), start()
    seen = []
    options["objective"] = fastae.Objective(noise="gaussian", noise_level=0.1)
    plain = fastae.train(alone, X, epochs=150, **options)
    history = fastae.train(watched, X, epochs=150, callback=lambda epoch: seen.append(epoch.loss), **options)
    assert seen == history.loss == plain.loss
    assert np.array_equal(alone.flat, watched.flat)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.01, "rate_factors": {"W2": 0, "b1": 0.3}}])
@pytest.mark.parametrize("batch_size", [None, 64])
def test_same_bits_for_any_thread_count(batch_size, options, monkeypatch):
    pretend_cpus(monkeypatch, 3)
    big = np.random.default_rng(0).random((9000, 64), dtype="f4")
    network = fastae.Network.autoencoder(64, 32)
    results = []
    for threads in (1, 2, 3):
        params = fastae.Parameters.random(network)
        engine = fastae.Engine(network, n_threads=threads)
        optimizer, batch = fastae.Adam(**options), batch_size and 3000
        history = fastae.train(params, big, engine=engine, optimizer=optimizer, epochs=3, batch_size=batch)
        results.append((params.flat.copy(), history.loss))
    for flat, loss in results[1:]:
        assert np.array_equal(flat, results[0][0])
        assert loss == results[0][1]


def test_the_seed_decides_the_batches():
    def trained(seed, shuffle=True):
        params = start()
        fastae.train(params, X, epochs=2, batch_size=50, seed=seed, shuffle=shuffle)
        return params.flat

    assert np.array_equal(trained(1), trained(1))
    assert not np.array_equal(trained(1), trained(2))
    assert np.array_equal(trained(1, shuffle=False), trained(2, shuffle=False))
    assert np.array_equal(trained(np.random.default_rng(1)), trained(1))


def test_going_on_from_a_state_is_going_on():
    whole, parts = start(), start()
    optimizer = fastae.Adam(learning_rate=inverse_scaling(0.01))
    one = fastae.train(whole, X, optimizer=optimizer, epochs=30, batch_size=100, shuffle=False)
    first = fastae.train(parts, X, optimizer=optimizer, epochs=10, batch_size=100, shuffle=False)
    second = fastae.train(
        parts, X, optimizer=optimizer, epochs=20, batch_size=100, shuffle=False, state=first.state
    )
    assert np.array_equal(whole.flat, parts.flat)
    assert first.loss + second.loss == one.loss
    assert second.state is first.state
    assert second.state.steps == 120


def test_sample_weight_shift_and_scale_reach_every_batch():
    rng = np.random.default_rng(1)
    weight, shift, scale = rng.random(len(X)), rng.random(12), rng.random(12) + 0.5
    weight[::3] = 0
    ours, theirs = start(), start()
    fastae.train(
        ours, X, epochs=4, batch_size=100, shuffle=False, sample_weight=weight, shift=shift, scale=scale
    )
    arrays, moments, t = dict(theirs), {}, 0
    for _ in range(4):
        for first in range(0, len(X), 100):
            rows = slice(first, first + 100)
            d = reference.backward((X[rows] - shift) * scale, arrays, sample_weight=weight[rows])
            t += 1
            arrays = reference.step(arrays, d, moments, t, fastae.Adam())
    same(ours, arrays, 1e-12)


def test_a_batch_of_zero_weights_costs_nothing():
    weight = np.zeros(len(X))
    weight[:100] = 1
    params = start()
    history = fastae.train(
        params, X, epochs=2, batch_size=100, shuffle=False, sample_weight=weight, optimizer=fastae.SGD()
    )
    alone = start()
    expected = fastae.train(alone, X[:100], epochs=2, optimizer=fastae.SGD())
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(params.flat, alone.flat, atol=1e-14)


def test_a_callback_sees_each_epoch_and_can_stop():
    seen = []

    def callback(epoch):
        seen.append((epoch.number, epoch.epochs, epoch.loss, epoch.params))
        return epoch.number == 4

    params = start()
    history = fastae.train(params, X, epochs=9, batch_size=50, callback=callback)
    assert [number for number, *_ in seen] == [1, 2, 3, 4]
    assert all(epochs == 9 and given is params for _, epochs, _, given in seen)
    assert [loss for _, _, loss, _ in seen] == history.loss
    assert history.stop_reason == "callback"
    assert history.rows_per_second > 0


def test_learning_rates_are_told_by_epoch():
    history = fastae.train(
        start(), X, optimizer=fastae.SGD(learning_rate=inverse_scaling(0.1)), epochs=3, batch_size=100
    )
    np.testing.assert_allclose(history.learning_rate, [0.1 / (4 * i) ** 0.5 for i in (1, 2, 3)])


@pytest.mark.parametrize("batch_size", [None, 50])
def test_a_divergence_names_epoch_rate_and_remedy_and_keeps_the_last_finite_parameters(batch_size):
    params = start("float32")
    optimizer = fastae.SGD(learning_rate=3e4)
    state = State.zeros(params)
    wanted = r"not finite in epoch \d+, at learning rate 3e\+04: lower the learning rate"
    with pytest.raises(fastae.DivergenceError, match=wanted):
        fastae.train(params, X, optimizer=optimizer, epochs=200, batch_size=batch_size, state=state)
    loss, _ = fastae.Engine(NETWORK).loss_and_gradient(params, X)
    assert np.isfinite(loss)
    assert np.isfinite(params.flat).all()
    assert np.isfinite(state.moments).all()


def test_a_divergence_late_in_training_does_not_lose_what_went_before():
    params = start()
    optimizer = fastae.SGD(learning_rate=lambda step: np.where(step < 50, 0.3, 1e200))
    with pytest.raises(fastae.DivergenceError, match=r"epoch 5[0-9], at learning rate 1e.200"):
        fastae.train(params, X, optimizer=optimizer, epochs=60, callback=lambda epoch: False)
    expected = start()
    fastae.train(expected, X, optimizer=fastae.SGD(learning_rate=0.3), epochs=50)
    loss, _ = fastae.Engine(NETWORK, dtype="float64").loss_and_gradient(params, X)
    best, _ = fastae.Engine(NETWORK, dtype="float64").loss_and_gradient(expected, X)
    assert loss == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_data_is_blamed_and_nothing_changed(bad):
    holed = X.copy()
    holed[17, 3] = bad
    params = start()
    before = params.flat.copy()
    with pytest.raises(fastae.DivergenceError, match="before any step: X holds NaN or infinity"):
        fastae.train(params, holed)
    assert np.array_equal(params.flat, before)
    with pytest.raises(fastae.DivergenceError, match="X holds NaN or infinity"):
        fastae.train(params, holed, batch_size=10, seed=1)
    assert np.array_equal(params.flat, before)


def test_data_is_not_blamed_for_what_it_may_hold():
    holed = X.astype("f4")
    holed[17, 3] = np.nan
    options = {"optimizer": fastae.SGD(learning_rate=1e6), "epochs": 50}
    with pytest.raises(fastae.DivergenceError, match="lower the learning rate"):
        fastae.train(start("float32"), holed, objective=fastae.Objective(missing=True), **options)
    with pytest.raises(fastae.DivergenceError, match="lower the learning rate"):
        fastae.train(start("float32"), np.full((20, 12), 6e4, "f2"), **options)  # twice that is infinite


def test_bad_parameters_are_blamed():
    params = start()
    params["W1"] = np.full((12, 5), np.nan)
    with pytest.raises(fastae.DivergenceError, match="params hold NaN or infinity"):
        fastae.train(params, X)


@pytest.mark.parametrize("optimizer", [fastae.Adam(), fastae.Adam(clip_norm=0.01)], ids=["", "clipped"])
def test_an_interrupt_leaves_whole_epochs(optimizer):
    big = np.random.default_rng(0).random((20000, 12))
    params, twin = start(), start()
    state = State.zeros(params)
    timer = threading.Timer(0.5, _thread.interrupt_main)
    with interruptible():
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            fastae.train(params, big, optimizer=optimizer, epochs=10**6, batch_size=1000, state=state)
    timer.join()
    assert state.steps % 20 == 0
    fastae.train(twin, big, optimizer=optimizer, epochs=state.steps // 20, batch_size=1000)
    assert np.array_equal(params.flat, twin.flat)


def test_an_error_in_a_callback_comes_through_after_whole_epochs():
    params, twin = start(), start()

    def callback(epoch):
        if epoch.number == 3:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fastae.train(params, X, callback=callback)
    fastae.train(twin, X, epochs=3)
    assert np.array_equal(params.flat, twin.flat)


def test_progress_shows_the_loss_on_stderr(capsys, monkeypatch):
    def refuse(_):  # a bar needs no thread, which a limit on processes may refuse
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    fastae.train(start(), X, epochs=5, progress=True)
    shown = capsys.readouterr()
    assert "5/5" in shown.err
    assert "loss" in shown.err
    assert shown.out == ""


MOMENTS = (2, start().flat.size)

# Each is refused before anything is done, by every way to train
WRONG_OPTIONS = [
    ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ({"epochs": 1.5}, TypeError, "epochs must be an integer"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"batch_size": True}, TypeError, "batch_size must be an integer"),
    ({"patience": 0}, ValueError, "patience must be at least 1, got 0"),
    ({"patience": 1.5}, TypeError, "patience must be an integer, got 1.5"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"seed": "x"}, TypeError, "seed must be an integer or a Generator, got 'x'"),
    ({"tol": "x", "patience": 1}, TypeError, "tol must be a number, got 'x'"),
    ({"tol": np.nan}, ValueError, "tol must be finite and not negative, got nan"),
    ({"tol": np.inf}, ValueError, "tol must be finite and not negative, got inf"),
    ({"tol": -5}, ValueError, "tol must be finite and not negative, got -5"),
    ({"validate": 3}, TypeError, "validate must be callable or None, got 3"),
    ({"callback": 3}, TypeError, "callback must be callable or None, got 3"),
    ({"shuffle": "no"}, TypeError, "shuffle must be True or False, got 'no'"),
    ({"adaptive": 1}, TypeError, "adaptive must be True or False, got 1"),
    ({"progress": None}, TypeError, "progress must be True or False, got None"),
    ({"resume": "no"}, TypeError, "resume must be True or False, got 'no'"),
    ({"resume": True}, ValueError, "resume=True needs checkpoint"),
    ({"checkpoint": 5}, TypeError, "checkpoint must be a path or a Checkpoint, got 5"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": "adam"}, TypeError, "optimizer must be an Optimizer"),
        (
            {"optimizer": fastae.Adam(rate_factors={"W4": 0})},
            ValueError,
            "rate_factors names 'W4', but the parameters are W1, b1, W2, b2, W3, b3",
        ),
        ({"X": X[:, :11]}, ValueError, "X has 11 features, but the network takes 12"),
        ({"X": X[:0]}, ValueError, "X has no rows"),
        ({"X": X[0]}, ValueError, "X must be two-dimensional"),
        ({"X": 3.0}, ValueError, "X must be two-dimensional"),
        ({"X": X.astype(str)}, TypeError, "X has dtype"),
        ({"params": {}}, TypeError, "params must be Parameters"),
        ({"engine": fastae.Engine(NETWORK)}, ValueError, "params are float64"),
        ({"state": State(0, np.zeros((2, 3)))}, ValueError, "state holds moments of shape"),
        ({"state": State(0, [[0.0], [0.0]])}, TypeError, "state.moments must be an array, got list"),
        ({"state": State(-1, np.zeros(MOMENTS))}, ValueError, "state.steps must be an integer of at least 0"),
        (
            {"state": State(1.5, np.zeros(MOMENTS))},
            ValueError,
            "state.steps must be an integer of at least 0",
        ),
        ({"state": "adam"}, TypeError, "state must be a State"),
        ({"state": State(0, np.zeros(MOMENTS, order="F"))}, ValueError, "state holds moments that are"),
        ({"state": State(0, np.broadcast_to(0.0, MOMENTS))}, ValueError, "state holds moments that are"),
        ({"objective": "mask"}, TypeError, "objective must be an Objective"),
        ({"index": [[0, 1], [2, 3]], "batch_size": 2}, TypeError, "index must be a one-dimensional"),
        ({"index": [99999], "batch_size": 2}, ValueError, "index must lie within"),
        ({"sample_weight": np.ones(3)}, ValueError, "sample_weight has shape"),
        ({"optimizer": fastae.SGD(learning_rate=lambda s: -s)}, ValueError, "learning_rate gave a negative"),
        ({"optimizer": fastae.SGD(learning_rate=lambda s: 0.1)}, ValueError, "learning_rate gave"),
    ],
)
def test_wrong_arguments_are_named_and_change_nothing(arguments, error, message):
    params = start()
    before = params.flat.copy()
    with pytest.raises(error, match=message):
        fastae.train(**{"params": params, "X": X, **arguments})
    assert np.array_equal(params.flat, before)


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS)
@pytest.mark.parametrize("machine", ["array", "partitions"])
def test_wrong_options_are_named_and_change_nothing(machine, options, error, message):
    params = start()
    state = fastae.train(params, X, epochs=1).state
    before, moments, steps = params.flat.copy(), state.moments.copy(), (state.steps, state.epochs)
    engine = LocalEngine(NETWORK, [X], n_threads=1, dtype="float64")
    train = partial(fastae.train, X=X) if machine == "array" else engine.train
    with pytest.raises(error, match=message):
        train(params, state=state, **options)
    assert np.array_equal(params.flat, before)
    assert np.array_equal(state.moments, moments)
    assert (state.steps, state.epochs) == steps


def test_flags_may_be_of_numpy():
    params, ours = start(), start()
    fastae.train(params, X, epochs=2, batch_size=100, shuffle=False)
    fastae.train(
        ours, X, epochs=np.int32(2), batch_size=np.int64(100), shuffle=np.False_, adaptive=np.True_,
        progress=np.False_, resume=np.False_, tol=np.float32(0), patience=np.int8(9),
    )  # fmt: skip
    assert np.array_equal(params.flat, ours.flat)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastae.SGD(learning_rate=0), "learning_rate must be positive"),
        (lambda: fastae.SGD(learning_rate=float("inf")), "learning_rate must be positive and finite"),
        (lambda: fastae.SGD(momentum=1.0), "momentum must be in"),
        (lambda: fastae.Adam(beta_1=-0.1), "beta_1 must be in"),
        (lambda: fastae.Adam(beta_2=1), "beta_2 must be in"),
        (lambda: fastae.Adam(epsilon=0), "epsilon must be positive"),
        (lambda: fastae.AdamW(weight_decay=-1), "weight_decay must be not negative"),
        (lambda: fastae.SGD(clip_norm=0), "clip_norm must be positive and finite, got 0"),
        (lambda: fastae.SGD(clip_norm="1"), "clip_norm must be a number, got '1'"),
        (lambda: fastae.SGD(rate_factors=["W1"]), r"rate_factors must map names of parameters to factors"),
        (lambda: fastae.Adam(rate_factors={"W1": -1}), r"rate_factors\['W1'\] must be not negative"),
        (lambda: fastae.Adam(rate_factors={"W1": None}), r"rate_factors\['W1'\] must be a number"),
        (lambda: cosine(0.1, 10, warmup=10), "warmup must be less than steps"),
        (lambda: fastae.SGD(learning_rate="0.1"), "learning_rate must be a number, got '0.1'"),
        (lambda: fastae.Adam(epsilon=None), "epsilon must be a number, got None"),
        (lambda: fastae.train(start(), "a.csv"), r"pass fastae.open_rows\('a.csv'\)"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_cosine_rises_then_falls():
    rates = np.asarray(cosine(2.0, 110, warmup=10)(np.arange(120)))
    assert rates[9] == rates[10] == 2.0
    assert rates[0] == pytest.approx(0.2)
    assert rates[60] == pytest.approx(1.0)
    assert (rates[110:] == 0).all()
    assert (np.diff(rates[10:111]) < 0).all()
