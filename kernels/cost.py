"""The cost: deltas of the last layer and of the code, reconstruction errors of rows, the loss of a step.

The delta of a linear last layer is not computed here, but by the product ``residual`` (products.py). Deltas work on a
tile in the blocked layout, (blocks, height, lanes). The functions that finish a phase combine the sums of its items.

Sums of costs are of twice the cost of each cell, so that the squared error is a square:

    SQUARED_ERROR    r^2,        r = xhat - x
    HUBER            c (2r - c), c = r between -bound and bound: r^2 where |r| <= bound, else bound (2 |r| - bound)
    BERNOULLI        2 (max(z, 0) - x z + log(1 + exp(-|z|))) = -2 (x log h + (1 - x) log(1 - h)), h = g(z) the sigmoid

The last one is computed from z, because 1 - h loses all accuracy as h approaches 1, and is 0 from z = 17 on in float32.
"""

from functools import partial

import numpy as np
from llvmlite import ir

from fastae.kernels.activations import times_derivative
from fastae.kernels.compiler import ByAddress, callee, carray
from fastae.kernels.elementary import sigmoid_and_log
from fastae.kernels.intrinsics import array_at
from fastae.kernels.job import BERNOULLI, BERNOULLI_SLACK, GIVEN, HUBER, LOSSES
from fastae.kernels.layout import ACTIVATIONS, LAYER, LINE
from fastae.kernels.rounding import in_blocks
from fastae.kernels.simd import I64, Value, Words, vector_kernel
from fastae.kernels.split import ROWS_ITEMS_MOST, SHARDS_MOST

# -- on one tile, blocked (products.py) -------------------------------------------------------------------------------


def weighted_residual(
    words: Words, residual: Value, weight: Value, bound: Value | None
) -> tuple[Value, Value]:
    """(weight c, 2r - c) of a line of residuals r, c = r between -bound and bound; without a bound, c = r.

    The first is the weighted derivative of half the squared error or, with a bound, of Huber's loss. The product of
    both is the cost of a cell. Where c is r, so is 2r - c, and all is as without a bound, to the bit.
    """
    if bound is None:
        return words.mul(weight, residual), residual
    clipped = words.clipped(residual, bound)
    return words.mul(weight, clipped), words.sub(words.add(residual, residual), clipped)


def _write_output_delta(
    words: Words, loss_id, activation, h, x, row_weight, one, bound, sums, loss, noted, rows
):  # type: ignore[no-untyped-def]
    """``output_delta`` on one block.

    h  lines (rows, lanes)     x  lines (rows, lanes)     row_weight  (rows,)     one  (lanes,)     bound  (1,)
    sums  (lanes,)             loss  (lanes,)             noted  int64 (1,)
    """
    b, slack = words.builder, BERNOULLI_SLACK * 2.0**-words.bits

    def residuals(activation_id, limit, line, target, weight, total, farthest):  # type: ignore[no-untyped-def]
        derivative, factor = weighted_residual(words, words.residual(line, target), weight, limit)
        delta = times_derivative(words, activation_id, derivative, line)
        return delta, words.fma(derivative, factor, total), farthest

    def bernoulli(mask, z, target, weight, total, farthest):  # type: ignore[no-untyped-def]
        h, log = sigmoid_and_log(words, z)
        masked = words.mul(weight, mask)
        known = b.select(words.is_nan(target), h, target)
        difference = words.sub(h, known)
        cost = words.add(words.fma(words.negative(known), z, words.relu(z)), log)
        cost = b.select(words.is_nan(target), difference, cost)
        total = words.fma(words.add(masked, masked), cost, total)
        distance = words.magnitude(words.sub(known, words.constant(0.5)))
        farthest = b.select(b.fcmp_ordered(">", distance, farthest), distance, farthest)
        return words.mul(masked, difference), total, farthest

    def given(activation_id, line, target, _, total, farthest):  # type: ignore[no-untyped-def]
        return times_derivative(words, activation_id, target, line), total, farthest

    def all_rows(cell) -> Value:  # type: ignore[no-untyped-def]
        def row(h, x, row_weight, total, column_sum, farthest):  # type: ignore[no-untyped-def]
            line, target, weight = words.load(h), words.load(x), words.broadcast(row_weight)
            delta, total, farthest = cell(line, target, weight, total, farthest)
            words.store(delta, h)
            places = words.offset(h, LINE), words.offset(x, LINE), words.offset(row_weight, words.itemsize)
            return [*places, total, words.add(column_sum, delta), farthest]

        start = [h, x, row_weight, words.load(loss), words.load(sums), words.constant(0.0)]
        *_, total, column_sum, farthest = words.loop(rows, start, row)
        words.store(total, loss)
        words.store(column_sum, sums)
        return farthest

    for case in words.cases(loss_id, LOSSES):
        if case == BERNOULLI:
            farthest = all_rows(partial(bernoulli, words.load(one)))
            is_outside = b.fcmp_ordered(">", farthest, words.constant(0.5 + slack))
            with words.when(b.zext(b.bitcast(is_outside, ir.IntType(words.lanes)), I64), "!=", 0):
                words.store(words.constant(float("nan")), loss)
                b.store(words.count(1), words.pointer(noted, I64))
            continue
        for activation_id in words.cases(activation, len(ACTIVATIONS)):
            if case == GIVEN:
                all_rows(partial(given, activation_id))
            elif case == HUBER:
                all_rows(partial(residuals, activation_id, words.broadcast(bound)))
            else:
                all_rows(partial(residuals, activation_id, None))


def _write_sparsity_delta(words: Words, out, h, row_weight, slope, rows):  # type: ignore[no-untyped-def]
    """``sparsity_delta`` on one block.

    out  lines (rows, lanes)     h  lines (rows, lanes)     row_weight  (rows,)     slope  float64 (lanes,)
    """
    line = words.load_doubles(slope)

    def row(out, h, row_weight):  # type: ignore[no-untyped-def]
        value = words.load(h)
        derivative = words.fma(words.negative(value), value, value)
        words.store(words.mul(words.mul(words.broadcast(row_weight), line), derivative), out)
        return [words.offset(out, LINE), words.offset(h, LINE), words.offset(row_weight, words.itemsize)]

    words.loop(rows, [out, h, row_weight], row)


def _write_code_delta(words: Words, activation, out, h, rows):  # type: ignore[no-untyped-def]
    """``code_delta`` on one block.

    out  lines (rows, lanes)     h  lines (rows, lanes)
    """
    for activation_id in words.cases(activation, len(ACTIVATIONS)):
        for line, value in words.walk(rows, [out, h], [LINE, LINE]):
            words.store(times_derivative(words, activation_id, words.load(line), words.load(value)), line)


def _write_add_delta(words: Words, delta, added, sums, rows):  # type: ignore[no-untyped-def]
    """``add_delta`` on one block.

    delta  lines (rows, lanes)     added  lines (rows, lanes)     sums  (lanes,)
    """

    def row(delta, added, column_sum):  # type: ignore[no-untyped-def]
        line = words.load(added)
        words.store(words.add(words.load(delta), line), delta)
        return [words.offset(delta, LINE), words.offset(added, LINE), words.add(column_sum, line)]

    *_, column_sum = words.loop(rows, [delta, added, words.load(sums)], row)
    words.store(column_sum, sums)


_output_delta, _sparsity_delta, _code_delta, _add_delta = (
    vector_kernel(write)
    for write in (_write_output_delta, _write_sparsity_delta, _write_code_delta, _write_add_delta)
)


@callee
def output_delta(like, job, h, x, row_weight, one, sums, loss, activation, rows, height, blocks):  # type: ignore[no-untyped-def]
    """h becomes the delta of the last layer. Its column sums are added to `sums`, the weighted costs to `loss`.

    The delta is row_weight c * g'(h), with c as in ``weighted_residual``; row_weight (g(h) - x) for BERNOULLI, where h
    must hold z; and x * g'(h) for GIVEN. A missing cell, whose x is NaN, has delta and cost 0, except for GIVEN. If a
    target of BERNOULLI is outside [0, 1] by more than rounding, job.out_of_range is set to 1 and the loss becomes NaN.

    h       blocked (blocks, height, lanes)       x     blocked (blocks, height, lanes), NaN where a cell is missing
    sums, one  (blocks, lanes)      row_weight  (rows,)  loss  (lanes,)
    """
    for j in range(blocks):
        k = j * height * LINE
        lines = h + k, x + k, row_weight, one + j * LINE, job.huber_delta, sums + j * LINE, loss
        _output_delta(like, (job.loss, activation, *lines, job.out_of_range, rows))


@callee
def sparsity_delta(out, h, row_weight, slope, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = row_weight slope h (1 - h): the delta of the mean code's cost, row by row.

    out     an array whose memory holds blocked (blocks, height, lanes)      h  blocked (blocks, height, lanes)
    row_weight  (rows,)      slope  float64 (blocks, lanes)
    """
    place, lanes = np.int64(out.ctypes.data), LINE // out.itemsize
    for j in range(blocks):
        k = j * height * LINE
        _sparsity_delta(out, (place + k, h + k, row_weight, slope + j * lanes * 8, rows))


@callee
def code_delta(out, h, activation, rows, height, blocks):  # type: ignore[no-untyped-def]
    """out = out * g'(h): the delta of a code, from the derivative of the cost with respect to it.

    out     an array whose memory holds blocked (blocks, height, lanes)      h  blocked (blocks, height, lanes)
    """
    place = np.int64(out.ctypes.data)
    for j in range(blocks):
        k = j * height * LINE
        _code_delta(out, (activation, place + k, h + k, rows))


@callee
def add_delta(delta, added, sums, rows, height, blocks):  # type: ignore[no-untyped-def]
    """delta += added; the column sums of `added` are added to `sums`.

    delta   an array whose memory holds blocked (blocks, height, lanes)      added  blocked (blocks, height, lanes)
    sums    (blocks, lanes)
    """
    place = np.int64(delta.ctypes.data)
    for j in range(blocks):
        k = j * height * LINE
        _add_delta(delta, (place + k, added + k, sums + j * LINE, rows))


# -- reconstruction errors of rows -------------------------------------------------------------------------------------
# The sum over columns of column_weight (xhat - x)^2. A difference is rounded to the engine's dtype, as xhat and x are;
# its square is computed and added up in float64. Eight sums of every eighth column are added up in a fixed order, so
# that a row's error has the same bits in any form, in any tile and beside any other rows.


def weighted_square(wide: Words, total: Value, xhat: Value, x: Value, weight: Value, missing: int) -> Value:
    """total + weight (xhat - x)^2; with `missing`, `total` where x is NaN. Lines of float64, except xhat and x."""
    difference = wide.convert(wide.sub(xhat, x), True)
    if missing:
        difference = wide.builder.select(wide.is_nan(x), wide.constant(0.0), difference)
    return wide.fma(wide.mul(weight, difference), difference, total)


def _write_row_errors(words: Words, out, xhat, x, column_weight, missing, blocks, block_bytes, rows):  # type: ignore[no-untyped-def]
    """``row_errors``.

    out  float64 (rows,)     xhat, x  blocked, `block_bytes` from block to block     column_weight  float64 (columns,)
    """
    wide = words.wide()
    parts = words.lanes // wide.lanes  # vectors of float64 that a line becomes
    size = LINE // parts

    def errors_of(count: int, missing: int, out, xhat, x):  # type: ignore[no-untyped-def]
        def block(xhat, x, weight, *totals):  # type: ignore[no-untyped-def]
            sums = list(totals)
            for part in range(parts):
                factor = wide.load(words.offset(weight, part * LINE), aligned=False)
                for i in range(count):
                    output, target = (
                        words.load_short(words.offset(matrix, i * LINE + part * size), wide.lanes)
                        for matrix in (xhat, x)
                    )
                    sums[i] = weighted_square(wide, sums[i], output, target, factor, missing)
            places = words.offset(xhat, block_bytes), words.offset(x, block_bytes)
            return [*places, words.offset(weight, parts * LINE), *sums]

        zeros = [wide.constant(0.0)] * count
        _, _, _, *totals = words.loop(blocks, [xhat, x, column_weight, *zeros], block)
        wide.store_short(wide.lane_sums(totals), out)

    for allowed in words.cases(missing, 2):
        left, places = rows, [out, xhat, x]
        for count in (wide.lanes, 1):
            times = words.builder.sdiv(left, words.count(count))
            for here in words.walk(times, places, [count * wide.itemsize, count * LINE, count * LINE]):
                errors_of(count, allowed, *here)
                places = here
            left = words.builder.srem(left, words.count(count))


_row_errors = vector_kernel(_write_row_errors)


@ByAddress
def row_errors(out, xhat, x, column_weight, missing, columns, rows, height):  # type: ignore[no-untyped-def]
    """out = the errors of rows of blocked matrices: ``row_errors`` of the contract (products.py)."""
    like = carray(out, (1,))
    blocks, place = in_blocks(columns, LINE // like.itemsize), np.int64(like.ctypes.data)
    _row_errors(like, (place, xhat, x, column_weight, missing, blocks, height * LINE, rows))


# -- on a phase, by the thread that does its last item -----------------------------------------------------------------


@callee
def close_codes(job, step, shards):  # type: ignore[no-untyped-def]
    """After the phase CODE: set the step's loss to sparsity_weight sum KL(target, mean code), and job.slopes.

    KL(p, q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)); dKL/dq = (1 - p) / (1 - q) - p / q.
    """
    plan = array_at(job.plan, (job.layers,), LAYER)
    code = plan[job.code_layer].fan_out
    totals = array_at(job.totals, (SHARDS_MOST, 2), np.float64)
    losses = array_at(job.losses, (job.steps, 2), np.float64)
    codes = array_at(job.codes, (SHARDS_MOST, code), np.float64)
    slopes = array_at(job.slopes, (code,), np.float64)
    total_weight = 0.0
    for shard in range(shards):
        total_weight += totals[shard, 1]
    p, cost = job.sparsity_target, 0.0
    for c in range(code):
        total = 0.0
        for shard in range(shards):
            total += codes[shard, c]
        q = total / total_weight if total_weight > 0 else p
        if not np.isnan(q):
            q = min(max(q, 1e-12), 1.0 - 1e-12)
        cost += p * np.log(p / q) + (1.0 - p) * np.log((1.0 - p) / (1.0 - q))
        slopes[c] = job.sparsity_weight * ((1.0 - p) / (1.0 - q) - p / q)
    losses[step, 0] = job.sparsity_weight * cost


@callee
def close_rows(job, step, items, is_first, is_last):  # type: ignore[no-untyped-def]
    """After the phase ROWS of a round: add up the loss and the weights of its rows, in the order of its items.

    After the last round of a step: set the step's loss and the sum of its rows' weights; the loss is 0 if that is 0.
    """
    totals = array_at(job.totals, (ROWS_ITEMS_MOST + 1, 2), np.float64)
    losses = array_at(job.losses, (job.steps, 2), np.float64)
    loss = 0.0 if is_first else totals[ROWS_ITEMS_MOST, 0]
    total_weight = 0.0 if is_first else totals[ROWS_ITEMS_MOST, 1]
    for item in range(items):
        loss += totals[item, 0]
        total_weight += totals[item, 1]
    totals[ROWS_ITEMS_MOST, 0] = loss
    totals[ROWS_ITEMS_MOST, 1] = total_weight
    if not is_last:
        return
    if job.sparse == 0:
        losses[step, 0] = 0.0
    if job.as_sums != 0:
        losses[step, 0] += loss / 2.0
    elif total_weight > 0:
        losses[step, 0] += loss / (2.0 * total_weight)
    losses[step, 1] = total_weight


@callee
def add_penalties(job, step, items):  # type: ignore[no-untyped-def]
    """After the phase WEIGHTS: add alpha / (2 sum of row weights) times the sum of squared W to the step's loss.

    `items` is the number of stretches or patches.
    """
    losses = array_at(job.losses, (job.steps, 2), np.float64)
    total = 0.0
    for squares in array_at(job.weight_squares, (8 * items,), np.float64):
        total += squares
    if losses[step, 1] > 0:
        losses[step, 0] += job.alpha * total / (2.0 * losses[step, 1])
