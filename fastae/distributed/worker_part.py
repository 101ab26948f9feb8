"""WorkerPart: the partitions that one worker holds, and their part of a step."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastae.distributed.reduction_tree import Node, Sum, add, cover, halves
from fastae.engine.engine import Engine
from fastae.network import DType, Network, Parameters
from fastae.objective import PLAIN, Objective

GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly, however many there are


class StepRequest(NamedTuple):
    """What workers are told of a step: which rows it takes of each partition, in what order, with what noise.

    It is step `number` of the epoch, counted from 0. Rows are in their own order where `order_seed` is None.
    """

    number: int = 0
    steps_per_epoch: int = 1
    epoch: int = 0
    order_seed: int | None = None
    noise_seed: int = 0


@dataclass(frozen=True)
class Setup:
    """What every worker is told once: the network, and how rows are transformed before they enter it."""

    network: Network
    dtype: DType = "float32"
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    objective: Objective = PLAIN


def make_setup(network: Network, dtype: Any, shift: Any, scale: Any, objective: Objective) -> Setup:
    """A Setup from the arguments of an engine."""
    name: Any = np.dtype(dtype).name
    return Setup(
        network,
        name,
        None if shift is None else np.asarray(shift, np.float64),
        None if scale is None else np.asarray(scale, np.float64),
        objective,
    )


def without_penalty(setup: Setup) -> Setup:
    """The setup for workers: the penalty belongs to the whole step, and is added where the step is taken."""
    return replace(setup, objective=replace(setup.objective, alpha=0.0))


class WorkerPart:
    """The partitions that one worker holds, and an engine for them.

    Parameters
    ----------
    setup : Setup
    partitions : dict of arrays of shape (rows, n)
        By the partitions' numbers. Never copied, never written.
    first_rows : dict of int
        The number, within the whole matrix, of each partition's first row.
    n_partitions : int
        The number of partitions of the whole matrix.
    n_threads : int, optional
        All CPUs that this process may use by default.
    """

    def __init__(
        self,
        setup: Setup,
        partitions: dict[int, np.ndarray],
        first_rows: dict[int, int],
        n_partitions: int,
        n_threads: int | None = None,
    ) -> None:
        self.setup, self.partitions, self.first_rows = setup, partitions, first_rows
        self.engine = Engine(setup.network, n_threads, setup.dtype)
        self.params = Parameters(setup.network, setup.dtype)
        self._orders: dict[int, np.ndarray] = {}
        self._orders_of: tuple[int | None, int] = (None, 0)
        self._nodes = list(cover(partitions, (0, n_partitions)))
        self._results = [self._buffer() for _ in self._nodes]  # the gradients of these nodes
        self._spare: list[Parameters] = []  # for gradients that are then added to others

    def sums(self, flat: np.ndarray, step: StepRequest) -> dict[Node, Sum | None]:
        """The sums of the largest nodes held, at the parameters `flat`; valid until the next call."""
        self.params.flat[:] = flat
        if self._orders_of != (step.order_seed, step.epoch):
            self._orders, self._orders_of = {}, (step.order_seed, step.epoch)
        return {
            node: self._sum(node, step, gradient)
            for node, gradient in zip(self._nodes, self._results, strict=True)
        }

    def _buffer(self) -> Parameters:
        return Parameters(self.setup.network, self.setup.dtype)

    def _sum(self, node: Node, step: StepRequest, gradient: Parameters) -> Sum | None:
        """The sum of a node, in the memory of `gradient`."""
        if node[1] - node[0] == 1:
            return self._partition_sum(node[0], step, gradient)
        left_half, right_half = halves(node)
        left = self._sum(left_half, step, gradient)
        if left is None:
            return self._sum(right_half, step, gradient)
        spare = self._spare.pop() if self._spare else self._buffer()
        total = add(left, self._sum(right_half, step, spare))
        self._spare.append(spare)
        return total

    def _partition_sum(self, number: int, step: StepRequest, gradient: Parameters) -> Sum | None:
        rows = self.partitions[number]
        first, last = rows_of_step(number, len(rows), step)
        if first == last:
            return None
        first_row, index = self.first_rows[number], None
        if step.order_seed is None:
            rows, first_row = rows[first:last], first_row + first
        else:
            if number not in self._orders:
                generator = np.random.default_rng((step.order_seed, step.epoch, number))
                self._orders[number] = generator.permutation(len(rows))
            index = self._orders[number][first:last]
        totals = self.engine.run_steps(
            self.params,
            rows,
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


def rows_of_step(number: int, rows: int, step: StepRequest) -> tuple[int, int]:
    """The rows first .. last - 1 that a step takes of partition `number`, which has `rows` rows.

    A step takes its share of every partition. A share that is not a whole number is rounded at a different place in
    each partition, so that all steps have about the same number of rows.
    """
    offset = number * GOLDEN % 1
    first, last = (int(rows * at / step.steps_per_epoch + offset) for at in (step.number, step.number + 1))
    return first, min(last, rows)


# Former names.
Shard = WorkerPart
Step = StepRequest
