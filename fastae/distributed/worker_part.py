"""Shard: the blocks of rows that one machine holds, and their part of a step."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastae.distributed.reduction_tree import Node, Sum, add, cover, halves
from fastae.engine.engine import Engine
from fastae.network import DType, Network, Parameters
from fastae.objective import PLAIN, Objective

GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many there are


class Step(NamedTuple):
    """Which rows a step takes of each block, `number` of `of`, and in what order and noise.

    Rows are in their own order where `order_seed` is None.
    """

    number: int = 0
    of: int = 1
    epoch: int = 0
    order_seed: int | None = None
    noise_seed: int = 0


@dataclass(frozen=True)
class Setup:
    """What every machine is told once: the network, and what is done to the rows on their way in."""

    network: Network
    dtype: DType = "float32"
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    objective: Objective = PLAIN


def make_setup(network: Network, dtype: Any, shift: Any, scale: Any, objective: Objective) -> Setup:
    """A Setup of what a caller passed."""
    name: Any = np.dtype(dtype).name
    return Setup(
        network,
        name,
        None if shift is None else np.asarray(shift, np.float64),
        None if scale is None else np.asarray(scale, np.float64),
        objective,
    )


def without_penalty(setup: Setup) -> Setup:
    """For the shards: the penalty is of the whole step, and added where it is taken."""
    return replace(setup, objective=replace(setup.objective, alpha=0.0))


class Shard:
    """The blocks that one machine holds, and an engine for them.

    Parameters
    ----------
    setup : Setup
    blocks : dict of arrays of shape (rows, n)
        By the blocks' numbers. Never copied, never written.
    first_rows : dict of int
        The number, within the whole matrix, of each one's first row.
    n_blocks : int
        How many the whole matrix has.
    n_threads : int, optional
        All CPUs this process may use by default.
    """

    def __init__(
        self,
        setup: Setup,
        blocks: dict[int, np.ndarray],
        first_rows: dict[int, int],
        n_blocks: int,
        n_threads: int | None = None,
    ) -> None:
        self.setup, self.blocks, self.first_rows = setup, blocks, first_rows
        self.engine = Engine(setup.network, n_threads, setup.dtype)
        self.params = Parameters(setup.network, setup.dtype)
        self._free: list[Parameters] = []
        self._used: list[Parameters] = []
        self._orders: dict[int, np.ndarray] = {}
        self._orders_of: tuple[int | None, int] = (None, 0)
        self._nodes = list(cover(blocks, (0, n_blocks)))

    def sums(self, flat: np.ndarray, step: Step) -> dict[Node, Sum | None]:
        """The sums of the largest nodes held, at the parameters `flat`; good until the next call."""
        self.params.flat[:] = flat
        self._free += self._used
        self._used = []
        if self._orders_of != (step.order_seed, step.epoch):
            self._orders, self._orders_of = {}, (step.order_seed, step.epoch)
        return {node: self._sum(node, step) for node in self._nodes}

    def _sum(self, node: Node, step: Step) -> Sum | None:
        if node[1] - node[0] == 1:
            return self._block_sum(node[0], step)
        left, right = (self._sum(half, step) for half in halves(node))
        both = add(left, right)
        if left is not None and right is not None:  # the right one's memory is the next block's
            self._free.append(self._used.pop())
        return both

    def _block_sum(self, number: int, step: Step) -> Sum | None:
        block = self.blocks[number]
        first, last = rows_of_step(number, len(block), step)
        if first == last:
            return None
        first_row, index = self.first_rows[number], None
        if step.order_seed is None:
            block, first_row = block[first:last], first_row + first
        else:
            if number not in self._orders:
                generator = np.random.default_rng((step.order_seed, step.epoch, number))
                self._orders[number] = generator.permutation(len(block))
            index = self._orders[number][first:last]
        gradient = self._free.pop() if self._free else Parameters(self.setup.network, self.setup.dtype)
        self._used.append(gradient)
        totals = self.engine.run_steps(
            self.params,
            block,
            gradient=gradient,
            index=index,
            shift=self.setup.shift,
            scale=self.setup.scale,
            objective=self.setup.objective,
            seed=step.noise_seed,
            epoch=step.epoch,
            first_row=first_row,
            sums=True,
        )
        return Sum(gradient.flat, totals[0])


def rows_of_step(number: int, rows: int, step: Step) -> tuple[int, int]:
    """First and last of the rows that a step takes of block `number`, which has `rows`.

    A step takes its share of every block. Where that is no whole number it is rounded at another place in each block,
    so that the steps are of about the same size.
    """
    phase = number * GOLDEN % 1
    first, last = (int(rows * at / step.of + phase) for at in (step.number, step.number + 1))
    return first, min(last, rows)
