"""The client of a cluster: the current one, or a new one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dask.distributed import Client, LocalCluster, default_client

from fastae.engine.thread_pool import available_cpus


def find_client() -> Client:
    """The current Dask client.

    Raises
    ------
    ValueError
        There is no client.
    """
    try:
        return default_client()
    except ValueError:
        raise ValueError(
            "X is a Dask collection, but there is no cluster: make a dask.distributed.Client first"
        ) from None


@contextmanager
def connect(where: str) -> Iterator[Client]:
    """A client of the scheduler at an address such as tcp://host:8786; "local" starts a cluster on this machine."""
    if where != "local":
        with Client(where, direct_to_workers=True) as client:
            yield client
        return
    workers = available_cpus()
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster, direct_to_workers=True) as client:
        yield client


def check_client(client: Any) -> Client:
    """`client`; TypeError or ValueError if it is not a synchronous Dask client."""
    if not isinstance(client, Client):
        raise TypeError(f"client must be a dask.distributed.Client, got {type(client).__name__}")
    if client.asynchronous:
        raise ValueError("client must not be asynchronous")
    return client
