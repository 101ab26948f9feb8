"""Warm-up: what it calls ready is kept for later processes."""

import os
import sys
import textwrap

import pytest
from processes import HOME, run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions and limits")


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(HOME), **changes}


def test_nothing_is_ready_where_nothing_can_be_kept(tmp_path):
    """All of Numba's places are files, where directories are wanted."""
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "below")
    places = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"), nowhere)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from numba.core.caching import CacheImpl
            locators = CacheImpl._locator_classes
            CacheImpl._locator_classes = [each for each in locators if "InTree" not in each.__name__]
            from fastae.cli import main
            if __name__ == "__main__":
                main()
            """
        )
    )
    warmed = run([sys.executable, script, "warmup"], env=environment(**places))
    assert warmed.returncode == 1
    assert "ready" not in warmed.stdout
    assert warmed.stderr.startswith("fastae: compiled kernels cannot be kept")
    assert warmed.stderr.count("\n") == 1


def test_a_full_disk_is_reported(tmp_path):
    code = """
        import resource
        from fastae.engine.warmup import _compile_to_keep
        print(_compile_to_keep("functions", "float64", False))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # every write to a file fails
        print(_compile_to_keep("functions", "float32", False), flush=True)
    """
    warmed = run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment(NUMBA_CACHE_DIR=str(tmp_path))
    )
    assert warmed.returncode == 0, warmed.stderr
    kept, full = warmed.stdout.splitlines()
    assert kept == "[]"
    assert str(tmp_path) in full
    assert "File too large" in full
