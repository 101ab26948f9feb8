"""The register tiles chosen, by the CPU that Numba compiles for, and the right gradient on each kind."""

import os
import platform
import runpy
import sys
import textwrap

import pytest
from llvmlite import binding
from numba.core import config
from processes import run as run_to_its_end

from fastae.kernels import target

HAS = binding.get_host_cpu_features()
X86 = target.TARGET.x86
AVX512 = "+avx,+avx2,+fma,+avx512f,+avx512vl,+avx512bw,+avx512dq"

CODE = """
    import numpy as np, fastae
    from fastae import reference
    from fastae.kernels.target import TARGET
    print(TARGET.isa, TARGET.most_blocks)
    rng = np.random.default_rng(0)
    for dtype, tolerance in {dtypes}:
        for widths in ((30, 8, 30, 30), (70, 33, 70), (5, 2, 5)):
            network = fastae.Network(widths, ("sigmoid",) * (len(widths) - 2) + ("identity",))
            params = fastae.Parameters.random(network, dtype=dtype)
            X = rng.random((333, widths[0])).astype(dtype)
            loss, gradient = fastae.Engine(network, 2, dtype).loss_and_gradient(params, X)
            exact = reference.backward(X.astype("f8"), {{k: v.astype("f8") for k, v in params.items()}})
            for name in gradient:
                wanted = exact["d" + name]
                assert np.abs(gradient[name] - wanted).max() <= tolerance * np.abs(wanted).max(), (dtype, name)
"""


def run(dtypes, **environment):
    """The instruction set that a child Python compiles for, whose gradients are those of the reference."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")}
    command = [sys.executable, "-c", textwrap.dedent(CODE).format(dtypes=dtypes)]
    done = run_to_its_end(command, env=inherited | environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


BOTH = (("float32", 3e-6), ("float64", 1e-13))


@pytest.mark.skipif(not X86, reason="names are those of x86 CPUs")
def test_generic():
    assert run(BOTH[:1], NUMBA_CPU_NAME="generic") == "generic"


@pytest.mark.exhaustive
@pytest.mark.skipif(not (X86 and HAS.get("avx2") and HAS.get("fma")), reason="needs AVX2")
def test_haswell():
    assert run(BOTH, NUMBA_CPU_NAME="haswell") == "avx2"


@pytest.mark.skipif(not (X86 and HAS.get("avx2") and HAS.get("fma")), reason="needs AVX2")
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "isa"),
    [
        ("generic", "generic"),
        ("znver1", "avx2"),
        ("skylake", "avx2"),
        ("nehalem", "generic"),
        ("bdver2", None),
    ],
)
def test_other_names(name, isa):
    assert run(BOTH, NUMBA_CPU_NAME=name) in ([isa] if isa else ["generic", "avx2", "avx512"])


def choose(monkeypatch, name, features):
    """The target of a new process in which Numba was told of this CPU."""
    monkeypatch.setattr(config, "CPU_NAME", name)
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    return runpy.run_path(target.__file__)["TARGET"]


@pytest.mark.skipif(not X86, reason="features are those of x86 CPUs")
@pytest.mark.parametrize(
    ("features", "isa", "fma"),
    [
        (AVX512, "avx512", True),
        ("+avx,+avx2,+fma,+avx512f,-avx512vl,+avx512bw,+avx512dq", "avx2", True),
        ("+avx,+avx2,+fma", "avx2", True),
        ("+avx,+avx2,-fma", "generic", False),
        ("+sse2", "generic", False),
        ("", "generic", False),
    ],
)
def test_features_asked_for_decide(monkeypatch, features, isa, fma):
    chosen = choose(monkeypatch, "x86-64-v4", features)
    assert (chosen.isa, chosen.fma) == (isa, fma)


@pytest.mark.skipif(not X86, reason="features are those of x86 CPUs")
def test_bfloat16_only_where_there_is_avx512_bf16(monkeypatch):
    assert choose(monkeypatch, "znver5", f"{AVX512},+avx512bf16").bfloat16
    assert not choose(monkeypatch, "znver5", f"{AVX512},-avx512bf16").bfloat16
    assert not choose(monkeypatch, "haswell", f"{AVX512},+avx512bf16").bfloat16
    assert not choose(monkeypatch, "znver5", "+avx,+avx2,+fma,+avx512bf16").bfloat16


@pytest.mark.parametrize(
    ("triple", "isa", "x86"),
    [
        ("aarch64-unknown-linux-gnu", "neon", False),
        ("arm64-apple-darwin24.1.0", "neon", False),
        ("x86_64-unknown-linux-gnu", "generic", True),
        ("x86_64-pc-windows-msvc", "generic", True),
        ("riscv64-unknown-linux-gnu", "generic", False),
        ("powerpc64le-unknown-linux-gnu", "generic", False),
    ],
)
def test_the_processor_that_llvm_compiles_for_decides(monkeypatch, triple, isa, x86):
    """Not that of the system: a process of another processor may run on it."""
    monkeypatch.setattr(platform, "machine", lambda: "neither")
    monkeypatch.setattr(binding, "get_process_triple", lambda: triple)
    chosen = choose(monkeypatch, "generic", "")
    assert (chosen.isa, chosen.x86) == (isa, x86)


@pytest.mark.parametrize(
    ("isa", "processor", "features", "registers", "registers_a_line"),
    [
        ("avx512", "x86_64", AVX512, 32, 1),
        ("avx2", "x86_64", "+avx,+avx2,+fma", 16, 2),
        ("generic", "x86_64", "", 16, 4),
        ("neon", "aarch64", "", 32, 4),
    ],
)
def test_a_register_tile_fits_the_registers(
    monkeypatch, isa, processor, features, registers, registers_a_line
):
    """Its accumulators, one row of B and one broadcast of A; and there is a tile for each width up to the widest."""
    monkeypatch.setattr(binding, "get_process_triple", lambda: f"{processor}-unknown-unknown")
    chosen = choose(monkeypatch, None, features)
    assert chosen.isa == isa
    assert sorted(chosen.register_tiles) == list(range(1, chosen.most_blocks + 1))
    for blocks, rows in chosen.register_tiles.items():
        assert rows >= 1
        assert (rows * blocks + blocks) * registers_a_line + 1 <= registers
