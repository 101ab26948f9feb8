"""Network and Parameters: shapes, one aligned buffer, dense arrays in and out, random starts, errors by name."""

import copy
import io
import pickle
import tracemalloc

import joblib
import numpy as np
import pytest

import fastae
from fastae.kernels import layout

SHAPES = [(1, 1), (4, 2), (17, 5), (30, 8), (64, 33)]
DTYPES = ["float32", "float64"]


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_autoencoder_has_three_layers_and_the_shapes_of_the_equations(n, k):
    network = fastae.Network.autoencoder(n, k)
    assert network.widths == (n, k, n, n)
    assert network.activations == ("sigmoid", "sigmoid", "identity")
    assert network.n_layers == 3
    assert network.shapes() == {"W1": (n, k), "b1": (k,), "W2": (k, n), "b2": (n,), "W3": (n, n), "b3": (n,)}


def test_code_layer_is_the_first_of_the_narrowest():
    assert fastae.Network.autoencoder(8, 3).code_layer == 1
    assert fastae.Network((8, 5, 2, 5, 8), ("tanh",) * 4).code_layer == 2
    assert fastae.Network((8, 3, 3, 8), ("relu",) * 3).code_layer == 1


def test_network_takes_lists_and_numpy_integers_and_compares_by_value():
    network = fastae.Network([np.int64(4), 2, 4], ["tanh", "identity"])
    assert network == fastae.Network((4, 2, 4), ("tanh", "identity"))
    assert hash(network) == hash(fastae.Network((4, 2, 4), ("tanh", "identity")))
    assert all(type(width) is int for width in network.widths)


@pytest.mark.parametrize(
    ("widths", "activations", "error", "message"),
    [
        ((4, 2.0, 4), ("tanh", "tanh"), TypeError, r"widths\[1\] must be an integer, got 2.0"),
        ((4, True, 4), ("tanh", "tanh"), TypeError, r"widths\[1\] must be an integer, got True"),
        ((4, 0, 4), ("tanh", "tanh"), ValueError, r"widths\[1\] must be at least 1, got 0"),
        ((4,), (), ValueError, r"widths must name the input and at least one layer, got \(4,\)"),
        ((4, 4), ("softmax",), ValueError, "activations must be among sigmoid, .*, got 'softmax'"),
        ((4, 4), ("tanh", "tanh"), ValueError, "activations has 2 names, but widths make 1 layers"),
    ],
)
def test_network_errors_name_the_argument(widths, activations, error, message):
    with pytest.raises(error, match=message):
        fastae.Network(widths, activations)


@pytest.mark.parametrize("code_layer", [1.5, True, "1"])
def test_the_code_layer_is_a_number_of_a_layer(code_layer):
    with pytest.raises(TypeError, match="code_layer must be an integer"):
        fastae.Network((4, 2, 4), ("tanh", "tanh"), code_layer)
    with pytest.raises(ValueError, match=r"code_layer must be within 1 \.\. 2, got 3"):
        fastae.Network((4, 2, 4), ("tanh", "tanh"), 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_dense_arrays_go_in_and_come_out_by_name(n, k, dtype):
    network = fastae.Network.autoencoder(n, k)
    parameters = fastae.Parameters(network, dtype)
    rng = np.random.default_rng(0)
    dense = {name: rng.normal(size=shape).astype(dtype) for name, shape in network.shapes().items()}
    for name, array in dense.items():
        parameters[name] = array
    assert list(parameters) == ["W1", "b1", "W2", "b2", "W3", "b3"]
    assert len(parameters) == 6
    for name, array in dense.items():
        assert parameters[name].dtype == dtype
        assert parameters[name].flags.c_contiguous
        np.testing.assert_array_equal(parameters[name], array)


def test_what_comes_out_is_a_copy():
    parameters = fastae.Parameters.random(fastae.Network.autoencoder(5, 2))
    before = parameters.flat.copy()
    for name in parameters:
        parameters[name][...] = 7
    np.testing.assert_array_equal(parameters.flat, before)


def test_any_strides_and_real_dtypes_go_in():
    parameters = fastae.Parameters(fastae.Network((20, 3), ("identity",)))
    wanted = np.arange(60).reshape(20, 3)
    for given in (
        wanted,
        np.asfortranarray(wanted),
        wanted[::-1][::-1],
        wanted.astype("f8"),
        wanted.tolist(),
    ):
        parameters["W1"] = 0 * wanted
        parameters["W1"] = given
        np.testing.assert_array_equal(parameters["W1"], wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_flat_buffer_starts_on_a_cache_line(dtype):
    for n, k in SHAPES:
        flat = fastae.Parameters(fastae.Network.autoencoder(n, k), dtype).flat
        assert flat.ctypes.data % 64 == 0
        assert flat.flags.c_contiguous
        assert flat.ndim == 1
        assert flat.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_zero(dtype):
    parameters = fastae.Parameters.random(fastae.Network.autoencoder(17, 5), dtype=dtype)
    for name in parameters:
        parameters[name] = np.ones_like(parameters[name])
    assert parameters.flat.sum() == sum(np.prod(shape) for shape in parameters.network.shapes().values())


def test_copy_has_a_buffer_of_its_own():
    parameters = fastae.Parameters.random(fastae.Network.autoencoder(5, 2), dtype="float64")
    copy = parameters.copy()
    np.testing.assert_array_equal(copy.flat, parameters.flat)
    assert (copy.dtype, copy.network) == (parameters.dtype, parameters.network)
    assert copy.flat.ctypes.data % 64 == 0
    copy["b1"] = np.ones(2)
    assert not parameters["b1"].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_weights_fill_the_glorot_bounds_with_both_signs_and_biases_are_zero(dtype):
    parameters = fastae.Parameters.random(fastae.Network.autoencoder(64, 32), seed=3, dtype=dtype)
    for name, shape in parameters.network.shapes().items():
        value = parameters[name]
        if name.startswith("b"):
            assert not value.any()
            continue
        bound = np.sqrt(6 / sum(shape))
        assert np.abs(value).max() <= bound * (1 + 1e-6)
        assert value.max() > 0.98 * bound
        assert value.min() < -0.98 * bound
        assert abs(value.mean()) < 5 * bound / np.sqrt(3 * value.size)
        assert value.var() == pytest.approx(bound**2 / 3, rel=0.1)


def test_seed_decides_the_weights():
    network = fastae.Network.autoencoder(9, 4)

    def flat(seed, dtype="float32"):
        return fastae.Parameters.random(network, seed, dtype).flat

    np.testing.assert_array_equal(flat(1), flat(1))
    np.testing.assert_array_equal(flat(1), flat(np.random.default_rng(1)))
    assert (flat(1) != flat(2)).any()
    single, double = (fastae.Parameters.random(network, 1, dtype) for dtype in DTYPES)
    for name in single:
        np.testing.assert_array_equal(single[name], double[name].astype("f4"))


def test_from_arrays_takes_every_name():
    network = fastae.Network.autoencoder(6, 2)
    arrays = dict(fastae.Parameters.random(network))
    np.testing.assert_array_equal(
        fastae.Parameters.from_arrays(network, arrays).flat, fastae.Parameters.random(network).flat
    )
    del arrays["b2"], arrays["W3"]
    with pytest.raises(ValueError, match="arrays lacks b2, W3"):
        fastae.Parameters.from_arrays(network, arrays)


def test_parameters_errors_name_the_array():
    parameters = fastae.Parameters(fastae.Network.autoencoder(4, 2))
    with pytest.raises(
        KeyError, match="'W4' is no parameter of this network; they are W1, b1, W2, b2, W3, b3"
    ):
        parameters["W4"]
    with pytest.raises(KeyError, match="'x' is no parameter"):
        parameters["x"] = np.zeros(4)
    with pytest.raises(ValueError, match=r"W1 has shape \(2, 4\), but the network needs \(4, 2\)"):
        parameters["W1"] = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"b1 has shape \(1,\), but the network needs \(2,\)"):
        parameters["b1"] = np.zeros(1)
    with pytest.raises(TypeError, match="W1 has dtype complex128, but real numbers are needed"):
        parameters["W1"] = np.zeros((4, 2), complex)
    assert not parameters.flat.any()
    with pytest.raises(TypeError, match="network must be a Network, got tuple"):
        fastae.Parameters((4, 2, 4))


@pytest.mark.parametrize("dtype", ["float16", "int32", ">f4", "complex64", "nonsense", "O", None])
def test_dtype_is_float32_or_float64(dtype):
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        fastae.Parameters(fastae.Network.autoencoder(4, 2), dtype)


def test_pack_and_unpack_are_inverse_in_the_layout():
    dense = np.arange(20 * 37, dtype="f4").reshape(20, 37)
    blocked = np.zeros((layout.blocks(37, "f4"), 32, 16), "f4")
    layout.pack(dense, blocked)
    assert blocked[2, 19, 4] == dense[19, 36]
    assert blocked[1, 3, 7] == dense[3, 23]
    np.testing.assert_array_equal(layout.unpack(blocked, (20, 37)), dense)


# -- the buffer -------------------------------------------------------------------------------------------------------


def test_the_buffer_is_written_in_place_and_cannot_be_replaced():
    parameters = fastae.Parameters.random(fastae.Network.autoencoder(5, 2))
    flat, before = parameters.flat, parameters.flat.copy()
    parameters.flat *= 2
    assert parameters.flat is flat
    assert (flat == 2 * before).all()
    for other in (flat.copy(), flat.astype("f8"), flat[::2], None):
        with pytest.raises(AttributeError, match=r"flat cannot be replaced.*flat\[:\] = array"):
            parameters.flat = other
    assert parameters.flat is flat


class _Stateful:
    """Restores an object from its state, as skops does: without its constructor, with unaligned arrays."""

    @staticmethod
    def round_trip(parameters):
        state = parameters.__getstate__()
        assert "flat" not in state
        raw = {name: np.zeros(array.nbytes + 1, "u1") for name, array in state["arrays"].items()}
        for name, array in state["arrays"].items():
            unaligned = raw[name][1:].view(array.dtype).reshape(array.shape)
            unaligned[...] = array
            state["arrays"][name] = unaligned
        again = fastae.Parameters.__new__(fastae.Parameters)
        again.__setstate__(state)
        return again


def _old_skops(parameters):
    """What skops restores of a file that was written when the attributes were stored as they are."""
    state = {"network": parameters.network, "dtype": parameters.dtype, "plan": parameters.plan, "_shapes": {}}
    raw = np.zeros(parameters.flat.nbytes + 4, "u1")[4:].view(parameters.dtype)
    raw[:] = parameters.flat
    again = fastae.Parameters.__new__(fastae.Parameters)
    again.__setstate__(state | {"flat": raw})
    return again


def _by_joblib(parameters):
    file = io.BytesIO()
    joblib.dump(parameters, file)
    file.seek(0)
    return joblib.load(file)


ROUND_TRIPS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "method": fastae.Parameters.copy,
    "joblib": _by_joblib,
    "state": _Stateful.round_trip,
    "old-skops": _old_skops,
    **{
        f"pickle-{protocol}": lambda parameters, protocol=protocol: pickle.loads(
            pickle.dumps(parameters, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_copy_has_an_aligned_buffer_of_its_own(name, dtype):
    parameters = fastae.Parameters.random(fastae.Network.autoencoder(17, 5), dtype=dtype)
    again = ROUND_TRIPS[name](parameters)
    assert (again.network, again.dtype) == (parameters.network, parameters.dtype)
    assert again.flat.tobytes() == parameters.flat.tobytes()
    assert not np.shares_memory(again.flat, parameters.flat)
    assert again.flat.ctypes.data % 64 == 0
    assert again.flat.flags.writeable


def test_pickles_of_earlier_versions_load():
    parameters = fastae.Parameters.random(fastae.Network.autoencoder(3, 2))

    class Earlier:
        def __reduce__(self):
            return fastae.Parameters.from_arrays, (parameters.network, dict(parameters), parameters.dtype)

    again = pickle.loads(pickle.dumps(Earlier()))
    assert again.flat.tobytes() == parameters.flat.tobytes()


def peak_of(function):
    """What function() allocates at most, in bytes."""
    function()
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_random_weights_and_files_take_little_more_memory_than_the_weights(tmp_path):
    network = fastae.Network((1500, 1500), ("identity",))
    parameters = fastae.Parameters.random(network)
    size = parameters.flat.nbytes
    assert peak_of(lambda: fastae.Parameters.random(network)) < 1.6 * size
    assert peak_of(lambda: parameters.save(tmp_path / "a")) < 2.2 * size


def test_random_weights_are_drawn_row_by_row_whatever_their_number():
    network = fastae.Network((700, 900), ("identity",))
    bound = np.sqrt(6 / 1600)
    expected = np.random.default_rng(3).uniform(-bound, bound, (700, 900))
    np.testing.assert_array_equal(fastae.Parameters.random(network, 3, "float64")["W1"], expected)


def test_parameters_that_memory_cannot_hold_name_the_widths(monkeypatch):
    def full(*_):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(layout, "aligned_zeros", full)
    with pytest.raises(
        MemoryError, match=r"network of widths \(4, 2, 4, 4\) needs .* GiB for its parameters"
    ):
        fastae.Parameters(fastae.Network.autoencoder(4, 2))


def test_widths_and_seeds_that_no_machine_takes_are_named():
    network = fastae.Network.autoencoder(4, 2)
    params, X = fastae.Parameters.random(network), np.zeros((10, 4), "f4")
    with pytest.raises(ValueError, match=rf"widths\[1\] must be at most {2**31 - 1}, got {2**62}"):
        fastae.Network.autoencoder(4, 2**62)
    with pytest.raises(ValueError, match=f"hidden_layer_sizes must be at most {2**31 - 1}, got {2**62}"):
        fastae.Autoencoder(2**62).fit(X)
    for seed, error, message in (
        (-3.7, TypeError, "seed must be an integer or a Generator, got -3.7"),
        (-3, ValueError, "seed must be at least 0, got -3"),
        ("1", TypeError, "seed must be an integer or a Generator, got '1'"),
    ):
        with pytest.raises(error, match=message):
            fastae.Parameters.random(network, seed=seed)
        with pytest.raises(error, match=message):
            fastae.train(params, X, epochs=1, seed=seed)
    for seed, error, message in (
        (2**70, ValueError, f"seed must be at least 0 and at most {2**63 - 1}, got {2**70}"),
        (-3.7, TypeError, "seed must be an integer, got -3.7"),
    ):
        with pytest.raises(error, match=message):
            fastae.Engine(network).loss_and_gradient(params, X, seed=seed)
    fastae.train(params, X, epochs=1, seed=2**70, objective=fastae.Objective(noise="mask"))
    fastae.train(params, X, epochs=1, seed=np.random.default_rng(1))


def dense_vector(params):
    return np.concatenate([params[name].ravel() for name in params])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_dense_vector_holds_all_parameters_in_order(n, k, dtype):
    network = fastae.Network.autoencoder(n, k)
    params = fastae.Parameters.random(network, dtype=dtype)
    params["b2"] = np.arange(n) + 1
    vector = params.to_vector()
    assert vector.dtype == dtype
    np.testing.assert_array_equal(vector, dense_vector(params))
    again = fastae.Parameters.from_vector(network, vector)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again.flat, params.flat)
    assert fastae.Parameters.from_vector(network, vector.tolist()).dtype == np.float64
    assert fastae.Parameters.from_vector(network, vector.astype("i8")).dtype == np.float32
    swapped = fastae.Parameters.from_vector(network, vector.astype(">f8"))
    assert swapped.dtype == np.float64
    np.testing.assert_array_equal(swapped.to_vector(), vector)
    other = fastae.Parameters.from_vector(network, vector, "float64" if dtype == "float32" else "float32")
    assert other.dtype != dtype
    np.testing.assert_allclose(other.to_vector(), vector, rtol=1e-7)
    vector[:] = 0
    assert params["b2"].any(), "a copy"


def test_set_vector_overwrites_in_place_and_clears_padding():
    network = fastae.Network.autoencoder(17, 5)
    params, wanted = fastae.Parameters.random(network, 0), fastae.Parameters.random(network, 1)
    flat = params.flat
    flat += 1
    params.set_vector(wanted.to_vector()[::-1][::-1])
    assert params.flat is flat
    np.testing.assert_array_equal(flat, wanted.flat)
    out = np.empty(flat.size * 2)[: 2 * wanted.to_vector().size : 2]
    assert params.to_vector(out) is out
    np.testing.assert_array_equal(out, wanted.to_vector())
    full = fastae.Parameters.random(fastae.Network((16, 16, 16), ("tanh", "identity")))
    before = full.flat.copy()
    assert not full.padding.any()
    full.set_vector(full.flat[: before.size])  # of its own memory
    assert not np.array_equal(full.flat, 0 * before)


@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        (np.zeros(3), ValueError, r"vector has shape \(3,\), but the network has 17 parameters"),
        (np.zeros((17, 1)), ValueError, r"vector has shape \(17, 1\)"),
        (np.zeros(17, complex), TypeError, "vector has dtype complex128"),
        (None, ValueError, r"vector has shape \(\)"),
    ],
)
def test_a_wrong_vector_is_named_and_nothing_is_written(vector, error, message):
    params = fastae.Parameters.random(fastae.Network((2, 3, 2), ("tanh", "identity")))
    before = params.flat.copy()
    with pytest.raises(error, match=message):
        params.set_vector(vector)
    with pytest.raises(error, match=message):
        fastae.Parameters.from_vector(params.network, vector)
    np.testing.assert_array_equal(params.flat, before)


def test_a_wrong_output_for_the_vector_is_named():
    params = fastae.Parameters.random(fastae.Network((2, 3, 2), ("tanh", "identity")))
    read_only = np.zeros(17)
    read_only.flags.writeable = False
    for out, error, message in (
        (np.zeros(16), ValueError, r"out has shape \(16,\), but \(17,\) is needed"),
        (np.zeros(17, int), TypeError, "out must be an array of floats, got int64"),
        ([0.0] * 17, TypeError, "out must be an array of floats, got list"),
        (read_only, ValueError, "out is read-only"),
    ):
        with pytest.raises(error, match=message):
            params.to_vector(out)
    params.flat.flags.writeable = False
    with pytest.raises(ValueError, match="flat is read-only"):
        params.set_vector(np.zeros(17))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_padding_can_be_found_and_cleared(n, k, dtype):
    params = fastae.Parameters.random(fastae.Network.autoencoder(n, k), dtype=dtype)
    before, padding = params.flat.copy(), params.padding
    assert padding.dtype == bool
    assert padding.sum() == params.flat.size - params.to_vector().size
    params.flat[padding] = np.nan
    assert np.isfinite(params.to_vector()).all()
    params.clear_padding()
    np.testing.assert_array_equal(params.flat, before)


def test_from_arrays_refuses_a_name_that_is_unknown():
    network = fastae.Network((2, 3, 2), ("tanh", "identity"))
    arrays = dict(fastae.Parameters.random(network))
    with pytest.raises(ValueError, match="arrays has w1, but the network has W1, b1, W2, b2"):
        fastae.Parameters.from_arrays(network, arrays | {"w1": np.zeros((2, 3))})
