"""Tasks side by side (fastae/engine/side_by_side.py): ``run`` ends only when no thread is at work."""

import threading
import time

import pytest

from fastae.engine.side_by_side import SideBySide


class InterruptedEvent(threading.Event):
    """An event that Ctrl-C interrupts the first time that it is set."""

    interrupted = False

    def set(self):
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        super().set()


def test_no_thread_is_at_work_after_two_ctrl_c_in_a_row():
    stop, begun, ended = InterruptedEvent(), threading.Event(), threading.Event()
    caller = threading.current_thread()

    def task(number):
        if threading.current_thread() is caller:
            assert begun.wait(60)
            raise KeyboardInterrupt
        begun.set()
        assert stop.wait(60)
        time.sleep(0.1)  # while the caller must wait
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        SideBySide(task, 2, stop).run(2)
    assert ended.is_set()
