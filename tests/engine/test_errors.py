"""Errors name the argument, what came and what was wanted; the engine goes on afterwards."""

import copy
import os
import pickle
import sys

import numpy as np
import pytest
import scipy.sparse
from engines import assert_matches_reference, autoencoder
from numba.core.errors import TypingError
from processes import run

import fastae
from fastae.kernels import layout, step


def with_dtype(dtype):
    return lambda X: X.astype(dtype)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))]
)
def test_a_copy_is_a_new_engine_with_the_same_arguments(copied):
    engine, parameters, X = autoencoder(30, 8, 10)
    engine.reconstruct(parameters, X)
    other = copied(engine)
    assert other is not engine
    assert (other.network, other.n_threads, other.dtype) == (engine.network, engine.n_threads, engine.dtype)
    assert np.array_equal(other.reconstruct(parameters, X), engine.reconstruct(parameters, X))


@pytest.mark.parametrize("method", ["loss_and_gradient", "reconstruct", "encode", "decode"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda X: X[:, 1:], ValueError, "{name} has {fewer} features, but {taker} takes {features}"),
        (lambda X: X[0], ValueError, "{name} must be two-dimensional (rows, features), got 1 dimensions"),
        (lambda X: X[None], ValueError, "{name} must be two-dimensional (rows, features), got 3 dimensions"),
        (lambda X: X[:0], ValueError, "{name} has no rows"),
        (lambda X: np.ma.masked_less(X, 0), TypeError, "{name} is a masked array"),
        (
            with_dtype("c8"),
            TypeError,
            "{name} has dtype complex64, but floats or integers of native byte order",
        ),
        (with_dtype("O"), TypeError, "{name} has dtype object, but floats or integers of native byte order"),
        (with_dtype("U4"), TypeError, "{name} has dtype <U4, but floats or integers of native byte order"),
        (with_dtype("S4"), TypeError, "{name} has dtype |S4, but floats or integers of native byte order"),
        (with_dtype(">f4"), TypeError, "{name} has dtype >f4, but floats or integers of native byte order"),
        (with_dtype(">i2"), TypeError, "{name} has dtype >i2, but floats or integers of native byte order"),
        (with_dtype("M8[s]"), TypeError, "{name} has dtype datetime64[s], but floats or integers of native"),
    ],
)
def test_errors_name_the_argument_what_came_and_what_was_wanted(method, change, error, message):
    engine, parameters, X = autoencoder(30, 8, 10)
    name, taker = ("code", "the decoder") if method == "decode" else ("X", "the network")
    features = 8 if method == "decode" else 30
    X = np.ones((10, features), "f4")
    wanted = message.format(name=name, taker=taker, fewer=features - 1, features=features)
    with pytest.raises(error) as caught:
        getattr(engine, method)(parameters, change(X))
    assert str(caught.value).startswith(wanted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"index": [0, 10]}, ValueError, r"index must lie within 0 \.\. 9, got 0 \.\. 10"),
        ({"index": [-1, 3]}, ValueError, r"index must lie within 0 \.\. 9, got -1 \.\. 3"),
        (
            {"index": [0.0, 1.0]},
            TypeError,
            "index must be a one-dimensional array of integers, got 1-d float64",
        ),
        (
            {"index": [[0], [1]]},
            TypeError,
            "index must be a one-dimensional array of integers, got 2-d int64",
        ),
        ({"index": np.ones(10, bool)}, TypeError, "index must be .* integers, got 1-d bool"),
        ({"index": np.array([], int)}, ValueError, "index is empty"),
        ({"index": []}, ValueError, "index is empty"),
        ({"objective": "mask"}, TypeError, "objective must be an Objective, got 'mask'"),
        ({"shift": np.zeros(29)}, ValueError, r"shift has shape \(29,\), but \(30,\) is needed"),
        ({"scale": np.zeros((1, 30))}, ValueError, r"scale has shape \(1, 30\), but \(30,\) is needed"),
        (
            {"scale": np.zeros(30, complex)},
            TypeError,
            "scale has dtype complex128, but real numbers are needed",
        ),
        ({"sample_weight": np.ones(9)}, ValueError, r"sample_weight has shape \(9,\), but \(10,\) is needed"),
        ({"sample_weight": -np.ones(10)}, ValueError, "sample_weight must be finite and not negative"),
        ({"sample_weight": np.full(10, np.nan)}, ValueError, "sample_weight must be finite and not negative"),
        ({"sample_weight": np.full(10, np.inf)}, ValueError, "sample_weight must be finite and not negative"),
        ({"sample_weight": np.zeros(10)}, ValueError, "sample_weight is zero in every row"),
        ({"sample_weight": np.arange(10), "index": [0, 0]}, ValueError, "sample_weight is zero in every row"),
        (
            {"sample_weight": ["a"] * 10},
            TypeError,
            "sample_weight has dtype <U1, but real numbers are needed",
        ),
    ],
)
def test_errors_of_options_name_the_option(options, error, message):
    engine, parameters, X = autoencoder(30, 8, 10)
    with pytest.raises(error, match=message):
        engine.loss_and_gradient(parameters, X, **options)
    assert_matches_reference(engine, parameters, X)  # and the engine goes on


def test_errors_of_parameters_and_engine():
    engine, parameters, X = autoencoder(30, 8, 10)
    with pytest.raises(TypeError, match="params must be Parameters, got dict"):
        engine.loss_and_gradient(dict(parameters), X)
    with pytest.raises(ValueError, match=r"params are of .*7.*, but the engine is for .*8"):
        engine.encode(fastae.Parameters(fastae.Network.autoencoder(30, 7)), X)
    with pytest.raises(ValueError, match="params are float64, but the engine computes in float32"):
        engine.encode(fastae.Parameters(engine.network, "float64"), X)
    with pytest.raises(TypeError, match="network must be a Network, got tuple"):
        fastae.Engine((3, 2, 3))
    for wrong in (1.0, "2", True):
        with pytest.raises(TypeError, match="n_threads must be an integer or None"):
            fastae.Engine(engine.network, wrong)
    with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
        fastae.Engine(engine.network, 0)
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got 'float16'"):
        fastae.Engine(engine.network, 1, "float16")
    for method in (engine.reconstruct, engine.encode):
        with pytest.raises(
            TypeError, match=f"{method.__name__}.* unexpected keyword argument 'column_weight'"
        ):
            method(parameters, X, column_weight=np.ones(30))


class Broken:
    """A kernel that does not compile."""

    def __init__(self, kernel):
        self.function = kernel.function

    def loaded(self):
        raise TypingError("no such type")

    def __call__(self, *arguments):
        self.loaded()


@pytest.mark.parametrize(("name", "m"), [("run_alone", 10), ("run", 5000)])
def test_kernels_that_do_not_compile_are_an_error_at_once(name, m, monkeypatch):
    engine, parameters, X = autoencoder(m=m, n_threads=1)
    monkeypatch.setattr(step, name, Broken(getattr(step, name)))
    with pytest.raises(TypingError, match="no such type"):
        engine.loss_and_gradient(parameters, X)


def test_a_compiler_that_is_switched_off_is_named():
    code = "import fastae; fastae.Engine(fastae.Network.autoencoder(3, 2))"
    done = run([sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": "1"})
    assert done.returncode == 1
    assert "RuntimeError: NUMBA_DISABLE_JIT is set" in done.stderr


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (lambda flat: flat.astype("f8"), "flat has shape .* and dtype float64, but .* dtype float32"),
        (lambda flat: np.zeros(2 * flat.size, flat.dtype)[::2], "flat has shape"),
        (lambda flat: flat[:-1], "flat has shape"),
        (lambda flat: layout.aligned_zeros(flat.size + 4, flat.dtype)[4:], "does not start on a cache line"),
    ],
)
@pytest.mark.parametrize("which", ["params", "gradient"])
def test_a_buffer_that_is_not_the_parameters_own_is_refused_before_its_address_is_taken(
    buffer, message, which
):
    network = fastae.Network.autoencoder(12, 4)
    engine, X = fastae.Engine(network, 1), np.ones((3, 12))
    arguments = {name: fastae.Parameters.random(network) for name in ("params", "gradient")}
    arguments[which]._flat = buffer(arguments[which].flat)
    with pytest.raises(ValueError, match=message):
        engine.run_steps(arguments["params"], X, gradient=arguments["gradient"])
    if which == "params":
        with pytest.raises(ValueError, match=message):
            engine.encode(arguments["params"], X)


def test_a_read_only_buffer_is_read_but_not_written():
    network = fastae.Network.autoencoder(12, 4)
    params, engine, X = fastae.Parameters.random(network), fastae.Engine(network, 1), np.ones((3, 12))
    before = params.flat.copy()
    params.flat.flags.writeable = False
    engine.encode(params, X)
    engine.loss_and_gradient(params, X)
    with pytest.raises(ValueError, match=r"params\.flat is read-only"):
        fastae.train(params, X, engine=engine, epochs=1)
    assert (params.flat == before).all()


def test_missing_is_a_truth_value_and_a_sparse_matrix_is_named():
    engine, params, X = autoencoder(12, 4, 5)
    for method in (engine.reconstruct, engine.encode, engine.errors):
        with pytest.raises(TypeError, match="missing must be True or False, got 'mask'"):
            method(params, X, missing="mask")
        with pytest.raises(TypeError, match=r"X is a sparse matrix.*X\.toarray\(\)"):
            method(params, scipy.sparse.csr_array(X))


def calls_that_read(engine, params, X):
    gradient = fastae.Parameters(params.network, params.dtype)
    state = fastae.optimizers.State.zeros(params)
    return {
        "loss_and_gradient": lambda: engine.loss_and_gradient(params, X),
        "run_steps": lambda: engine.run_steps(
            params, X, gradient=gradient, optimizer=fastae.Adam(), state=state, rates=[0.1]
        ),
        "reconstruct": lambda: engine.reconstruct(params, X),
        "encode": lambda: engine.encode(params, X),
        "decode": lambda: engine.decode(params, np.zeros((3, 8), "f4")),
        "errors": lambda: engine.errors(params, X),
        "combine_sums": lambda: engine.combine_sums(params, params.flat[None], 1.0, gradient=gradient),
    }


@pytest.mark.parametrize("n", [30, 300])  # steps that are cut by rows, and by weights
def test_padding_that_is_not_zero_is_refused_and_can_be_cleared(n):
    """Noise in the whole buffer must not change the loss without notice."""
    engine, params, X = autoencoder(n, 8, 10)
    wanted, _ = engine.loss_and_gradient(params, X)
    before = params.flat.copy()
    params.flat[params.padding] = 0.3
    noisy = params.flat.copy()
    for name, call in calls_that_read(engine, params, X).items():
        with pytest.raises(ValueError, match=r"params.flat is not zero in its padding: call params.clear_p"):
            call()
        np.testing.assert_array_equal(params.flat, noisy, err_msg=name)
    params.clear_padding()
    np.testing.assert_array_equal(params.flat, before)
    assert engine.loss_and_gradient(params, X)[0] == wanted
    params.flat *= -1  # zeros with a sign are zeros
    for call in calls_that_read(engine, params, X).values():
        call()


def test_run_steps_checks_its_orders_numbers_and_gradient():
    engine, params, X = autoencoder(30, 8, 10)
    gradient = fastae.Parameters(params.network)
    orders = np.arange(10)[None]
    read_only = fastae.Parameters(params.network)
    read_only.flat.flags.writeable = False
    before = params.flat.copy()
    for options, error, message in (
        ({"orders": orders + 1}, ValueError, r"orders must lie within 0 \.\. 9, got 1 \.\. 10"),
        ({"orders": orders - 1}, ValueError, r"orders must lie within 0 \.\. 9, got -1"),
        ({"orders": orders.astype("i4")}, TypeError, "orders must be an array of int64, got int32"),
        ({"orders": [[0, 1]]}, TypeError, "orders must be an array of int64, got list"),
        ({"orders": orders[0]}, ValueError, "orders must be C-contiguous, of shape"),
        ({"orders": orders[:, ::2]}, ValueError, "orders must be C-contiguous, of shape"),
        ({"orders": orders[:0]}, ValueError, "orders must be C-contiguous, of shape"),
        ({"orders": orders, "rates": [0.0, 0.0]}, ValueError, "index orders the rows of 1 epochs"),
        ({"epoch": 1.5}, TypeError, "epoch must be an integer, got 1.5"),
        ({"epoch": -1}, ValueError, "epoch must be at least 0"),
        ({"first_row": "2"}, TypeError, "first_row must be an integer, got '2'"),
        ({"gradient": params}, ValueError, "gradient must not be params"),
        ({"gradient": read_only}, ValueError, "gradient.flat is read-only"),
        ({"gradient": gradient.flat}, TypeError, "gradient must be Parameters, got ndarray"),
    ):
        with pytest.raises(error, match=message):
            engine.run_steps(params, X, **({"gradient": gradient} | options))
    np.testing.assert_array_equal(params.flat, before)
    assert not gradient.flat.any()
