"""Training over the workers of a Dask cluster, on blocks of rows that stay where Dask put them.

Each worker holds its blocks and an engine as an actor. A step is one round trip: parameters out, sums of gradients
back, added up along the tree of ``tree.py``, the optimizer here. No task graph is made for a step, and no rows come
here. Work of a lost worker is done again by the others, with the same bits.

    cluster.py    a client of the cluster
    blocks.py     the blocks of a Dask array or DataFrame, or of files
    placement.py  which worker is to hold which
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
from fastae.distributed.dask.partitions import DaskBlocks, LostBlockError, open_blocks
from fastae.distributed.dask.placement import place

__all__ = [
    "DaskBlocks",
    "DistributedEngine",
    "LostBlockError",
    "connect",
    "find_client",
    "open_blocks",
    "place",
]
