"""The kernels' cache: hit when nothing changed, never stale when a callee did, and never in the way."""

import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numba.core import event
from processes import HOME, process
from processes import run as run_to_its_end

import fastae
from fastae.engine.warmup import warm_up
from fastae.kernels.compiler import jitted

# Prints sigmoid(0), and whether the function was compiled for it or loaded from the cache.
CALL = """
    import numpy as np
    from numba.core import event
    from fastae.kernels import activations
    z, h, dh = np.zeros(5, "f4"), np.empty(5, "f4"), np.empty(5, "f4")
    with event.install_recorder("numba:compile") as compilations:
        activations.sigmoid_with_derivative(z, h, dh)
    print(h[0], "compiled" if compilations.buffer else "loaded")
"""
COMPILED, LOADED = ["0.5", "compiled"], ["0.5", "loaded"]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions and limits")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)


@pytest.fixture
def copy(tmp_path):
    """The package in a folder of its own, without caches."""
    ignore = shutil.ignore_patterns("__pycache__", "kernels", "bench")
    shutil.copytree(HOME / "fastae", tmp_path / "fastae", ignore=ignore)
    kernels = Path(fastae.kernels.__file__).resolve().parent
    shutil.copytree(
        kernels, tmp_path / "fastae" / "kernels", ignore=shutil.ignore_patterns("__pycache__", "objects")
    )
    return tmp_path


def environment_of(home):
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    return env | {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


def run(home, code=CALL, **environment):
    """What the code prints, run with the package at `home`."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = run_to_its_end(command, cwd=home, env=environment_of(home) | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def double_the_sigmoid(home):
    """Change a callee that stands in another file than the kernel that is called; returns how to undo it."""
    file = home / "fastae" / "kernels" / "elementary.py"
    before = file.read_text()
    after = before.replace("scale if one is None else", "words.add(scale, scale) if one is None else")
    assert after != before
    file.write_text(after)
    return lambda: file.write_text(before)


def test_a_changed_callee_never_runs_stale(copy):
    assert run(copy) == COMPILED
    assert run(copy) == LOADED, "nothing changed"
    undo = double_the_sigmoid(copy)
    assert run(copy) == ["1.0", "compiled"]
    undo()
    assert run(copy)[0] == "0.5"


def test_numba_alone_would_run_stale_code(copy):
    """What the source stamp is for: without it, the change above is not seen."""
    compiler = copy / "fastae" / "kernels" / "in_place.py"
    text = compiler.read_text()
    assert ", source_hash())" in text
    compiler.write_text(text.replace(", source_hash())", ",)"))
    assert run(copy) == COMPILED
    double_the_sigmoid(copy)
    assert run(copy) == LOADED


def test_sources_that_change_before_the_compilation_are_never_saved_as_another_version(copy):
    """After a `git pull`, say: functions that were imported earlier do not become the new version's."""
    double = textwrap.dedent(
        """
        import os
        import fastae.kernels
        FILE = fastae.kernels.__path__[0] + "/elementary.py"
        def replace(old, new):
            text = open(FILE).read()
            assert old in text
            open(FILE, "w").write(text.replace(old, new))
        ONE, TWO = "scale if one is None else", "words.add(scale, scale) if one is None else"
        """
    )
    pulled = double + "from fastae.kernels import activations\nreplace(ONE, TWO)\n"
    assert run(copy, pulled + textwrap.dedent(CALL)) == COMPILED
    assert run(copy) == ["1.0", "compiled"], "not the old code"
    assert run(copy) == ["1.0", "loaded"]
    back_and_forth = double + "replace(TWO, ONE)\nfrom fastae.kernels import activations\nreplace(ONE, TWO)\n"
    assert run(copy, back_and_forth + textwrap.dedent(CALL))[0] == "0.5"
    assert run(copy) == ["1.0", "loaded"]


def test_a_kernel_defined_elsewhere_is_compiled_again_when_its_file_changes(copy):
    """Constants are no part of a function's bytecode."""
    code = "import numpy as np, own; print(own.add(np.zeros(1))[0])"
    for constant in ("1.0", "2.0", "2.0"):
        (copy / "own.py").write_text(
            f"from fastae.kernels.compiler import jitted\n\n@jitted\ndef add(x):\n    return x + {constant}\n"
        )
        assert run(copy, code) == [constant]


def other_function(saved, folder):
    (other,) = (file for file in folder.iterdir() if file.name.startswith("activations._exp"))
    return other.read_bytes()


DAMAGES = {
    "empty": lambda saved, _: b"",
    "a flipped bit": lambda saved, _: saved[:-9000] + bytes([saved[-9000] ^ 16]) + saved[-8999:],
    "another function's": other_function,
}


def test_damaged_files_are_compiled_again_and_replaced(copy):
    with_exp = CALL.replace(
        "activations.sigmoid_with", "activations.exp(z, h.copy()); activations.sigmoid_with"
    )
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    assert run(copy, with_exp, **cache) == COMPILED
    (file,) = (copy / "cache").glob("*/activations._sigmoid*.nbc")
    saved = file.read_bytes()
    for damage, damaged in DAMAGES.items():
        file.write_bytes(damaged(saved, file.parent))
        assert run(copy, **cache) == COMPILED, damage
    assert run(copy, **cache) == LOADED


@posix
def test_files_that_another_user_may_have_placed_are_not_run(copy):
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    assert run(copy, **cache) == COMPILED
    (place,) = (copy / "cache").iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o777)
    assert run(copy, **cache) == COMPILED
    instead = copy / "fastae" / "kernels" / "__pycache__" / "fastae"
    assert stat.S_IMODE(instead.stat().st_mode) == 0o700
    assert run(copy, **cache) == LOADED, "from there"
    shutil.rmtree(instead)
    place.chmod(0o755)
    assert run(copy, **cache) == LOADED


def test_works_uncached_where_no_cache_can_be_written(copy, tmp_path):
    nowhere = tmp_path / "file"
    for file in (nowhere, copy / "fastae" / "kernels" / "__pycache__"):
        file.write_text("")  # where a folder is wanted
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"), str(nowhere / "below"))
    for _ in range(2):
        assert run(copy, **places) == COMPILED


def test_works_where_saving_to_the_cache_fails(copy):
    full = """
        from numba.core.caching import FunctionCache
        def save(self, sig, data):
            print("saving")
            raise OSError(28, "No space left on device")
        FunctionCache.save_overload = save
    """
    for _ in range(2):
        assert run(copy, textwrap.dedent(full) + textwrap.dedent(CALL)) == ["saving", *COMPILED]


def test_processes_that_save_at_once_each_find_their_own(copy):
    """Each looks for what is cached before the other has saved, and both save."""
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    together = textwrap.dedent(
        """
        from numba.core.caching import IndexDataCacheFile
        IndexDataCacheFile._load_index = lambda self: {}  # as it was when both began
        """
    )
    by_dtype = CALL.replace(
        "sigmoid_with_derivative(z, h, dh)", "_run(activations._sigmoid_with_derivative, z=z, h=h, dh=dh)"
    )
    calls = [textwrap.dedent(by_dtype).replace('"f4"', repr(dtype)) for dtype in ("f4", "f8")]
    for call in calls:
        assert run(copy, together + call, **cache) == COMPILED
    for call in calls:
        assert run(copy, call, **cache) == LOADED, "its own"


@posix
def test_a_full_disk_leaves_nothing_half_written(copy):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"  # every write fails
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    assert run(copy, full + textwrap.dedent(CALL), **cache) == COMPILED
    assert not list((copy / "cache").glob("*/*.nb*"))
    assert run(copy, **cache) == COMPILED
    assert run(copy, **cache) == LOADED, "room again: saved again"


def test_works_where_the_cache_cannot_be_read(copy):
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    assert run(copy, **cache) == COMPILED
    (file,) = (copy / "cache").glob("*/*.nbc")
    file.unlink()
    file.mkdir()  # opening it fails, for root too
    assert run(copy, **cache) == COMPILED


def test_works_without_numbas_private_cache_class(copy):
    gone = """
        import numba, numba.core.caching as caching
        cache_class = caching.FunctionCache
        del caching.FunctionCache
        import fastae.kernels.in_place
        caching.FunctionCache = cache_class
    """
    for _ in range(2):
        assert run(copy, textwrap.dedent(gone) + textwrap.dedent(CALL)) == COMPILED


def test_the_garbage_collector_is_back_after_a_compilation_and_after_one_that_failed(copy):
    code = """
        import gc
        from fastae.kernels.compiler import kernel

        @kernel
        def fails(x):
            x.nothing()

        try:
            fails(1)
        except Exception as error:
            print(type(error).__name__, gc.isenabled())
    """
    assert run(copy, code) == ["TypingError", "True"]
    assert run(copy, textwrap.dedent(CALL) + "import gc; print(gc.isenabled())")[-1] == "True"
    off = "import gc; gc.disable()" + textwrap.dedent(CALL) + "print(gc.isenabled())"
    assert run(copy, off)[-1] == "False"


@pytest.mark.exhaustive
def test_another_process_compiles_half_of_what_a_step_needs(copy):
    """Nothing that it has saved is compiled again, and both end."""
    code = """
        import sys
        from fastae.kernels import in_place
        compiled, compile_here = [], in_place._callback

        def counted(function, signature):
            callback = compile_here(function, signature)
            uncached = callback._compile_uncached
            callback._compile_uncached = lambda: compiled.append(function.__name__) or uncached()
            return callback

        in_place._callback = counted
        in_place._cpus = lambda: int(sys.argv[1])
        import numpy as np, fastae
        network = fastae.Network.autoencoder(3, 2)
        fastae.Engine(network, 1).loss_and_gradient(fastae.Parameters.random(network), np.ones((9, 3)))
        for helper in in_place._helpers:
            assert helper.wait(300) == 0
        print(len(compiled), len(in_place._helpers))
    """
    script = copy / "script.py"
    script.write_text(textwrap.dedent(code))

    def counts(cpus, cache):
        env = environment_of(copy) | {"NUMBA_CACHE_DIR": str(copy / cache)}
        done = run_to_its_end([sys.executable, script, str(cpus)], cwd=copy, env=env)
        assert done.returncode == 0, done.stderr
        return [int(word) for word in done.stdout.split()]

    alone, helpers = counts(1, "one")
    assert helpers == 0
    helped, helpers = counts(2, "two")
    assert helpers == 1
    assert helped < alone
    assert counts(2, "two") == [0, 0]


def test_importing_the_kernels_compiles_nothing(copy):
    code = """
        import importlib, pkgutil
        import numpy as np
        from numba.core import event
        with event.install_recorder("numba:run_pass") as passes:
            import fastae.kernels
            modules = [module.name for module in pkgutil.iter_modules(fastae.kernels.__path__)]
            for module in modules:
                importlib.import_module(f"fastae.kernels.{module}")
            print("activations" in modules, len(passes.buffer))
            fastae.kernels.exp(np.zeros(2), np.zeros(2))
            print(len(passes.buffer) > 0)  # a compilation would have been seen
    """
    assert run(copy, code) == ["True", "0", "True"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_compilation_a_dtype_whatever_the_network(dtype):
    warm_up(dtype)
    with event.install_recorder("numba:compiler_lock") as compilations:
        for widths in ((5, 3, 5), (40, 20, 10, 20, 40), (17, 17)):
            for last in ("tanh", "identity"):
                network = fastae.Network(widths, ("tanh",) * (len(widths) - 2) + (last,))
                engine = fastae.Engine(network, 2, dtype)
                params = fastae.Parameters.random(network, dtype=dtype)
                for X in (np.ones((900, widths[0])), np.ones((9, widths[0]), "i2", "F")):
                    options = {"sample_weight": np.ones(len(X)), "objective": fastae.Objective(alpha=1.0)}
                    engine.loss_and_gradient(params, X, **options)
                    engine.encode(params, X)
                    engine.errors(params, X)
                fastae.train(params, X, engine=engine, epochs=2, batch_size=4)
        assert not compilations.buffer
        jitted(lambda x: x + 1)(1)
        assert compilations.buffer, "a compilation was not seen"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_shows_once_that_kernels_are_compiled_and_where_they_are_cached(copy):
    # It has callees
    by_address = "\nfrom fastae.kernels import stretch\nstretch.transpose_item.address('f4')\n"

    def printed_on(terminal, before="", **environment):
        reader, writer = os.openpty() if terminal else os.pipe()
        command = [sys.executable, "-c", before + by_address + textwrap.dedent(CALL)]
        env = environment_of(copy) | environment
        try:
            with process(command, cwd=copy, env=env, stdout=subprocess.DEVNULL, stderr=writer) as child:
                assert child.wait(timeout=120) == 0
            os.write(writer, b"end")
            text = b""
            while not text.endswith(b"end"):  # a terminal may give it away in parts
                text += os.read(reader, 10_000)
            return text.decode().splitlines()
        finally:
            os.close(reader)
            os.close(writer)

    cache = copy / "fastae" / "kernels" / "__pycache__"
    line, _ = printed_on(terminal=True)
    assert "compiling kernels" in line
    assert f"later runs load them from {copy}" in line
    assert printed_on(terminal=True) == ["end"], "nothing to compile"

    shutil.rmtree(cache)
    assert printed_on(terminal=False) == ["end"]

    shutil.rmtree(cache)
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    line, failure, _ = printed_on(True, full)
    assert "compiling kernels" in line
    assert "not saved" in failure

    nowhere = copy / "file"
    shutil.rmtree(cache)
    for file in (nowhere, cache):
        file.write_text("")
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"), str(nowhere / "below"))
    line, _ = printed_on(True, **places)
    assert "no cache can be written: each run compiles them again" in line
