"""The kernels' cache: hit when nothing changed, never stale when a callee did, and never in the way."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastae

HOME = Path(fastae.__file__).resolve().parents[1]

CALL = """
    import numpy as np
    from fastae.kernels import activations
    z, h, dh = np.zeros(5, "f4"), np.empty(5, "f4"), np.empty(5, "f4")
    activations.sigmoid_with_derivative(z, h, dh)
    stats = activations._sigmoid_with_derivative.stats
    print(h[0], sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


@pytest.fixture
def copy(tmp_path):
    """The package in a folder of its own, without caches."""
    ignore = shutil.ignore_patterns("__pycache__", "kernels", "bench")
    shutil.copytree(HOME / "fastae", tmp_path / "fastae", ignore=ignore)
    kernels = Path(fastae.kernels.__file__).resolve().parent
    shutil.copytree(kernels, tmp_path / "fastae" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(home, code=CALL, **environment):
    """What the code prints, run with the package at `home`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")}
    env |= {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=home, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_changed_callee_never_runs_stale(copy):
    assert run(copy) == ["0.5", "0", "1"]
    assert run(copy) == ["0.5", "1", "0"], "nothing changed: from the cache"
    # The words a sigmoid is made of stand in another file than the kernel that is called.
    simd = copy / "fastae" / "kernels" / "simd.py"
    before = simd.read_text()
    after = before.replace("scale if one is None else", "self.add(scale, scale) if one is None else")
    assert after != before
    simd.write_text(after)
    assert run(copy) == ["1.0", "0", "1"], "the new code, compiled anew"
    simd.write_text(before)
    assert run(copy)[0] == "0.5"


def test_numba_alone_would_run_stale_code(copy):
    """What the source stamp is for: without it, the change above is not seen."""
    compiler = copy / "fastae" / "kernels" / "compiler.py"
    text = compiler.read_text()
    assert ", source_hash())" in text
    compiler.write_text(text.replace(", source_hash())", ",)"))
    assert run(copy)[0] == "0.5"
    simd = copy / "fastae" / "kernels" / "simd.py"
    simd.write_text(
        simd.read_text().replace("scale if one is None else", "self.add(scale, scale) if one is None else")
    )
    assert run(copy)[0] == "0.5"


def test_works_uncached_where_no_cache_can_be_written(copy, tmp_path):
    nowhere = tmp_path / "file"
    for file in (nowhere, copy / "fastae" / "kernels" / "__pycache__"):
        file.write_text("")  # where a folder is wanted
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"), str(nowhere / "below"))
    for _ in range(2):
        assert run(copy, **places)[:2] == ["0.5", "0"]


def test_works_where_saving_to_the_cache_fails(copy):
    full = """
        from numba.core.caching import FunctionCache
        def save(self, sig, data):
            raise OSError(28, "No space left on device")
        FunctionCache.save_overload = save
    """
    assert run(copy, textwrap.dedent(full) + textwrap.dedent(CALL))[0] == "0.5"


def test_processes_that_save_at_once_each_find_their_own(copy):
    """Each looks for what is cached before the other has saved, and both save."""
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    code = """
        import sys, numpy as np
        from fastae.kernels import activations
        z = np.zeros(5, sys.argv[1])
        activations._exp(z, z)
        print(z[0], *activations._exp.stats.cache_hits.values())
    """
    together = """
        from numba.core.caching import IndexDataCacheFile
        IndexDataCacheFile._load_index = lambda self: {}  # as it was when both began
    """
    for dtype in ("f4", "f8"):
        text = textwrap.dedent(together) + textwrap.dedent(code).replace("sys.argv[1]", repr(dtype))
        assert run(copy, text, **cache)[0] == "1.0"
    for dtype in ("f4", "f8"):
        text = textwrap.dedent(code).replace("sys.argv[1]", repr(dtype))
        assert run(copy, text, **cache) == ["1.0", "1"], "its own, from the cache"


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_a_full_disk_leaves_nothing_half_written(copy):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"  # every write fails
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    assert run(copy, full + textwrap.dedent(CALL), **cache) == ["0.5", "0", "1"]
    assert not list((copy / "cache").glob("*/*.nb*"))
    assert run(copy, **cache) == ["0.5", "0", "1"]
    assert run(copy, **cache) == ["0.5", "1", "0"], "room again: cached again"


def test_works_where_the_cache_cannot_be_read(copy):
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    run(copy, **cache)
    (file,) = (copy / "cache").glob("*/*.nbc")
    file.unlink()
    file.mkdir()  # opening it fails, for root too
    assert run(copy, **cache)[:2] == ["0.5", "0"]


def test_works_without_numbas_private_cache_class(copy):
    gone = """
        import numba, numba.core.caching as caching
        kept = caching.FunctionCache
        del caching.FunctionCache
        import fastae.kernels.compiler
        caching.FunctionCache = kept
    """
    assert run(copy, textwrap.dedent(gone) + textwrap.dedent(CALL))[0] == "0.5"


def test_the_garbage_collector_is_back_after_a_compilation_and_after_one_that_failed(copy):
    code = """
        import gc
        from fastae.kernels.compiler import kernel

        @kernel
        def fails(x):
            return x.nothing

        try:
            fails(1)
        except Exception as error:
            print(type(error).__name__, gc.isenabled())
    """
    assert run(copy, code) == ["TypingError", "True"]
    assert run(copy, textwrap.dedent(CALL) + "import gc; print(gc.isenabled())")[-1] == "True"
    off = "import gc; gc.disable()" + textwrap.dedent(CALL) + "print(gc.isenabled())"
    assert run(copy, off)[-1] == "False"


def test_numba_compiles_what_is_not_ours_as_ever(copy):
    code = """
        import numba
        from numba.core.codegen import CPUCodegen

        levels, build = [], CPUCodegen._function_pass_manager

        def recorded(self, **options):
            levels.append(options.get("opt"))
            return build(self, **options)

        CPUCodegen._function_pass_manager = recorded
        not_ours = numba.njit(lambda x: x + 1)
        for compile in (lambda: not_ours(1), lambda: activations.exp(z, h), lambda: not_ours(1.0)):
            levels.clear()
            compile()
            print(*set(levels))
    """
    assert run(copy, textwrap.dedent(CALL) + textwrap.dedent(code))[3:] == ["None", "0", "None"]


def test_importing_the_kernels_compiles_nothing(copy):
    code = """
        import fastae.kernels.step, fastae.kernels.activations, numba
        from numba.core.dispatcher import Dispatcher
        from fastae.kernels import step, layer, optimizer, activations
        modules = (step, layer, optimizer, activations)
        made = [f for module in modules for f in vars(module).values() if isinstance(f, Dispatcher)]
        print(len(made) > 5, sum(len(f.overloads) for f in made))
    """
    assert run(copy, code) == ["True", "0"]


def test_one_compilation_a_dtype_whatever_the_network():
    from fastae.kernels import step

    for dtype in ("float32", "float64"):
        for widths in ((5, 3, 5), (40, 20, 10, 20, 40), (17, 17)):
            network = fastae.Network(widths, ("tanh",) * (len(widths) - 1))
            engine = fastae.Engine(network, 2, dtype)
            params = fastae.Parameters.random(network, dtype=dtype)
            for X in (np.ones((9, widths[0])), np.ones((9, widths[0]), "i2", "F")):
                engine.loss_and_gradient(
                    params, X, sample_weight=np.ones(9), objective=fastae.Objective(alpha=1.0)
                )
                engine.encode(params, X)
            fastae.train(params, X, engine=engine, epochs=2, batch_size=4)
    assert len(step.run.signatures) == 1
    for item in (step.shard_item, step.update_item):
        assert len(item._compiled) == 2


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_says_on_a_terminal_that_it_compiles(copy):
    def said_on(terminal):
        reader, writer = os.openpty() if terminal else os.pipe()
        env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")}
        env |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", textwrap.dedent(CALL)]
        subprocess.run(command, cwd=copy, env=env, stdout=subprocess.DEVNULL, stderr=writer, check=True)
        os.write(writer, b".")
        return os.read(reader, 10_000).decode()

    first = said_on(terminal=True)
    assert first.count("compiling kernels") == 1
    assert str(copy) in first, "where they are kept"
    assert said_on(terminal=True) == ".", "nothing to compile"
    shutil.rmtree(copy / "fastae" / "kernels" / "__pycache__")
    assert said_on(terminal=False) == "."
