"""Turn: one call of an engine at a time. Other threads wait; a call from within a call is an error, not a deadlock."""

import threading
from types import TracebackType


class Turn:
    """A context manager that one call at a time is in.

    A signal handler runs in the middle of whatever Python code its thread executes, which may be a call of the engine.
    A call of the same engine from that handler could only wait for the call that it interrupted, forever.

    Raises
    ------
    RuntimeError
        On entry, where this thread is in a call already.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._taken = False

    def __enter__(self) -> None:
        self._lock.acquire()
        # A handler may run here, and take a turn of its own: it gives the turn back before this goes on.
        if self._taken:
            self._lock.release()
            raise RuntimeError(
                "this engine is computing in the same thread: a signal handler or callback that interrupts a call "
                "cannot use the engine, or the model, that is in it"
            )
        self._taken = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._taken = False
        self._lock.release()
