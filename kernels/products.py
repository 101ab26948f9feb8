"""The contract of products: what each form of products promises, and the addresses of its functions.

No kernel is here. A form fixes how a tile's matrices and the weights lie in memory, and computes the products of a
layer. There are three:

    gemm.COLUMN_BLOCKS    column blocks, one cache line wide; any network
    rowlanes.ROW_LANES    rows in lanes, for few columns: steps only (`leaves` is 0), without sparsity, and the last
                          layer must be linear
    bfloat16.PAIRS        column blocks in bfloat16, products added up in float32

What holds for every form:

    rows          Tiles are `height` rows high in memory. A function computes `rows` rows, which the caller rounds up
                  to a multiple of the form's row multiple (which divides `height`). Rows below those in use are zero
                  in the input and have weight 0, so they add nothing to any sum. Only `gradient` is given the rows in
                  use, not rounded up.
    columns       `fan_in` and `fan_out` are columns in use. In every form a tile's matrix takes round_up(columns,
                  lanes) * height elements. Padding columns of a result are zero, or the form does not read them.
    alignment     Every matrix, line and vector begins on a cache line.
    arguments     Outputs come first, then inputs, then sizes. The first is a pointer, other arrays are addresses.
                  Offsets of addresses are in bytes, sizes in elements.
    lines         stands for column blocks of the engine's dtype, (blocks, height, lanes): the layout of layout.py, in
                  which rows are loaded and in which results leave the network.
    tile          stands for a matrix as the form stores it. W and W' are as `prepare_weights` leaves them.
    who sums      `residual`, `backward` and `add_delta` add the column sums of the delta that they store (`add_delta`:
                  of `added`) to `sums`, which the caller zeroes before each tile. `residual` adds the weighted squared
                  errors to the lanes of `loss`. `gradient` stores a tile's sum, or adds it if `accumulate` is 1.

The functions, and the shape of each array:

    forward(h, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out)
        h = g(a w + bias), 0 in padding lanes.
        h     tile (rows, fan_out); if `leaves` is 1, h leaves the network: lines (rows, fan_out)
        a     tile (rows, fan_in)
        w     W (fan_in, fan_out)          bias   lines (fan_out,)
        one   (fan_out,): 1, and 0 in padding lanes           activation   its id (layout.py)
    residual(delta, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out)
        delta = weight (a w + bias - x), 0 where x is NaN: forward and delta of a linear last layer.
        delta tile (rows, fan_out)         a, w, bias   as for forward
        x     target (rows, fan_out): a tile if the form's `target_in_form` is true, else lines
        weight (rows,)    sums (fan_out,)    loss (lanes,)
    backward(h, delta, wt, sums, activation, rows, height, fan_in, fan_out)
        h becomes (delta wt) * g'(h), the delta of the layer below: the elementwise product of the chain rule.
        h     tile (rows, fan_in)          delta  tile (rows, fan_out)
        wt    W' (fan_out, fan_in)         sums   (fan_in,)
    gradient(dw, a, delta, accumulate, rows, height, fan_in, fan_out)
        dw (+)= a' delta
        dw    (fan_in, fan_out) as in the flat buffers: lines, fan_in rounded up to whole blocks
        a     tile (rows, fan_in)          delta  tile (rows, fan_out)
    from_blocked(tile, lines, rows, height, blocks)
        Convert lines to a tile. None if the form's tiles are lines.
    prepare_weights(w, wt, source, fan_in, fan_out, first, last)
        Write W and, unless `wt` is 0, W' from squares first .. last - 1 of a layer's weights, lanes x lanes each.
        w     W; not written if the form reads the weights themselves
        wt    W', or 0: the first layer needs none        source   the weights, as in the flat buffers
    sparsity_delta(out, h, weight, slope, rows, height, blocks)
        out = weight slope h (1 - h): the delta of the mean code's cost.
        out   lines    h  tile    weight (rows,)    slope float64 (columns,), padded: job.slopes
    add_delta(delta, added, sums, rows, height, blocks)
        delta += added
        delta tile     added  lines     sums (columns,)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.kernels.compiler import ByAddress

Widths = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Form:
    """A form of products: the functions of the contract, None for one that it lacks, and the heights of its tiles."""

    forward: ByAddress
    residual: ByAddress
    backward: ByAddress
    gradient: ByAddress
    from_blocked: ByAddress | None
    prepare_weights: ByAddress
    sparsity_delta: ByAddress | None
    add_delta: ByAddress | None
    target_in_form: bool
    row_multiple: Callable[[Widths, npt.DTypeLike], int]  # of a network's widths and a dtype: see "rows"
    height: Callable[[Widths, npt.DTypeLike], int]  # the same: rows of a tile, a multiple of the row multiple


FUNCTIONS = (
    "forward",
    "residual",
    "backward",
    "gradient",
    "from_blocked",
    "prepare_weights",
    "sparsity_delta",
    "add_delta",
)


@cache
def addresses(form: Form, dtype: np.dtype[Any]) -> dict[str, int]:
    """Fields of a job: the addresses of a form's functions, compiled for `dtype`; 0 for those that it lacks."""
    functions = {f"{name}_at": getattr(form, name) for name in FUNCTIONS}
    return {name: 0 if function is None else function.address(dtype) for name, function in functions.items()}
