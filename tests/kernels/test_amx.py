"""Products on the tile registers of AMX: where they are used, the generated code, and rounding without AVX512_BF16.

What they compute is tested with emulated tile registers, in test_products.py and test_bfloat16.py.
"""

import ctypes
import os
import re
import sys
import textwrap
from dataclasses import asdict, replace

import numpy as np
import processes
import pytest
from guard import guard_buffers
from objectives import OBJECTIVES
from threads import pretend_cpus

import fastae
from fastae.kernels import amx, build, forms, prebuilt, split, target, tile_unit
from fastae.kernels.bfloat16 import BFLOAT16
from fastae.kernels.target import TARGET


def run(code, **environment):
    """The standard output of Python code, in a process whose Numba may be told of another CPU."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")} | environment
    done = processes.run([sys.executable, "-c", textwrap.dedent(code)], env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- where it is used -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("has", [True, False])
def test_is_used_where_the_cpu_has_amx_and_the_system_grants_it(has, granted, monkeypatch):
    asked = []
    monkeypatch.setattr(forms, "TARGET", replace(TARGET, amx=has))
    monkeypatch.setattr(tile_unit, "granted", lambda: asked.append(1) or granted)
    assert (amx.AMX in forms.forms_of("bfloat16")) == (has and granted)
    assert amx.AMX not in forms.forms_of("float32") + forms.forms_of("float64")
    assert len(asked) == has, "asked for a CPU without AMX, or for another dtype"


class Linux:
    """A C library that answers arch_prctl, and remembers the requests."""

    def __init__(self, refuses, has_only):
        self.refuses, self.has_only, self.requests = refuses, has_only, []
        self.syscall = self.answer

    def __call__(self, *_, **__):
        return self

    def answer(self, number, code, argument):
        assert number.value == 158
        self.requests.append(code.value)
        if code.value == 0x1022:
            ctypes.cast(argument, ctypes.POINTER(ctypes.c_uint64))[0] = 7 | self.has_only << 18
            return 0
        assert argument.value == 18
        return -1 if self.refuses else 0


@pytest.fixture
def asks_anew():
    tile_unit.granted.cache_clear()
    yield
    tile_unit.granted.cache_clear()


@pytest.mark.usefixtures("asks_anew")
@pytest.mark.parametrize(
    ("system", "refuses", "has", "wanted"),
    [("linux", 0, 1, True), ("linux", 1, 1, False), ("linux", 0, 0, False), ("win32", 0, 1, False)],
)
def test_permission_is_requested_once_a_process(system, refuses, has, wanted, monkeypatch):
    class Answer:
        """A function, whose result type can be set."""

        def __init__(self, function):
            self.function = function

        def __call__(self, *arguments):
            return self.function(*arguments)

    library = Linux(refuses, has)
    library.syscall = Answer(library.answer)
    monkeypatch.setattr(tile_unit.ctypes, "CDLL", library)
    monkeypatch.setattr(tile_unit.sys, "platform", system)
    assert [tile_unit.granted() for _ in range(3)] == [wanted] * 3
    assert library.requests.count(0x1023) == (system == "linux")


@pytest.mark.skipif(TARGET.amx, reason="this CPU has AMX")
@pytest.mark.skipif(not TARGET.x86, reason="the system call is x86's")
@pytest.mark.usefixtures("asks_anew")
def test_a_cpu_without_amx_is_refused():
    assert tile_unit.granted() is False


@pytest.mark.skipif(TARGET.amx, reason="this CPU has AMX")
def test_is_neither_imported_nor_compiled_on_other_cpus():
    code = """
        import sys
        import numpy as np, fastae
        from fastae.engine import warmup
        for dtype in warmup.dtypes():
            network = fastae.Network.autoencoder(70, 40)
            engine = fastae.Engine(network, 1, dtype)
            params = fastae.Parameters.random(network, dtype=engine.dtype)
            engine.loss_and_gradient(params, np.ones((9, 70)))
        print(sorted(name for name in sys.modules if name.rpartition(".")[2] in ("amx", "tile_unit", "simd")))
    """
    assert run(code).strip() == "['fastae.kernels.simd']"


def test_object_files_do_not_hold_it_and_do_not_depend_on_it():
    for group in (*build.GROUPS, "bfloat16"):
        symbols = [symbol for symbol, _, _ in build.kernels_of(group)]
        assert symbols
        assert not [symbol for symbol in symbols if symbol.startswith(("amx.", "tile_unit."))]
        with_amx, without = (
            prebuilt.file_target(asdict(replace(TARGET, amx=has)), group) for has in (True, False)
        )
        assert with_amx == without


def test_products_of_small_depth_are_left_to_the_first_form():
    both = [BFLOAT16, amx.AMX]
    for widths, pays in {
        (784, 64, 784, 784): True,
        (128, 64, 128, 128): True,
        (784, 10, 784, 784): True,
        (30, 8, 30, 30): False,
        (10, 3, 10, 10): False,
        (784, 4, 784): False,
    }.items():
        form = amx.AMX if pays else BFLOAT16
        for batch in (1, 200, 5000):
            assert forms.choose(both, widths, batch, 0, "float32", linear=True, codes=False) is form
            assert forms.choose(both, widths, batch, 0, "float32", linear=False, codes=True) is form
    assert forms.choose_for_inference(both, (784, 64), 100, np.dtype("f4")) is amx.AMX
    assert forms.choose_for_inference(both, (8, 784), 100, np.dtype("f4")) is BFLOAT16


@pytest.mark.filterwarnings("error")
def test_no_warning_where_tile_registers_are_used(monkeypatch):
    """Of bfloat16 on Intel's CPUs, which gains nothing without them, as in narrow networks."""
    monkeypatch.setattr(target, "TARGET", replace(TARGET, cpu="graniterapids"))
    monkeypatch.setattr(forms, "forms_of", lambda dtype: [BFLOAT16, amx.AMX])
    fastae.Engine(fastae.Network.autoencoder(128, 64), dtype="bfloat16")
    with pytest.warns(RuntimeWarning, match="the network is too narrow"):
        fastae.Engine(fastae.Network.autoencoder(30, 8), dtype="bfloat16")


# -- steps that are cut by weights ------------------------------------------------------------------------------------


@pytest.mark.skipif(not amx.AMX.available, reason="the system does not grant AMX")
@pytest.mark.parametrize("last", ["identity", "sigmoid"])
@pytest.mark.parametrize("name", [None, *OBJECTIVES])
def test_a_gradient_by_weights_is_that_by_rows(name, last, monkeypatch):
    """In several slabs, bands and patches, up to guard pages, with the same bits for any number of threads."""
    monkeypatch.setattr(forms, "forms_of", lambda _: [amx.AMX])
    monkeypatch.setattr(split, "SLAB", 64)
    pretend_cpus(monkeypatch, 3)
    guard_buffers(monkeypatch)
    objective = fastae.Objective() if name is None else OBJECTIVES[name]
    network = fastae.Network((85, 23, 600, 85), ("sigmoid", "tanh", last))
    rng = np.random.default_rng(0)
    params, X = fastae.Parameters.random(network, rng), rng.normal(size=(203, 85)).astype("f4")
    if objective.missing:
        X[::3, ::4] = np.nan

    def gradient(n_threads, weights_many):
        monkeypatch.setattr(split, "WEIGHTS_MANY", weights_many)
        engine = fastae.Engine(network, n_threads, "bfloat16")
        loss, found = engine.loss_and_gradient(params, X, objective=objective, seed=5)
        return loss, found.flat

    loss, by_weights = gradient(1, 0)
    for n_threads in (2, 3):
        again = gradient(n_threads, 0)
        assert (again[0], again[1].tobytes()) == (loss, by_weights.tobytes())
    wanted_loss, by_rows = gradient(1, 1 << 62)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    np.testing.assert_allclose(by_weights, by_rows, rtol=0, atol=1e-4 * np.abs(by_rows).max())
    assert not np.array_equal(by_weights, by_rows), "cut in the same way"


# -- the generated code -----------------------------------------------------------------------------------------------

ASSEMBLY = """
    from llvmlite import binding
    from fastae.kernels import amx, in_place
    from fastae.kernels.products import FUNCTIONS
    from fastae.kernels.target import TARGET
    assert TARGET.amx
    for name in ("forward", "residual", "backward", "gradient"):
        llvm, body, _ = in_place.llvm_of(getattr(amx.AMX, name).function, "float32")
        module = binding.parse_assembly(llvm)
        code = in_place.target_machine().emit_assembly(module).split(f"{body}:")[1].split(".Lfunc_end")[0]
        print(f"== {name}", code, sep="\\n")
"""


@pytest.fixture(scope="module")
def assembly():
    """The instructions of each product, generated for a CPU with AMX: not run here."""
    features = ",".join(f"+{name}" for name in (*build.BFLOAT16.features, "amx-tile", "amx-bf16"))
    text = run(ASSEMBLY, NUMBA_CPU_NAME="sapphirerapids", NUMBA_CPU_FEATURES=features)
    return dict(part.split("\n", 1) for part in text.split("== ")[1:])


def loops(code):
    """The bodies of the innermost loops: from a label to a jump back to it, without another label between."""
    return re.findall(r"^(\.L\w+):((?:(?!^\.L\w+:).)*?)\n\s*j\w+\s+\1$", code, re.M | re.S)


x86 = pytest.mark.skipif(not TARGET.x86, reason="LLVM may have no generator for x86 here")


@x86
@pytest.mark.parametrize("name", ["forward", "residual", "backward", "gradient"])
def test_the_code_multiplies_tiles(assembly, name):
    code = assembly[name]
    # registers are set up once, before all else, and released once, after all else
    order = re.findall(r"\b(ldtilecfg|tilerelease|tilezero|tileloadd|tilestored|tdpbf16ps)\b", code)
    assert [order.count(each) for each in ("ldtilecfg", "tilerelease")] == [1, 1]
    assert order[0] == "ldtilecfg"
    assert "tdpbf16ps" in order
    # the loop of a whole register tile: four multiply-adds from four loads, and no vector is kept on the stack
    bodies = [body for _, body in loops(code) if body.count("tdpbf16ps") == 4]
    assert bodies
    for body in bodies:  # LLVM may write a loop once for each case of what the loop does not change
        assert body.count("tileloadd") == 4
        assert not re.search(r"\b(vmov|vbroadcast|tilestored)", body)
    assert {1, 2} <= {body.count("tdpbf16ps") for _, body in loops(code)} or name != "gradient"


@x86
@pytest.mark.parametrize("name", ["forward", "residual", "backward"])
def test_no_tile_is_used_after_its_release(assembly, name):
    _, _, after = assembly[name].partition("tilerelease")
    until_return = after.split("ret", 1)[0]
    assert not re.search(r"\bt(ile|dp)", until_return)


# -- without AVX512_BF16 ----------------------------------------------------------------------------------------------

ROUND = """
    import sys
    import numpy as np
    from fastae.bench.stages import layer_times
    from fastae.kernels import amx, layout
    x = layout.aligned_zeros(32 * 32, "f4")
    x[:] = np.frombuffer(bytes.fromhex(sys.stdin.read()), "f4")
    stored = layout.aligned_zeros(32 * 32, "f4")
    layer_times(1, amx.from_blocked.address("float32"), (stored.ctypes.data, x.ctypes.data, 32, 32, 2))
    print(stored.tobytes().hex())
"""


@pytest.mark.parametrize("cpu", [None, "haswell"])
def test_rounds_to_nearest_even_on_any_cpu(cpu):
    """NaN stays NaN, values below the least normal one become zero: as AVX512_BF16 does."""
    if cpu is not None and not TARGET.x86:
        pytest.skip("a name of an x86 CPU")
    x = np.random.default_rng(0).normal(size=(2, 32, 16)).astype("f4")
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3e38, -3.4e38, 1e-45, -1e-39]
    x[1, :11, 5] = special
    x[0, 20, 3] = np.frombuffer(b"\x01\x00\x80\x7f", "f4")[0]  # a NaN whose upper half is infinity's
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")}
    if cpu is not None:
        env["NUMBA_CPU_NAME"] = cpu
    command = [sys.executable, "-c", textwrap.dedent(ROUND)]
    done = processes.run(command, env=env, input=x.tobytes().hex())
    assert done.returncode == 0, done.stderr
    stored = np.frombuffer(bytes.fromhex(done.stdout), "u2").reshape(2, 2, 512)
    bits = x.view("u4")
    near = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("u2")
    near = np.where(np.abs(x) < 2.0**-126, (bits >> 31 << 15).astype("u2"), near)
    near = np.where(np.isnan(x), (bits >> 16 | 0x40).astype("u2"), near)
    assert near[1, 7:9, 5].tolist() == [0x7F62, 0xFF80]
    side_by_side = np.concatenate(list(near), axis=1)  # (32 rows, 32 columns)
    assert np.array_equal(stored[0, 0].reshape(16, 32), side_by_side[:16])
    assert np.array_equal(stored[1, 0].reshape(16, 32), side_by_side[16:])
    for block in (0, 1):
        assert np.array_equal(stored[block, 1].reshape(16, 32), near[block].T)
