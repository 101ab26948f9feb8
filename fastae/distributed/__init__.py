"""Training on rows that lie on several machines, with the same bits however they are distributed.

    partitions.py      Partitions of rows, an engine over them, and LocalEngine, for partitions on one machine
    worker_part.py     the partitions that one worker holds, and their part of a step
    reduction_tree.py  the fixed tree along which sums are added
    spread.py          networks that are each trained as a whole by one worker
    dask/              over the workers of a Dask cluster (extra ``dask``)
    mpi.py             over the ranks of an MPI job (extra ``mpi``)

Neither Dask nor MPI is imported until one of its names is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; at run time __getattr__ loads each name when it is first used
    from fastae.distributed.dask import DaskPartitions as DaskPartitions
    from fastae.distributed.dask import DistributedEngine as DistributedEngine
    from fastae.distributed.dask import LostPartitionError as LostPartitionError
    from fastae.distributed.dask import connect as connect
    from fastae.distributed.dask import find_client as find_client
    from fastae.distributed.dask import open_partitions as open_partitions
    from fastae.distributed.dask import place as place
    from fastae.distributed.partitions import LocalEngine as LocalEngine

_FORMER = ("DaskBlocks", "LostBlockError", "open_blocks")  # former names, which still work
_HOME = {
    "LocalEngine": "fastae.distributed.partitions",
    **dict.fromkeys(
        (
            "DaskPartitions",
            "DistributedEngine",
            "LostPartitionError",
            "connect",
            "find_client",
            "open_partitions",
            "place",
            *_FORMER,
        ),
        "fastae.distributed.dask",
    ),
}

__all__ = sorted(set(_HOME) - set(_FORMER))


if not TYPE_CHECKING:  # to type checkers, a module with __getattr__ would have every name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fastae.distributed' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOME[name]), name)
