"""Turn: one call of an engine at a time. Other threads wait; a call from within a call is an error, not a deadlock."""

import threading
from contextlib import AbstractContextManager
from typing import Any


class Turn:
    """Lets one call at a time pass: ``with turn.take(): ...``.

    A signal handler runs in the middle of whatever Python code its thread executes, which may be a call of the engine.
    A call of the same engine from that handler could only wait for the call that it interrupted, forever.
    """

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    def take(self) -> AbstractContextManager[Any]:
        """A context to make the call in.

        It is the lock itself, because Ctrl-C cannot arrive between the acquisition of a lock and the block of its
        ``with`` statement, as it can in a method written in Python.

        Raises
        ------
        RuntimeError
            This thread is in such a context already.
        """
        if self._lock._is_owned():  # as threading.Condition asks
            raise RuntimeError(
                "this engine is computing in the same thread: a signal handler or callback that interrupts a call "
                "cannot use the engine, or the model, that is in it"
            )
        lock: AbstractContextManager[Any] = self._lock
        return lock
