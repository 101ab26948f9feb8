"""Threads in tests: as many CPUs as a test wants, the helpers that an engine borrows, and Python threads at once."""

import sys
import threading
import time

import fastae.engine.thread_pool  # whose functions are replaced


def replace(monkeypatch, name, value):
    """Replace a function or constant of fastae.engine by name, in every module of it that has one."""
    packages = ("fastae.engine", "fastae.engine.")
    modules = [module for key, module in sys.modules.items() if key.startswith(packages)]
    holders = [module for module in modules if name in vars(module)]
    assert holders, f"no module of fastae.engine has {name}"
    for module in holders:
        monkeypatch.setattr(module, name, value)


def pretend_cpus(monkeypatch, count):
    """Have engines believe that the process may use `count` CPUs: small steps take no more threads than there are."""
    replace(monkeypatch, "available_cpus", lambda: count)


class Helpers:
    """The helper threads that engines borrow from the thread pool while a test runs: `lent` counts them.

    `after` is called on each of them when its work is done.
    """

    def __init__(self, monkeypatch, after=lambda: None):
        self.lent = self._done = 0
        self._lock, self._after = threading.Lock(), after
        self._lend = fastae.engine.thread_pool.lend
        replace(monkeypatch, "lend", self.lend)

    def lend(self, work):
        with self._lock:
            self.lent += 1
        self._lend(lambda: self._watch(work))

    def _watch(self, work):
        try:
            work()
            self._after()
        finally:
            with self._lock:
                self._done += 1

    def wait(self):
        """Until all helpers are done."""
        deadline = time.monotonic() + 60
        while self._done < self.lent and time.monotonic() < deadline:
            time.sleep(0.001)
        assert self._done == self.lent, "helpers still work after 60 seconds"


def in_threads(count, work):
    """work(i) in `count` Python threads at once; their results, or the first error."""
    results, errors = [None] * count, []
    start = threading.Barrier(count)

    def one(i):
        try:
            start.wait()
            results[i] = work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
