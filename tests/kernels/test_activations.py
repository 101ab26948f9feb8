"""exp, sigmoid with derivative, and tanh of a line: errors in ulp, special values, tails and guard pages."""

import os
import tracemalloc

import numpy as np
import pytest
from guard import guarded

from fastae import kernels
from fastae.kernels import activations, array_header, elementary
from fastae.kernels.compiler import jitted
from fastae.kernels.target import TARGET

posix = pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant <= 52, reason="needs a long double of higher precision than a double"
)


def exact_sigmoid(z):
    e = np.exp(-np.abs(z))
    return np.where(z < 0, e, 1) / (1 + e)


_tanh_words = activations._elementwise(lambda words, x: (elementary.tanh(words, x),))


@jitted
def _tanh(x, out):
    _tanh_words(x, (out.ctypes.data, x.ctypes.data, x.size))


EXACT = {"exp": np.exp, "sigmoid": exact_sigmoid, "tanh": np.tanh}


def computed(name, x):
    out = np.empty_like(x)
    if name == "sigmoid":
        kernels.sigmoid_with_derivative(x, out, np.empty_like(x))
    elif name == "exp":
        kernels.exp(x, out)
    else:
        _tanh(x, out)
    return out


def ulps(values, exact):
    """Distance in units of the last place of the exact value, in `found`'s dtype, subnormals included."""
    kind = np.finfo(values.dtype)
    _, exponent = np.frexp(np.abs(exact))
    unit = np.ldexp(np.ones_like(exact), np.maximum(exponent - 1, kind.minexp) - kind.nmant)
    return np.abs(values.astype(exact.dtype) - exact) / unit


def worst(name, x, precise):
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(precise))
        computed_values = computed(name, x)
        fits = np.abs(exact) <= np.finfo(x.dtype).max
        assert np.isfinite(computed_values[fits]).all()
        assert np.isinf(computed_values[~fits & ~np.isnan(exact)]).all()
        return float(ulps(computed_values[fits], exact[fits]).max(initial=0))


def stratified(count=1 << 20):
    """float32 values spread over all bit patterns: every sign and exponent, finite."""
    step = (1 << 32) // count
    draw = np.random.default_rng(0).integers(0, step, count, dtype=np.uint32)
    x = (np.arange(count, dtype=np.uint32) * np.uint32(step) + draw).view("f4")
    return x[np.isfinite(x)]


# With AVX-512 and AVX2, sigmoid and tanh look up powers that are rounded.
LIMITS = {
    "exp": 1.0 if TARGET.fma else 1.25,
    "sigmoid": {"avx512": 3.25, "avx2": 2.75}.get(TARGET.isa, 2.5),
    "tanh": 1.75,
}


@pytest.mark.parametrize("name", LIMITS)
def test_float32_over_all_exponents(name):
    assert worst(name, stratified(), np.float64) <= LIMITS[name]


@pytest.mark.parametrize("name", LIMITS)
def test_float32_where_it_matters(name):
    """Densely where the result is neither constant nor the argument, subnormal results of exp and sigmoid included."""
    x = np.concatenate([np.linspace(-104, 89, 1 << 20), np.linspace(-2, 2, 1 << 18)]).astype("f4")
    assert worst(name, x, np.float64) <= LIMITS[name]


@long_double
@pytest.mark.parametrize(("name", "limit"), [("exp", 1.5), ("sigmoid", 3.0), ("tanh", 3.0)])
def test_float64(name, limit):
    x = np.concatenate(
        [np.linspace(-745, 709, 200_001), np.linspace(-2, 2, 100_001), stratified(1 << 16).astype("f8")]
    )
    assert worst(name, x, np.longdouble) <= limit


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LIMITS)
def test_every_float32(name):
    chunk = 1 << 24
    for start in range(0, 1 << 32, chunk):
        x = np.arange(start, start + chunk, dtype=np.uint32).view("f4")
        x = x[np.isfinite(x)]
        if x.size:
            assert worst(name, x, np.float64) <= LIMITS[name]


def test_an_ulp_too_many_would_be_seen():
    x = np.linspace(-5, 5, 1000).astype("f4")
    exact = exact_sigmoid(x.astype("f8"))
    off = np.nextafter(np.nextafter(exact.astype("f4"), np.float32(2)), np.float32(2))
    assert ulps(exact.astype("f4"), exact).max() <= 0.5
    off = np.nextafter(np.nextafter(off, np.float32(2)), np.float32(2))
    assert ulps(off, exact).max() > LIMITS["sigmoid"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values(dtype):
    z = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e30, -1e30], dtype)
    h, dh = np.empty_like(z), np.empty_like(z)
    kernels.sigmoid_with_derivative(z, h, dh)
    np.testing.assert_array_equal(h, np.array([1, 0, np.nan, 0.5, 0.5, 1, 0], dtype))
    np.testing.assert_array_equal(dh, np.array([0, 0, np.nan, 0.25, 0.25, 0, 0], dtype))
    out = np.empty_like(z)
    kernels.exp(z, out)
    np.testing.assert_array_equal(out, np.array([np.inf, 0, np.nan, 1, 1, np.inf, 0], dtype))
    _tanh(z, out)
    np.testing.assert_array_equal(out, np.array([1, -1, np.nan, 0, -0.0, 1, -1], dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_derivative_is_h_times_1_minus_h(dtype):
    z = np.linspace(-30, 30, 10_001).astype(dtype)
    h, dh = np.empty_like(z), np.empty_like(z)
    kernels.sigmoid_with_derivative(z, h, dh)
    exact = h.astype("f8")
    assert np.abs(dh - exact * (1 - exact)).max() <= np.finfo(dtype).eps / 4
    step = 1e-6
    slope = (exact_sigmoid(z.astype("f8") + step) - exact_sigmoid(z.astype("f8") - step)) / (2 * step)
    assert np.abs(dh - slope).max() < 1e-6


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_length_up_to_a_guard_page(dtype, end):
    for size in range(70):
        z = guarded(np.linspace(-3, 3, size).astype(dtype), end)
        h, dh = guarded(np.zeros(size, dtype), end), guarded(np.zeros(size, dtype), end)
        kernels.sigmoid_with_derivative(z, h, dh)
        np.testing.assert_allclose(h, exact_sigmoid(z.astype("f8")), rtol=3e-7)
        np.testing.assert_allclose(dh, h * (1 - h), rtol=1e-6)


def test_any_shape_in_place_and_on_items_not_at_a_line():
    z = np.linspace(-4, 4, 105).astype("f4")
    wanted = exact_sigmoid(z.astype("f8"))
    h, dh = np.empty((3, 5, 7), "f4"), np.empty((3, 5, 7), "f4")
    kernels.sigmoid_with_derivative(z.reshape(3, 5, 7), h, dh)
    np.testing.assert_allclose(h.ravel(), wanted, rtol=3e-7)
    for first in range(1, 17):
        there = np.empty(105 + first, "f4")[first:]
        kernels.sigmoid_with_derivative(z, there, there.copy())
        np.testing.assert_allclose(there, wanted, rtol=3e-7)
    for which in ("h", "dh"):
        twice = z.copy()
        other = np.empty_like(z)
        arrays = {"h": other, "dh": other, which: twice}
        kernels.sigmoid_with_derivative(twice, arrays["h"], arrays["dh"])
        np.testing.assert_allclose(arrays["h"], wanted, rtol=3e-7)


@pytest.mark.parametrize(
    ("place", "array", "error", "message"),
    [
        (1, np.zeros(4, "f8"), ValueError, "h is .* float64, but z is .* float32"),
        (2, np.zeros(5, "f4"), ValueError, r"dh is \(5,\)"),
        (0, np.zeros(4, "i4"), TypeError, "z has dtype int32"),
        (0, [1.0, 2.0], TypeError, "z must be a NumPy array"),
        (1, np.zeros(8, "f4")[::2], ValueError, "h must be C-contiguous"),
        (2, np.frombuffer(bytes(16), "f4"), ValueError, "dh is read-only"),
        (1, np.zeros(17, "u1")[1:].view("f4"), ValueError, "h must be aligned"),
    ],
)
def test_wrong_arrays_are_named_and_nothing_is_written(place, array, error, message):
    arrays = [np.ones(4, "f4"), np.zeros(4, "f4"), np.zeros(4, "f4")]
    arrays[place] = array
    with pytest.raises(error, match=message):
        kernels.sigmoid_with_derivative(*arrays)
    assert not any(np.any(a) for i, a in enumerate(arrays) if i not in (0, place))


def test_outputs_that_overlap_are_refused():
    z, both = np.ones(4, "f4"), np.zeros(6, "f4")
    with pytest.raises(ValueError, match="h and dh overlap"):
        kernels.sigmoid_with_derivative(z, both[:4], both[2:])
    assert not both.any()
    kernels.sigmoid_with_derivative(z, z, both[:4])  # h may be z
    assert z[0] == np.float32(1 / (1 + np.exp(-1)))


def test_an_output_that_begins_elsewhere_in_the_input_is_refused():
    """It would overwrite elements before they are read."""
    both = np.ones(40, "f4")
    for first, second in [(0, 1), (1, 0), (0, 19)]:
        x, out = both[first : first + 20], both[second : second + 20]
        with pytest.raises(ValueError, match="z and h overlap"):
            kernels.sigmoid_with_derivative(x, out, np.zeros(20, "f4"))
        with pytest.raises(ValueError, match="z and dh overlap"):
            kernels.sigmoid_with_derivative(x, np.zeros(20, "f4"), out)
        with pytest.raises(ValueError, match="x and out overlap"):
            kernels.exp(x, out)
    assert (both == 1).all()
    kernels.exp(both[:20], both[20:])  # side by side
    kernels.exp(both[:20], both[:20])
    assert (both == both[0]).all()


def test_the_input_may_be_read_only_and_no_array_is_allocated():
    z = np.linspace(-3, 3, 1 << 16)
    h, dh = np.empty_like(z), np.empty_like(z)
    z.setflags(write=False)
    kernels.sigmoid_with_derivative(z, h, dh)
    tracemalloc.start()
    try:
        for _ in range(3):
            kernels.sigmoid_with_derivative(z, h, dh)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8192  # an array of this size is 512 KiB
    np.testing.assert_allclose(h, exact_sigmoid(z), rtol=1e-15)


def checked_in_python(monkeypatch):
    """The arrays of each call that a kernel left to Python."""
    seen, run = [], activations._run

    def note(elementwise, **arrays):
        seen.append(arrays)
        run(elementwise, **arrays)

    monkeypatch.setattr(activations, "_run", note)
    return seen


@pytest.mark.skipif(array_header._facts_of_process is None, reason="kernels cannot read objects here")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_arrays_of_any_shape_are_checked_by_the_kernel(dtype, monkeypatch):
    seen = checked_in_python(monkeypatch)
    for shape in ((), (0,), (1,), (3, 0), (100,), (7, 9), (2, 3, 4)):
        z = np.random.default_rng(1).normal(size=shape).astype(dtype)
        h, dh, out = np.empty_like(z), np.empty_like(z), np.empty_like(z)
        z.setflags(write=False)
        kernels.sigmoid_with_derivative(z, h, dh)
        kernels.exp(z, out)
        np.testing.assert_allclose(out, np.exp(z), rtol=1e-6)
        np.testing.assert_allclose(h, 1 / (1 + np.exp(-z)), rtol=1e-6)
        np.testing.assert_allclose(dh, h * (1 - h), rtol=1e-6)
    assert not seen


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize("function", ["exp", "sigmoid_with_derivative"])
def test_what_the_kernel_does_not_take_is_checked_in_python(function, monkeypatch):
    """With the same results where it is right, and errors where it is wrong."""
    seen = checked_in_python(monkeypatch)
    outputs, call = (1 if function == "exp" else 2), getattr(kernels, function)
    calls = 0
    for x in (np.ones(6).view(Sub), np.ones(array_header.SMALL // 8 + 1)):
        outs = [np.zeros_like(x) for _ in range(outputs)]
        call(x, *outs)
        calls += 1
        assert len(seen) == calls
        np.testing.assert_allclose(outs[0], np.e if function == "exp" else 1 / (1 + np.exp(-1)))
    x = np.ones(6, "f4")
    wrong = [1.5, None, "x", [1.0], np.float32(1), np.ones(6), np.ones(5, "f4"), np.ones((6, 1), "f4")]
    wrong += [np.ones(12, "f4")[::2], np.ones(6, ">f4"), np.ones(6, "f2"), np.ma.array(x, mask=x > 0)]
    for other in wrong:
        for place in range(outputs + 1):
            arrays = [x.copy() for _ in range(outputs + 1)]
            arrays[place] = other
            with pytest.raises((TypeError, ValueError)):
                call(*arrays)
            calls += 1
            assert len(seen) == calls
            assert all((a == 1).all() for i, a in enumerate(arrays) if i != place)


def test_a_layout_of_objects_that_is_not_known_is_noticed(monkeypatch):
    """As with another interpreter, or a NumPy whose arrays have other fields."""
    moved = {name: array_header.HEADER.fields[name][1] for name in array_header.HEADER.names}
    for name in ("type", "data", "ndim", "shape", "dtype", "flags"):
        other = moved | {name: 0 if name in ("type", "data", "shape", "dtype") else moved[name] + 4}
        formats = [array_header.HEADER.fields[each][0] for each in other]
        broken = np.dtype(
            {"names": list(other), "formats": formats, "offsets": list(other.values()), "itemsize": 80}
        )
        if name == "shape":
            continue  # what lies there would be read as an address
        monkeypatch.setattr(array_header, "HEADER", broken)
        assert array_header._facts() is None, name
    monkeypatch.undo()
    assert array_header._facts() is not None
    monkeypatch.setattr(array_header, "_facts_of_process", None)
    assert array_header.builtin(None)(1, 2) is False
