"""The steps of an epoch over any ``Rows``: ``Engine.run_steps`` for arrays and for files that are read chunk by chunk.

If a batch fits in a chunk, all steps of a chunk are one call of the engine; an array is one chunk. For a batch larger
than a chunk, such as all rows of a file, the chunks' gradients are added up and one step is taken: the same step, up to
rounding.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fastae.data.row_source import Rows
from fastae.engine.engine import Engine
from fastae.kernels.shuffle import orders
from fastae.network import Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State
from fastae.training.step_by_step import StepByStep


def run_epoch(
    engine: Engine | StepByStep,
    params: Parameters,
    rows: Rows,
    *,
    gradient: Parameters,
    batch_size: int,
    rates: np.ndarray,
    state: State | None = None,
    generator: np.random.Generator | None = None,
    objective: Objective = PLAIN,
    memory: list[np.ndarray] | None = None,
    **options: Any,
) -> np.ndarray:
    """Go through all rows once or, where they are in memory, once for each epoch that `rates` are of.

    Parameters
    ----------
    rates : ndarray of shape (steps,), float64
        The learning rate of each of the epoch's steps; for rows in memory, of several epochs'.
    generator : numpy.random.Generator, optional
        Shuffles the pieces of the file and the rows of each chunk; without one, all is in order.
    memory : list of ndarray, optional
        Empty before the first call: holds the memory for orders of rows, for the next call.
    engine, params, gradient, batch_size, state, objective, options
        As for ``Engine.run_steps``. `sample_weight` is for rows in memory only.

    Returns
    -------
    losses : ndarray of shape (steps, 2)
        As from ``Engine.run_steps``.
    """
    if rows.in_memory:
        (chunk,) = rows.chunks()
        drawn = None
        if generator is not None:
            epochs = rates.size // -(-len(rows) // batch_size)
            memory = [] if memory is None else memory
            if not memory or len(memory[0]) < epochs:
                memory[:] = [np.empty((epochs, len(rows)), np.int64)]
            drawn = orders(generator, chunk.order, len(rows), epochs, memory[0])
        return engine.run_steps(
            params,
            chunk.rows,
            index=chunk.order if drawn is None else None,
            orders=drawn,
            gradient=gradient,
            batch_size=batch_size,
            rates=rates,
            state=state,
            objective=objective,
            **options,
        )
    if batch_size <= rows.chunk_rows:
        steps = _steps_within_chunks(
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
            "sparsity_weight needs the mean code of a batch, which must fit in a chunk of "
            f"{rows.chunk_rows} rows, but batch_size is {batch_size}"
        )
    else:
        steps = _steps_across_chunks(
            engine, params, rows, generator, batch_size, rates, state, gradient, objective, **options
        )
    losses = []
    for chunk_losses in steps:
        losses.append(chunk_losses)
        if not np.isfinite(chunk_losses[-1, 0]):
            break
    return np.concatenate(losses)


def loss_and_gradient(
    engine: Engine, params: Parameters, rows: Rows, **options: Any
) -> tuple[float, Parameters]:
    """``Engine.loss_and_gradient`` of all rows, from the sums of chunks where they are not in memory."""
    gradient = Parameters(params.network, params.dtype)
    losses = run_epoch(
        engine, params, rows, gradient=gradient, batch_size=len(rows), rates=np.zeros(1), **options
    )
    return float(losses[0, 0]), gradient


def _steps_within_chunks(
    engine: Engine | StepByStep,
    params: Parameters,
    rows: Rows,
    generator: np.random.Generator | None,
    batch: int,
    rates: np.ndarray,
    state: State | None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """The steps of one chunk after those of another; each chunk but the last holds whole batches."""
    done = 0
    for chunk in rows.chunks(generator, batch):
        size = len(chunk.rows) if chunk.order is None else len(chunk.order)
        steps = -(-size // batch)
        yield engine.run_steps(
            params,
            chunk.rows,
            index=chunk.order,
            first_row=chunk.first,
            batch_size=batch,
            rates=rates[done : done + steps],
            state=_after(state, done),
            **options,
        )
        done += steps


def _steps_across_chunks(
    engine: Engine | StepByStep,
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
    """One step from as many chunks, or parts of them, as make up a batch."""
    sums, totals, wanted = np.zeros_like(gradient.flat), np.zeros(2), batch
    done = seen = 0
    for chunk in rows.chunks(generator):
        at, size = 0, len(chunk.rows)
        while at < size:
            count = min(wanted, size - at)
            part = slice(at, at + count)
            totals += engine.run_steps(
                params,
                chunk.rows[part] if chunk.order is None else chunk.rows,
                index=None if chunk.order is None else chunk.order[part],
                first_row=chunk.first + (at if chunk.order is None else 0),
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
    """The state after `steps` more steps, with the same moments."""
    return None if state is None else replace(state, steps=state.steps + steps)
