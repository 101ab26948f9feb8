"""The public kernels in the user's own jitted functions: the same bits as from Python, errors, caches, lazy imports."""

import os
import re
import sys
import tomllib
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from processes import run

import fastae
from fastae import kernels
from fastae.kernels import (
    dense_layer,
    exp,
    layer_backward,
    layer_forward,
    layer_gradient,
    sigmoid_with_derivative,
)

ROOT = Path(fastae.__file__).parent.parent
DTYPES = "float32", "float64"


@numba.njit
def exp_in_njit(x, out):
    exp(x, out)


@numba.njit
def sigmoid_in_njit(z, h, dh):
    kernels.sigmoid_with_derivative(z, h, dh)


@numba.njit
def forward_in_njit(h, a, W, b, activation, fan_in, fan_out, rows):
    layer_forward(h, a, W, b, activation=activation, fan_in=fan_in, fan_out=fan_out, rows=rows)


@numba.njit
def gradient_in_njit(dW, db, a, delta, fan_in, fan_out, rows, accumulate):
    layer_gradient(dW, db, a, delta, fan_in=fan_in, fan_out=fan_out, rows=rows, accumulate=accumulate)


@numba.njit
def backward_in_njit(dW, db, a, WT, delta, W, activation, fan_in, fan_out, rows, accumulate):
    layer_backward(
        dW,
        db,
        a,
        WT,
        delta,
        W,
        activation=activation,
        fan_in=fan_in,
        fan_out=fan_out,
        rows=rows,
        accumulate=accumulate,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise_bits_are_those_of_a_call_from_python(dtype):
    for shape in ((0,), (1,), (37,), (5, 7), (3, 4, 5)):
        z = np.random.default_rng(0).normal(0, 4, shape).astype(dtype)
        wanted, found = np.empty_like(z), np.empty_like(z)
        exp(z, wanted)
        exp_in_njit(z, found)
        np.testing.assert_array_equal(found, wanted)
        both = [np.empty_like(z) for _ in range(4)]
        sigmoid_with_derivative(z, *both[:2])
        sigmoid_in_njit(z, *both[2:])
        np.testing.assert_array_equal(both[2], both[0])
        np.testing.assert_array_equal(both[3], both[1])


def layer(dtype, fan_in, fan_out, rows, seed=0):
    """Buffers of a layer by name, filled at random; padding of the weights is zero, rows beyond `rows` are not."""
    rng = np.random.default_rng(seed)
    arrays = {
        "h": kernels.empty_rows(rows, fan_out, dtype),
        "a": kernels.empty_rows(rows, fan_in, dtype),
        "W": kernels.empty_weights(fan_in, fan_out, dtype),
        "b": kernels.empty_bias(fan_out, dtype),
        "dW": kernels.empty_weights(fan_in, fan_out, dtype),
        "db": kernels.empty_bias(fan_out, dtype),
        "WT": kernels.empty_weights(fan_out, fan_in, dtype),
        "delta": kernels.empty_rows(rows, fan_out, dtype),
    }
    for name, shape in {
        "a": (rows, fan_in),
        "W": (fan_in, fan_out),
        "b": (fan_out,),
        "dW": (fan_in, fan_out),
        "db": (fan_out,),
        "delta": (rows, fan_out),
    }.items():
        kernels.pack(rng.normal(size=shape), arrays[name])
    return arrays


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_bits_are_those_of_a_call_from_python(dtype):
    for fan_in, fan_out, rows, activation in (
        (1, 1, 1, "relu"),
        (17, 33, 30, "sigmoid"),
        (40, 9, 48, "tanh"),
    ):
        mine, theirs = layer(dtype, fan_in, fan_out, rows), layer(dtype, fan_in, fan_out, rows)
        sizes = {"fan_in": fan_in, "fan_out": fan_out, "rows": rows}

        def pick(names, arrays):
            return [arrays[name] for name in names.split()]

        layer_forward(*pick("h a W b", theirs), activation=activation, **sizes)
        forward_in_njit(*pick("h a W b", mine), activation, fan_in, fan_out, rows)
        for accumulate in (True, False):
            layer_gradient(*pick("dW db a delta", theirs), **sizes, accumulate=accumulate)
            gradient_in_njit(*pick("dW db a delta", mine), fan_in, fan_out, rows, accumulate)
            for name in theirs:
                np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
        options = {"activation": activation, "accumulate": True}
        layer_backward(*pick("dW db a WT delta W", theirs), **sizes, **options)
        backward_in_njit(*pick("dW db a WT delta W", mine), activation, fan_in, fan_out, rows, True)
        for name in theirs:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def test_defaults_are_those_of_python():
    mine, theirs = layer("float32", 5, 9, 24), layer("float32", 5, 9, 24)

    @numba.njit
    def run(h, a, W, b, dW, db, delta):
        layer_forward(h, a, W, b, "sigmoid", 5, 9)
        layer_gradient(dW, db, a, delta, 5, 9)

    names = "h a W b dW db delta".split()
    run(*(mine[name] for name in names))
    layer_forward(*(theirs[n] for n in names[:4]), activation="sigmoid", fan_in=5, fan_out=9)
    layer_gradient(*(theirs[n] for n in ("dW", "db", "a", "delta")), fan_in=5, fan_out=9)
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def test_what_the_types_tell_is_refused_when_the_caller_is_compiled():
    z = np.zeros(8, "f4")
    read_only = z.copy()
    read_only.flags.writeable = False
    for call, named in (
        (lambda: exp_in_njit(1.5, z), "x must be"),
        (lambda: exp_in_njit(z, z.astype("f8")), "x is float32, but out is float64"),
        (lambda: exp_in_njit(z, np.zeros((8, 1), "f4")), "out has 2 dimensions"),
        (lambda: exp_in_njit(z, read_only), "out is read-only"),
        (lambda: exp_in_njit(z[::2], z[:4]), "x must be C-contiguous"),
        (lambda: exp_in_njit(z, z.astype("i4")), "out must be a float32"),
        (lambda: sigmoid_in_njit(z, z, np.zeros(8)), "dh is float64"),
    ):
        with pytest.raises(TypingError, match=named):
            call()
    a = layer("float32", 5, 9, 24)
    with pytest.raises(TypingError, match="fan_in must be an integer"):
        forward_in_njit(a["h"], a["a"], a["W"], a["b"], "relu", 5.0, 9, 24)
    with pytest.raises(TypingError, match="rows must be an integer"):
        forward_in_njit(a["h"], a["a"], a["W"], a["b"], "relu", 5, 9, True)
    with pytest.raises(TypingError, match="activation must be a string"):
        forward_in_njit(a["h"], a["a"], a["W"], a["b"], 1, 5, 9, 24)
    with pytest.raises(TypingError, match="accumulate must be True or False"):
        gradient_in_njit(a["dW"], a["db"], a["a"], a["delta"], 5, 9, 24, 1)


def test_what_the_values_tell_is_refused_and_nothing_written():
    line = np.zeros(64, "f4")
    for call, named in (
        (lambda: exp_in_njit(line[:8], line[1:9]), "x and out overlap"),
        (lambda: exp_in_njit(line[:8], line[8:15]), "out has another shape than x"),
        (lambda: sigmoid_in_njit(line[:8], line[8:16], line[9:17]), "h and dh overlap"),
        (lambda: sigmoid_in_njit(line[:8], line[1:9], line[20:28]), "z and h overlap"),
        (lambda: sigmoid_in_njit(line[:8], line[20:28], line[1:9]), "z and dh overlap"),
    ):
        with pytest.raises(ValueError, match=named):
            call()
    assert not line.any()

    def forward(fan_in=5, fan_out=9, rows=24, activation="relu", **changed):
        a = layer("float32", 5, 9, 24) | changed
        forward_in_njit(a["h"], a["a"], a["W"], a["b"], activation, fan_in, fan_out, rows)

    own = layer("float32", 9, 9, 24)
    whole = np.zeros(64, "f4")
    start = -dense_layer.address(whole) % 64 // 4
    off_line = whole[start + 1 : start + 17]
    for arguments, named in (
        ({"fan_in": 0}, "fan_in must be at least 1"),
        ({"fan_out": -1}, "fan_out must be at least 1"),
        ({"fan_in": 17}, "a has another shape"),
        ({"fan_in": 2**62}, "a has another shape"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"rows": 10**6}, "rows must be at least 1, and at most"),
        ({"activation": "gelu"}, "activation must be among"),
        ({"h": own["a"], "a": own["a"]}, "h and a overlap"),
        ({"b": off_line}, "b must start on a cache line"),
        ({"a": np.zeros((1, 7, 16), "f4")}, "height of a must be a multiple"),
    ):
        with pytest.raises(ValueError, match=named):
            forward(**arguments)


USER = """
from fastae.kernels import exp
import numba, numpy as np

@numba.njit(cache=True)
def twice(x, out):
    exp(x, out)
    for i in range(out.size):
        out[i] *= 2

x = np.linspace(-1, 1, 50)
out = np.empty_like(x)
twice(x, out)
assert np.allclose(out, 2 * np.exp(x)), out
print(sum(twice.stats.cache_hits.values()))
"""


def declared_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["entry-points"]["numba_extensions"]["init"]


def test_numba_learns_of_the_kernels_by_the_entry_point_and_keeps_the_caller_in_its_cache(tmp_path):
    installed = tmp_path / "site" / "extension-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Name: extension\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[numba_extensions]\ninit = {declared_entry_point()}\n")
    script = tmp_path / "user.py"
    script.write_text(USER)
    paths = [str(installed.parent), str(ROOT), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    hits = []
    for _ in range(2):
        done = run([sys.executable, script], env=environment)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        hits.append(int(done.stdout))
    assert hits == [0, 1]


def test_neither_the_package_nor_its_kernels_import_numba_for_this():
    code = (
        "import sys, fastae, fastae.kernels; fastae.kernels.extend_numba(); "
        "fastae.kernels.empty_bias(3); fastae.kernels.exp; assert 'numba' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU_")}
    done = run([sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_the_entry_point_is_there():
    module, function = re.fullmatch(r"([\w.]+):(\w+)", declared_entry_point()).groups()
    assert module == "fastae.kernels"
    assert callable(getattr(kernels, function))
