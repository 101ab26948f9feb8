"""Training over the workers of a Dask cluster, on partitions of rows that stay on the workers where Dask put them.

Each worker holds its partitions and an engine as an actor. A step is one round trip: parameters go out, sums of
gradients come back and are added along the tree of ``reduction_tree.py``, and the optimizer runs in the client. A step
builds no task graph, and rows never come to the client. When a worker is lost, others repeat its work, with the same
bits.

    cluster.py     the client of a cluster
    partitions.py  the partitions of a Dask array or DataFrame, or of files
    placement.py   which worker holds which partitions
    engine.py      the steps

Needs the extra ``dask``.
"""

try:
    import dask.array
    import dask.distributed  # noqa: F401
except ImportError as error:
    raise ImportError(f'fastae.distributed needs Dask: pip install "fastae[dask]" ({error})') from error

from fastae.distributed.dask.cluster import connect, find_client
from fastae.distributed.dask.engine import DistributedEngine
from fastae.distributed.dask.partitions import (
    DaskBlocks,
    DaskPartitions,
    LostBlockError,
    LostPartitionError,
    open_blocks,
    open_partitions,
)
from fastae.distributed.dask.placement import place

__all__ = [
    "DaskBlocks",
    "DaskPartitions",
    "DistributedEngine",
    "LostBlockError",
    "LostPartitionError",
    "connect",
    "find_client",
    "open_blocks",
    "open_partitions",
    "place",
]
