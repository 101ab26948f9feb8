"""Reading ahead: the next chunk is read while the last one is in use."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each computed by a thread of its own while the one before it is in use.

    What `items` yields must stay valid until the item after the next is asked for. The thread ends with the iteration,
    also where that is left early.
    """
    with ThreadPoolExecutor(1, "fastae-read-ahead") as thread:
        try:
            coming = thread.submit(next, items, None)
        except RuntimeError:  # no thread can be started
            yield from items
            return
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
