"""DaskPartitions: the partitions of a Dask collection, or of files, as NumPy arrays on the workers."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import dask
import dask.array
import numpy as np
from dask.base import flatten
from dask.distributed import Client, KilledWorker, futures_of, wait

from fastae.checks import check_real
from fastae.data.columns import refuse_columns
from fastae.data.open import open_rows, paths_of
from fastae.data.row_source import ArrayRows, Rows
from fastae.distributed.dask.cluster import check_client
from fastae.distributed.partitions import Partitions, cut_rows, is_dask
from fastae.distributed.spread import train_spread


class LostPartitionError(RuntimeError):
    """A partition is lost for good. The parameters are those of the last complete epoch."""


@contextmanager
def says_if_closed(client: Client) -> Iterator[None]:
    """A context whose errors say that the client is closed, if it is: Dask's own say many things."""
    try:
        yield
    except Exception as error:
        if client.status not in ("closing", "closed"):
            raise
        raise LostPartitionError(
            "the partitions of X cannot be reached: the Dask client is closed"
        ) from error


class DaskPartitions(Partitions):
    """The partitions of a Dask array or DataFrame, as NumPy arrays on the workers.

    Parameters
    ----------
    client : dask.distributed.Client
    X : dask.array.Array of shape (m, n), or dask.dataframe.DataFrame
        Partitions that are not on the workers yet are computed now, on workers that Dask chooses.

    Attributes
    ----------
    futures : list of Future
        The partitions, in order.
    partition_sizes : list of int
        The number of rows of each partition.
    """

    def __init__(self, client: Client, X: Any) -> None:
        self.client = check_client(client)
        if not is_dask(X):
            raise TypeError(f"X must be a Dask array or DataFrame, got {type(X).__name__}")
        self.feature_names = names_of(X)
        array = in_rows(X)
        check_real(array.dtype, "X")
        self.dtype = array.dtype
        futures = {future.key: future for future in futures_of(client.persist(array))}
        self.futures = [futures[key] for key in flatten(array.__dask_keys__())]
        shapes = self.each(np.shape)
        for number, shape in enumerate(shapes):
            if shape[1:] != array.shape[1:]:
                raise ValueError(
                    f"partition {number} of X has shape {shape}, but X has {array.shape[1]} columns"
                )
        self.partition_sizes: list[int] = [shape[0] for shape in shapes]
        self.shape = sum(self.partition_sizes), int(array.shape[1])

    def each(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(partition, *args) of every partition, in order."""
        with says_if_closed(self.client):
            self.settle(range(len(self.futures)))
            tasks = [self.client.submit(function, future, *args, pure=False) for future in self.futures]
            return list(self.client.gather(tasks))

    def take(self, numbers: np.ndarray) -> Rows:
        """The rows with these numbers, in increasing order, in the memory of this process."""
        bounds = np.cumsum([0, *self.partition_sizes])
        with says_if_closed(self.client):
            self.settle(range(len(self.futures)))
            tasks = []
            for future, first, last in zip(self.futures, bounds[:-1], bounds[1:], strict=True):
                here = numbers[(numbers >= first) & (numbers < last)] - first
                if len(here):
                    tasks.append(self.client.submit(_rows_of, future, here, pure=False))
            parts = self.client.gather(tasks)
        return ArrayRows(np.concatenate([np.empty((0, self.shape[1]), self.dtype), *parts]), self.name)

    def settle(self, numbers: Iterable[int]) -> None:
        """Wait until the partitions `numbers` are on workers; Dask computes lost ones again."""
        waiting = list(numbers)
        while waiting:
            try:
                with self.client.as_current():  # wait knows only the current client
                    wait([self.futures[number] for number in waiting])
            except CancelledError:
                pass
            for number in waiting:
                future = self.futures[number]
                if future.status == "error":
                    try:
                        future.result()
                    except KilledWorker as error:
                        raise LostPartitionError(
                            f"partition {number} of X was lost with every worker that computed it, and Dask has given "
                            f"up (distributed.scheduler.allowed-failures): too little memory? {error}"
                        ) from None
                elif future.status == "cancelled":
                    raise LostPartitionError(
                        f"partition {number} of X was lost with its worker, and Dask cannot compute it again: "
                        "scattered data are not rebuilt. Load them in a Dask task instead"
                    )
            waiting = [number for number in waiting if self.futures[number].status != "finished"]


def open_partitions(
    client: Client, source: Any, drop: Sequence[str] = (), header: bool | None = None
) -> DaskPartitions:
    """The rows of files; each worker reads its part with ``fastae.open_rows``.

    Parameters
    ----------
    client : dask.distributed.Client
    source : path or list of paths
        As for ``fastae.open_rows``; the workers must see the same files at these paths.
    drop : sequence of str
        Columns to leave out.
    header : bool, optional
        As for ``fastae.open_rows``.
    """
    paths = [os.path.abspath(path) for path in paths_of(source)]
    rows = open_rows(paths, drop=drop, header=header)
    read = dask.delayed(_read)
    arrays = []
    for first, last in cut_rows(rows):
        shape = int(rows.bounds[last] - rows.bounds[first]), rows.shape[1]
        arrays.append(dask.array.from_delayed(read(paths, drop, header, first, last), shape, rows.dtype))
    partitions = DaskPartitions(client, dask.array.concatenate(arrays))
    partitions.name, partitions.guess, partitions.files = rows.name, rows.guess, rows.files
    partitions.feature_names = None if rows.feature_names is None else list(rows.feature_names)
    return partitions


def _read(paths: list[str], drop: Sequence[str], header: bool | None, first: int, last: int) -> np.ndarray:
    return open_rows(paths, drop=drop, header=header).read_pieces(first, last)


def _rows_of(partition: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.asarray(partition[numbers])


@train_spread.register
def _train_on_workers(
    partitions: DaskPartitions,
    train_alone: Callable[..., Any],
    networks: Sequence[Any],
    array: np.ndarray,
    data: dict[str, Any],
    options: Sequence[dict[str, Any]],
) -> None:
    client = partitions.client
    with says_if_closed(client):
        held = client.scatter(array, broadcast=True, hash=False)
        tasks = [
            client.submit(train_alone, network.params, network.state, held, data, option, pure=False)
            for network, option in zip(networks, options, strict=True)
        ]
        for network, (params, history) in zip(networks, client.gather(tasks), strict=True):
            network.params.flat[:], network.history = params.flat, history
            network.state.moments[:], network.state.steps = history.state.moments, history.state.steps
            network.state.epochs = history.state.epochs
            history.state = network.state


def names_of(X: Any) -> list[str] | None:
    """The column names of a DataFrame; None unless all are strings, as in scikit-learn."""
    names = list(getattr(X, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def in_rows(X: Any) -> Any:
    """A Dask array whose chunks are whole rows; a TypeError names columns of a DataFrame that are not numeric."""
    array = X
    if hasattr(X, "to_dask_array"):
        refuse_columns(X._meta)
        dtype = np.float32 if all(kind == np.float32 for kind in X.dtypes) else np.float64
        array = X.astype(dtype).to_dask_array()
    return array if array.numblocks[1] == 1 else array.rechunk({1: -1})


# Former names.
DaskBlocks = DaskPartitions
LostBlockError = LostPartitionError
open_blocks = open_partitions
