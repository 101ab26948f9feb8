"""The binary tree along which the sums of partitions are added: the same additions wherever the partitions are.

Its leaves are the partitions of a matrix; the children of a node are the two halves of its partitions. The sum of a
node is the sum of its children, so a worker adds up the nodes that it holds completely, and few sums travel.
"""

from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Node = tuple[int, int]  # partitions first .. last - 1


class Sum(NamedTuple):
    """Sums over the rows of the partitions of a node.

    gradient : ndarray of shape (size of the flat buffer,)
    totals : ndarray of shape (2,), float64
        The loss, not yet divided by the number of rows, and the number of rows.
    """

    gradient: np.ndarray
    totals: np.ndarray


def halves(node: Node) -> tuple[Node, Node]:
    """A node's two children."""
    first, last = node
    middle = (first + last) // 2
    return (first, middle), (middle, last)


def cover(held: Container[int], node: Node) -> Iterator[Node]:
    """The largest nodes, from left to right, whose partitions are all in `held`."""
    if all(partition in held for partition in range(*node)):
        yield node
    elif node[1] - node[0] > 1:
        for half in halves(node):
            yield from cover(held, half)


def assemble(sums: Mapping[Node, Sum | None], node: Node) -> Sum | None:
    """The sum of a node, from the sums of nodes below it; None stands for no rows, and adds nothing."""
    if node in sums:
        return sums[node]
    left, right = (assemble(sums, half) for half in halves(node))
    return add(left, right)


def add(left: Sum | None, right: Sum | None) -> Sum | None:
    """left + right, in the memory of `left` where it is writeable."""
    if left is None or right is None:
        return right if left is None else left
    out = left.gradient if left.gradient.flags.writeable else None
    return Sum(np.add(left.gradient, right.gradient, out=out), left.totals + right.totals)
