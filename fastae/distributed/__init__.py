"""Training on rows that lie on several machines, with the same bits however they are spread.

    partitions.py      Partitions of the rows, an engine over them, and LocalEngine, which needs one machine only
    worker_part.py     the partitions that one worker holds, and their part of a step
    reduction_tree.py  the fixed tree along which the parts' sums are added
    dask/              over the workers of a Dask cluster (extra ``dask``)
    mpi.py             over the ranks of an MPI job (extra ``mpi``)

Neither Dask nor MPI is imported until one of its names is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; at run time __getattr__ loads each name when it is first used
    from fastae.distributed.dask import DaskBlocks as DaskBlocks
    from fastae.distributed.dask import DistributedEngine as DistributedEngine
    from fastae.distributed.dask import LostBlockError as LostBlockError
    from fastae.distributed.dask import connect as connect
    from fastae.distributed.dask import find_client as find_client
    from fastae.distributed.dask import open_blocks as open_blocks
    from fastae.distributed.dask import place as place
    from fastae.distributed.partitions import LocalEngine as LocalEngine

_HOME = {
    "LocalEngine": "fastae.distributed.partitions",
    **dict.fromkeys(
        (
            "DaskBlocks",
            "DistributedEngine",
            "LostBlockError",
            "connect",
            "find_client",
            "open_blocks",
            "place",
        ),
        "fastae.distributed.dask",
    ),
}

__all__ = sorted(_HOME)


if not TYPE_CHECKING:  # which would take it to have every name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fastae.distributed' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOME[name]), name)
