"""The same training over the ranks of an MPI job, each with its own partitions of the rows.

All ranks run the same program. The sums of a step go up the tree of ``reduction_tree.py``, each sent by the rank that
computed it to the rank that adds it. The root's sum is sent to all ranks, and each of them takes the same step.
(``Allreduce`` may add in an order that depends on the number of ranks.)

Needs the extra ``mpi``. Start programs with ``mpirun``.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.data.columns import matrix_shape
from fastae.data.row_source import Rows
from fastae.distributed.partitions import PartitionedEngine, Partitions, cut_rows, make_engine
from fastae.distributed.reduction_tree import Node, Sum, add, halves
from fastae.distributed.worker_part import StepRequest, WorkerPart, make_setup, rows_of_step, without_penalty
from fastae.engine.thread_pool import available_cpus
from fastae.network import DType, Network, Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.history import History
from fastae.training.loop import check_start
from fastae.training.options import TrainingOptions

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # the latter: mpi4py finds no MPI library
    raise ImportError(
        f'fastae.distributed.mpi needs mpi4py and an MPI: pip install "fastae[mpi]" ({str(error).splitlines()[0]})'
    ) from error


class MPIPartitions(Partitions):
    """Partitions of rows over the ranks of an MPI job: the first ones on the first rank, and so on.

    Parameters
    ----------
    source : Rows, or sequence of ndarrays of shape (rows, n)
        The partitions; the same argument on all ranks. Each rank reads only its own: of Rows, its part of the file,
        and of a sequence, its elements, which may be computed when they are requested.
    comm : mpi4py.MPI.Comm, optional
        Communicator of the job. Default: COMM_WORLD.

    Attributes
    ----------
    mine : dict of int to ndarray
        This rank's partitions, by number.
    owners : list of int
        The rank that holds each partition.
    """

    def __init__(self, source: Rows | Sequence[np.ndarray], comm: Any = None) -> None:
        self.comm = MPI.COMM_WORLD if comm is None else comm
        if isinstance(source, Rows):
            names, cuts = source.feature_names, cut_rows(source)
            self.name, self.feature_names = source.name, None if names is None else list(names)
            self.files = source.files
            count = len(cuts)
        else:
            count = len(source)
        if count == 0:
            raise ValueError("X has no rows")
        self.owners = [number * self.comm.size // count for number in range(count)]
        own = [number for number, owner in enumerate(self.owners) if owner == self.comm.rank]
        if isinstance(source, Rows):
            self.mine = {number: source.read_pieces(*cuts[number]) for number in own}
        else:
            self.mine = {number: np.asarray(source[number]) for number in own}
        described = self.each(
            lambda partition: (*matrix_shape(partition.shape, "a partition of X"), partition.dtype)
        )
        self.partition_sizes = [rows for rows, _, _ in described]
        columns = sorted({columns for _, columns, _ in described})
        if len(columns) > 1:
            raise ValueError(
                f"partitions of X have different numbers of columns: {', '.join(map(str, columns))}"
            )
        self.shape, self.dtype = (sum(self.partition_sizes), columns[0]), described[0][2]

    def each(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(partition, *args) of every partition, in order; an error on one rank is raised on all."""
        own: dict[int, Any] = {}
        error: Exception | None = None
        try:
            own = {number: function(partition, *args) for number, partition in self.mine.items()}
        except Exception as raised:
            error = raised
        results: dict[int, Any] = {}
        for theirs, failed in self.comm.allgather((own, error)):
            if failed is not None:
                raise failed
            results |= theirs
        return [results[number] for number in range(len(self.owners))]


class MPIEngine(PartitionedEngine):
    """Trains on partitions over the ranks of an MPI job, with the same bits for any number of ranks.

    ``train`` is called on all ranks at once, and each takes the same steps. Parameters, state, seed, validation losses
    and the decision of `callback` to stop are those of the first rank, which also shows progress and writes the
    checkpoint.

    Parameters
    ----------
    network : Network
    partitions : MPIPartitions, or its argument `source`
    n_threads : int, optional
        Threads of each rank; by default its share of its machine's CPUs.
    dtype, shift, scale, objective : optional
        As for ``fastae.Engine`` and ``fastae.train``.
    """

    def __init__(
        self,
        network: Network,
        partitions: MPIPartitions | Rows | Sequence[np.ndarray],
        *,
        n_threads: int | None = None,
        dtype: DType = "float32",
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        objective: Objective = PLAIN,
    ) -> None:
        partitions = partitions if isinstance(partitions, MPIPartitions) else MPIPartitions(partitions)
        super().__init__(make_setup(network, dtype, shift, scale, objective), partitions.partition_sizes)
        self.comm, self.owners = partitions.comm, partitions.owners
        first_rows = {number: self.first_rows[number] for number in partitions.mine}
        threads = _share_of_cpus(self.comm) if n_threads is None else n_threads
        self._part = WorkerPart(
            without_penalty(self.setup), partitions.mine, first_rows, len(self.partition_sizes), threads
        )
        self._root_sum = Sum(np.empty_like(self._part.params.flat), np.empty(2))

    def train_with(
        self,
        params: Parameters,
        optimizer: Optimizer | None,
        state: State | None,
        options: TrainingOptions,
    ) -> History:
        """As ``train``, with its options as one object."""
        optimizer, state = check_start(params, optimizer, state)
        for array in (params.flat, state.moments):
            self.comm.Bcast(array)
        state.steps, state.epochs = self.comm.bcast((state.steps, state.epochs))
        checkpoint = options.open_checkpoint()
        if checkpoint is not None:
            checkpoint.read_only = self.comm.rank > 0
        options = replace(
            options,
            seed=self.comm.bcast(options.seed),
            validate=self._as_the_first(options.validate),
            callback=self._as_the_first(options.callback),
            progress=options.progress and self.comm.rank == 0,
            checkpoint=checkpoint,
            resume=False,
        )
        return super().train_with(params, optimizer, state, options)

    def _as_the_first(self, function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """`function`, called on all ranks; all get the first rank's result."""
        if function is None:
            return None
        return lambda argument: self.comm.bcast(function(argument))

    def sums(self, flat: np.ndarray, step: StepRequest) -> Sum | None:
        """The root's sum, on every rank."""
        if self._is_empty(self.root, step):
            return None
        root_sum = self._gather(self._part.sums(flat, step), self.root, step)
        for mine, everyones in zip(root_sum or (), self._root_sum, strict=False):
            everyones[:] = mine
        for part in self._root_sum:
            self.comm.Bcast(part, self.owners[0])
        return self._root_sum

    def _gather(self, held: Mapping[Node, Sum | None], node: Node, step: StepRequest) -> Sum | None:
        """The sum of a node, on the rank of its first partition; None elsewhere."""
        if node in held or self.owners[node[0]] == self.owners[node[1] - 1]:
            return held.get(node)
        halved = halves(node)
        left, right = (self._gather(held, half, step) for half in halved)
        to, source = (self.owners[half[0]] for half in halved)
        if to != source and not self._is_empty(halved[1], step):
            if right is not None:
                for part in right:
                    self.comm.Send(part, to)
            elif self.comm.rank == to:
                right = Sum(np.empty_like(self._root_sum.gradient), np.empty(2))
                for part in right:
                    self.comm.Recv(part, source)
        return add(left, right) if self.comm.rank == to else None

    def _is_empty(self, node: Node, step: StepRequest) -> bool:
        takes = (rows_of_step(number, self.partition_sizes[number], step) for number in range(*node))
        return all(first == last for first, last in takes)


@contextmanager
def abort_on_error() -> Iterator[int]:
    """Yields this process's rank. An error ends all ranks, as the others would wait for this one forever."""
    try:
        yield MPI.COMM_WORLD.rank
    except Exception as error:
        if MPI.COMM_WORLD.size == 1:
            raise
        print(f"rank {MPI.COMM_WORLD.rank}: {error}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)


def _share_of_cpus(comm: Any) -> int:
    """A rank's share of its machine's CPUs, whether or not ranks are bound to CPUs."""
    neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
    if not hasattr(os, "sched_getaffinity"):
        return max(1, available_cpus() // int(neighbours.size))
    cpus = set().union(*neighbours.allgather(os.sched_getaffinity(0)))
    return max(1, min(available_cpus(), len(cpus) // int(neighbours.size)))


@make_engine.register
def _make_mpi_engine(partitions: MPIPartitions, network: Network, **options: Any) -> MPIEngine:
    return MPIEngine(network, partitions, **options)


MPIBlocks = MPIPartitions  # the former name
