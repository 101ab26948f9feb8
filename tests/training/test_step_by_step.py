"""Tied weights, and optimizers of the user's own: the steps of a NumPy loop, for arrays, files and partitions."""

import numpy as np
import pytest
from threads import pretend_cpus

import fastae
from fastae import reference
from fastae.distributed.partitions import LocalEngine
from fastae.kernels import split
from fastae.optimizers import Custom, State
from fastae.training.options import TrainingOptions

NETWORK = fastae.Network((37, 21, 5, 21, 37), ("sigmoid", "tanh", "sigmoid", "identity"))
TIED = (("W1", "W4"), ("W3", "W2"))
X = np.random.default_rng(7).random((330, 37))
OPTIMIZERS = {
    "sgd": fastae.SGD(learning_rate=0.05, momentum=0.9),
    "adamw": fastae.AdamW(weight_decay=0.1, rate_factors={"W1": 0.3, "b4": 0}),
    "clipped": fastae.Adam(clip_norm=0.05, rate_factors={"W3": 0}),
}


class Momentum(Custom):
    """Heavy ball, with what it remembers in the state; rates of its own for b1."""

    def __init__(self, learning_rate, keep=0.9):
        super().__init__(learning_rate=learning_rate)
        self.keep, self.seen = keep, []

    def update(self, params, gradient, state, rate):
        self.seen.append((state.steps, rate))
        v = state.moments[0]
        v *= self.keep
        v -= rate * gradient.flat
        params.flat += v


def start(dtype="float64"):
    return fastae.Parameters.random(NETWORK, seed=3, dtype=dtype)


def loop(params, X, optimizer, tied, epochs, batch, *, weight=None, alpha=0.0):
    """The same in NumPy, with rows in order: the parameters, and the loss of each epoch."""
    arrays, moments, losses, t = dict(params), {}, [], 0
    for first, second in tied:
        arrays[second] = arrays[first].T
    for _ in range(epochs):
        total = 0.0
        for begin in range(0, len(X), batch):
            x, w = X[begin : begin + batch], None if weight is None else weight[begin : begin + batch]
            d, size = reference.backward(x, arrays, NETWORK.activations, w), len(x) if w is None else w.sum()
            total += size * reference.cost(x, reference.forward(x, arrays, NETWORK.activations)["xhat"], w)
            for name in arrays:
                if name.startswith("W"):
                    d[f"d{name}"] = d[f"d{name}"] + alpha / size * arrays[name]
                    total += alpha / 2 * (arrays[name] ** 2).sum()
            for first, second in tied:
                d[f"d{first}"] = d[f"d{first}"] + d[f"d{second}"].T
                d[f"d{second}"] = 0 * d[f"d{second}"]
            t += 1
            arrays = reference.step(arrays, d, moments, t, optimizer)
            for first, second in tied:
                arrays[second] = arrays[first].T
        losses.append(total / (len(X) if weight is None else weight.sum()))
    return arrays, losses


def same(params, arrays, tolerance=1e-12):
    for name, array in arrays.items():
        np.testing.assert_allclose(params[name], array, rtol=0, atol=tolerance, err_msg=name)
    padding = fastae.Parameters.from_arrays(params.network, params, params.dtype)
    assert np.array_equal(padding.flat, params.flat), "padding is not zero"


@pytest.fixture(params=[True, False], ids=["by weights", "by rows"])
def cut(request, monkeypatch):
    monkeypatch.setattr(split, "WEIGHTS_MANY", 0 if request.param else 1 << 62)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("batch", [330, 100, 7])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tied_weights_take_the_steps_of_numpy(name, batch):
    params, optimizer = start(), OPTIMIZERS[name]
    epochs = 10 if batch > 7 else 2
    arrays, losses = loop(params, X, optimizer, TIED, epochs, batch, alpha=0.5)
    options = {"batch_size": batch, "shuffle": False, "objective": fastae.Objective(alpha=0.5)}
    history = fastae.train(params, X, tied=TIED, optimizer=optimizer, epochs=epochs, **options)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    same(params, arrays)
    for first, second in TIED:
        assert np.array_equal(params[first], params[second].T)
    free = start()
    fastae.train(free, X, optimizer=optimizer, epochs=epochs, **options)
    assert not np.allclose(free["W4"], params["W4"])


def test_sample_weights_of_any_size_and_batches_without_weight():
    weight = np.random.default_rng(1).random(len(X))
    weight[100:200] = 0  # the second batch has none
    options = {"tied": TIED, "shuffle": False, "batch_size": 100, "epochs": 3}
    wanted, losses = loop(start(), np.delete(X, slice(100, 200), 0), fastae.SGD(), TIED, 3, 100,
                          weight=np.delete(weight, slice(100, 200)))  # fmt: skip
    for unit in (1.0, 2.0**-40, 2.0**40):
        params = start()
        history = fastae.train(params, X, sample_weight=weight * unit, optimizer=fastae.SGD(), **options)
        np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
        same(params, wanted)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("batch", [330, 100, 7])
def test_an_optimizer_of_ones_own_takes_the_steps_of_the_same_one_in_the_kernels(batch):
    ours, theirs = start(), start()
    schedule = fastae.optimizers.cosine(0.05, 60)
    own, built_in = Momentum(schedule), fastae.SGD(learning_rate=schedule, momentum=0.9)
    options = {"epochs": 3, "batch_size": batch, "seed": 5}
    options |= {"objective": fastae.Objective(alpha=0.1, noise="gaussian", noise_level=0.2)}
    found = fastae.train(ours, X, optimizer=own, **options)
    wanted = fastae.train(theirs, X, optimizer=built_in, **options)
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-12)
    same(ours, dict(theirs))
    assert [step for step, _ in own.seen] == list(range(wanted.state.steps))
    assert [rate for _, rate in own.seen] == pytest.approx(schedule(np.arange(wanted.state.steps)))
    assert found.state.steps == wanted.state.steps
    np.testing.assert_allclose(found.state.moments, wanted.state.moments, rtol=0, atol=1e-12)


def test_targets_keep_to_their_rows():
    Y, ours, theirs = np.random.default_rng(8).random(X.shape), start(), start()
    options = {
        "Y": Y,
        "epochs": 3,
        "batch_size": 50,
        "objective": fastae.Objective(loss="huber", huber_delta=0.3),
    }
    fastae.train(ours, X, optimizer=Momentum(0.05), **options)
    fastae.train(theirs, X, optimizer=fastae.SGD(learning_rate=0.05, momentum=0.9), **options)
    same(ours, dict(theirs))


@pytest.mark.parametrize("batch", [20, 150, 1000])
@pytest.mark.parametrize("tied", [(), TIED])
@pytest.mark.parametrize("optimizer", [Momentum(0.05), fastae.AdamW(clip_norm=0.1)], ids=["own", "adamw"])
def test_rows_of_a_file_give_the_steps_of_an_array(tmp_path, optimizer, tied, batch):
    np.save(tmp_path / "x.npy", X)
    rows = fastae.open_rows(tmp_path / "x.npy", chunk_bytes=100 * X.itemsize * X.shape[1])
    assert not rows.in_memory
    options = {"optimizer": optimizer, "tied": tied, "batch_size": batch, "shuffle": False, "epochs": 2}
    streamed, whole = start(), start()
    found, wanted = fastae.train(streamed, rows, **options), fastae.train(whole, X, **options)
    if batch > 20:  # within chunks, the last batch of each may be short
        np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-12)
        same(streamed, dict(whole))
    assert found.loss[1] < found.loss[0]
    for first, second in tied:
        assert np.array_equal(streamed[first], streamed[second].T)


@pytest.mark.parametrize("optimizer", [Momentum(0.05), fastae.Adam(clip_norm=0.05, rate_factors={"W2": 0})])
def test_partitions_take_the_same_steps(optimizer):
    params, whole = start(), start()
    engine = LocalEngine(NETWORK, [X[:100], X[100:]], dtype="float64")
    options = TrainingOptions(epochs=4, shuffle=False)
    engine.train_with(params, optimizer, None, options)
    fastae.train(whole, X, optimizer=optimizer, epochs=4)
    same(params, dict(whole))


def test_many_networks_each_with_its_own_state():
    many, alone = [start(), start()], start()
    histories = fastae.train_many(many, X, optimizer=Momentum(0.05), epochs=3, batch_size=50, seed=[1, 2])
    fastae.train(alone, X, optimizer=Momentum(0.05), epochs=3, batch_size=50, seed=2)
    assert np.array_equal(many[1].flat, alone.flat)
    assert not np.array_equal(many[0].flat, alone.flat)
    assert [history.state.steps for history in histories] == [21, 21]


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(
    "optimizer", [Momentum(0.01), fastae.Adam(clip_norm=0.01, rate_factors={"b1": 0})], ids=["own", "clipped"]
)
def test_same_bits_for_any_thread_count(optimizer, monkeypatch):
    pretend_cpus(monkeypatch, 3)
    rows = np.tile(X, (8, 1)).astype("f4")
    seen = set()
    for threads in (1, 2, 3):
        params = start("float32")
        fastae.train(
            params,
            rows,
            engine=fastae.Engine(NETWORK, threads),
            optimizer=optimizer,
            tied=TIED,
            epochs=2,
            batch_size=1100,
        )
        seen.add(params.flat.tobytes())
    assert len(seen) == 1


def test_a_divergence_restores_parameters_and_state():
    params = start()
    optimizer = Momentum(lambda step: np.where(step < 5, 0.01, 1e200))
    state = State.zeros(params)
    with pytest.raises(fastae.DivergenceError, match=r"at learning rate 1e\+200"):
        fastae.train(params, X, optimizer=optimizer, epochs=20, state=state, tied=TIED)
    assert np.isfinite(params.flat).all()
    assert np.isfinite(state.moments).all()


def test_an_error_in_update_comes_through_and_whole_epochs_are_left():
    class Failing(Momentum):
        def update(self, params, gradient, state, rate):
            if state.steps == 9:
                raise RuntimeError("mine")
            super().update(params, gradient, state, rate)

    params, twin = start(), start()
    with pytest.raises(RuntimeError, match="mine"):
        fastae.train(params, X, optimizer=Failing(0.05), callback=lambda e: None, epochs=5, batch_size=100)
    fastae.train(twin, X, optimizer=Momentum(0.05), callback=lambda e: None, epochs=2, batch_size=100)
    assert np.array_equal(params.flat, twin.flat)


@pytest.mark.parametrize(
    ("tied", "error", "message"),
    [
        ("W1", TypeError, "tied must be pairs of names"),
        (("W1", "W4"), TypeError, "tied must be pairs of names, such as .* got 'W1'"),
        (((["W1"], "W4"),), ValueError, r"tied names \['W1'\], but the weights are"),
        ((("W1", "W4", "W2"),), TypeError, "tied must be pairs of names"),
        ((("W1", "b4"),), ValueError, "tied names 'b4', but the weights are W1, W2, W3, W4"),
        ((("W1", "W9"),), ValueError, "tied names 'W9'"),
        ((("W1", "W2"),), ValueError, r"tied makes W2 the transpose of W1, but their shapes are \(21, 5\)"),
        ((("W1", "W4"), ("W4", "W1")), ValueError, "tied names 'W4' twice"),
        ((("W4", "W1"),), ValueError, "rate_factors names 'W1', which is tied: give the factor of 'W4'"),
    ],
)
def test_wrong_ties_are_named_and_change_nothing(tied, error, message):
    params, before = start(), start()
    with pytest.raises(error, match=message):
        fastae.train(params, X, tied=tied, optimizer=OPTIMIZERS["adamw"])
    assert np.array_equal(params.flat, before.flat)


def test_what_an_own_optimizer_lacks_is_named():
    with pytest.raises(NotImplementedError, match="Custom must define update"):
        fastae.train(start(), X, optimizer=Custom(learning_rate=0.1), epochs=1)
    with pytest.raises(TypeError, match="optimizer must be SGD, Adam or AdamW"):  # the kernels take no other
        fastae.Engine(NETWORK, dtype="float64").run_steps(
            start(), X, gradient=start(), optimizer=Momentum(0.1), state=State.zeros(start())
        )


def test_moments_that_update_replaces_are_an_error_instead_of_lost():
    class Replacing(Custom):
        def update(self, params, gradient, state, rate):
            state.moments = 0.9 * state.moments + gradient.flat
            params.flat -= rate * state.moments[0]

    params, before = start(), start()
    with pytest.raises(
        ValueError, match=r"Replacing.update replaced state.moments, .* state.moments\[:\] = array"
    ):
        fastae.train(params, X, optimizer=Replacing(learning_rate=0.1), callback=lambda e: None)
    assert np.array_equal(params.flat, before.flat)


def test_weights_that_are_all_zero_are_refused_before_the_first_step():
    weight, params, before = np.ones(len(X)), start(), start()
    weight[:7] = 0
    for options in ({"optimizer": Momentum(0.1)}, {"tied": TIED}):
        with pytest.raises(ValueError, match="sample_weight is zero in every row"):
            fastae.train(params, X, sample_weight=weight, index=np.arange(7), batch_size=2, **options)
        assert np.array_equal(params.flat, before.flat)


def test_weights_whose_sum_is_infinite_count_as_weights_of_one():
    ours, theirs = start(), start()
    options = {"optimizer": Momentum(0.1), "epochs": 2, "batch_size": 100}
    huge = fastae.train(ours, X, sample_weight=np.full(len(X), 2.0**1020), **options)
    plain = fastae.train(theirs, X, **options)
    np.testing.assert_allclose(huge.loss, plain.loss, rtol=1e-12)
    same(ours, dict(theirs))
