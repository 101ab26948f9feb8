"""Child processes of tests: each is killed before its test ends, and its children with it."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import fastae

HOME = Path(fastae.__file__).resolve().parents[1]  # where a child Python finds fastae, installed or not


@contextlib.contextmanager
def process(command, **options):
    """A Popen in a process group of its own, which is killed when the block is left."""
    with interruptible():
        child = subprocess.Popen(list(map(str, command)), start_new_session=True, **options)
    try:
        yield child
    finally:
        kill_group(child)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def interruptible():
    """Let this process, and children that start meanwhile, be interrupted, also where the tests ignore SIGINT.

    Started in the background of a script, they do.
    """
    if (
        signal.getsignal(signal.SIGINT) != signal.SIG_IGN
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    # A child inherits that a signal is ignored, but no handler
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def kill_group(child):
    """Kill a child that began a session, and whatever it started; wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def run(command, *, input=None, timeout=300, cwd=HOME, text=True, **options):
    """A command run to its end: returncode, stdout and stderr, as text or as bytes."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": text, **options}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with process(command, cwd=cwd, **options) as child:
        stdout, stderr = child.communicate(input, timeout=timeout)
    return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)


def run_python(code, *, timeout=300, **environment):
    """The output of a child Python that runs `code`; it must end well."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = run(command, timeout=timeout, env={**os.environ, **environment})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def answer_of_fork(work, seconds=120):
    """The bytes that work() returns in a forked child, which is ended after so many seconds."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        for warning in (DeprecationWarning, RuntimeWarning):  # of forking a process with threads, or with JAX
            warnings.simplefilter("ignore", warning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(seconds)
            os.write(write, work())
            status = 0
        finally:
            os._exit(status)
    status = None
    try:
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
    finally:
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"
    return answer
