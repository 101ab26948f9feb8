"""The same training over the workers of a Dask cluster, on blocks of rows that stay where Dask put them.

Each worker holds its blocks and an engine as an actor. A step is one round trip: parameters out, sums of gradients
back, added up along the tree of ``blocks.py``, the optimizer here. No task graph is made for a step, and no rows come
here. Work of a lost worker is done again by the others, with the same bits.

Needs the extra ``dask``.
"""

import asyncio
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.blocks import (
    BlockEngine,
    Blocks,
    Node,
    Setup,
    Shard,
    Step,
    Sum,
    assemble,
    cut_rows,
    halves,
    is_dask,
    make_setup,
    read_pieces,
    without_penalty,
)
from fastae.columns import refuse_columns
from fastae.data import open_rows
from fastae.network import Network
from fastae.objective import PLAIN, Objective
from fastae.team import available_cpus

try:
    import dask
    import dask.array
    from dask.base import flatten
    from dask.distributed import (
        Client,
        Future,
        KilledWorker,
        LocalCluster,
        default_client,
        futures_of,
        get_worker,
        wait,
    )
except ImportError as error:
    raise ImportError(f'fastae.distributed needs Dask: pip install "fastae[dask]" ({error})') from error


LOSSES_MOST = 3  # of a block, on end, before it is taken to be what kills its workers
UNIT_DEPTH = (
    6  # blocks below one node of this depth of the tree lie together: no step brings back more than 64 sums
)
POLL = 1.0  # seconds of silence after which the scheduler is asked who is still there


class LostBlockError(RuntimeError):
    """A block of rows cannot be had any more; the parameters are those of the last whole epoch."""


class _Actor(Shard):
    """A shard that uses the threads of the Dask worker it is on, unless it is told how many."""

    def __init__(
        self,
        setup: Setup,
        numbers: list[int],
        first_rows: list[int],
        n_blocks: int,
        n_threads: int | None,
        blocks: list[np.ndarray],
    ) -> None:
        super().__init__(
            setup,
            dict(zip(numbers, blocks, strict=True)),
            dict(zip(numbers, first_rows, strict=True)),
            n_blocks,
            n_threads or get_worker().state.nthreads,
        )


@dataclass(eq=False)
class _Held:
    """An actor, and what it holds."""

    address: str
    numbers: list[int]
    actor: Any


class DistributedEngine(BlockEngine):
    """Trains on a Dask array or DataFrame: synchronous, data-parallel, with the same bits for any number of workers.

    Parameters
    ----------
    client : dask.distributed.Client
        Of the cluster; one made with ``direct_to_workers=True`` takes shorter steps.
    network : Network
    X : dask.array.Array of shape (m, n), or dask.dataframe.DataFrame
        Blocks that are not on the workers yet are computed now, where Dask likes.
    n_threads : int, optional
        Of each worker; by default as many as Dask gives it.
    dtype, shift, scale, objective : optional
        As for ``fastae.Engine`` and ``fastae.train``.

    Notes
    -----
    Workers must be able to import fastae, and be of one kind of CPU for results to have the same bits. One that joins
    is used from the next epoch on.
    """

    def __init__(
        self,
        client: Client,
        network: Network,
        X: Any,
        *,
        n_threads: int | None = None,
        dtype: npt.DTypeLike = "float32",
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        objective: Objective = PLAIN,
    ) -> None:
        self.client = _check_client(client)
        self.blocks = X if isinstance(X, DaskBlocks) else DaskBlocks(client, X)
        if self.blocks.shape[1] != network.widths[0]:
            raise ValueError(
                f"X has {self.blocks.shape[1]} features, but the network takes {network.widths[0]}"
            )
        super().__init__(make_setup(network, dtype, shift, scale, objective), self.blocks.rows)
        self.n_threads = n_threads
        self._losses = [0] * len(self.rows)
        self._held: list[_Held] = []
        self._workers: set[str] = set()
        self._spread()

    def sums(self, flat: np.ndarray, step: Step) -> Sum | None:
        """The root's sum, from all workers, and from others where some are lost."""
        if step.number == 0:
            self._spread()
        sums: dict[Node, Sum | None] = {}
        asked = list(self._held)
        while asked:
            answers = self._ask(asked, flat, step)
            lost = [held for held, answer in zip(asked, answers, strict=True) if answer is None]
            for answer in answers:
                sums |= answer or {}
            asked = self._replace(lost) if lost else []
        self._losses = [0] * len(self.rows)
        return assemble(sums, self.root)

    # -- within -------------------------------------------------------------------------------------------------

    def _spread(self) -> None:
        """Place the blocks anew where workers have joined or left, or an error has left some without a place."""
        workers = set(self.client.nthreads())
        if self._held and workers == self._workers:
            return
        self._losses = [0] * len(self.rows)
        placed = self._place(range(len(self.rows)))
        kept = [held for held in self._held if placed.get(held.address) == held.numbers]
        self._held = []
        for held in kept:
            del placed[held.address]
        self._held = kept + self._build(placed)
        self._workers = workers

    def _ask(self, asked: list[_Held], flat: np.ndarray, step: Step) -> list[dict[Node, Sum | None] | None]:
        """What each actor answers; None where its worker is lost."""

        async def answer(held: _Held) -> dict[Node, Sum | None] | None:
            try:
                call = held.actor.sums(flat, step)
            except RuntimeError:  # Dask knows already that the actor is gone
                return None
            try:
                found: dict[Node, Sum | None] = await call
            except OSError:
                return None
            return found

        async def answers() -> list[dict[Node, Sum | None] | None]:
            tasks = [asyncio.create_task(answer(held)) for held in asked]
            try:
                while silent := (await asyncio.wait(tasks, timeout=POLL))[1]:
                    workers = await self.client.nthreads(asynchronous=True)
                    for held, task in zip(asked, tasks, strict=True):
                        if task in silent and held.address not in workers:
                            task.cancel()
                return [None if task.cancelled() else task.result() for task in tasks]
            finally:
                for task in tasks:
                    task.cancel()

        found: list[dict[Node, Sum | None] | None] = self.client.sync(answers)
        return found

    def _replace(self, lost: list[_Held]) -> list[_Held]:
        """Actors for the blocks of lost ones."""
        kept = [held for held in self._held if held not in lost]
        self._held = []
        numbers = sorted(number for held in lost for number in held.numbers)
        self._count_loss(numbers)
        built = self._build(self._place(numbers))
        self._held = kept + built
        return built

    def _count_loss(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._losses[number] += 1
            if self._losses[number] >= LOSSES_MOST:
                raise LostBlockError(
                    f"the worker that held block {number} of X (rows {self.first_rows[number]} to "
                    f"{self.first_rows[number] + self.rows[number] - 1}) was lost {LOSSES_MOST} times on end: too "
                    "little memory? The parameters are those of the last whole epoch"
                )

    def _place(self, numbers: Sequence[int]) -> dict[str, list[int]]:
        """Which worker is to hold which of the blocks `numbers`, once all of them are somewhere."""
        self.blocks.settle(numbers)
        blocks = self.blocks.futures
        found = self.client.who_has([blocks[number] for number in numbers])
        holders = {number: set(found.get(blocks[number].key, ())) for number in numbers}
        while not (threads := self.client.nthreads()):
            self.client.wait_for_workers(1)
        return place(self.rows, holders, threads)

    def _build(self, placed: dict[str, list[int]]) -> list[_Held]:
        """Make the actors, and others where a worker is lost meanwhile."""
        built = []
        while placed:
            futures = {address: self._submit(address, numbers) for address, numbers in placed.items()}
            lost: list[int] = []
            for address, future in futures.items():
                actor = self._result(address, future)
                if actor is None:
                    lost += placed[address]
                else:
                    built.append(_Held(address, placed[address], actor))
            self._count_loss(lost)
            placed = self._place(sorted(lost)) if lost else {}
        return built

    def _submit(self, address: str, numbers: list[int]) -> Future:
        return self.client.submit(
            _Actor,
            without_penalty(self.setup),
            numbers,
            [self.first_rows[number] for number in numbers],
            len(self.rows),
            self.n_threads,
            [self.blocks.futures[number] for number in numbers],
            actor=True,
            workers=[address],
            allow_other_workers=False,
        )

    def _result(self, address: str, future: Future) -> Any:
        """The actor; None where its worker is lost."""
        with self.client.as_current():
            while True:
                try:
                    return future.result(timeout=POLL)
                except TimeoutError:
                    if address not in self.client.nthreads():
                        future.cancel()
                        return None
                except (KilledWorker, CancelledError):  # the latter: a block went with its worker
                    return None
                except RuntimeError:
                    if address in self.client.nthreads():
                        raise
                    return None


def place(rows: Sequence[int], holders: dict[int, set[str]], threads: dict[str, int]) -> dict[str, list[int]]:
    """Which worker is to hold which blocks: those that have them, unless one is left with much more than another.

    Parameters
    ----------
    rows : sequence of int
        Of all blocks.
    holders : dict of sets
        The workers where each block lies now, of the blocks to be placed.
    threads : dict
        Of each worker.
    """
    load = dict.fromkeys(threads, 0.0)  # rows a thread
    given: dict[str, list[list[int]]] = {address: [] for address in threads}

    def take(address: str, unit: list[int], sign: int = 1) -> float:
        return load[address] + sign * sum(rows[number] for number in unit) / threads[address]

    def give(address: str, unit: list[int]) -> None:
        load[address] = take(address, unit)
        given[address].append(unit)

    for node in _units((0, len(rows)), UNIT_DEPTH):
        unit = [number for number in range(*node) if number in holders]
        if unit:
            here = {
                address: sum(rows[number] for number in unit if address in holders[number])
                for address in threads
            }
            give(min(threads, key=lambda address: (-here[address], load[address])), unit)
    while True:
        most, least = max(load, key=load.__getitem__), min(load, key=load.__getitem__)
        unit = given[most][-1] if given[most] else []
        if not unit or take(least, unit) >= load[most]:
            return {address: sorted(itertools.chain(*units)) for address, units in given.items() if units}
        load[most] = take(most, given[most].pop(), -1)
        give(least, unit)


def _units(node: Node, depth: int) -> Iterator[Node]:
    if depth == 0 or node[1] - node[0] == 1:
        yield node
    else:
        for half in halves(node):
            yield from _units(half, depth - 1)


# -- blocks of a collection -------------------------------------------------------------------------------------------


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
        self.client = _check_client(client)
        if not is_dask(X):
            raise TypeError(f"X must be a Dask array or DataFrame, got {type(X).__name__}")
        self.feature_names = _names(X)
        array = _in_rows(X)
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

    def engine(self, network: Network, **options: Any) -> DistributedEngine:
        """An engine for these blocks."""
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


def find_client() -> Client:
    """The client in use.

    Raises
    ------
    ValueError
        There is none.
    """
    try:
        return default_client()
    except ValueError:
        raise ValueError(
            "X is a Dask collection, but there is no cluster: make a dask.distributed.Client first"
        ) from None


@contextmanager
def connect(where: str) -> Iterator[Client]:
    """A client of the scheduler at an address such as tcp://host:8786, or of a cluster here for "local"."""
    if where != "local":
        with Client(where, direct_to_workers=True) as client:
            yield client
        return
    workers = available_cpus()
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster, direct_to_workers=True) as client:
        yield client


def open_blocks(client: Client, path: str | os.PathLike[str], drop: Sequence[str] = ()) -> DaskBlocks:
    """The rows of files, read by ``fastae.open_rows`` on the workers, each a part of them.

    Parameters
    ----------
    client : dask.distributed.Client
    path : path
        As for ``fastae.open_rows``; the workers must see the same files there.
    drop : sequence of str
        Columns to leave out.
    """
    path = os.path.abspath(path)
    rows = open_rows(path, drop=drop)
    read = dask.delayed(_read)
    blocks = []
    for first, last in cut_rows(rows):
        shape = int(rows.bounds[last] - rows.bounds[first]), rows.shape[1]
        blocks.append(dask.array.from_delayed(read(path, drop, first, last), shape, rows.dtype))
    made = DaskBlocks(client, dask.array.concatenate(blocks))
    made.name = rows.name
    made.feature_names = None if rows.feature_names is None else list(rows.feature_names)
    return made


def _read(path: str, drop: Sequence[str], first: int, last: int) -> np.ndarray:
    return read_pieces(open_rows(path, drop=drop), first, last)


def map_rows(model: Any, method: str, X: Any, **options: Any) -> Any:
    """A lazy Dask array of what a fitted model's method makes of each block of a Dask array or DataFrame."""
    model.check_columns(X.shape[1], _names(X))
    array = _in_rows(X)
    apply = functools.partial(_apply, model.for_one_thread(), method, options=options)
    like = apply(np.zeros((1, array.shape[1]), array.dtype))
    if like.ndim == 1:
        return array.map_blocks(apply, dtype=like.dtype, drop_axis=1, meta=like[:0])
    return array.map_blocks(
        apply, dtype=like.dtype, chunks=(array.chunks[0], (like.shape[1],)), meta=like[:0]
    )


def _apply(model: Any, method: str, block: np.ndarray, options: dict[str, Any]) -> Any:
    if not len(block):
        return _apply(model, method, np.zeros((1, block.shape[1]), block.dtype), options)[:0]
    return getattr(model.for_one_thread(), method)(block, **options)


def _names(X: Any) -> list[str] | None:
    """Of a DataFrame's columns; None where they are not all strings, which scikit-learn takes for no names."""
    names = list(getattr(X, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def _in_rows(X: Any) -> Any:
    """A Dask array whose blocks are whole rows; columns of a DataFrame that are not numeric are named."""
    array = X
    if hasattr(X, "to_dask_array"):
        refuse_columns(X._meta)
        narrow = all(kind == np.float32 for kind in X.dtypes)
        array = X.astype(np.float32 if narrow else np.float64).to_dask_array()
    return array if array.numblocks[1] == 1 else array.rechunk({1: -1})


def _check_client(client: Any) -> Client:
    if not isinstance(client, Client):
        raise TypeError(f"client must be a dask.distributed.Client, got {type(client).__name__}")
    if client.asynchronous:
        raise ValueError("client must not be asynchronous")
    return client
