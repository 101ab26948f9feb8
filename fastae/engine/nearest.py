"""Units: which unit of a linear layer has the least output for a row, and the least output of groups of units."""

import numpy as np

from fastae.kernels import fork, layout
from fastae.kernels.layout import address, aligned_zeros

# Rows of a tile: few, so that they and the least outputs stay in L1; a multiple of every CPU's ROW_MULTIPLE
HEIGHT = 96


class Units:
    """The units of a linear layer, some of them in groups, of which the least output is wanted.

    Outputs, X W + b, are compared as they are computed, in float32, and not stored. Several threads may call ``least``
    at the same time.

    Parameters
    ----------
    W : ndarray of shape (n, K)
    b : ndarray of shape (K,)
    members, groups : int
        Member j of group g is unit j * groups + g; further units belong to no group.
    """

    def __init__(self, W: np.ndarray, b: np.ndarray, members: int, groups: int) -> None:
        with fork.importing:
            from fastae.kernels.gemm import ROW_MULTIPLE
            from fastae.kernels.nearest import nearest, work_lines

        self._nearest = nearest.call("float32")
        self._row_multiple = ROW_MULTIPLE
        lanes = layout.lanes("float32")
        depth, units = W.shape
        self._members, self._groups, self._group_blocks = members, groups, layout.blocks(groups, "float32")
        grouped = np.full((members, self._group_blocks * lanes), -1)
        grouped[:, :groups] = np.arange(members * groups).reshape(members, groups)
        others = np.arange(members * groups, units)
        slots = np.concatenate([grouped.ravel(), others, np.full(-len(others) % lanes, -1)])
        is_unit = slots >= 0
        self._blocks = len(slots) // lanes
        self._depth, depth_blocks = depth, layout.blocks(depth, "float32")
        self._W = aligned_zeros(len(slots) * depth_blocks * lanes, "float32").reshape(self._blocks, -1, lanes)
        by_block = np.where(is_unit, W[:, slots], 0).reshape(depth, self._blocks, lanes)
        self._W[:, :depth] = by_block.transpose(1, 0, 2)
        self._b, self._numbers = (aligned_zeros(len(slots), "float32") for _ in range(2))
        self._b[:] = np.where(is_unit, np.broadcast_to(b, units)[slots], np.inf)
        self._numbers[:] = np.where(is_unit, slots, 0)
        self._work_elements = work_lines(depth_blocks, self._group_blocks, HEIGHT) * lanes

    def least(self, X: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The unit with the least output for each row, (m,), and the least output of each group, (m, groups).

        Outputs that are NaN do not count: where all are, the unit is 0 and the outputs are infinite.

        Parameters
        ----------
        X : ndarray of shape (m, n), of any dtype and order
        own : ndarray of shape (m,), int, optional
            A unit that does not count for the row.
        """
        X, rows = np.ascontiguousarray(X, np.float32), len(X)
        found, of_groups = np.empty(rows, np.int64), np.empty((rows, self._groups), np.float32)
        excluded = aligned_zeros(-(-rows // self._row_multiple) * self._row_multiple, "float32")
        excluded[:rows] = -1 if own is None else own
        work = aligned_zeros(self._work_elements, "float32")
        arrays = map(address, (work, found, of_groups, X, self._W, self._b, self._numbers, excluded))
        sizes = rows, self._depth, self._blocks, self._members, self._groups, self._group_blocks, HEIGHT
        self._nearest(*arrays, *sizes)
        return found, of_groups
