"""Tasks side by side: each is done by one thread, while other threads do others. Knows nothing of networks.

The calling thread takes part. The other threads are helpers of ``thread_pool.py``, which come when they can: nobody
waits for a helper that has not begun.
"""

import threading
from collections.abc import Callable

from fastae.engine import thread_pool


class Stopped(BaseException):
    """Raised in a task after another one has failed; ``run`` raises the error of that one instead."""


class SideBySide:
    """Calls task(0), task(1) ... task(count - 1), each once, in this order, on several threads.

    Parameters
    ----------
    task : callable
        Called with the number of a task. Tasks should look at `stop` now and then, and raise ``Stopped`` if it is set.
    count : int
        The number of tasks.
    stop : threading.Event
        Set when a task has failed, or after Ctrl-C: no further task begins.
    """

    def __init__(self, task: Callable[[int], None], count: int, stop: threading.Event) -> None:
        self._task, self._numbers, self._stop = task, iter(range(count)), stop
        self._changed = threading.Condition()  # protects the following
        self._inside, self._closed = 0, False  # helpers at work; whether no further one may begin
        self._error: BaseException | None = None

    def run(self, n_threads: int) -> None:
        """Do all tasks on up to `n_threads` threads; return, or raise the first error, once no thread is at work."""
        try:
            for _ in range(n_threads - 1):
                try:
                    thread_pool.lend(self._help)
                except RuntimeError:  # no thread can be started: go on with those there are
                    break
            self._work()
            self._close()
        except BaseException:  # of a task of this thread, or Ctrl-C, which may come again at any time
            while True:
                try:
                    self._stop.set()
                    self._close()
                    break
                except KeyboardInterrupt:
                    continue
            if self._error is not None:
                raise self._error from None
            raise
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """Take tasks until none is left."""
        while not self._stop.is_set():
            with self._changed:
                number = next(self._numbers, None)
            if number is None:
                return
            self._task(number)

    def _help(self) -> None:
        """``_work`` for a helper: its error is kept for ``run``."""
        with self._changed:
            if self._closed:
                return
            self._inside += 1
        try:
            self._work()
        except Stopped:
            pass
        except BaseException as error:
            self._stop.set()
            self._error = self._error or error
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _close(self) -> None:
        """Let no further helper begin, and wait until none is at work."""
        with self._changed:
            self._closed = True
            while self._inside:
                self._changed.wait(0.05)  # seconds: on Windows, Ctrl-C is handled only in between


def rows_side_by_side(
    task: Callable[[slice], None], rows: int, n_threads: int, least: int, most: int
) -> None:
    """Call `task` with slices of `rows` rows, one after another, on up to `n_threads` threads.

    A slice has `most` rows or, where all threads then have some, fewer; only the last has fewer than `least`.
    """
    size = min(most, -(-rows // max(1, min(n_threads, rows // least))))
    count = -(-rows // size)
    SideBySide(
        lambda number: task(slice(number * size, min((number + 1) * size, rows))), count, threading.Event()
    ).run(min(n_threads, count))
