"""The same training over the ranks of an MPI job, each with its own blocks of rows.

All ranks run the same program. A step's sums go up the tree of ``tree.py``, each from the rank that made it to the
one that adds it; the root's goes to all ranks, and each takes the same step. (``Allreduce`` may add in an order that
depends on how many ranks there are.)

Needs the extra ``mpi``, and is run by ``mpirun``.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.data.row_source import Rows, matrix_shape
from fastae.distributed.partitions import BlockEngine, Blocks, cut_rows, read_pieces
from fastae.distributed.reduction_tree import Node, Sum, add, halves
from fastae.distributed.worker_part import Shard, Step, make_setup, rows_of_step, without_penalty
from fastae.engine.thread_pool import available_cpus
from fastae.network import DType, Network, Parameters
from fastae.objective import PLAIN, Objective
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import History
from fastae.training.loop import check_start

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # the latter: mpi4py finds no MPI library
    raise ImportError(
        f'fastae.distributed.mpi needs mpi4py and an MPI: pip install "fastae[mpi]" ({str(error).splitlines()[0]})'
    ) from error


class MPIBlocks(Blocks):
    """Partitions of rows over the ranks of an MPI job: the first ones on the first rank, and so on.

    Parameters
    ----------
    blocks : Rows, or sequence of ndarrays of shape (rows, n)
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

    def __init__(self, blocks: Rows | Sequence[np.ndarray], comm: Any = None) -> None:
        self.comm = MPI.COMM_WORLD if comm is None else comm
        cuts = cut_rows(blocks) if isinstance(blocks, Rows) else []
        count = len(cuts) if isinstance(blocks, Rows) else len(blocks)
        if count == 0:
            raise ValueError("X has no rows")
        self.owners = [number * self.comm.size // count for number in range(count)]
        own = [number for number, owner in enumerate(self.owners) if owner == self.comm.rank]
        if isinstance(blocks, Rows):
            self.name, names = blocks.name, blocks.feature_names
            self.feature_names = None if names is None else list(names)
            self.mine = {number: read_pieces(blocks, *cuts[number]) for number in own}
        else:
            self.mine = {number: np.asarray(blocks[number]) for number in own}
        known = self.each(lambda block: (*matrix_shape(block.shape, "a block of X"), block.dtype))
        self.rows = [rows for rows, _, _ in known]
        columns = sorted({columns for _, columns, _ in known})
        if len(columns) > 1:
            raise ValueError(f"blocks of X have different numbers of columns: {', '.join(map(str, columns))}")
        self.shape, self.dtype = (sum(self.rows), columns[0]), known[0][2]

    def each(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(block, *args) of every block, in order; an error on one rank is one on all."""
        found: dict[int, Any] = {}
        error: Exception | None = None
        try:
            found = {number: function(block, *args) for number, block in self.mine.items()}
        except Exception as raised:
            error = raised
        results: dict[int, Any] = {}
        for theirs, failed in self.comm.allgather((found, error)):
            if failed is not None:
                raise failed
            results |= theirs
        return [results[number] for number in range(len(self.owners))]

    def engine(self, network: Network, **options: Any) -> "MPIEngine":
        """An engine for these blocks."""
        return MPIEngine(network, self, **options)


class MPIEngine(BlockEngine):
    """Trains on blocks over the ranks of an MPI job, with the same bits for any number of ranks.

    Parameters
    ----------
    network : Network
    blocks : MPIBlocks, or what it takes
    n_threads : int, optional
        Of each rank; by default its share of its machine's CPUs.
    dtype, shift, scale, objective : optional
        As for ``fastae.Engine`` and ``fastae.train``.
    """

    def __init__(
        self,
        network: Network,
        blocks: MPIBlocks | Rows | Sequence[np.ndarray],
        *,
        n_threads: int | None = None,
        dtype: DType = "float32",
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        objective: Objective = PLAIN,
    ) -> None:
        blocks = blocks if isinstance(blocks, MPIBlocks) else MPIBlocks(blocks)
        super().__init__(make_setup(network, dtype, shift, scale, objective), blocks.rows)
        self.comm, self.owners = blocks.comm, blocks.owners
        first_rows = {number: self.first_rows[number] for number in blocks.mine}
        threads = _share_of_cpus(self.comm) if n_threads is None else n_threads
        self._shard = Shard(without_penalty(self.setup), blocks.mine, first_rows, len(self.rows), threads)
        self._root_sum = Sum(np.empty_like(self._shard.params.flat), np.empty(2))

    def train(self, params: Parameters, **options: Any) -> History:
        """As ``BlockEngine.train``, on all ranks at once, each taking the same steps.

        Parameters, state, seed, validation losses and whether `callback` stops are the first rank's on all; it shows
        progress and writes the checkpoint.
        """
        _, state = check_start(params, None, options.pop("state", None))
        for array in (params.flat, state.moments):
            self.comm.Bcast(array)
        state.steps, state.epochs = self.comm.bcast((state.steps, state.epochs))
        options["seed"] = self.comm.bcast(options.get("seed", 0))
        for name in ("validate", "callback"):
            if options.get(name) is not None:
                options[name] = self._as_the_first(options[name])
        checkpoint = Checkpoint.at(options.pop("checkpoint", None), options.pop("resume", False))
        if checkpoint is not None:
            checkpoint.read_only = self.comm.rank > 0
        options["progress"] = options.get("progress", False) and self.comm.rank == 0
        return super().train(params, state=state, checkpoint=checkpoint, **options)

    def _as_the_first(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, called on all ranks; what it gives on the first one is what they all get."""
        return lambda argument: self.comm.bcast(function(argument))

    def sums(self, flat: np.ndarray, step: Step) -> Sum | None:
        """The root's sum, on every rank."""
        if self._is_empty(self.root, step):
            return None
        found = self._gather(self._shard.sums(flat, step), self.root, step)
        for mine, everyones in zip(found or (), self._root_sum, strict=False):
            everyones[:] = mine
        for part in self._root_sum:
            self.comm.Bcast(part, self.owners[0])
        return self._root_sum

    def _gather(self, held: Mapping[Node, Sum | None], node: Node, step: Step) -> Sum | None:
        """A node's sum, on the rank of its first block; None elsewhere."""
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

    def _is_empty(self, node: Node, step: Step) -> bool:
        takes = (rows_of_step(number, self.rows[number], step) for number in range(*node))
        return all(first == last for first, last in takes)


@contextmanager
def abort_on_error() -> Iterator[int]:
    """Gives this process's rank; ends all ranks where an error leaves one, as the others would wait for it forever."""
    try:
        yield MPI.COMM_WORLD.rank
    except Exception as error:
        if MPI.COMM_WORLD.size == 1:
            raise
        print(f"rank {MPI.COMM_WORLD.rank}: {error}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)


def _share_of_cpus(comm: Any) -> int:
    """A rank's part of its machine's CPUs, whether or not ranks are bound to some."""
    neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
    if not hasattr(os, "sched_getaffinity"):
        return max(1, available_cpus() // int(neighbours.size))
    cpus = set().union(*neighbours.allgather(os.sched_getaffinity(0)))
    return max(1, min(available_cpus(), len(cpus) // int(neighbours.size)))
