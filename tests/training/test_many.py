"""fastae.train_many: each network as if trained alone, errors that leave all networks as they were."""

import _thread
import threading
import time

import numpy as np
import pytest
from processes import interruptible

import fastae
from fastae.engine import thread_pool
from fastae.training.many import divide

X = np.random.default_rng(0).normal(size=(230, 12)).astype(np.float32)


def networks():
    """Seven networks, two of them alike, in two dtypes."""
    codes = 3, 5, 3, 20, 1, 40, 7
    dtypes = "float32", "float32", "float32", "float64", "float32", "float32", "float64"
    return [
        fastae.Parameters.random(fastae.Network.autoencoder(12, code), seed=i, dtype=dtype)
        for i, (code, dtype) in enumerate(zip(codes, dtypes, strict=True))
    ]


def options():
    """Options that differ from network to network, one list each."""
    generator = np.random.default_rng(1)
    return {
        "optimizer": [
            fastae.Adam(learning_rate=0.01),
            fastae.SGD(learning_rate=0.1, momentum=0.5),
            fastae.AdamW(learning_rate=fastae.optimizers.cosine(0.03, 60)),
            *[None] * 4,
        ],
        "epochs": [3, 1, 9, 4, 5, 3, 2],
        "batch_size": [50, None, 32, 200, 64, 230, 1000],
        "index": [None, None, np.arange(100), None, generator.permutation(230)[:77], None, None],
        "shuffle": [True, True, True, False, True, True, True],
        "seed": [0, 1, 2, 3, 4, 5, 6],
        "scale": [None, np.full(12, 0.5), None, None, None, np.linspace(1, 2, 12), None],
        "shift": [None, None, np.ones(12), None, None, None, X.mean(0)],
        "sample_weight": [None, None, None, generator.random(230), None, None, None],
        "objective": [
            fastae.Objective(noise="mask", noise_level=0.3),
            fastae.Objective(noise="swap", noise_level=0.2),
            fastae.Objective(alpha=0.01),
            fastae.Objective(noise="gaussian", noise_level=0.3),
            *[fastae.Objective()] * 3,
        ],
    }


def trained_alone(number):
    params = networks()[number]
    own = {name: values[number] for name, values in options().items()}
    history = fastae.train(params, X, engine=fastae.Engine(params.network, dtype=params.dtype), **own)
    return params.flat, history


@pytest.fixture(scope="module")
def alone():
    return [trained_alone(i) for i in range(7)]


@pytest.fixture
def five_cpus(monkeypatch):
    """Five threads, on however many CPUs."""
    monkeypatch.setattr(thread_pool, "available_cpus", lambda: 5)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [range(7), (6, 2, 0, 5, 1, 4, 3)], ids=["as listed", "another order"])
def test_each_network_has_the_bits_of_being_trained_alone(alone, five_cpus, n_threads, order):
    params = [networks()[i] for i in order]
    each = {name: [values[i] for i in order] for name, values in options().items()}
    histories = fastae.train_many(params, X, n_threads=n_threads, **each)
    for i, network, history in zip(order, params, histories, strict=True):
        flat, expected = alone[i]
        assert (network.flat == flat).all(), f"network {i}"
        assert history.loss == expected.loss
        assert history.learning_rate == expected.learning_rate
        assert history.rows == expected.rows
        assert (history.state.steps, history.state.epochs) == (expected.state.steps, expected.state.epochs)
        assert (history.state.moments == expected.state.moments).all()


def test_one_value_is_for_all_networks():
    params, alone = networks()[:3], networks()[:3]
    common = {
        "epochs": np.array(3),
        "batch_size": 50,
        "seed": 7,
        "index": np.arange(0, 230, 2),
        "shift": X.mean(0),
    }
    histories = fastae.train_many(params, X, optimizer=fastae.Adam(learning_rate=0.02), **common)
    for network, single, history in zip(params, alone, histories, strict=True):
        expected = fastae.train(
            single, X, optimizer=fastae.Adam(learning_rate=0.02), **common | {"epochs": 3}
        )
        assert (network.flat == single.flat).all()
        assert history.loss == expected.loss


def test_training_continues_from_states():
    params, whole = networks()[:3], networks()[:3]
    first = fastae.train_many(params, X, epochs=2)
    fastae.train_many(params, X, epochs=3, state=[history.state for history in first])
    fastae.train_many(whole, X, epochs=5)
    assert all((a.flat == b.flat).all() for a, b in zip(params, whole, strict=True))


def test_patience_stops_each_network_by_itself():
    params = networks()[:2]
    histories = fastae.train_many(params, X, epochs=[500, 4], patience=[2, None], tol=10.0)
    assert [history.stop_reason for history in histories] == ["tol", "epochs"]
    assert len(histories[0].loss) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": [1, 0, 1]}, r"network 1: epochs must be at least 1, got 0"),
        ({"epochs": [1, 1]}, r"epochs has 2 values, but params are of 3 networks"),
        ({"batch_size": [None, None, -1]}, r"network 2: batch_size must be at least 1"),
        ({"seed": [0, -1, 0]}, r"network 1: seed must be at least 0"),
        ({"patience": [None, 1, 0]}, r"network 2: patience must be at least 1, got 0"),
        ({"tol": [0, "x", 0]}, r"network 1: tol must be a number, got 'x'"),
        ({"tol": [0, 0, -1.0]}, r"network 2: tol must be finite and not negative, got -1.0"),
        ({"validate": [None, 3, None]}, r"network 1: validate must be callable or None, got 3"),
        ({"shuffle": [True, True, "no"]}, r"network 2: shuffle must be True or False, got 'no'"),
        ({"adaptive": [True, 2, True]}, r"network 1: adaptive must be True or False, got 2"),
        ({"optimizer": [None, 0.1, None]}, r"network 1: optimizer must be an Optimizer"),
        ({"objective": "mask"}, r"network 0: objective must be an Objective"),
        ({"index": [None, [0, 230], None]}, r"network 1: index must lie within 0 .. 229, got 0 .. 230"),
        ({"shift": [None, None, np.zeros(3)]}, r"network 2: shift has shape \(3,\), but \(12,\) is needed"),
        ({"scale": np.full(12, np.nan)}, r"network 0: scale must be finite"),
        ({"sample_weight": [None, -np.ones(230), None]}, r"network 1: sample_weight must be finite and not"),
        ({"n_threads": 0}, r"n_threads must be at least 1"),
        ({"on_divergence": "stop"}, r'on_divergence must be "raise" or "keep"'),
        (
            {"seed": [np.random.default_rng(0)] * 2 + [1]},
            r"network 0: .*|network 1: seed is the generator of",
        ),
        ({"seed": np.random.default_rng(0)}, r"network 1: seed is the generator of network 0 too"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_an_error_names_the_argument_and_the_network_and_changes_nothing(wrong, message):
    params, before = networks()[:3], networks()[:3]
    with pytest.raises((TypeError, ValueError), match=message):
        fastae.train_many(params, X, **wrong)
    assert all((a.flat == b.flat).all() for a, b in zip(params, before, strict=True))


def test_wrong_networks_are_refused():
    params = networks()
    with pytest.raises(TypeError, match="params must be a list of Parameters"):
        fastae.train_many(params[0], X)
    with pytest.raises(ValueError, match="params is empty"):
        fastae.train_many([], X)
    with pytest.raises(TypeError, match="network 1: params must be Parameters, got str"):
        fastae.train_many([params[0], "x"], X)
    with pytest.raises(ValueError, match="network 2: params must not be those of network 0 too"):
        fastae.train_many([params[0], params[1], params[0]], X)
    other = fastae.Parameters.random(fastae.Network.autoencoder(11, 3))
    with pytest.raises(
        ValueError, match="network 1: params take 11 features, but those of network 0 take 12"
    ):
        fastae.train_many([params[0], other], X)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_divergence_leaves_all_networks_and_states_as_they_were(five_cpus, n_threads):
    params, before = networks()[:3], networks()[:3]
    states = [fastae.optimizers.State.zeros(network) for network in params]
    generator = np.random.default_rng(5)
    drawn = generator.bit_generator.state
    optimizer = [fastae.Adam(), fastae.SGD(learning_rate=1e30), fastae.Adam()]
    with pytest.raises(fastae.DivergenceError, match=r"^network 1: the loss was not finite") as caught:
        fastae.train_many(
            params, X, optimizer=optimizer, state=states, seed=[generator, 1, 2], n_threads=n_threads
        )
    assert "the last finite loss" not in str(caught.value)
    assert all((a.flat == b.flat).all() for a, b in zip(params, before, strict=True))
    assert all(state.steps == state.epochs == 0 and not state.moments.any() for state in states)
    assert generator.bit_generator.state == drawn


class InterruptedState(fastae.optimizers.State):
    """A state that Ctrl-C interrupts the first time that its number of epochs is set back to 0."""

    def __setattr__(self, name, value):
        if name == "epochs" and value == 0 and getattr(self, "epochs", 0) > 0 and not hasattr(self, "done"):
            self.done = True
            raise KeyboardInterrupt
        super().__setattr__(name, value)


def test_ctrl_c_while_networks_are_restored_does_not_leave_some_as_they_are():
    params, before = networks()[:3], networks()[:3]
    states = [InterruptedState(0, np.zeros((2, network.flat.size), network.dtype)) for network in params]
    optimizer = [fastae.Adam(), fastae.Adam(), fastae.SGD(learning_rate=1e30)]
    with pytest.raises((fastae.DivergenceError, KeyboardInterrupt)):
        fastae.train_many(params, X, optimizer=optimizer, state=states, epochs=[20, 19, 3], n_threads=1)
    assert any(hasattr(state, "done") for state in states)
    assert all((a.flat == b.flat).all() for a, b in zip(params, before, strict=True))
    assert all(state.steps == state.epochs == 0 and not state.moments.any() for state in states)


def test_a_network_that_diverges_can_be_kept_out_of_the_comparison():
    params, alone = networks()[:3], networks()[:3]
    optimizer = [fastae.Adam(), fastae.SGD(learning_rate=1e30), fastae.Adam(learning_rate=0.1)]
    histories = fastae.train_many(params, X, optimizer=optimizer, epochs=4, on_divergence="keep")
    assert [history.stop_reason for history in histories] == ["epochs", "divergence", "epochs"]
    assert histories[1].loss[-1] == np.inf
    assert np.isfinite(params[1].flat).all()
    fastae.train(alone[2], X, optimizer=optimizer[2], epochs=4)
    assert (params[2].flat == alone[2].flat).all()


@pytest.mark.parametrize("wide", [False, True])
def test_ctrl_c_stops_all_threads_soon_and_leaves_all_networks_as_they_were(five_cpus, wide):
    rows = np.random.default_rng(0).normal(size=(20000, 12)).astype(np.float32)
    network = (
        fastae.Network((12, 300, 300, 12), ("sigmoid", "sigmoid", "identity"))
        if wide
        else fastae.Network.autoencoder(12, 8)
    )
    params = [fastae.Parameters.random(network, seed=i) for i in range(4)]
    before = [each.copy() for each in params]
    options = {"batch_size": 200, "n_threads": 3}
    fastae.train_many(
        [each.copy() for each in params], rows, epochs=1, **options
    )  # compiled, the shuffling too
    at_once, began, over = (1 if wide else 3), [], threading.Event()

    def interrupt():
        """Ctrl-C once as many networks as are trained at once have changed."""
        while not over.wait(0.01):
            if sum((a.flat != b.flat).any() for a, b in zip(params, before, strict=True)) >= at_once:
                began.append(time.perf_counter())
                _thread.interrupt_main()
                return

    thread = threading.Thread(target=interrupt)
    with interruptible():
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                fastae.train_many(params, rows, epochs=100_000, **options)
            assert time.perf_counter() - began[0] < 10  # a small part of the days that training would take
        finally:
            over.set()
    thread.join()
    assert all((a.flat == b.flat).all() for a, b in zip(params, before, strict=True))
    after = [each.flat.copy() for each in params]
    time.sleep(0.2)
    assert all((a.flat == b).all() for a, b in zip(params, after, strict=True))  # and no thread goes on


class Work:
    """As much of a network to be trained as ``divide`` looks at."""

    def __init__(self, size, work, flops=1e9):
        self.size, self.work, self.flops = size, work, flops


def test_wide_networks_have_all_threads_and_the_others_one_each_most_work_first():
    works = [Work(100, 1), Work(1_000_000, 5), Work(100, 3), Work(100, 2), Work(1_000_000, 6), Work(100, 4)]
    assert divide(works, 2) == [([4, 1], 1, 2), ([5, 2, 3, 0], 2, 1)]


def test_the_last_networks_share_the_threads_that_are_left():
    assert divide([Work(100, 1)] * 5, 2) == [([0, 1, 2, 3], 2, 1), ([4], 1, 2)]
    assert divide([Work(100, 1)] * 18, 16) == [(list(range(16)), 16, 1), ([16, 17], 2, 8)]
    assert divide([Work(100, 1)] * 3, 16) == [([0, 1, 2], 3, 5)]
    assert divide([Work(100, 1)] * 25, 16) == [(list(range(25)), 16, 1)]  # nine networks on sixteen threads


def test_the_last_networks_do_not_wait_for_a_large_one_or_share_threads_that_gain_nothing():
    assert divide([Work(100, 9), *[Work(100, 1)] * 4], 2) == [([0, 1, 2, 3, 4], 2, 1)]
    assert divide([Work(100, 1, flops=1e6)] * 5, 2) == [([0, 1, 2, 3, 4], 2, 1)]
