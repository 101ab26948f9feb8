"""Reading ahead: the next chunk is read while the last one is in use."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each computed by a thread of its own while the one before it is in use.

    What `items` yields must stay valid until the item after the next is asked for. The thread ends with the iteration,
    also where that is left early.
    """
    with ThreadPoolExecutor(1, "fastae-read-ahead") as thread:

        def request() -> "Future[Item | None]":
            return thread.submit(next, items, None)

        coming = request()
        while (item := coming.result()) is not None:
            coming = request()
            yield item
