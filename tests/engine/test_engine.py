"""The engine's promises, each by name: gradients, bits, sources of rows, memory, threads, forks, Ctrl-C, errors."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numba.core.errors import TypingError

import fastae
from fastae import reference
from fastae.objective import Objective
from fastae.optimizers import State

HOME = Path(fastae.__file__).parents[1]  # where a child Python finds fastae, installed or not
TOLERANCE = {"float32": 4e-6, "float64": 1e-12}  # of the largest entry
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, fork or mmap")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def problem(network, m, dtype="float32", seed=0):
    """Parameters with biases of both signs, and rows of unit scale."""
    rng = np.random.default_rng(seed)
    parameters = fastae.Parameters.random(network, rng, dtype)
    for name, shape in network.shapes().items():
        if name.startswith("b"):
            parameters[name] = rng.normal(scale=0.3, size=shape)
    return parameters, away_from_kinks(rng.normal(size=(2 * m, network.widths[0])).astype(dtype), parameters)[
        :m
    ]


def away_from_kinks(X, parameters):
    """The rows for which no relu's input is so near 0 that rounding decides its sign."""
    activations, t = parameters.network.activations, {}
    if "relu" in activations:
        t = reference.forward(X.astype("f8"), double(parameters), activations)
    near = np.zeros(len(X), bool)
    for layer, activation in enumerate(activations, start=1):
        if activation == "relu":
            near |= (np.abs(t[f"z{layer}"]) < 1e-4).any(axis=1)
    return X[~near]


def autoencoder(n=30, k=8, m=1500, dtype="float32", n_threads=2):
    network = fastae.Network.autoencoder(n, k)
    return fastae.Engine(network, n_threads, dtype), *problem(network, m, dtype)


def double(parameters):
    """The same parameters in float64, as plain arrays."""
    return {name: parameters[name].astype("f8") for name in parameters}


def assert_matches_reference(engine, parameters, X, seen=None, sample_weight=None, **options):
    """Loss and gradient against the reference in float64 on `seen`, the rows as the network sees them."""
    loss, gradient = engine.loss_and_gradient(parameters, X, sample_weight=sample_weight, **options)
    x = np.asarray(X if seen is None else seen, np.float64)
    if sample_weight is not None and options.get("index") is not None:
        sample_weight = sample_weight[options["index"]]
    exact, activations = double(parameters), engine.network.activations
    tolerance = TOLERANCE[engine.dtype.name]
    xhat = reference.forward(x, exact, activations)["xhat"]
    assert loss == pytest.approx(float(reference.cost(x, xhat, sample_weight)), rel=tolerance)
    wanted = reference.backward(x, exact, activations, sample_weight=sample_weight)
    for name in gradient:
        error = np.abs(gradient[name] - wanted[f"d{name}"]).max()
        assert error <= tolerance * np.abs(wanted[f"d{name}"]).max(), name


def bits(result):
    loss, gradient = result
    return np.float64(loss).tobytes() + gradient.flat.tobytes()


def run_python(code, timeout=120, **environment):
    """The output of a child Python that runs `code`; it must end well."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=HOME,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# -- the gradient -----------------------------------------------------------------------------------------------------

SIZES = [
    (1, 1, 1),
    (1, 3, 5),
    (2, 1, 33),
    (4, 2, 7),
    (15, 16, 17),
    (16, 16, 64),
    (17, 15, 100),
    (30, 8, 511),
    (31, 9, 513),
    (33, 47, 1025),
    (48, 64, 256),
    (64, 32, 2049),
    (65, 80, 300),
    (100, 3, 4097),
    (130, 70, 150),
    (784, 64, 70),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "k", "m"), SIZES)
def test_gradient_matches_reference_at_any_size(n, k, m, dtype):
    assert_matches_reference(*autoencoder(n, k, m, dtype))


STACKS = [
    ((20, 20), ("identity",)),
    ((20, 20), ("sigmoid",)),
    ((20, 7, 20), ("tanh", "identity")),
    ((9, 40, 9), ("relu", "sigmoid")),
    ((20, 9, 9, 20), ("relu", "tanh", "relu")),
    ((20, 17, 5, 17, 20), ("tanh", "sigmoid", "relu", "identity")),
    ((33, 64, 16, 3, 50, 33), ("sigmoid", "relu", "identity", "tanh", "tanh")),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("widths", "activations"), STACKS)
def test_gradient_matches_reference_for_any_stack(widths, activations, dtype):
    network = fastae.Network(widths, activations)
    engine = fastae.Engine(network, 2, dtype)
    assert_matches_reference(engine, *problem(network, 700, dtype))
    assert_matches_reference(engine, *problem(network, 3, dtype))


@pytest.mark.parametrize("last", ["sigmoid", "tanh", "relu", "identity"])
@pytest.mark.parametrize("first", ["sigmoid", "tanh", "relu", "identity"])
def test_gradient_matches_reference_for_any_activations(first, last):
    network = fastae.Network((21, 10, 21), (first, last))
    assert_matches_reference(fastae.Engine(network, 1), *problem(network, 600))


@pytest.mark.parametrize(
    ("widths", "activations"), [((6, 3, 6, 6), ("sigmoid", "sigmoid", "identity")), *STACKS[1:6]]
)
def test_gradient_matches_finite_differences(widths, activations):
    network = fastae.Network(widths, activations)
    parameters, X = problem(network, 23, "float64")
    engine = fastae.Engine(network, 2, "float64")
    errors = fastae.check_gradients(parameters, X, engine=engine, n_samples=20)
    assert set(errors) == set(network.shapes())
    assert max(errors.values()) < 1e-7, errors


def test_finite_differences_catch_a_wrong_gradient():
    engine, parameters, X = autoencoder(6, 3, 23, "float64")

    class MeanForBias:
        def loss_and_gradient(self, *arguments, **options):
            loss, gradient = engine.loss_and_gradient(*arguments, **options)
            return loss, {**gradient, "b2": gradient["b2"] / len(X)}

    errors = fastae.check_gradients(parameters, X, engine=MeanForBias())
    assert errors["b2"] > 0.5
    assert max(error for name, error in errors.items() if name != "b2") < 1e-7


def test_a_tile_in_the_middle_of_a_large_batch_counts_like_any_other():
    """The reference on many rows agrees to rounding whatever the row: a lost or doubled tile would show."""
    engine, parameters, X = autoencoder(20, 4, 20_000, "float64", n_threads=3)
    X[7000:7100] += 10
    assert_matches_reference(engine, parameters, X)


# -- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "k", "m"), [(30, 8, 20_001), (100, 40, 3000), (64, 64, 700)])
def test_same_bits_for_any_thread_count_and_across_calls(n, k, m, dtype):
    network = fastae.Network.autoencoder(n, k)
    parameters, X = problem(network, m, dtype)
    seen = set()
    for n_threads in (1, 2, 3, 5):
        engine = fastae.Engine(network, n_threads, dtype)
        for _ in range(3):
            seen.add(bits(engine.loss_and_gradient(parameters, X)))
    assert len(seen) == 1


def test_same_bits_whatever_the_engine_did_before():
    engine, parameters, X = autoencoder(m=9000)
    fresh = bits(engine.loss_and_gradient(parameters, X))
    engine.loss_and_gradient(parameters, 100 * X[:777])
    engine.encode(parameters, X[:333])
    engine.reconstruct(parameters, X)
    engine.decode(parameters, X[:50, :8])
    assert bits(engine.loss_and_gradient(parameters, X)) == fresh


# -- sources of rows --------------------------------------------------------------------------------------------------


def sources(X):
    """The same values under other dtypes, orders and strides, by name."""
    m, n = X.shape
    every_other = np.zeros((2 * m, 3 * n), X.dtype)
    every_other[::2, ::3] = X
    read_only = X.copy()
    read_only.flags.writeable = False
    packed = np.zeros(m, np.dtype([("flag", "i1"), ("x", X.dtype, n)]))
    packed["x"] = X
    return {
        "C order": X.copy(),
        "Fortran order": np.asfortranarray(X),
        "strided": every_other[::2, ::3],
        "row strided": np.repeat(X, 2, axis=0)[::2],
        "negative row stride": X[::-1].copy()[::-1],
        "negative strides": X[::-1, ::-1].copy()[::-1, ::-1],
        "read only": read_only,
        "unaligned": packed["x"],
        "list": X.tolist(),
    }


@pytest.mark.parametrize("engine_dtype", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
def test_any_dtype_order_and_strides_equal_the_converted_array(dtype, engine_dtype):
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        values = rng.normal(size=(150, 19)).astype(dtype)
        values[0, :4] = 0, -0.0, 6e-8, 3.0  # 6e-8: subnormal in float16
    else:
        info = np.iinfo(dtype) if dtype != "?" else np.iinfo("u1")
        low, high = (info.min, info.max) if dtype != "?" else (0, 1)
        values = rng.integers(low, high, (150, 19), endpoint=True, dtype=info.dtype).astype(dtype)
    network = fastae.Network.autoencoder(19, 5)
    engine = fastae.Engine(network, 1, engine_dtype)
    parameters, _ = problem(network, 1, engine_dtype)
    wanted = bits(engine.loss_and_gradient(parameters, values.astype(engine_dtype)))
    for name, X in sources(values).items():
        before = np.array(X, copy=True)
        assert bits(engine.loss_and_gradient(parameters, X)) == wanted, name
        np.testing.assert_array_equal(np.asarray(X), before, err_msg=name)


def test_one_column_and_one_row_of_any_stride():
    network = fastae.Network.autoencoder(1, 2)
    engine = fastae.Engine(network, 1)
    parameters, _ = problem(network, 1)
    wide = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
    for X in (wide[:, 1:2], wide[:, ::-1][:, :1], wide[:1, :1], wide[::-3, 2:]):
        wanted = engine.loss_and_gradient(parameters, X.copy())
        assert bits(engine.loss_and_gradient(parameters, X)) == bits(wanted)


def test_broadcast_rows_and_columns():
    engine, parameters, X = autoencoder(19, 5, 64)
    for broadcast in (np.broadcast_to(X[:1], X.shape), np.broadcast_to(X[:, :1], X.shape)):
        wanted = engine.loss_and_gradient(parameters, broadcast.copy())
        assert bits(engine.loss_and_gradient(parameters, broadcast)) == bits(wanted)


def test_memory_map_read_only(tmp_path):
    engine, parameters, X = autoencoder(19, 5, 1000)
    np.save(tmp_path / "x.npy", X.astype("f8"))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    wanted = engine.loss_and_gradient(parameters, X.astype("f8"))
    assert bits(engine.loss_and_gradient(parameters, mapped)) == bits(wanted)
    np.testing.assert_array_equal(engine.reconstruct(parameters, mapped), engine.reconstruct(parameters, X))


def at_guard_page(array):
    """A copy of `array` whose last byte is the last before a page that may not be touched."""
    page = mmap.PAGESIZE
    room = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(start + room, page, 0) == 0, os.strerror(ctypes.get_errno())
    copy = np.frombuffer(memory, array.dtype, array.size, room - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy


@posix
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "u8"])
@pytest.mark.parametrize("n", [1, 7, 16, 19, 33])
def test_nothing_beyond_the_last_element_is_read(n, dtype):
    network = fastae.Network.autoencoder(n, 3)
    parameters, _ = problem(network, 1)
    rng = np.random.default_rng(0)
    X = rng.integers(0, 99, (37, n)).astype(dtype)
    index, weight = np.arange(37)[::-1], rng.random(37)
    options = {"index": index, "sample_weight": weight, "shift": rng.random(n), "scale": rng.random(n)}
    guarded = {name: at_guard_page(np.ascontiguousarray(value)) for name, value in options.items()}
    for n_threads in (1, 2):
        engine = fastae.Engine(network, n_threads)
        wanted = engine.loss_and_gradient(parameters, X, **options)
        assert bits(engine.loss_and_gradient(parameters, at_guard_page(X), **guarded)) == bits(wanted)
        assert bits(engine.loss_and_gradient(parameters, at_guard_page(X))) == bits(
            engine.loss_and_gradient(parameters, X)
        )


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16"])
def test_row_index_equals_the_gathered_rows(dtype):
    engine, parameters, X = autoencoder(m=3000)
    index = np.random.default_rng(0).integers(0, 3000, 1777).astype(dtype)  # with repetitions
    wanted = bits(engine.loss_and_gradient(parameters, X[index]))
    assert bits(engine.loss_and_gradient(parameters, X, index=index)) == wanted
    assert bits(engine.loss_and_gradient(parameters, X, index=index[::-1][::-1])) == wanted
    for method in (engine.reconstruct, engine.encode):
        np.testing.assert_array_equal(method(parameters, X, index=index), method(parameters, X[index]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", ["f4", "f8", "i2"])
def test_shift_and_scale_are_computed_in_float64_and_rounded_once(source, dtype):
    engine, parameters, X = autoencoder(m=900, dtype=dtype)
    X = (50 * X + 1000).astype(source)
    rng = np.random.default_rng(0)
    shift, scale = 1000 + rng.normal(size=30), rng.uniform(0.005, 0.05, 30)
    for options in ({"shift": shift, "scale": scale}, {"shift": shift}, {"scale": scale / 1000}):
        seen = (X - options.get("shift", np.zeros(30))) * options.get("scale", np.ones(30))
        wanted = engine.loss_and_gradient(parameters, seen.astype(dtype))
        assert bits(engine.loss_and_gradient(parameters, X, **options)) == bits(wanted)
        np.testing.assert_array_equal(
            engine.encode(parameters, X, **options), engine.encode(parameters, seen.astype(dtype))
        )
        assert_matches_reference(engine, parameters, X, seen.astype(dtype), **options)


@pytest.mark.parametrize("source", ["f2", "f4"])
def test_subnormal_values_are_scaled_not_flushed(source):
    engine, parameters, X = autoencoder(m=90, dtype="float64")
    least = np.float64(np.finfo(source).smallest_subnormal)
    X = (np.round(X * 50) * least).astype(source)
    scale = np.full(30, 0.02 / least)
    wanted = engine.loss_and_gradient(parameters, X.astype("f8") * scale)
    assert bits(engine.loss_and_gradient(parameters, X, scale=scale)) == bits(wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("last", ["identity", "sigmoid"])
def test_sample_weights_match_reference(last, dtype):
    network = fastae.Network((30, 8, 30), ("sigmoid", last))
    engine = fastae.Engine(network, 2, dtype)
    parameters, X = problem(network, 3000, dtype)
    rng = np.random.default_rng(0)
    weight = rng.exponential(size=3000) * (rng.random(3000) < 0.7)
    assert_matches_reference(engine, parameters, X, sample_weight=weight)
    index = rng.permutation(3000)[:1111]
    assert_matches_reference(engine, parameters, X, X[index], sample_weight=weight, index=index)


def test_equal_weights_are_no_weights_and_whole_weights_repeat_rows():
    engine, parameters, X = autoencoder(m=700, dtype="float64")
    plain = engine.loss_and_gradient(parameters, X)
    assert bits(engine.loss_and_gradient(parameters, X, sample_weight=np.ones(700))) == bits(plain)
    times = np.random.default_rng(0).integers(0, 4, 700)
    assert_matches_reference(engine, parameters, X, sample_weight=times)
    loss, gradient = engine.loss_and_gradient(parameters, X, sample_weight=times)
    repeated, wanted = engine.loss_and_gradient(parameters, np.repeat(X, times, axis=0))
    assert loss == pytest.approx(repeated, rel=1e-12)
    np.testing.assert_allclose(gradient.flat, wanted.flat, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("unit", [1e-300, 1e-40, 1e40, 1e300])
def test_the_unit_of_the_weights_does_not_matter(unit, dtype):
    engine, parameters, X = autoencoder(m=700, dtype=dtype)
    weight = np.random.default_rng(0).random(700)
    loss, gradient = engine.loss_and_gradient(
        parameters, X, sample_weight=weight, objective=fastae.Objective(alpha=2.0)
    )
    scaled, also = engine.loss_and_gradient(
        parameters, X, sample_weight=weight * unit, objective=fastae.Objective(alpha=2.0 * unit)
    )
    assert scaled == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(also.flat, gradient.flat, rtol=1e-4, atol=1e-6)


def test_a_row_of_weight_zero_does_not_count():
    engine, parameters, X = autoencoder(m=700)
    weight = np.ones(700)
    weight[100:300] = 0
    other = X.copy()
    other[100:300] = 1e3
    assert bits(engine.loss_and_gradient(parameters, X, sample_weight=weight)) == bits(
        engine.loss_and_gradient(parameters, other, sample_weight=weight)
    )


# -- reconstruct, encode, decode --------------------------------------------------------------------------------------


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
    for got, name in (
        (engine.reconstruct(parameters, X), "xhat"),
        (code, f"h{network.code_layer}"),
        (engine.decode(parameters, code), "xhat"),
    ):
        assert got.dtype == dtype
        assert got.shape == wanted[name].shape
        assert np.abs(got - wanted[name]).max() <= TOLERANCE[dtype] * np.abs(wanted[name]).max()


def test_results_are_the_callers_own():
    engine, parameters, X = autoencoder()
    first, (_, gradient) = engine.reconstruct(parameters, X), engine.loss_and_gradient(parameters, X)
    kept, flat = first.copy(), gradient.flat.copy()
    engine.reconstruct(parameters, -X)
    engine.loss_and_gradient(parameters, -X)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(gradient.flat, flat)


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


# -- memory -----------------------------------------------------------------------------------------------------------


@linux
def test_peak_extra_memory_does_not_grow_with_the_rows(tmp_path):
    """A sparse file of float64 rows, mapped: its own pages are counted apart, as shared ones."""
    out = run_python(
        f"""
        import numpy as np, fastae
        network = fastae.Network.autoencoder(256, 2)
        engine, parameters = fastae.Engine(network, 2), fastae.Parameters.random(network)
        X = np.memmap({str(tmp_path / "x")!r}, "f8", "w+", shape=(400_000, 256))  # 819 MB, none of it written

        def own():  # kB of anonymous memory
            with open("/proc/self/status") as status:
                return int(next(line for line in status if line.startswith("RssAnon")).split()[1])

        import threading, time
        engine.loss_and_gradient(parameters, X[:40_000])
        before = peak = own()
        done = threading.Event()

        def watch():
            global peak
            while not done.wait(0.005):
                peak = max(peak, own())

        watcher = threading.Thread(target=watch)
        watcher.start()
        engine.loss_and_gradient(parameters, X[:100_000])
        engine.loss_and_gradient(parameters, X[:100_000, ::-1])
        engine.encode(parameters, X)  # 3.2 MB of codes
        done.set()
        watcher.join()
        print(peak - before)
        """
    )
    assert int(out) < 10_000, f"{out.strip()} kB more for 205 MB of rows"


# -- threads and processes --------------------------------------------------------------------------------------------


def in_threads(count, work):
    """work(i) in `count` Python threads at once; their results, or the first error."""
    results, errors = [None] * count, []
    start = threading.Barrier(count)

    def one(i):
        try:
            start.wait()
            results[i] = work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_several_python_threads_on_one_engine():
    engine, parameters, X = autoencoder(m=6000)
    parts = [X[i * 100 : 5000 + i * 100] for i in range(4)]
    wanted = [bits(engine.loss_and_gradient(parameters, part)) for part in parts]
    codes = [engine.encode(parameters, part) for part in parts]

    def work(i):
        for _ in range(10):
            assert bits(engine.loss_and_gradient(parameters, parts[i])) == wanted[i]
            np.testing.assert_array_equal(engine.encode(parameters, parts[i]), codes[i])

    in_threads(4, work)


def test_several_python_threads_on_engines_of_their_own():
    sizes = [(30, 8, 6000), (17, 3, 9000), (64, 20, 3000), (5, 2, 200)]
    cases = [autoencoder(*size) for size in sizes]
    wanted = [bits(engine.loss_and_gradient(parameters, X)) for engine, parameters, X in cases]

    def work(i):
        engine, parameters, X = cases[i]
        return {bits(engine.loss_and_gradient(parameters, X)) for _ in range(10)}

    assert in_threads(4, work) == [{one} for one in wanted]


def answer_of_child(work):
    """What work() returns in a forked child."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            os.write(write, work())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"
    return answer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_in_a_forked_child_after_the_parent_used_its_team():
    engine, parameters, X = autoencoder(m=20_000, n_threads=3)
    wanted = bits(engine.loss_and_gradient(parameters, X))
    assert answer_of_child(lambda: bits(engine.loss_and_gradient(parameters, X))) == wanted
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_in_a_child_forked_while_another_thread_uses_the_engine():
    engine, parameters, X = autoencoder(m=60_000)
    wanted = bits(engine.loss_and_gradient(parameters, X))
    stop = threading.Event()

    def use():
        while not stop.is_set():
            engine.loss_and_gradient(parameters, X)

    user = threading.Thread(target=use)
    user.start()
    try:
        for _ in range(3):
            assert answer_of_child(lambda: bits(engine.loss_and_gradient(parameters, X))) == wanted
    finally:
        stop.set()
        user.join()


LONG = """
    import os, signal, sys, threading, time
    import numpy as np, fastae
    network = fastae.Network.autoencoder({n}, {k})
    engine, parameters = fastae.Engine(network, {n_threads}), fastae.Parameters.random(network)
    rng = np.random.default_rng(0)
    X = np.broadcast_to(rng.normal(size=(1, {n})).astype("f4"), ({m}, {n}))
    small = rng.normal(size=(3000, {n})).astype("f4")
    wanted = engine.loss_and_gradient(parameters, small)
    sent = []

    def interrupt():
        time.sleep(0.3)
        for _ in range({times}):
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.005)

    threading.Thread(target=interrupt).start()
    try:
        {call}
        print("finished")
    except KeyboardInterrupt:
        print(time.perf_counter() - sent[0])
    while True:
        try:
            time.sleep(0.1)  # for the interrupts that are left
            break
        except KeyboardInterrupt:
            pass
    for _ in range(3):
        loss, gradient = engine.loss_and_gradient(parameters, small)
        assert loss == wanted[0] and (gradient.flat == wanted[1].flat).all()
"""


@posix
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("call", ["engine.loss_and_gradient(parameters, X)", "engine.encode(parameters, X)"])
def test_ctrl_c_returns_soon_and_the_engine_stays_right(call, n_threads):
    m = 40_000_000 if "encode" in call else 10_000_000
    out = run_python(LONG.format(n=64, k=2, m=m, n_threads=n_threads, call=call, times=1))
    assert out.strip() != "finished"
    assert float(out) < 0.5


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
    found = engine.errors(params, X, shift=shift, index=index)
    np.testing.assert_allclose(found, (residual**2).sum(axis=1)[index], rtol=tolerance)
    loss, _ = engine.loss_and_gradient(params, X, shift=shift)
    assert engine.errors(params, X, shift=shift).mean() / 2 == pytest.approx(loss, rel=tolerance)


@posix
def test_ctrl_c_several_times_over():
    call = "engine.loss_and_gradient(parameters, X)"
    out = run_python(LONG.format(n=64, k=16, m=10_000_000, n_threads=3, call=call, times=5))
    assert float(out) < 0.5


def interrupted(function, before=False):
    """`function`, with Ctrl-C handled right after it, or right `before`, the first time; and the calls of it."""
    calls = []

    def call(*arguments):
        calls.append(arguments)
        if before and len(calls) == 1:
            raise KeyboardInterrupt
        function(*arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt

    return call, calls


def test_ctrl_c_while_helpers_are_woken_loses_none(monkeypatch):
    from fastae.engine import thread_pool

    # Large: it is on all threads, whatever CPUs there are.
    engine, parameters, X = autoencoder(m=100_000, n_threads=3)
    wanted = bits(fastae.Engine(engine.network, 1).loss_and_gradient(parameters, X))
    lend, calls = interrupted(thread_pool.lend, before=True)
    monkeypatch.setattr(thread_pool, "lend", lend)
    with pytest.raises(KeyboardInterrupt):
        engine.loss_and_gradient(parameters, X)
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted
    assert len(calls) == 1 + 2


def test_ctrl_c_when_a_job_was_just_opened_does_not_open_it_again(monkeypatch):
    engine, parameters, X = autoencoder(m=20_000, n_threads=2)
    wanted = bits(engine.loss_and_gradient(parameters, X))
    open_job, calls = interrupted(engine._step.open_job)
    monkeypatch.setattr(engine, "_step", SimpleNamespace(**{**vars(engine._step), "open_job": open_job}))
    with pytest.raises(KeyboardInterrupt):
        engine.loss_and_gradient(parameters, X)
    assert len(calls) == 1
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted


def test_kernels_that_do_not_compile_are_an_error_at_once(monkeypatch):
    engine, parameters, X = autoencoder(m=10)

    def run(*arguments):
        raise TypingError("no such type")

    monkeypatch.setattr(engine, "_step", SimpleNamespace(**{**vars(engine._step), "run": run}))
    with pytest.raises(TypingError, match="no such type"):
        engine.loss_and_gradient(parameters, X)


def test_a_compiler_that_is_switched_off_is_named():
    code = "import fastae; fastae.Engine(fastae.Network.autoencoder(3, 2))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert "RuntimeError: NUMBA_DISABLE_JIT is set" in ran.stderr


def test_callers_floating_point_state_is_unchanged():
    engine, parameters, X = autoencoder(m=20_000)
    least = np.array([np.finfo("f4").smallest_subnormal] * 40)
    for _ in range(3):
        engine.loss_and_gradient(parameters, X)
        engine.encode(parameters, X)
        assert (least * np.float32(3) > 0).all()
        assert (np.array([np.finfo("f4").tiny] * 40) / np.float32(4) > 0).all()
        assert (np.array([np.finfo("f8").smallest_subnormal] * 40) * 3 > 0).all()
    with np.errstate(all="raise"):
        X[0, 0] = np.nan  # flags that kernels raise are not left for NumPy to find
        engine.loss_and_gradient(parameters, X)
        assert np.float32(1) + np.float32(1) == 2


def test_helpers_floating_point_state_is_unchanged():
    from fastae.engine import thread_pool

    engine, parameters, X = autoencoder(m=20_000, n_threads=3)
    for _ in range(3):
        engine.loss_and_gradient(parameters, X)
    least, seen, met = np.array([np.finfo("f4").smallest_subnormal] * 40), {}, threading.Barrier(3)

    def work():
        met.wait(10)
        seen[threading.get_ident()] = bool((least * np.float32(3) > 0).all())
        met.wait(10)

    time.sleep(0.1)  # for the engine's helpers to be idle again
    thread_pool.lend(work)
    thread_pool.lend(work)
    work()
    assert len(seen) == 3
    assert all(seen.values())


def test_import_loads_neither_numba_nor_scikit_learn():
    out = run_python(
        """
        import sys, fastae
        fastae.Parameters.random(fastae.Network.autoencoder(4, 2))
        fastae.reference, fastae.Engine, fastae.check_gradients
        print(sorted({"numba", "llvmlite", "sklearn", "matplotlib", "pandas"} & set(sys.modules)))
        """
    )
    assert out.strip() == "[]"


# -- NaN and tiny steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "identity"])
def test_rows_that_are_not_finite_do_not_poison_the_next_call(activation, bad):
    network = fastae.Network((19, 5, 19, 19), (activation, activation, "identity"))
    engine = fastae.Engine(network, 2)
    parameters, X = problem(network, 2000)
    wanted, code = bits(engine.loss_and_gradient(parameters, X)), engine.encode(parameters, X)
    spoilt = X.copy()
    spoilt[::3, ::2] = bad
    loss, _ = engine.loss_and_gradient(parameters, spoilt)
    assert not np.isfinite(loss)
    spoilt_code = engine.encode(parameters, spoilt)
    np.testing.assert_array_equal(spoilt_code[1::3], code[1::3])  # rows do not touch each other
    assert np.isnan(spoilt_code[::3]).any() or bad == np.inf
    assert bits(engine.loss_and_gradient(parameters, X)) == wanted
    np.testing.assert_array_equal(engine.encode(parameters, X), code)
    spoilt_parameters = parameters.copy()
    spoilt_parameters["W2"] = np.full((5, 19), np.nan)
    engine.loss_and_gradient(spoilt_parameters, X)
    assert bits(engine.loss_and_gradient(parameters, X[:1999])) == bits(
        fastae.Engine(network, 2).loss_and_gradient(parameters, X[:1999])
    )


def test_tiny_steps_stay_on_the_calling_thread_and_are_right():
    engine, parameters, X = autoencoder(4, 2, 300, "float64", n_threads=2)
    for m in (1, 2, 3, 15, 16, 17, 63, 64, 65, 300):
        before = threading.active_count()
        assert_matches_reference(engine, parameters, X[:m])
        assert threading.active_count() == before


# -- errors -----------------------------------------------------------------------------------------------------------


def with_dtype(dtype):
    return lambda X: X.astype(dtype)


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


def test_threads_default_to_the_cpus_this_process_may_use():
    from fastae.engine import thread_pool

    assert fastae.Engine(fastae.Network.autoencoder(4, 2)).n_threads == thread_pool.available_cpus()


def test_engine_is_freed_with_its_memory():
    import gc
    import weakref

    engine, parameters, X = autoencoder(m=9000)
    engine.loss_and_gradient(parameters, X)
    gone = weakref.ref(engine)
    del engine
    start = time.perf_counter()
    while gone() is not None and time.perf_counter() - start < 5:
        gc.collect()
        time.sleep(0.01)
    assert gone() is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [fastae.SGD(momentum=0.9, learning_rate=0.01), fastae.Adam()])
def test_a_step_from_sums_over_blocks_equals_the_step_on_all_rows(dtype, optimizer):
    network = fastae.Network.autoencoder(9, 4)
    X = np.random.default_rng(0).normal(size=(2500, 9))
    weight = np.random.default_rng(1).random(2500)
    noisy = {"noise": "gaussian", "noise_level": 0.3}
    engine = fastae.Engine(network, 2, dtype)
    made = []
    for blocks in ([0, 2500], [0, 700, 701, 2500]):
        params = fastae.Parameters.random(network, 0, dtype)
        state = State.zeros(params)
        gradient = fastae.Parameters(network, dtype)
        for rate in optimizer.rates(0, 3):
            how = {"optimizer": optimizer, "state": state}
            options = {"seed": 5, "epoch": state.steps}
            if len(blocks) == 2:
                objective = Objective(alpha=0.1, **noisy)
                how |= {"rates": [rate]}
                options |= how | {"objective": objective, "sample_weight": weight}
                loss = engine.run_steps(params, X, gradient=gradient, **options)[0, 0]
            else:
                parts, totals = np.zeros((3, params.flat.size), dtype), np.zeros(2)
                for part, first, last in zip(parts, blocks[:-1], blocks[1:], strict=True):
                    options |= {"first_row": first, "objective": Objective(**noisy), "sums": True}
                    options |= {"sample_weight": weight[first:last]}
                    totals += engine.run_steps(params, X[first:last], gradient=gradient, **options)[0]
                    part[:] = gradient.flat
                how |= {"rate": rate, "alpha": 0.1}
                penalty = engine.combine_sums(params, parts, totals[1], gradient=gradient, **how)
                loss = totals[0] / totals[1] + penalty
            state.steps += 1
        made.append((loss, params.flat, gradient.flat))
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    assert made[1][0] == pytest.approx(made[0][0], rel=tolerance)
    np.testing.assert_allclose(made[1][2], made[0][2], atol=tolerance * np.abs(made[0][2]).max(), rtol=0)
    np.testing.assert_allclose(made[1][1], made[0][1], atol=20 * tolerance, rtol=0)


def test_sums_have_no_cost_of_the_whole_batch():
    network = fastae.Network.autoencoder(3, 2)
    params = fastae.Parameters.random(network)
    with pytest.raises(ValueError, match="sums are of rows: objective must have neither alpha"):
        fastae.Engine(network, 1).run_steps(
            params, np.ones((4, 3)), gradient=params.copy(), sums=True, objective=Objective(alpha=1.0)
        )


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
def test_sums_are_in_the_unit_of_the_weights(unit):
    network = fastae.Network.autoencoder(5, 3)
    params, X = problem(network, 40)
    weight = np.random.default_rng(1).random(40)
    made = []
    for factor in (1.0, unit):
        gradient = fastae.Parameters(network)
        how = {"gradient": gradient, "sums": True, "sample_weight": weight * factor}
        losses = fastae.Engine(network, 1).run_steps(params, X, **how)
        made.append((losses / factor, gradient.flat / np.float32(factor)))
    np.testing.assert_allclose(made[1][0], made[0][0], rtol=1e-5)
    np.testing.assert_allclose(made[1][1], made[0][1], rtol=0, atol=1e-5 * np.abs(made[0][1]).max())


@pytest.mark.parametrize("wrong", ["params", "gradient"])
def test_sums_and_steps_take_nothing_of_another_dtype(wrong):
    engine, params, X = autoencoder(m=10)
    arguments = {"params": params, "gradient": fastae.Parameters(engine.network)}
    arguments[wrong] = fastae.Parameters(engine.network, "float64")
    parts = np.zeros((2, params.flat.size), np.float32)
    with pytest.raises(ValueError, match=f"{wrong} are float64"):
        engine.combine_sums(parts=parts, weight=1.0, **arguments)
    with pytest.raises(ValueError, match=f"{wrong} are float64"):
        engine.run_steps(X=X, **arguments)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("state", State(0, np.zeros((2, 3), np.float32))),
        ("state", State(0, np.zeros((2, 10_000), np.float64))),
        ("rates", ()),
        ("rates", [[0.1]]),
        ("batch_size", -1),
        ("batch_size", 0),
    ],
)
def test_steps_name_what_they_cannot_take(name, wrong):
    network = fastae.Network.autoencoder(5, 3)
    params, X = problem(network, 40)
    before, adam = params.flat.copy(), fastae.Adam()
    arguments = {
        "gradient": params.copy(),
        "optimizer": adam,
        "state": State.zeros(params),
        "rates": [0.1, 0.1],
        "batch_size": 20,
    }
    with pytest.raises(ValueError, match=name):
        fastae.Engine(network, 2).run_steps(params, X, **(arguments | {name: wrong}))
    assert np.array_equal(params.flat, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_no_weight_are_no_step_and_parts_may_lie_anyhow(dtype):
    engine, params, _ = autoencoder(n=17, k=5, dtype=dtype)
    gradient, rng = fastae.Parameters(engine.network, dtype), np.random.default_rng(0)
    parts = np.zeros((3, params.flat.size), dtype)
    for part in parts:
        part[:] = fastae.Parameters.random(engine.network, rng, dtype).flat
    for strided in (parts, np.asfortranarray(parts), np.repeat(parts, 2, axis=0)[::2]):
        penalty = engine.combine_sums(params, strided, 4.0, gradient=gradient, alpha=0.5)
        squares = 0.0
        for name in gradient:
            total = fastae.Parameters(engine.network, dtype)
            total.flat[:] = parts.sum(axis=0)
            wanted = total[name] / 4
            if name.startswith("W"):
                wanted, squares = wanted + 0.5 / 4 * params[name], squares + (params[name] ** 2).sum()
            np.testing.assert_allclose(gradient[name], wanted, rtol=1e-5, atol=1e-6)
        assert penalty == pytest.approx(0.5 * squares / 8, rel=1e-5)
        assert engine.combine_sums(params, strided, 0.0, gradient=gradient, alpha=0.5) == 0
        assert not gradient.flat.any()
    for bad in (parts[0], parts[:, 1:], parts[:0]):
        with pytest.raises(ValueError, match="parts must be of shape"):
            engine.combine_sums(params, bad, 4.0, gradient=gradient)
