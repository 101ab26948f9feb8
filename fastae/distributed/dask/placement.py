"""Which worker holds which partitions."""

import itertools
from collections.abc import Iterator, Sequence

from fastae.distributed.reduction_tree import Node, halves

# Partitions below one node at this depth of the tree stay together, so no step brings back more than 64 sums.
UNIT_DEPTH = 6


def place(rows: Sequence[int], holders: dict[int, set[str]], threads: dict[str, int]) -> dict[str, list[int]]:
    """Decide which worker holds which partitions: they stay where they are, unless that loads the workers unevenly.

    Parameters
    ----------
    rows : sequence of int
        The number of rows of each partition.
    holders : dict of sets
        The workers that have a copy of each partition, by the numbers of the partitions to place.
    threads : dict
        The number of threads of each worker.
    """
    load = dict.fromkeys(threads, 0.0)  # rows per thread
    given: dict[str, list[list[int]]] = {address: [] for address in threads}

    def take(address: str, unit: list[int], sign: int = 1) -> float:
        return load[address] + sign * sum(rows[number] for number in unit) / threads[address]

    def give(address: str, unit: list[int]) -> None:
        load[address] = take(address, unit)
        given[address].append(unit)

    for node in _units((0, len(rows)), UNIT_DEPTH):
        unit = [number for number in range(*node) if number in holders]
        if unit:
            here = {
                address: sum(rows[number] for number in unit if address in holders[number])
                for address in threads
            }
            give(min(threads, key=lambda address: (-here[address], load[address])), unit)
    while True:
        most, least = max(load, key=load.__getitem__), min(load, key=load.__getitem__)
        unit = given[most][-1] if given[most] else []
        if not unit or take(least, unit) >= load[most]:
            return {address: sorted(itertools.chain(*units)) for address, units in given.items() if units}
        load[most] = take(most, given[most].pop(), -1)
        give(least, unit)


def _units(node: Node, depth: int) -> Iterator[Node]:
    if depth == 0 or node[1] - node[0] == 1:
        yield node
    else:
        for half in halves(node):
            yield from _units(half, depth - 1)
