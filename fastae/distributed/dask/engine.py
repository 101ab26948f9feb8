"""DistributedEngine: actors on the workers compute each step's sums of gradients, and they are added up here."""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.distributed import Client, Future, KilledWorker, get_worker

from fastae.distributed.dask.cluster import check_client
from fastae.distributed.dask.partitions import DaskPartitions, LostPartitionError, says_if_closed
from fastae.distributed.dask.placement import place
from fastae.distributed.partitions import PartitionedEngine, make_engine
from fastae.distributed.reduction_tree import Node, Sum, assemble
from fastae.distributed.worker_part import Setup, StepRequest, WorkerPart, make_setup, without_penalty
from fastae.network import DType, Network
from fastae.objective import PLAIN, Objective

LOST_MOST = 3  # times in a row that a partition loses its worker before it is assumed to be the cause
POLL = 1.0  # seconds without an answer after which the scheduler is asked which workers are alive


class _Actor(WorkerPart):
    """A WorkerPart that uses the threads that Dask gives its worker, unless `n_threads` is given."""

    def __init__(
        self,
        setup: Setup,
        numbers: list[int],
        first_rows: list[int],
        n_partitions: int,
        n_threads: int | None,
        partitions: list[np.ndarray],
    ) -> None:
        super().__init__(
            setup,
            dict(zip(numbers, partitions, strict=True)),
            dict(zip(numbers, first_rows, strict=True)),
            n_partitions,
            n_threads or get_worker().state.nthreads,
        )


@dataclass(eq=False)
class _Held:
    """An actor, its worker, and the numbers of the partitions it holds; the future keeps the actor alive."""

    address: str
    numbers: list[int]
    actor: Any
    future: Future


class DistributedEngine(PartitionedEngine):
    """Trains on a Dask array or DataFrame: synchronous, data-parallel, with the same bits for any number of workers.

    Parameters
    ----------
    client : dask.distributed.Client
        Client of the cluster. Steps are faster if it was made with ``direct_to_workers=True``.
    network : Network
        The network to train.
    X : dask.array.Array of shape (m, n), or dask.dataframe.DataFrame
        Training data. Partitions that are not on the workers yet are computed first, on workers that Dask chooses.
    n_threads : int, optional
        Number of threads of each worker. Default: as many as Dask gives it.
    dtype : "float32", "float64" or NumPy dtype, default "float32"
        Type of parameters, arithmetic and results.
    shift : array-like of shape (n,), optional
        Subtracted from each row before it enters the network. Default: 0.
    scale : array-like of shape (n,), optional
        Then multiplied with each row: the network sees (X - shift) * scale. Default: 1.
    objective : Objective, optional
        The loss, penalties, noise in the input, missing cells; `sparsity_weight` is not available. Default: the squared
        error alone.

    Notes
    -----
    Workers must be able to import fastae. For results with the same bits, they must all have the same kind of CPU. A
    worker that joins the cluster is used from the next epoch on.
    """

    def __init__(
        self,
        client: Client,
        network: Network,
        X: Any,
        *,
        n_threads: int | None = None,
        dtype: DType = "float32",
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        objective: Objective = PLAIN,
    ) -> None:
        self.client = check_client(client)
        self.partitions = X if isinstance(X, DaskPartitions) else DaskPartitions(client, X)
        if self.partitions.shape[1] != network.widths[0]:
            raise ValueError(
                f"X has {self.partitions.shape[1]} features, but the network takes {network.widths[0]}"
            )
        super().__init__(make_setup(network, dtype, shift, scale, objective), self.partitions.partition_sizes)
        self.n_threads = n_threads
        self._lost_in_a_row = [0] * len(self.partition_sizes)
        self._held: list[_Held] = []
        self._workers: set[str] = set()
        with says_if_closed(self.client):
            self._spread()

    def sums(self, flat: np.ndarray, step: StepRequest) -> Sum | None:
        """The root's sum, from all workers; where a worker is lost, others compute its part."""
        sums: dict[Node, Sum | None] = {}
        with says_if_closed(self.client):
            if step.number == 0:
                self._spread()
            asked = list(self._held)
            while asked:
                answers = self._ask(asked, flat, step)
                lost = [held for held, answer in zip(asked, answers, strict=True) if answer is None]
                for answer in answers:
                    sums |= answer or {}
                asked = self._replace(lost) if lost else []
        self._lost_in_a_row = [0] * len(self.partition_sizes)
        return assemble(sums, self.root)

    # -- within -------------------------------------------------------------------------------------------------

    def _spread(self) -> None:
        """Place the partitions again if workers joined or left, or an error left partitions without a worker."""
        workers = set(self.client.nthreads())
        if self._held and workers == self._workers:
            return
        self._lost_in_a_row = [0] * len(self.partition_sizes)
        placed = self._place(range(len(self.partition_sizes)))
        unchanged = [held for held in self._held if placed.get(held.address) == held.numbers]
        self._held = []
        for held in unchanged:
            del placed[held.address]
        self._held = unchanged + self._build(placed)
        self._workers = workers

    def _ask(
        self, asked: list[_Held], flat: np.ndarray, step: StepRequest
    ) -> list[dict[Node, Sum | None] | None]:
        """The answer of each actor; None where its worker is lost."""

        async def answer(held: _Held) -> dict[Node, Sum | None] | None:
            try:
                call = held.actor.sums(flat, step)
            except RuntimeError:  # Dask knows already that the actor is gone
                return None
            try:
                sums: dict[Node, Sum | None] = await call
            except OSError:
                return None
            return sums

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

        collected: list[dict[Node, Sum | None] | None] = self.client.sync(answers)
        return collected

    def _replace(self, lost: list[_Held]) -> list[_Held]:
        """New actors for the partitions of lost ones."""
        alive = [held for held in self._held if held not in lost]
        self._held = []
        numbers = sorted(number for held in lost for number in held.numbers)
        self._count_lost(numbers)
        built = self._build(self._place(numbers))
        self._held = alive + built
        return built

    def _count_lost(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._lost_in_a_row[number] += 1
            if self._lost_in_a_row[number] >= LOST_MOST:
                raise LostPartitionError(
                    f"the worker that held partition {number} of X (rows {self.first_rows[number]} to "
                    f"{self.first_rows[number] + self.partition_sizes[number] - 1}) was lost {LOST_MOST} times in a "
                    "row: too little memory? The parameters are those of the last whole epoch"
                )

    def _place(self, numbers: Sequence[int]) -> dict[str, list[int]]:
        """Decide which worker holds which of the partitions `numbers`, once all of them are on workers."""
        self.partitions.settle(numbers)
        futures = self.partitions.futures
        located = self.client.who_has([futures[number] for number in numbers])
        holders = {number: set(located.get(futures[number].key, ())) for number in numbers}
        while not (threads := self.client.nthreads()):
            self.client.wait_for_workers(1)
        return place(self.partition_sizes, holders, threads)

    def _build(self, placed: dict[str, list[int]]) -> list[_Held]:
        """Start the actors, and others where a worker is lost meanwhile."""
        built = []
        while placed:
            futures = {address: self._submit(address, numbers) for address, numbers in placed.items()}
            lost: list[int] = []
            for address, future in futures.items():
                actor = self._result(address, future)
                if actor is None:
                    lost += placed[address]
                else:
                    built.append(_Held(address, placed[address], actor, future))
            self._count_lost(lost)
            placed = self._place(sorted(lost)) if lost else {}
        return built

    def _submit(self, address: str, numbers: list[int]) -> Future:
        return self.client.submit(
            _Actor,
            without_penalty(self.setup),
            numbers,
            [self.first_rows[number] for number in numbers],
            len(self.partition_sizes),
            self.n_threads,
            [self.partitions.futures[number] for number in numbers],
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
                except (KilledWorker, CancelledError):  # the latter: a partition was lost with its worker
                    return None
                except RuntimeError:
                    if address in self.client.nthreads():
                        raise
                    return None


@make_engine.register
def _make_dask_engine(partitions: DaskPartitions, network: Network, **options: Any) -> DistributedEngine:
    return DistributedEngine(partitions.client, network, partitions, **options)
