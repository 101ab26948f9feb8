"""DaskBlocks: the blocks of a Dask collection, or of files, as NumPy arrays on the workers."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import dask
import dask.array
import numpy as np
from dask.base import flatten
from dask.distributed import Client, KilledWorker, futures_of, wait

from fastae.data.columns import refuse_columns
from fastae.data.open import open_rows, paths_of
from fastae.distributed.dask.cluster import check_client
from fastae.distributed.partitions import Blocks, cut_rows, is_dask, read_pieces
from fastae.network import Network

if TYPE_CHECKING:
    from fastae.distributed.dask.engine import DistributedEngine


class LostBlockError(RuntimeError):
    """A partition is lost for good. The parameters are those of the last complete epoch."""


class DaskBlocks(Blocks):
    """The blocks of a Dask array or DataFrame, as NumPy arrays on the workers.

    Parameters
    ----------
    client : dask.distributed.Client
    X : dask.array.Array of shape (m, n), or dask.dataframe.DataFrame
        Blocks that are not on the workers yet are computed now, where Dask likes.

    Attributes
    ----------
    futures : list of Future
        The blocks, in order.
    rows : list of int
        Of each.
    """

    def __init__(self, client: Client, X: Any) -> None:
        self.client = check_client(client)
        if not is_dask(X):
            raise TypeError(f"X must be a Dask array or DataFrame, got {type(X).__name__}")
        self.feature_names = names_of(X)
        array = in_rows(X)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"X has dtype {array.dtype}, but floats or integers are needed")
        self.dtype = array.dtype
        kept = {future.key: future for future in futures_of(client.persist(array))}
        self.futures = [kept[key] for key in flatten(array.__dask_keys__())]
        self.rows: list[int] = self.each(len)
        self.shape = sum(self.rows), int(array.shape[1])

    def each(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(block, *args) of every block, in order."""
        self.settle(range(len(self.futures)))
        tasks = [self.client.submit(function, block, *args, pure=False) for block in self.futures]
        return list(self.client.gather(tasks))

    def engine(self, network: Network, **options: Any) -> "DistributedEngine":
        """An engine for these blocks."""
        from fastae.distributed.dask.engine import DistributedEngine

        return DistributedEngine(self.client, network, self, **options)

    def settle(self, numbers: Iterable[int]) -> None:
        """Wait until the blocks `numbers` are somewhere; Dask computes again those that were lost."""
        waiting = list(numbers)
        while waiting:
            try:
                with self.client.as_current():  # wait knows only the client in use
                    wait([self.futures[number] for number in waiting])
            except CancelledError:
                pass
            for number in waiting:
                future = self.futures[number]
                if future.status == "error":
                    try:
                        future.result()
                    except KilledWorker as error:
                        raise LostBlockError(
                            f"block {number} of X was lost with each worker that computed it, so that Dask gave it "
                            f"up (distributed.scheduler.allowed-failures): too little memory? {error}"
                        ) from None
                elif future.status == "cancelled":
                    raise LostBlockError(
                        f"block {number} of X was lost with its worker, and Dask does not know how to compute it "
                        "again: scattered data are not rebuilt. Load them in a Dask task instead"
                    )
            waiting = [number for number in waiting if self.futures[number].status != "finished"]


def open_blocks(client: Client, source: Any, drop: Sequence[str] = ()) -> DaskBlocks:
    """The rows of files, read by ``fastae.open_rows`` on the workers, each a part of them.

    Parameters
    ----------
    client : dask.distributed.Client
    source : path or list of paths
        As for ``fastae.open_rows``; the workers must see the same files there.
    drop : sequence of str
        Columns to leave out.
    """
    paths = [os.path.abspath(path) for path in paths_of(source)]
    rows = open_rows(paths, drop=drop)
    read = dask.delayed(_read)
    blocks = []
    for first, last in cut_rows(rows):
        shape = int(rows.bounds[last] - rows.bounds[first]), rows.shape[1]
        blocks.append(dask.array.from_delayed(read(paths, drop, first, last), shape, rows.dtype))
    made = DaskBlocks(client, dask.array.concatenate(blocks))
    made.name = rows.name
    made.feature_names = None if rows.feature_names is None else list(rows.feature_names)
    return made


def _read(paths: list[str], drop: Sequence[str], first: int, last: int) -> np.ndarray:
    return read_pieces(open_rows(paths, drop=drop), first, last)


def names_of(X: Any) -> list[str] | None:
    """Of a DataFrame's columns; None where they are not all strings, which scikit-learn takes for no names."""
    names = list(getattr(X, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def in_rows(X: Any) -> Any:
    """A Dask array whose blocks are whole rows; columns of a DataFrame that are not numeric are named."""
    array = X
    if hasattr(X, "to_dask_array"):
        refuse_columns(X._meta)
        narrow = all(kind == np.float32 for kind in X.dtypes)
        array = X.astype(np.float32 if narrow else np.float64).to_dask_array()
    return array if array.numblocks[1] == 1 else array.rechunk({1: -1})
