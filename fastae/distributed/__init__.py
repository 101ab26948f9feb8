"""Training on rows that lie on several machines, with the same bits however they are distributed.

    partitions.py      Partitions of rows, an engine over them, and LocalEngine, for partitions on one machine
    worker_part.py     the partitions that one worker holds, and their part of a step
    reduction_tree.py  the fixed tree along which sums are added
    dask/              over the workers of a Dask cluster (extra ``dask``)
    mpi.py             over the ranks of an MPI job (extra ``mpi``)

Neither Dask nor MPI is imported until one of its names is used.
"""

import importlib
from typing import Any

_DASK = (
    "DaskPartitions",
    "DistributedEngine",
    "LostPartitionError",
    "connect",
    "find_client",
    "open_partitions",
    "place",
)
_FORMER = (
    "DaskBlocks",
    "LostBlockError",
    "open_blocks",
)  # of DaskPartitions, LostPartitionError, open_partitions
_HOME = {
    "LocalEngine": "fastae.distributed.partitions",
    **dict.fromkeys((*_DASK, *_FORMER), "fastae.distributed.dask"),
}

__all__ = sorted(set(_HOME) - set(_FORMER))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastae.distributed' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
