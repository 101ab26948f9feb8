"""The contract of products: what each form of products promises, and the addresses of its functions.

No kernel is here. A form fixes how a tile's matrices and the weights lie in memory, and computes the products of a
layer. There are four (forms.py lists them and chooses):

    gemm.COLUMN_BLOCKS    column blocks, one cache line wide; any network
    rowlanes.ROW_LANES    rows in lanes, for few columns: inference, and steps without sparsity of networks whose last
                          layer is linear
    bfloat16.BFLOAT16     column blocks in bfloat16, products added up in float32
    amx.AMX               the same on the tile registers of AMX; only there it is imported

Two words for matrices: a *blocked* one has the layout of layout.py in the engine's dtype, (blocks, height, lanes), in
which rows are loaded and results leave the network. A *stored* one is as the form stores it; deltas may be stored in
another way than all other matrices. W and W' are as `prepare_weights` leaves them.

What holds for every form:

    rows          Tiles are `height` rows high in memory. A function computes `rows` rows, which the caller rounds up
                  to a multiple of the form's row multiple (in steps, that of `tile_of_steps` if there is one); `height`
                  is a multiple of it. Rows below those in use are zero in the input and have weight 0, so their deltas
                  are zero and add nothing to any sum. Only `gradient` is given the rows in use, not rounded up; it may
                  go on to the rounded number, since the deltas there are zero.
    columns       `fan_in` and `fan_out` are columns in use. Padding columns of a result are zero, or the form does not
                  read them.
    room          In every form a stored matrix takes round_up(columns, lanes) * height elements of the engine's dtype
                  or less, and W as much as the weights in a flat buffer: tile.py and the engine allocate that much.
    alignment     Every matrix and vector begins on a cache line.
    arguments     Outputs come first, then inputs, then sizes. The first is a pointer, other arrays are addresses.
                  Offsets of addresses are in bytes, sizes in elements.
    sums          `residual`, `backward` and `add_delta` add the column sums of the delta that they store (`add_delta`:
                  of `added`) to `sums`, which the caller zeroes before each tile. `residual` adds the weighted costs of
                  cells (cost.py) to the lanes of `loss`. `gradient` stores a tile's sum; if `accumulate` is 1, it adds
                  it.
    order         Sums are added up in an order that depends on the arguments alone, so that a call always has the same
                  bits.
    threads       Threads call the functions at the same time, each on its own tile. `prepare_weights` is called for
                  different squares of the same W and W': no two calls may write to the same cache line. A function
                  that needs a thread to be in some state (the tile registers of AMX) sets that up and undoes it itself.

The functions, and the shape of each array:

    forward(h, a, w, bias, one, activation, leaves, rows, height, fan_in, fan_out)
        h = g(a w + bias), 0 in padding lanes.
        h     stored (rows, fan_out); if `leaves` is 1, h leaves the network: blocked (rows, fan_out), or stored if the
              form's `leaves` is false
        a     stored (rows, fan_in)
        w     W (fan_in, fan_out)          bias   (fan_out,), zero in padding lanes
        one   (fan_out,): 1, and 0 in padding lanes           activation   its id (layout.py)
    residual(delta, a, w, bias, x, row_weight, bound, sums, loss, rows, height, fan_in, fan_out)
        delta = row_weight c, where c is r = a w + bias - x, 0 where x is NaN: forward and delta of a linear last layer.
        With a bound, c is r between -bound and bound, for Huber's loss.
        delta stored (rows, fan_out)       a, w, bias   as for forward
        x     target (rows, fan_out): stored if the form's `target_in_form` is true, else blocked
        row_weight (rows,)    bound (1,); the address is 0 if there is none    sums (fan_out,)    loss (lanes,)
    backward(below, h, delta, wt, sums, activation, rows, height, fan_in, fan_out)
        below = (delta wt) * g'(h), the delta of the layer below: the elementwise product of the chain rule.
        below stored (rows, fan_in)        h      stored (rows, fan_in); may be `below` itself
        delta stored (rows, fan_out)       wt     W' (fan_out, fan_in)         sums   (fan_in,)
    gradient(dw, a, delta, accumulate, rows, height, dw_rows, fan_in, fan_out)
        dw (+)= a' delta, and zero in its padding
        dw    (fan_in, fan_out) blocked as in the flat buffers, (blocks, dw_rows, lanes): `dw_rows` is fan_in rounded up
              to whole blocks or, if a and delta are some blocks of larger matrices, that of the larger one
        a     stored (rows, fan_in)        delta  stored (rows, fan_out)
    from_rows(stored, x, row_stride, row_numbers, first, rows, height, columns)
        Read rows first .. first + rows of a caller's matrix: what rows.py and `from_blocked` do with rows of the
        engine's dtype, each contiguous, neither shifted nor scaled. Padding columns become zero; `rows` is a multiple
        of the row multiple. None if the form has no faster way, or its `target_in_form` is false.
        x     as rows.Source has it, like `row_stride` and `row_numbers`
    from_blocked(stored, blocked, rows, height, blocks)
        Convert a blocked matrix that is no delta. None if stored matrices are blocked.
    delta_from_blocked(stored, blocked, rows, height, blocks)
        Convert a blocked delta. None if stored matrices are blocked.
    prepare_weights(w, wt, source, fan_in, fan_out, first, last)
        Write W and, unless `wt` is 0, W' from squares first .. last - 1 of a layer's weights, lanes x lanes each.
        w     W; not written unless the form has `own_weights`
        wt    W', or 0: the first layer needs none        source   the weights, as in the flat buffers
    sparsity_delta(out, h, row_weight, slope, rows, height, blocks)
        out = row_weight slope h (1 - h): the delta of the mean code's cost.
        out   blocked   h  stored   row_weight (rows,)    slope float64 (columns,), padded: job.slopes
    code_delta(out, h, activation, rows, height, blocks)
        out = out * g'(h): the delta of a code, from the derivative of the cost with respect to it.
        out   blocked   h  stored   activation   its id
    add_delta(delta, added, sums, rows, height, blocks)
        delta += added
        delta stored    added  blocked    sums (columns,)
    store_rows(out, stride, h, columns, rows, height)
        Write the rows in use of a result that leaves the network to a matrix in memory.
        out   (rows, columns), row-major, `stride` bytes from row to row; begins anywhere
        h     (rows, columns), as `forward` writes it with `leaves`
    row_errors(out, xhat, x, column_weight, missing, columns, rows, height)
        out = the errors of the rows in use, sum_j column_weight_j (xhat_j - x_j)^2, with the same bits in every form
        (cost.py); if `missing` is 1, without the columns where x is NaN.
        out   float64 (rows,)             xhat  (rows, columns), as `forward` writes it with `leaves`
        x     target, as for residual     column_weight  float64 (columns,), padded with zeros

To add a form:

    1. Write its functions in a file of its own, as ``ByAddress`` functions with these arguments, and its ``Form``. A
       function that it lacks is None; ``supports`` then keeps it from jobs that need this function, if any do.
    2. Add it to FORMS in forms.py. The engine, warmup.py and bench/stages.py go by that list.
    3. If it needs instructions that not every CPU has, set `available` by a field of ``Target`` (target.py). Numba must
       have been told of these instructions: an unknown one aborts the process.
    4. If it serves a new dtype, have the engine accept the name.
    5. Tell tests/kernels/test_products.py how its matrices are read and how exact it is, and run that file.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from fastae.kernels.compiler import ByAddress

Widths = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Form:
    """A form of products: the functions of the contract, None for one that it lacks, and when it is used."""

    name: str
    dtypes: tuple[str, ...]  # of the engines that use it
    forward: ByAddress
    residual: ByAddress
    backward: ByAddress
    gradient: ByAddress
    from_rows: ByAddress | None
    from_blocked: ByAddress | None
    delta_from_blocked: ByAddress | None
    prepare_weights: ByAddress
    sparsity_delta: ByAddress | None
    code_delta: ByAddress | None
    add_delta: ByAddress | None
    store_rows: ByAddress
    row_errors: ByAddress
    row_multiple: Callable[[Widths, npt.DTypeLike], int]  # of a network's widths and a dtype: see "rows"
    height: Callable[[Widths, npt.DTypeLike], int]  # the same: rows of a tile, a multiple of the row multiple
    # Whether steps are faster than in the first form of the dtype, given the widths, the rows of a batch, the elements
    # of a flat buffer and the dtype. The first form is not asked.
    pays: Callable[[Widths, int, int, np.dtype[Any]], bool] = lambda *_: True
    # The height and row multiple of tiles in steps, given the same; None: `height` and `row_multiple`
    tile_of_steps: Callable[[Widths, int, int, np.dtype[Any]], tuple[int, int]] | None = None
    most_height: Callable[[Widths, npt.DTypeLike], int] | None = None  # of these tiles
    # Whether inference is faster, given the widths of the layers that run, the rows and the dtype
    pays_in_inference: Callable[[Widths, int, np.dtype[Any]], bool] = lambda *_: True
    # The form has a W of its own; else products read the weights of the flat buffer
    own_weights: bool = False
    target_in_form: bool = False  # `residual` takes a stored target
    # Bytes from a row of a stored matrix to the next, within a block; None if steps cannot be cut by weights (split.py)
    stored_row: int | None = None
    # `forward` can write a blocked result, for a nonlinear last layer and the mean code in steps
    leaves: bool = True
    on_tile_registers: bool = False  # the products are computed by AMX
    available: bool = True  # the CPU that kernels are compiled for has the instructions

    def supports(self, *, linear: bool, codes: bool) -> bool:
        """Whether the form has all that steps need: for a linear last layer, and a code with a delta of its own."""
        deltas = self.sparsity_delta, self.code_delta, self.add_delta
        return (linear or self.leaves) and (not codes or (self.leaves and None not in deltas))


FUNCTIONS = tuple(
    field.name for field in fields(Form) if field.type is ByAddress or ByAddress in get_args(field.type)
)


@cache
def addresses(form: Form, dtype: np.dtype[Any]) -> dict[str, int]:
    """Fields of a job: the addresses of a form's functions, compiled for `dtype`; 0 for those that it lacks."""
    functions = {f"{name}_at": getattr(form, name) for name in FUNCTIONS}
    return {name: 0 if function is None else function.address(dtype) for name, function in functions.items()}
