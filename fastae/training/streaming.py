"""An epoch over rows that are read block by block: ``Engine.run_steps`` for ``fastae.Rows``.

A batch that fits in a block is a step like any other. A larger one, such as all rows, is a step from the sums of its
blocks' gradients: the same step, up to rounding.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fastae.data.row_source import Rows
from fastae.engine.engine import Engine
from fastae.network import Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State


def run_epoch(
    engine: Engine,
    params: Parameters,
    rows: Rows,
    *,
    gradient: Parameters,
    batch_size: int,
    rates: np.ndarray,
    state: State | None = None,
    generator: np.random.Generator | None = None,
    objective: Objective = PLAIN,
    **options: Any,
) -> np.ndarray:
    """Go through all rows once.

    Parameters
    ----------
    generator : numpy.random.Generator, optional
        Shuffles the pieces of the file and the rows of each block; without one, all is in order.
    others
        As for ``Engine.run_steps``. `rates` holds one for each of the epoch's steps.

    Returns
    -------
    losses : ndarray of shape (steps, 2)
        As from ``Engine.run_steps``.
    """
    if batch_size <= rows.block_rows:
        steps = _steps_within_blocks(
            engine,
            params,
            rows,
            generator,
            batch_size,
            rates,
            state,
            gradient=gradient,
            objective=objective,
            **options,
        )
    elif objective.sparsity_weight:
        raise ValueError(
            f"sparsity_weight goes by the mean code of a batch, which must fit in a block of {rows.block_rows} "
            f"rows, but batch_size is {batch_size}"
        )
    else:
        steps = _steps_across_blocks(
            engine, params, rows, generator, batch_size, rates, state, gradient, objective, **options
        )
    losses = []
    for some in steps:
        losses.append(some)
        if not np.isfinite(some[-1, 0]):
            break
    return np.concatenate(losses)


def loss_and_gradient(
    engine: Engine, params: Parameters, rows: Rows, **options: Any
) -> tuple[float, Parameters]:
    """``Engine.loss_and_gradient`` of all rows, from the sums of blocks."""
    gradient = Parameters(params.network, params.dtype)
    losses = run_epoch(
        engine, params, rows, gradient=gradient, batch_size=len(rows), rates=np.zeros(1), **options
    )
    return float(losses[0, 0]), gradient


def _steps_within_blocks(
    engine: Engine,
    params: Parameters,
    rows: Rows,
    generator: np.random.Generator | None,
    batch: int,
    rates: np.ndarray,
    state: State | None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """The steps of one block after those of another; each block holds whole batches."""
    done = 0
    for block in rows.blocks(generator, batch):
        size = len(block.rows) if block.order is None else len(block.order)
        steps = -(-size // batch)
        yield engine.run_steps(
            params,
            block.rows,
            index=block.order,
            first_row=block.first,
            batch_size=batch,
            rates=rates[done : done + steps],
            state=_after(state, done),
            **options,
        )
        done += steps


def _steps_across_blocks(
    engine: Engine,
    params: Parameters,
    rows: Rows,
    generator: np.random.Generator | None,
    batch: int,
    rates: np.ndarray,
    state: State | None,
    gradient: Parameters,
    objective: Objective,
    optimizer: Optimizer | None = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """One step from as many blocks, or parts of them, as make up a batch."""
    sums, totals, wanted = np.zeros_like(gradient.flat), np.zeros(2), batch
    done = seen = 0
    for block in rows.blocks(generator):
        at, size = 0, len(block.rows)
        while at < size:
            count = min(wanted, size - at)
            part = slice(at, at + count)
            totals += engine.run_steps(
                params,
                block.rows[part] if block.order is None else block.rows,
                index=None if block.order is None else block.order[part],
                first_row=block.first + (at if block.order is None else 0),
                gradient=gradient,
                objective=replace(objective, alpha=0.0),
                sums=True,
                **options,
            )[0]
            sums += gradient.flat
            at, wanted, seen = at + count, wanted - count, seen + count
            if wanted and seen < len(rows):
                continue
            loss = totals[0] / totals[1]
            if np.isfinite(loss):
                loss += engine.combine_sums(
                    params,
                    sums[None],
                    totals[1],
                    gradient=gradient,
                    optimizer=optimizer,
                    rate=rates[done],
                    state=_after(state, done),
                    alpha=objective.alpha,
                )
            yield np.array([[loss, totals[1]]])
            sums[:], totals[:], wanted, done = 0, 0, batch, done + 1


def _after(state: State | None, steps: int) -> State | None:
    """The state so many steps on: the same moments."""
    return None if state is None else replace(state, steps=state.steps + steps)
