"""The binary tree along which sums of blocks of rows are added: the same additions wherever the blocks are.

Its leaves are the blocks of a matrix, and each node halves the blocks below it. A node's sum is the sum of its two
children's; so a machine adds up the nodes that it holds whole, and a few sums travel.
"""

from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Node = tuple[int, int]  # blocks first .. last - 1, a node of the tree


class Sum(NamedTuple):
    """What a node of the tree holds: sums over the rows of its blocks.

    gradient : ndarray of shape (size of the flat buffer,)
    totals : ndarray of shape (2,), float64
        The loss, not yet divided by the rows, and the number of rows.
    """

    gradient: np.ndarray
    totals: np.ndarray


def halves(node: Node) -> tuple[Node, Node]:
    """A node's two children."""
    first, last = node
    middle = (first + last) // 2
    return (first, middle), (middle, last)


def cover(held: Container[int], node: Node) -> Iterator[Node]:
    """The largest nodes, from left to right, whose blocks are all in `held`."""
    if all(block in held for block in range(*node)):
        yield node
    elif node[1] - node[0] > 1:
        for half in halves(node):
            yield from cover(held, half)


def assemble(sums: Mapping[Node, Sum | None], node: Node) -> Sum | None:
    """The sum of a node from those below it; None, which stands for no rows, adds nothing."""
    if node in sums:
        return sums[node]
    left, right = (assemble(sums, half) for half in halves(node))
    return add(left, right)


def add(left: Sum | None, right: Sum | None) -> Sum | None:
    """left + right, in left's memory where it may be written."""
    if left is None or right is None:
        return right if left is None else left
    out = left.gradient if left.gradient.flags.writeable else None
    return Sum(np.add(left.gradient, right.gradient, out=out), left.totals + right.totals)
