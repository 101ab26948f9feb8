"""Kernels that the package was built with: used when they fit, with the bits of compiled ones, and else compiled."""

import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from processes import HOME
from processes import run as run_to_its_end

import fastae
from fastae.kernels import build, compiler, prebuilt, target

# Takes steps and prints what they computed; whether Numba was needed; and where kernels come from.
STEPS = """
    import hashlib, sys
    import numpy as np, fastae
    rng = np.random.default_rng(0)
    bits = hashlib.sha256()
    for dtype in {dtypes}:
        for widths, last in (((30, 8, 30, 30), "identity"), ((70, 33, 70), "tanh"), ((5, 2, 5), "identity")):
            network = fastae.Network(widths, ("sigmoid",) * (len(widths) - 2) + (last,))
            engine = fastae.Engine(network, 2, dtype)
            params = fastae.Parameters.random(network, seed=0, dtype=engine.dtype)
            X = rng.normal(size=(333, widths[0])).astype("f4")
            noisy = fastae.Objective(alpha=0.1, noise="gaussian")
            fastae.train(params, X, engine=engine, epochs=2, batch_size=100, optimizer=fastae.Adam(), objective=noisy)
            sparse = fastae.Objective(sparsity_weight=0.1)
            for objective in (noisy, sparse):
                loss, gradient = engine.loss_and_gradient(params, X, objective=objective)
                bits.update(np.float64(loss).tobytes() + gradient.flat.tobytes())
            for result in (engine.reconstruct(params, X), engine.errors(params, X)):
                bits.update(result.tobytes())
        if dtype != "bfloat16":
            z = rng.normal(size=99).astype(dtype)
            h, dh = z.copy(), z.copy()
            fastae.kernels.sigmoid_with_derivative(z, h, dh)
            bits.update(h.tobytes() + dh.tobytes())
    needed = "numba" in sys.modules
    from fastae.cli.doctor import report
    print(bits.hexdigest(), needed, report()["kernels"])
"""
TARGET = target.TARGET
X86 = TARGET.x86
DTYPES = ["float32", "float64"] + ["bfloat16"] * TARGET.bfloat16
usable = pytest.mark.skipif(
    target.numba_setting() is not None, reason="Numba is told of another CPU, or to generate other code"
)


def job(group):
    """The file that this CPU needs of a group."""
    (found,) = (each for each in build.jobs() if each[:2] == (TARGET.isa, group))
    return found


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """A directory of the object files that this CPU needs, as `python -m fastae.kernels.build` makes them."""
    directory = tmp_path_factory.mktemp("objects")
    for group in ("calls", *DTYPES):
        build._start(directory, *job(group))
    return directory


@pytest.fixture
def copy(tmp_path, objects):
    """The package with object files, in a folder of its own, without caches."""
    ignore = shutil.ignore_patterns("__pycache__", "kernels", "bench")
    shutil.copytree(HOME / "fastae", tmp_path / "fastae", ignore=ignore)
    kernels = tmp_path / "fastae" / "kernels"
    ignore = shutil.ignore_patterns("__pycache__", "objects")
    shutil.copytree(Path(fastae.kernels.__file__).resolve().parent, kernels, ignore=ignore)
    shutil.copytree(objects, kernels / "objects")
    return tmp_path


def steps(home, dtypes=("float32",), **environment):
    """The bits of steps in a process of the package at `home`; whether it imported Numba; the doctor's words."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    env |= {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-c", textwrap.dedent(STEPS).format(dtypes=list(dtypes))]
    done = run_to_its_end(command, cwd=home, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    bits, numba, words = done.stdout.strip().split(" ", 2)
    return bits, numba == "True", words


@usable
def test_the_bits_are_those_of_compiling_here_and_numba_is_not_imported(copy):
    bits, numba, words = steps(copy, DTYPES)
    assert not numba
    assert "'the package'" in words
    compiled, numba, words = steps(copy, DTYPES, NUMBA_OPT="3")  # Numba's default, but set
    assert numba
    assert "'the compiler', 'because': 'NUMBA_OPT is set'" in words
    assert compiled == bits


@usable
def test_edited_kernels_are_compiled(copy):
    kernels = copy / "fastae" / "kernels"
    file = kernels / "elementary.py"
    before, (bits, _, _) = file.read_text(), steps(copy)
    after = before.replace("scale if one is None else", "words.add(scale, scale) if one is None else")
    assert after != before
    file.write_text(after)
    code = """
        import sys, numpy as np, fastae
        z = np.zeros(5, "f4")
        fastae.kernels.sigmoid_with_derivative(z, z, z.copy())
        print(z[0], "numba" in sys.modules)
    """
    env = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert run_to_its_end(command, cwd=copy, env=os.environ | env).stdout.split() == ["1.0", "True"]
    file.write_text(before)
    assert run_to_its_end(command, cwd=copy, env=os.environ | env).stdout.split() == ["0.5", "False"]
    assert steps(copy)[:2] == (bits, False)


DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1000],
    "a flipped bit in the code": lambda content: (
        content[:-30_000] + bytes([content[-30_000] ^ 16]) + content[-29_999:]
    ),
    "a flipped bit in the head": lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
    "a flipped bit in the digest": lambda content: bytes([content[0] ^ 128]) + content[1:],
    "another file": lambda content: b"\0" * len(content),
}


def loaded(monkeypatch, directory, group="float32"):
    """What `prebuilt` makes of a group's file in a directory: addresses, or the reason why not."""
    monkeypatch.setattr(prebuilt, "DIRECTORY", str(directory))
    return prebuilt._load.__wrapped__(group)


@usable
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_not_loaded(damage, objects, tmp_path, monkeypatch):
    assert isinstance(loaded(monkeypatch, objects), dict)
    file = shutil.copytree(objects, tmp_path / "objects") / f"{TARGET.isa}.float32"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert "is damaged, or was built from other sources" in loaded(monkeypatch, file.parent)


@usable
def test_where_a_file_is_damaged_kernels_are_compiled(copy, objects):
    bits, _, _ = steps(copy)
    file = copy / "fastae" / "kernels" / "objects" / f"{TARGET.isa}.float32"
    file.write_bytes(DAMAGES["a flipped bit in the code"](file.read_bytes()))
    compiled, numba, words = steps(copy)
    assert (compiled, numba) == (bits, True)
    assert "damaged" in words
    file.unlink()
    assert "No such file" in steps(copy)[2]


@usable
def test_what_is_for_another_cpu_or_platform_is_not_loaded(objects, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(target, "host_features", lambda: {"sse2"})
        if X86 and TARGET.isa != "generic":
            assert "not for" in loaded(patch, objects)
    with monkeypatch.context() as patch:
        patch.setattr(prebuilt, "platform_name", lambda: "plan9-mips")
        assert "damaged" in loaded(patch, objects)
    with monkeypatch.context() as patch:
        from dataclasses import replace

        patch.setattr(target, "TARGET", replace(TARGET, register_tiles={1: 3}))
        assert "not for" in loaded(patch, objects)


@pytest.mark.parametrize(
    "setting", ["NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT", "NUMBA_DISABLE_JIT"]
)
def test_settings_of_numba_that_change_code_are_seen(setting, monkeypatch):
    monkeypatch.setenv(setting, "generic")
    assert prebuilt.why_not.__wrapped__() in (f"{setting} is set", "the package was installed without them")
    assert target.numba_setting() is not None


def test_a_checkout_compiles_its_kernels(copy):
    shutil.rmtree(copy / "fastae" / "kernels" / "objects")
    assert steps(copy)[1:] == (
        True,
        "{'come_from': 'the compiler', 'because': 'the package was installed without them'}",
    )


def object_of(file):
    """The facts and the object in a file."""
    head, _, image = file.read_bytes()[prebuilt._SIZE :].partition(b"\n")
    return json.loads(head), image


# Whole names, as two bytes such as "Py" stand somewhere in a megabyte of machine code by chance.
_PYTHON_OR_NUMBA = re.compile(
    rb"_?Py[A-Z_][A-Za-z_]{4,}|NRT_[A-Za-z]{3,}|[Nn]umba|unpickle|runtime exception"
)


def test_objects_call_nothing_of_python_or_numba(objects):
    """Not one name of the error path of Numba's wrappers is left, neither as a symbol nor as text."""
    for file in objects.iterdir():
        facts, image = object_of(file)
        assert facts["functions"]
        found = _PYTHON_OR_NUMBA.search(image)
        assert not found, (file.name, found)
        assert os.fsencode(HOME) not in image, file.name


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_objects_need_only_functions_of_the_c_library(objects, tmp_path):
    for file in objects.iterdir():
        facts, image = object_of(file)
        (tmp_path / "object.o").write_bytes(image)
        done = run_to_its_end(["nm", "-P", str(tmp_path / "object.o")])
        assert done.returncode == 0, done.stderr
        symbols = re.findall(r"^(.*) ([A-Za-z])(?: [0-9a-f]*)*$", done.stdout, re.M)
        outside = {name.removeprefix("_") for name, kind in symbols if kind == "U"}
        assert outside <= build.FUNCTIONS, file.name
        assert sorted(name for name, kind in symbols if kind == "T") == facts["functions"]


def test_what_a_kernel_may_not_call_is_refused_by_the_build():
    from llvmlite import binding

    calls = "declare void @PyErr_Clear()\ndefine void @f() {\n  call void @PyErr_Clear()\n  ret void\n}\n"
    machine = binding.Target.from_default_triple().create_target_machine()
    with pytest.raises(RuntimeError, match="kernels may not use PyErr_Clear"):
        build._object(binding.parse_assembly(calls), ["f"], machine)


@pytest.mark.exhaustive
def test_builds_are_reproducible(objects, tmp_path):
    """Also from another folder, as in the sdist, and in another order of hashes."""
    kernels = Path(fastae.kernels.__file__).resolve().parent
    ignore = shutil.ignore_patterns("__pycache__", "kernels", "bench", "objects")
    shutil.copytree(HOME / "fastae", tmp_path / "fastae", ignore=ignore)
    shutil.copytree(
        kernels, tmp_path / "fastae" / "kernels", ignore=shutil.ignore_patterns("__pycache__", "objects")
    )
    isa, group, machine = job("calls")
    features = ",".join(f"+{feature}" for feature in machine.features)
    for seed, group in (("1", "calls"), ("2", "float64")):
        env = os.environ | {
            "NUMBA_CPU_NAME": machine.cpu,
            "NUMBA_CPU_FEATURES": features,
            "PYTHONHASHSEED": seed,
        }
        command = [sys.executable, "-m", "fastae.kernels.build", str(tmp_path), "--only", isa, group]
        done = run_to_its_end(command, cwd=tmp_path, env=env | {"PYTHONPATH": str(tmp_path)}, timeout=300)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{isa}.{group}").read_bytes() == (objects / f"{isa}.{group}").read_bytes()


def test_every_kernel_of_the_registry_is_built_for_each_dtype_that_it_is_called_with(objects):
    from fastae.kernels import forms, step

    for group in ("calls", *DTYPES):
        facts, _ = object_of(objects / f"{TARGET.isa}.{group}")
        assert facts["functions"] == [symbol for symbol, _, _ in build.kernels_of(group)]
    element = {"bfloat16": "float32"}
    names = {symbol for group in DTYPES for symbol, _, _ in build.kernels_of(group)}
    for dtype in DTYPES:
        for form in forms.forms_of(dtype):
            for product in forms_functions(form):
                assert f"{compiler.name_of(product.function)} {element.get(dtype, dtype)}" in names
    for item in step.ITEMS.values():
        for dtype in ("float32", "float64"):
            assert f"{compiler.name_of(item.function)} {dtype}" in names


def forms_functions(form):
    from fastae.kernels.products import FUNCTIONS

    return [function for name in FUNCTIONS if (function := getattr(form, name)) is not None]


@pytest.mark.skipif(not X86, reason="the other targets are x86's")
@pytest.mark.exhaustive
@pytest.mark.parametrize("isa", list(build.X86)[: list(build.X86).index(TARGET.isa)] if X86 else [])
def test_the_code_for_lesser_cpus_has_the_bits_of_compiling_for_them(isa, copy):
    """With this CPU, taken for a lesser one by the objects; and Numba told of that one."""
    machine = build.X86[isa]
    directory = copy / "fastae" / "kernels" / "objects"
    shutil.rmtree(directory)
    directory.mkdir()
    for group in ("calls", "float32", "float64"):
        build._start(directory, isa, group, machine)
    features = ",".join(f"+{feature}" for feature in machine.features)
    setting = {"NUMBA_CPU_NAME": machine.cpu, "NUMBA_CPU_FEATURES": features}
    compiled, numba, _ = steps(copy, ("float32", "float64"), **setting)
    assert numba
    lesser = copy / "sitecustomize.py"
    lesser.write_text(
        "from llvmlite import binding\n"
        f"binding.get_host_cpu_features = lambda: dict.fromkeys({['sse2', *machine.features]!r}, True)\n"
    )
    bits, numba, words = steps(copy, ("float32", "float64"))
    assert not numba, words
    assert bits == compiled
