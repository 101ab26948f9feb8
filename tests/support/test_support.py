"""The helpers of tests do what tests rely on: guard pages end a process, and no child outlives its test."""

import os
import signal
import subprocess
import sys
import textwrap

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
def test_a_child_and_its_children_are_killed_where_a_test_fails():
    command = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '100'])"]
    with pytest.raises(subprocess.TimeoutExpired):
        run(command, timeout=0.5)
    with pytest.raises(ZeroDivisionError), process(["sh", "-c", "sleep 100"]) as child:
        1 / 0  # noqa: B018
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
