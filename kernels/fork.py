"""A fork waits for threads that import the compiler or compile: the child has no such threads, but has their locks."""

import logging as logging  # first, so that a fork takes its lock after ours: whoever holds ours may need it
import os
import sys
import threading
from typing import Any

importing = threading.RLock()  # to hold while modules are imported that import the compiler
_held: list[Any] = []  # by the thread that forks


def _wait() -> None:
    compiler = sys.modules.get("numba.core.compiler_lock")
    for lock in (importing, getattr(compiler, "global_compiler_lock", None)):
        if lock is not None:
            lock.acquire()
            _held.append(lock)


def _go_on() -> None:
    while _held:
        _held.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_go_on)
