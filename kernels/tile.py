"""A tile through the layers, forwards and backwards; and the map of a thread's memory, in which its matrices lie.

No arithmetic is here: the functions of a form (products.py) compute. Loop 4 is here (step.py numbers the loops):

    loop 4    the layers of the network        the tile of layer i - 1 -> the tile of layer i, and back
"""

from typing import NamedTuple

import numpy as np

from fastae.kernels import cost
from fastae.kernels.compiler import callee, inlined
from fastae.kernels.intrinsics import call_at
from fastae.kernels.job import BERNOULLI, GIVEN, GIVEN_CODE
from fastae.kernels.layout import IDENTITY, LINE
from fastae.kernels.rounding import in_blocks, round_up

SCRATCH = 5  # lines of scratch: TileMap.loss to TileMap.cell


class TileMap(NamedTuple):
    """The addresses of a tile's arrays in a thread's memory, one array after the other.

    The output of layer i lies at element plan[i].output * height of `tiles`. The arrays from `clean` on are used if
    the input is corrupted, if the form's matrices are not blocked, if there is a Y, or for a delta of the code. Each
    is as wide as the input or, if it has more columns, the network's output.
    """

    tiles: int  # the input, then the output of each layer: (height, padded columns) elements each
    sums: int  # (padded columns of all outputs,): the column sums of deltas, which are bias gradients
    row_weight: int  # (height,)
    loss: int  # (lanes,): the sum of these is the loss
    gathered: int  # 2 lines: elements of X, side by side
    level: int  # 1 line, of which one element is used: the noise level
    cell: int  # 1 line, of which one element is used: the cell of another row, for noise that swaps cells
    clean: int  # blocked: the clean rows; or rows of Y, once the input is loaded
    # blocked (with the columns of the code if there are more, which reach into `target`): a matrix on its way to
    # another form
    spare: int
    target: int  # stored: the clean rows, or those of Y, in the form of products


@callee
def tile_map(plan, height, base, itemsize):  # type: ignore[no-untyped-def]
    """The TileMap of the memory at address `base`; `itemsize` is the bytes of an element, `plan` LAYER (layers,)."""
    lanes, last = LINE // itemsize, plan[plan.shape[0] - 1]
    outputs = round_up(last.fan_out, lanes)
    widest = max(outputs, round_up(plan[0].fan_in, lanes))
    sums = base + (last.output + outputs) * height * itemsize
    row_weight = sums + (last.column_sums + outputs) * itemsize
    loss = row_weight + round_up(height * itemsize, LINE)
    clean = loss + SCRATCH * LINE
    tile = widest * height * itemsize
    return TileMap(
        tiles=base,
        sums=sums,
        row_weight=row_weight,
        loss=loss,
        gathered=loss + LINE,
        level=loss + 3 * LINE,
        cell=loss + 4 * LINE,
        clean=clean,
        spare=clean + tile,
        target=clean + 2 * tile,
    )


@inlined
def output_at(plan, layer, tiles, height, itemsize):  # type: ignore[no-untyped-def]
    """The address of a layer's output; layer -1 is the input. `tiles` is that of the TileMap."""
    return tiles + plan[layer].output * height * itemsize if layer >= 0 else tiles


@inlined
def forward_layers(itemsize, job, plan, tiles, leaves_at, rows, height, first, last):  # type: ignore[no-untyped-def]
    """Compute the outputs of layers first .. last - 1 on a tile, from the output of layer first - 1.

    If `leaves_at` is not 0, the last of them leaves the network: blocked (rows, fan_out), at that address.
    """
    for i in range(first, last):  # loop 4: tile of layer i - 1 -> tile of layer i
        leaves = leaves_at != 0 and i == last - 1
        only_z = job.loss == BERNOULLI and i + 1 == plan.shape[0]  # for cost.output_delta
        arguments = (
            leaves_at if leaves else output_at(plan, i, tiles, height, itemsize),
            output_at(plan, i - 1, tiles, height, itemsize),
            job.weights + plan[i].weight * itemsize,
            job.parameters + plan[i].bias * itemsize,
            job.ones + plan[i].column_sums * itemsize,
            np.int64(IDENTITY) if only_z else plan[i].activation,
            np.int64(leaves),
            rows,
            height,
            plan[i].fan_in,
            plan[i].fan_out,
        )
        call_at(job.forward_at, arguments)


@inlined
def layers_of_loss(job, plan, memory):  # type: ignore[no-untyped-def]
    """(last, leaves_at) for ``forward_layers``, so that ``backward_layers`` can follow on this tile.

    A linear last layer is left to ``residual`` or, for GIVEN, not needed. A nonlinear one leaves the network, for
    cost.output_delta.
    """
    last = plan.shape[0] - 1
    if plan[last].activation == IDENTITY:
        return last, 0
    return last + 1, 0 if job.from_blocked_at == 0 else memory.spare


@callee
def lane_sum(line):  # type: ignore[no-untyped-def]
    """The sum of a line, (lanes,), in float64."""
    total = 0.0
    for lane in range(line.shape[0]):
        total += line[lane]
    return total


@inlined
def backward_layers(
    like, job, job_at, plan, memory, deltas, target, gradient, accumulate, first, rows, computed, height
):  # type: ignore[no-untyped-def]
    """Compute the delta of each layer on a tile, and add to `memory.loss` and to the column sums of deltas.

    Unless `gradient` is 0, also store the gradient of the tile's loss there, or add it if `accumulate` is 1.

    Forward is complete, except for a linear last layer. The tile has rows first .. first + rows; `computed` rows are
    computed, `rows` rounded up to the row multiple.

    memory     TileMap; if the form stores them otherwise, a nonlinear last layer has left its output at memory.spare
    deltas     where the delta of a hidden layer is stored, at the same offset as its output in memory.tiles: there
               itself, where it takes the output's place, or elsewhere. The last layer's delta takes its output's place
    target     (rows, columns of the output), as ``load_input`` or ``load_target`` returns it
    gradient   flat: the weights' part is written; biases are left to the caller, from memory.sums
    """
    itemsize, last = like.itemsize, plan.shape[0] - 1
    lanes = LINE // itemsize
    top, top_sums = (
        output_at(plan, last, memory.tiles, height, itemsize),
        memory.sums + plan[last].column_sums * itemsize,
    )
    if plan[last].activation == IDENTITY and job.loss != GIVEN:
        source = output_at(plan, last - 1, memory.tiles, height, itemsize)
        w, b = job.weights + plan[last].weight * itemsize, job.parameters + plan[last].bias * itemsize
        sizes = computed, height, plan[last].fan_in, plan[last].fan_out
        vectors = memory.row_weight, job.huber_delta, top_sums, memory.loss
        call_at(job.residual_at, (top, source, w, b, target, *vectors, *sizes))
    else:
        blocks = in_blocks(plan[last].fan_out, lanes)
        xhat = top if job.from_blocked_at == 0 else memory.spare
        cost.output_delta(
            like,
            job,
            xhat,
            target,
            memory.row_weight,
            job.ones + plan[last].column_sums * itemsize,
            top_sums,
            memory.loss,
            plan[last].activation,
            computed,
            height,
            blocks,
        )
        if job.delta_from_blocked_at != 0:
            call_at(job.delta_from_blocked_at, (top, xhat, computed, height, blocks))
    # loop 4: delta of layer i -> its weight gradient, and the delta of layer i - 1
    delta = top
    for i in range(last, -1, -1):
        fan_in, fan_out = plan[i].fan_in, plan[i].fan_out
        h = output_at(plan, i - 1, memory.tiles, height, itemsize)
        if gradient != 0:
            dw, dw_rows = gradient + plan[i].weight * itemsize, round_up(fan_in, lanes)
            call_at(job.gradient_at, (dw, h, delta, accumulate, rows, height, dw_rows, fan_in, fan_out))
        if i > 0:
            below = output_at(plan, i - 1, deltas, height, itemsize)
            below_sums = memory.sums + plan[i - 1].column_sums * itemsize
            blocks = in_blocks(fan_in, lanes)
            sparse = job.sparse != 0 and i - 1 == job.code_layer
            given = job.given_code != 0 and i - 1 == job.code_layer
            if sparse:
                call_at(
                    job.sparsity_delta_at,
                    (memory.spare, h, memory.row_weight, job.slopes, computed, height, blocks),
                )
            if given:
                load = job_at, GIVEN_CODE, 0, memory.clean, memory.gathered, height, fan_in, first, rows, 0
                call_at(job.load_at, (memory.spare, *load))
                code = memory.spare, h, plan[i - 1].activation, computed, height, blocks
                call_at(job.code_delta_at, code)
            wt = job.transposed + plan[i].transposed * itemsize
            sizes = computed, height, fan_in, fan_out
            call_at(job.backward_at, (below, h, delta, wt, below_sums, plan[i - 1].activation, *sizes))
            if sparse or given:
                call_at(job.add_delta_at, (below, memory.spare, below_sums, computed, height, blocks))
            delta = below


@callee
def store_input_delta(itemsize, job, plan, memory, deltas, first, rows, computed, height):  # type: ignore[no-untyped-def]
    """Write rows first .. first + rows of job.input_delta, dS/dx = dS/dz1 W1', after ``backward_layers``.

    `memory` and `deltas` are as there.
    """
    columns, at = plan[0].fan_in, deltas if plan.shape[0] > 1 else memory.tiles
    delta = output_at(plan, 0, at, height, itemsize)
    # W1' takes the place of weights: rows that leave the network keep the precision of results
    vectors = job.first_transposed, job.zeros, job.zeros, IDENTITY, 1
    call_at(job.forward_at, (memory.spare, delta, *vectors, computed, height, plan[0].fan_out, columns))
    out, stride = job.input_delta + first * job.input_delta_stride, job.input_delta_stride
    call_at(job.store_rows_at, (out, stride, memory.spare, columns, rows, height))
