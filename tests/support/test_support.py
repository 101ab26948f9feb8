"""The helpers of tests do what tests rely on: guard pages end a process, and no child outlives its test."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from processes import process, run

posix = pytest.mark.skipif(os.name != "posix", reason="needs mprotect and process groups")
SUPPORT = os.path.dirname(__file__)


@posix
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("elements", [1, 1000, 1024, 5000])
def test_an_element_beyond_a_guarded_array_ends_the_process(elements, end):
    code = f"""
        import sys, numpy as np
        sys.path.insert(0, {SUPPORT!r})
        from guard import guarded
        array = guarded(np.arange({elements}, dtype="f4"), end={end})
        assert (array == np.arange({elements})).all()
        print("inside", flush=True)
        np.lib.stride_tricks.as_strided(array, ({elements} + 1,), ({4 if end else -4},))[-1 if {end} else 1] = 7
        print("beyond")
    """
    done = run([sys.executable, "-c", textwrap.dedent(code)])
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "inside\n")


@posix
@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler], ids=["ignored", "handled"])
def test_a_child_can_be_interrupted_whether_or_not_the_tests_can(handler):
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert run([sys.executable, "-c", code]).stdout == "True\n"
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


# fastae and its tests are imported where modules, functions and signals that Windows lacks are hidden.
COLLECT = """
    import os, signal, sys
    import pytest, dask.distributed, hypothesis, matplotlib.pyplot, numba, pandas, polars, pyarrow, scipy.optimize
    import sklearn.datasets, sklearn.utils.parallel  # these have ways of their own on Windows
    for name in ("resource", "fcntl", "grp", "pty", "pwd", "termios"):
        sys.modules[name] = None
    hidden = {
        os: "fork killpg getuid geteuid mkfifo getloadavg setsid register_at_fork sched_getaffinity sched_setaffinity",
        signal: "SIGKILL SIGALRM SIGPIPE SIGHUP alarm setitimer",
    }
    for module, names in hidden.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    assert "fastae" not in sys.modules
    raise SystemExit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", "tests"]))
"""


def test_tests_are_collected_where_nothing_of_posix_is():
    command, tests = [sys.executable, "-c", textwrap.dedent(COLLECT)], os.path.dirname(SUPPORT)
    plain = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins have ways of their own, too
    done = run(command, cwd=os.path.dirname(tests), env=plain)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@posix
def test_a_child_and_its_children_are_killed_where_a_test_fails():
    command = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '100'])"]
    with pytest.raises(subprocess.TimeoutExpired):
        run(command, timeout=0.5)
    with pytest.raises(ZeroDivisionError), process(["sh", "-c", "sleep 100"]) as child:
        1 / 0  # noqa: B018
    assert child.returncode == -signal.SIGKILL
    assert gone(child.pid)


def test_every_child_of_a_test_is_started_where_it_is_killed_in_the_end():
    starts = re.compile(
        r"subprocess\.(run|call|check_|Popen)|os\.(system|popen|spawn|posix_spawn)|\bpexpect\b"
    )
    files = [path for path in Path(SUPPORT).parent.rglob("*.py") if path.parent != Path(SUPPORT)]
    assert len(files) > 30
    assert not [path.name for path in files if starts.search(path.read_text(encoding="utf-8"))], (
        "use processes.run"
    )


def gone(group):
    """Whether nothing is left of a process group; waits until what was killed is reaped."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
