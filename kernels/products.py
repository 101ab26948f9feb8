"""The contract of products: what a form of products promises, and the addresses under which a job names its functions.

A form decides how a tile's matrices and the weights lie while products are taken, and takes them. There are three:

    gemm.COLUMN_BLOCKS    blocks of columns, one cache line wide; any network
    rowlanes.ROW_LANES    rows in the lanes, for few columns; no last layer but a linear one, no sparsity
    bfloat16.PAIRS        blocks of columns in bfloat16, products added up in float32

What every form keeps:

    rows          Tiles are `height` rows high in memory. A function computes `rows` rows, which the caller has
                  rounded up to the form's row multiple (it divides `height`). Rows below those in use are zero in the
                  input, and have weight 0, so they add nothing to any sum. `gradient` alone is given the rows in use.
    columns       `fan_in` and `fan_out` are columns in use. A tile's matrix takes round_up(columns, lanes) * height
                  elements whatever the form; padding columns of a result are zero, or are not read by the form.
    alignment     Every matrix, line and vector begins on a cache line.
    addresses     are in bytes, sizes in elements. Outputs come first, then inputs, then sizes.
    lines         stands for column blocks of the engine's dtype, (blocks, height, lanes): the layout of layout.py, in
                  which rows are loaded and in which results leave the network.
    tile          stands for a matrix as the form keeps it. W and W' are as `prepare_weights` leaves them.
    who sums      `residual`, `backward` and `add_delta` add the column sums of the delta they store to `sums`, which
                  the caller zeroes before a tile; `residual` adds the weighted squared error to the lanes of `loss`.
                  `gradient` stores a tile's sum, or adds it where `accumulate` is 1.

The functions, and the shape of each argument that is an address:

    forward(h, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out)
        h = g(a w + bias), 0 in padding lanes.
        h     tile (rows, fan_out); where `leaves` is 1, h leaves the network: lines (rows, fan_out)
        a     tile (rows, fan_in)
        w     W (fan_in, fan_out)          bias   lines (fan_out,)
        one   (fan_out,): 1, and 0 in padding lanes
    residual(delta, a, w, bias, x, weight, sums, loss, rows, height, fan_in, fan_out)
        delta = weight (a w + bias - x), 0 where x is NaN: forward and cost of a linear last layer.
        delta tile (rows, fan_out)         a, w, bias   as for forward
        x     target (rows, fan_out): a tile where the form's `target_in_form` is true, else lines
        weight (rows,)    sums (fan_out,)    loss (lanes,)
    backward(h, delta, wt, sums, activation, rows, height, fan_in, fan_out)
        h becomes (delta wt) * g'(h): the elementwise product that makes it the delta of the layer below.
        h     tile (rows, fan_in)          delta  tile (rows, fan_out)
        wt    W' (fan_out, fan_in)         sums   (fan_in,)
    gradient(dw, a, delta, accumulate, rows, height, fan_in, fan_out)
        dw (+)= a' delta
        dw    (fan_in, fan_out), as the flat buffers have it: lines, fan_in rounded up to whole blocks
        a     tile (rows, fan_in)          delta  tile (rows, fan_out)
    from_lines(tile, lines, rows, height, blocks)
        The same matrix as the form keeps it. None where that is lines.
    prepare_weights(w, wt, source, fan_in, fan_out, first, last)
        Squares first .. last - 1, lanes x lanes each, of a layer's weights at `source`: to W and, unless `wt` is 0, W'.
        w     W; not written where the form reads the weights themselves
        wt    W', or 0: the first layer's is not needed
    sparsity_delta(out, h, weight, slope, rows, height, blocks)
        out = weight slope h (1 - h): the delta of the mean code's cost.
        out   lines    h  tile    weight (rows,)    slope float64 (columns,), padded
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
    """A form of products: the functions of the contract, None where it has none, and the tiles that it wants."""

    forward: ByAddress
    residual: ByAddress
    backward: ByAddress
    gradient: ByAddress
    from_lines: ByAddress | None
    prepare_weights: ByAddress
    sparsity_delta: ByAddress | None
    add_delta: ByAddress | None
    target_in_form: bool
    row_multiple: Callable[
        [Widths, npt.DTypeLike], int
    ]  # (widths of the network, dtype): rows computed at a time
    height: Callable[[Widths, npt.DTypeLike], int]  # rows of a tile


FUNCTIONS = (
    "forward",
    "residual",
    "backward",
    "gradient",
    "from_lines",
    "prepare_weights",
    "sparsity_delta",
    "add_delta",
)


@cache
def addresses(form: Form, dtype: np.dtype[Any]) -> dict[str, int]:
    """Fields of a job: where the functions of a form lie, compiled for `dtype`; 0 for those it does not have."""
    functions = {f"{name}_at": getattr(form, name) for name in FUNCTIONS}
    return {name: 0 if function is None else function.address(dtype) for name, function in functions.items()}
