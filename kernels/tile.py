"""A tile through the layers, forwards and back, and the map of the memory that a thread does it in.

loop 4    the layers of the network        tile of layer i - 1 -> tile of layer i
"""

from typing import NamedTuple

import numpy as np

from fastae.kernels import cost
from fastae.kernels.compiler import callee, inlined
from fastae.kernels.layout import IDENTITY
from fastae.kernels.partition import in_blocks, round_up
from fastae.kernels.simd import call_at
from fastae.kernels.target import LINE

SCRATCH = 5  # lines of scratch: see below


class TileMap(NamedTuple):
    """Where in a thread's memory a tile's arrays lie: addresses, one array behind the other.

    A tile takes `height` rows of every layer's output, at `tiles` + plan[i].output * height elements. ``spare`` and
    what follows it are used where the input is corrupted or where products take another form than lines; ``end`` is
    for the engine, which allocates the memory.
    """

    tiles: int  # (columns of all layers, padded) * height elements; the input first
    sums: int  # (columns of all outputs, padded): column sums of deltas, which are bias gradients
    weight: int  # (height,): the rows' weights
    loss: int  # 1 line: the loss, in parts
    gathered: int  # 2 lines: elements of X that do not lie side by side
    level: int  # 1 line: the noise level, one element
    cell: int  # 1 line: one cell of another row, for noise that swaps cells
    clean: int  # lines (input columns): the rows as they are, where the input is corrupted or of another form
    spare: int  # lines (input columns, or the code's where there are more)
    turned: int  # lines (input columns): the clean rows as the form has its tiles


@callee
def tile_map(plan, height, base, size):  # type: ignore[no-untyped-def]
    """The map of memory that begins at `base`; `size` is the bytes of an element, `plan` LAYER (layers,)."""
    lanes, last = LINE // size, plan[plan.shape[0] - 1]
    outputs, inputs = round_up(last.fan_out, lanes), round_up(plan[0].fan_in, lanes)
    sums = base + (last.output + outputs) * height * size
    weight = sums + (last.column_sums + outputs) * size
    loss = weight + height * size
    clean = loss + SCRATCH * LINE
    tile = inputs * height * size
    return TileMap(
        base,
        sums,
        weight,
        loss,
        loss + LINE,
        loss + 3 * LINE,
        loss + 4 * LINE,
        clean,
        clean + tile,
        clean + 2 * tile,
    )


@inlined
def output_at(plan, layer, tiles, height, size):  # type: ignore[no-untyped-def]
    """Where the output of a layer lies; layer -1 is the input."""
    return tiles + plan[layer].output * height * size if layer >= 0 else tiles


@inlined
def forward_layers(size, job, plan, tiles, leaves_at, rows, height, first, last):  # type: ignore[no-untyped-def]
    """Layers first .. last - 1 on a tile; the input of layer i lies where layer i - 1's output goes.

    The last one's output leaves the network, as lines at `leaves_at`, unless that is 0.
    """
    for i in range(first, last):
        leaves = leaves_at != 0 and i == last - 1
        arguments = (
            leaves_at if leaves else output_at(plan, i, tiles, height, size),
            output_at(plan, i - 1, tiles, height, size),
            job.weights + plan[i].weight * size,
            job.parameters + plan[i].bias * size,
            job.ones + plan[i].column_sums * size,
            plan[i].activation,
            np.int64(leaves),
            rows,
            height,
            plan[i].fan_in,
            plan[i].fan_out,
        )
        call_at(job.forward_at, arguments)


@inlined
def backward_layers(like, job, plan, place, target, gradient, accumulate, rows, computed, height):  # type: ignore[no-untyped-def]
    """Loss and gradient of a tile of `rows` rows, computed as `computed`, into (`accumulate`: onto) a shard's gradient.

    All layers are done already, but a linear last one. Deltas overwrite the activations that they belong to.

    place    TileMap; a last layer that is not linear has left its output at place.spare, where the form is not lines
    target   (rows, n): the rows that the output is compared with
    gradient flat
    """
    size, last = like.itemsize, plan.shape[0] - 1
    lanes = LINE // size
    top, top_sums = (
        output_at(plan, last, place.tiles, height, size),
        place.sums + plan[last].column_sums * size,
    )
    if plan[last].activation == IDENTITY:
        source = output_at(plan, last - 1, place.tiles, height, size)
        w, b = job.weights + plan[last].weight * size, job.parameters + plan[last].bias * size
        sizes = computed, height, plan[last].fan_in, plan[last].fan_out
        call_at(job.residual_at, (top, source, w, b, target, place.weight, top_sums, place.loss, *sizes))
    else:
        blocks = in_blocks(plan[last].fan_out, lanes)
        xhat = top if job.from_lines_at == 0 else place.spare
        cost.output_delta(
            like,
            xhat,
            target,
            place.weight,
            top_sums,
            place.loss,
            plan[last].activation,
            computed,
            height,
            blocks,
        )
        if job.from_lines_at != 0:
            call_at(job.from_lines_at, (top, xhat, computed, height, blocks))
    for i in range(last, -1, -1):
        fan_in, fan_out = plan[i].fan_in, plan[i].fan_out
        below, delta = (
            output_at(plan, i - 1, place.tiles, height, size),
            output_at(plan, i, place.tiles, height, size),
        )
        dw = gradient + plan[i].weight * size
        call_at(job.gradient_at, (dw, below, delta, accumulate, rows, height, fan_in, fan_out))
        if i > 0:
            below_sums = place.sums + plan[i - 1].column_sums * size
            blocks = in_blocks(fan_in, lanes)
            sparse = job.sparse != 0 and i - 1 == job.code_layer
            if sparse:
                call_at(
                    job.sparsity_delta_at,
                    (place.spare, below, place.weight, job.slopes, computed, height, blocks),
                )
            wt = job.transposed + plan[i].transposed * size
            sizes = computed, height, fan_in, fan_out
            call_at(job.backward_at, (below, delta, wt, below_sums, plan[i - 1].activation, *sizes))
            if sparse:
                call_at(job.add_delta_at, (below, place.spare, below_sums, computed, height, blocks))
