"""Every form of products does what the contract says (kernels/products.py): against NumPy, up to guard pages."""

import os
from itertools import pairwise, product

import numpy as np
import pytest
from guard import guarded
from layers import TOLERANCE, blocked, close, draw, vector

from fastae import reference
from fastae.bench.stages import layer_times
from fastae.kernels import forms, job, layout, products
from fastae.kernels.amx import AMX  # with emulated tile registers, unless this CPU has AMX
from fastae.kernels.bfloat16 import BFLOAT16
from fastae.kernels.gemm import COLUMN_BLOCKS
from fastae.kernels.rowlanes import ROW_LANES
from fastae.kernels.step import ITEMS

FORMS = *forms.FORMS, AMX
SIZES = [(1, 1), (1, 5), (5, 1), (3, 10), (16, 8), (17, 3), (30, 30), (51, 13), (13, 51)]


def rounded(x):
    """The nearest bfloat16 of float32 values, ties to even."""
    bits = np.asarray(x, "f4").view("u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view("f4")


def rows_of_blocks(buffer, height, dtype):
    return np.moveaxis(buffer.reshape(-1, height, layout.lanes(dtype)), 1, 0).reshape(height, -1)


def rows_of_columns(buffer, height, _):
    return buffer.reshape(-1, height).T


def rows_of_bfloat16(buffer, height, _):
    halves = buffer.view("u2").reshape(-1, 2, height * 16)[:, 0].reshape(-1, height, 16)
    return np.moveaxis((halves.astype("u4") << 16).view("f4"), 1, 0).reshape(height, -1)


def rows_of_strips(buffer, height, _):
    """Of two neighbouring blocks, 32 columns; rows 0 .. 15 of each 32 in the one, the others in the other."""
    halves = buffer.view("u2").reshape(-1, 2, height * 16)[:, 0]
    whole = len(halves) // 2 * 2
    neighbours = halves[:whole].reshape(-1, 2, height // 32, 16, 32)
    parts = [neighbours.transpose(2, 1, 3, 0, 4).reshape(height, -1)]
    if len(halves) % 2:
        parts.append(halves[-1].reshape(height, 16))
    return (np.hstack(parts).astype("u4") << 16).view("f4")


# How stored matrices are read, as (height, padded columns); what becomes of the operands; and the error of an element
# that is stored, as a share of it.
READ = {
    COLUMN_BLOCKS: rows_of_blocks,
    ROW_LANES: rows_of_columns,
    BFLOAT16: rows_of_bfloat16,
    AMX: rows_of_strips,
}
OPERAND = {COLUMN_BLOCKS: np.asarray, ROW_LANES: np.asarray, BFLOAT16: rounded, AMX: rounded}
STORED = {COLUMN_BLOCKS: 0.0, ROW_LANES: 0.0, BFLOAT16: 2.0**-8, AMX: 2.0**-8}


class Harness:
    """The functions of a form, on buffers that end, or begin, at a guard page."""

    def __init__(self, form, dtype, end):
        self.form, self.end = form, end
        self.dtype = "float32" if dtype == "bfloat16" else dtype
        self.lanes = layout.lanes(self.dtype)

    def heights(self, fan_in, fan_out):
        """The rows to compute, and the height in memory: all of it, or half."""
        widths = fan_in, fan_in, fan_out  # of a layer above the first
        multiple = self.form.row_multiple(widths, self.dtype)
        heights = [(multiple, multiple), (multiple, 2 * multiple)]
        if self.form.tile_of_steps is not None:  # register tiles of both heights, and of the lower one alone
            for batch in (200, 70):
                height, rows = self.form.tile_of_steps(widths, batch, 1000, np.dtype(self.dtype))
                heights.append((rows, height))
        return heights

    def call(self, name, *arguments):
        numbers = tuple(a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in arguments)
        layer_times(1, getattr(self.form, name).address(self.dtype), numbers)

    def empty(self, columns, height):
        """Room for a stored matrix, NaN in any dtype."""
        size = layout.blocks(columns, self.dtype) * self.lanes * height
        return guarded(np.full(size * np.dtype(self.dtype).itemsize, 255, "u1").view(self.dtype), self.end)

    def stored(self, dense, height, function="from_blocked"):
        """`dense` as the form stores it, zero in the rows below; not a delta."""
        lines = blocked(dense, height, self.end)
        if getattr(self.form, function) is None:
            return lines.reshape(-1)
        result = self.empty(dense.shape[1], height)
        self.call(function, result, lines, height, height, len(lines))
        return result

    def stored_delta(self, dense, height):
        """The same for a delta."""
        return self.stored(dense, height, "delta_from_blocked")

    def read(self, buffer, height):
        return READ[self.form](buffer, height, self.dtype)

    def weights(self, W):
        """W and W' as the form prepares them, in two calls."""
        source = blocked(W, end=self.end)
        w = guarded(np.full(source.shape, np.nan, self.dtype), self.end)
        wt = blocked(np.zeros_like(W.T), end=self.end)
        squares = source.size // self.lanes**2
        for first, last in pairwise(sorted({0, squares // 2, squares})):
            self.call("prepare_weights", w, wt, source, *W.shape, first, last)
        if not self.form.own_weights:
            assert np.isnan(w).all(), "written, though the form has no W of its own"
            w = source
        return w, wt

    def operand(self, dense):
        return np.asarray(OPERAND[self.form](dense), "f8")

    def close(self, computed, wanted, depth, what, stored=True):
        share = STORED[self.form] if stored else 0.0
        if share:
            limit = share * np.abs(wanted) + TOLERANCE[self.dtype] * (np.abs(wanted).max() + np.sqrt(depth))
            assert (np.abs(computed - wanted) <= limit).all(), what
        else:
            close(computed, wanted, self.dtype, depth, what)


CASES = [
    pytest.param(
        form,
        dtype,
        end,
        id=f"{form.name}-{dtype}-{'end' if end else 'begin'}",
        marks=[
            pytest.mark.skipif(not form.available, reason="the CPU lacks its instructions"),
            pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect"),
        ],
    )
    for form in FORMS
    for dtype in form.dtypes
    for end in (True, False)
]


@pytest.fixture
def harness(form, dtype, end):
    return Harness(form, dtype, end)


every_form = pytest.mark.parametrize(("form", "dtype", "end"), CASES)
every_activation = pytest.mark.parametrize("activation", layout.ACTIVATIONS)


@every_form
def test_a_matrix_is_converted(harness):
    for columns in (1, harness.lanes, harness.lanes + 1, 51):
        for rows, height in harness.heights(columns, columns):
            x = np.random.default_rng(0).normal(size=(rows, columns)).astype(harness.dtype)
            for stored in (harness.stored, harness.stored_delta):
                found = harness.read(stored(x, height), height)
                assert np.array_equal(found[:rows, :columns], OPERAND[harness.form](x))
                assert not found[:, columns:].any()
                assert not found[rows:].any()


@every_form
def test_rows_of_a_caller_are_converted(harness):
    """In order and by number, with steps between rows; nothing beyond them is read."""
    if harness.form.from_rows is None:
        pytest.skip("the form reads blocked matrices alone")
    for columns in (1, harness.lanes - 1, harness.lanes, harness.lanes + 1, 51):
        for rows, height in harness.heights(columns, columns):
            x = np.random.default_rng(0).normal(size=(rows + 3, columns)).astype(harness.dtype)
            numbers = np.random.default_rng(1).integers(0, rows + 3, rows + 3)
            for X in (guarded(x, harness.end), np.hstack([x, x])[:, :columns], x[::-1]):
                for index in (None, guarded(numbers, harness.end)):
                    found = harness.empty(columns, height)
                    row_numbers = 0 if index is None else index
                    sizes = rows, height, columns
                    at = X[0].ctypes.data, X.strides[0]
                    harness.call("from_rows", found, *at, row_numbers, 3, *sizes)
                    wanted = X[3:] if index is None else X[numbers[3:]]
                    assert np.array_equal(harness.read(found, height)[:rows, :columns], wanted)
                    assert np.isnan(harness.read(found, height)[rows:, :columns]).all()


@every_activation
@every_form
def test_forward_is_numpys(harness, activation):
    g, _ = reference.ACTIVATIONS[activation]
    id_ = layout.ACTIVATIONS.index(activation)
    for fan_in, fan_out in SIZES:
        for rows, height in harness.heights(fan_in, fan_out):
            a, W, b, _ = draw(fan_in, fan_out, rows, harness.dtype)
            inputs = harness.stored(a, height), harness.weights(W)[0]
            vectors = vector(b, harness.end), vector(np.ones_like(b), harness.end)
            sizes = rows, height, fan_in, fan_out
            wanted = g(harness.operand(a) @ harness.operand(W) + b)
            h = harness.empty(fan_out, height)
            harness.call("forward", h, *inputs, *vectors, id_, 0, *sizes)
            harness.close(harness.read(h, height)[:rows, :fan_out], wanted, fan_in, sizes)
            assert np.isnan(harness.read(h, height)[rows:, :fan_out]).all(), "rows below are written"
            if harness.form.leaves:
                out = harness.empty(fan_out, height)
                harness.call("forward", out, *inputs, *vectors, id_, 1, *sizes)
                out = rows_of_blocks(out, height, harness.dtype)
                harness.close(out[:rows, :fan_out], wanted, fan_in, sizes, stored=False)
                assert not out[:rows, fan_out:].any(), "padding is not zero"
            # What h has in padding columns is zero, or is not read by the product that reads h.
            dw = blocked(np.full((fan_out, fan_in), 7, harness.dtype), end=harness.end)
            above = harness.stored_delta(draw(1, fan_in, rows, harness.dtype)[3], height)
            harness.call("gradient", dw, h, above, 0, rows, height, dw.shape[1], fan_out, fan_in)
            assert np.isfinite(dw).all()
            assert_padding_is_zero(dw, (fan_out, fan_in))


def assert_padding_is_zero(blocks, shape):
    padding = blocks.copy()
    layout.pack(np.zeros(shape, blocks.dtype), padding)
    assert not padding.any(), "padding is not zero"


@pytest.mark.parametrize("bound", [None, 1.5], ids=["squared error", "huber"])
@every_form
def test_residual_is_numpys(harness, bound):
    """Rows of weight 0 and missing cells add nothing; sums and loss are added to."""
    for fan_in, fan_out in SIZES:
        rows, height = harness.heights(fan_in, fan_out)[1]
        a, W, b, x = draw(fan_in, fan_out, rows, harness.dtype)
        x[rows // 2, 0] = np.nan
        row_weight = np.linspace(0, 2, rows).astype(harness.dtype)
        row_weight[-1] = 0
        target = blocked(x, height, harness.end)
        if harness.form.target_in_form:
            target = harness.stored(x, height)
        delta = harness.empty(fan_out, height)
        sums = vector(np.full_like(b, 7), harness.end)
        loss = guarded(np.zeros(harness.lanes, harness.dtype), harness.end)
        loss[0] = 7
        sizes = rows, height, fan_in, fan_out
        operands = harness.stored(a, height), harness.weights(W)[0], vector(b, harness.end), target
        limit = 0 if bound is None else guarded(np.full(1, bound, harness.dtype), harness.end)
        vectors = guarded(row_weight, harness.end), limit, sums, loss
        harness.call("residual", delta, *operands, *vectors, *sizes)
        residual = np.nan_to_num(harness.operand(a) @ harness.operand(W) + b - x, nan=0.0)
        derivative = residual if bound is None else np.clip(residual, -bound, bound)
        wanted = row_weight[:, np.newaxis] * derivative
        harness.close(harness.read(delta, height)[:rows, :fan_out], wanted, fan_in, sizes)
        harness.close(sums[:fan_out], 7 + wanted.sum(axis=0), rows * fan_in, sizes, stored=False)
        assert not sums[fan_out:].any()
        cost = (wanted * (2 * residual - derivative)).sum()
        harness.close(loss.sum(), 7 + cost, rows * fan_in, sizes, stored=False)


@every_activation
@every_form
def test_backward_is_numpys(harness, activation):
    _, derivative = reference.ACTIVATIONS[activation]
    id_ = layout.ACTIVATIONS.index(activation)
    for fan_in, fan_out in SIZES:
        for rows, height in harness.heights(fan_in, fan_out):
            a, W, _, delta = draw(fan_in, fan_out, rows, harness.dtype, activation)
            h, sums = harness.stored(a, height), vector(np.full(fan_in, 7, harness.dtype), harness.end)
            sizes = rows, height, fan_in, fan_out
            inputs = harness.stored_delta(delta, height), harness.weights(W)[1]
            below, other_sums = harness.empty(fan_in, height), guarded(sums, harness.end)
            harness.call("backward", below, h, *inputs, sums, id_, *sizes)
            assert np.array_equal(harness.read(h, height), harness.read(harness.stored(a, height), height))
            harness.call("backward", h, h, *inputs, other_sums, id_, *sizes)  # in place
            used = slice(rows), slice(fan_in)
            assert np.array_equal(harness.read(h, height)[used], harness.read(below, height)[used])
            assert np.array_equal(other_sums, sums)
            wanted = (harness.operand(delta) @ harness.operand(W).T) * derivative(harness.operand(a))
            found = harness.read(h, height)
            harness.close(found[:rows, :fan_in], wanted, fan_out, sizes)
            assert not found[:rows, fan_in:].any()
            assert not found[rows:].any(), "rows below are written"
            harness.close(sums[:fan_in], 7 + wanted.sum(axis=0), rows * fan_out, sizes, stored=False)
            assert not sums[fan_in:].any()


@every_form
def test_gradient_is_numpys(harness):
    """Of any number of rows, since the delta is zero in the rows below, whatever a is there; twice, the same bits."""
    for fan_in, fan_out in SIZES:
        _, height = harness.heights(fan_in, fan_out)[1]
        for rows in {1, min(harness.lanes, height), min(height // 2 + 3, height), height}:
            a, W, _, delta = draw(fan_in, fan_out, height, harness.dtype)
            delta[rows:] = 0
            dw = blocked(W, end=harness.end)
            operands = harness.stored(a, height), harness.stored_delta(delta, height)
            sizes = rows, height, fan_in, fan_out
            wanted = harness.operand(a).T @ harness.operand(delta)
            for accumulate in (0, 1):
                harness.call(
                    "gradient", dw, *operands, accumulate, rows, height, dw.shape[1], fan_in, fan_out
                )
                found = layout.unpack(dw, W.shape)
                harness.close(found, (1 + accumulate) * wanted, rows, sizes, stored=False)
                assert_padding_is_zero(dw, W.shape)
            again = blocked(np.zeros_like(W), end=harness.end)
            for accumulate in (0, 1):
                harness.call(
                    "gradient", again, *operands, accumulate, rows, height, dw.shape[1], fan_in, fan_out
                )
            assert np.array_equal(again, dw)


EDGES = 1, 15, 16, 17, 31, 32, 33, 48, 65


@every_form
def test_products_of_integers_are_exact_at_every_edge_of_rows_columns_and_depth(harness):
    """Sums of small integers need no rounding, in bfloat16 either: a product that is left out or doubled is seen."""
    rng = np.random.default_rng(0)
    linear, relu = (layout.ACTIVATIONS.index(name) for name in ("identity", "relu"))
    for number, (fan_in, fan_out) in enumerate(product(EDGES, EDGES)):
        rows, height = harness.heights(fan_in, fan_out)[0]
        rows, height = rows * (1 + number % 3), height * (1 + number % 3) + rows * (number % 2)

        def integers(*shape, least=-1):
            return rng.integers(least, 2, shape).astype(harness.dtype)

        a, W, b, x = (
            integers(rows, fan_in),
            integers(fan_in, fan_out),
            integers(fan_out),
            integers(rows, fan_out),
        )
        h, delta, row_weight = (
            integers(rows, fan_in, least=0),
            integers(rows, fan_out),
            integers(rows, least=0),
        )
        sizes, (w, wt) = (rows, height, fan_in, fan_out), harness.weights(W)
        stored, of_delta = harness.stored(a, height), harness.stored_delta(delta, height)
        bias, one = vector(b, harness.end), vector(np.ones_like(b), harness.end)

        out = harness.empty(fan_out, height)
        harness.call("forward", out, stored, w, bias, one, linear, 0, *sizes)
        assert np.array_equal(harness.read(out, height)[:rows, :fan_out], a @ W + b), sizes

        out, target = harness.empty(fan_out, height), blocked(x, height, harness.end)
        if harness.form.target_in_form:
            target = harness.stored(x, height)
        sums, loss = vector(np.zeros_like(b), harness.end), np.zeros(harness.lanes + 16, harness.dtype)
        loss = loss[-loss.ctypes.data % 64 // loss.itemsize :]
        weights = guarded(row_weight, harness.end)
        harness.call("residual", out, stored, w, bias, target, weights, 0, sums, loss, *sizes)
        wanted = row_weight[:, np.newaxis] * (a @ W + b - x)
        assert np.array_equal(harness.read(out, height)[:rows, :fan_out], wanted), sizes
        assert np.array_equal(sums[:fan_out], wanted.sum(axis=0)), sizes
        assert loss.sum() == (wanted * (a @ W + b - x)).sum(), sizes

        below, sums = harness.stored(h, height), vector(np.zeros(fan_in, harness.dtype), harness.end)
        harness.call("backward", below, below, of_delta, wt, sums, relu, *sizes)
        wanted = (delta @ W.T) * (h > 0)
        assert np.array_equal(harness.read(below, height)[:rows, :fan_in], wanted), sizes
        assert np.array_equal(sums[:fan_in], wanted.sum(axis=0)), sizes

        dw = blocked(W, end=harness.end)
        for accumulate in (0, 1):
            harness.call("gradient", dw, stored, of_delta, accumulate, *sizes[:2], dw.shape[1], *sizes[2:])
            assert np.array_equal(layout.unpack(dw, W.shape), (1 + accumulate) * (a.T @ delta)), sizes


@every_form
def test_a_row_that_is_not_finite_leaves_the_other_rows_as_they_are(harness):
    linear = layout.ACTIVATIONS.index("identity")
    for fan_in, fan_out in ((16, 16), (33, 17), (48, 40)):
        rows, height = harness.heights(fan_in, fan_out)[1]
        a, W, b, delta = draw(fan_in, fan_out, rows, harness.dtype)
        bad = [0, 7] if rows > 8 else [0]
        w, wt = harness.weights(W)
        vectors = vector(b, harness.end), vector(np.ones_like(b), harness.end)
        found = []
        for _ in range(2):
            out, below = harness.empty(fan_out, height), harness.empty(fan_in, height)
            sums, sizes = vector(np.zeros(fan_in, harness.dtype)), (rows, height, fan_in, fan_out)
            h, of_delta = harness.stored(a, height), harness.stored_delta(delta, height)
            harness.call("forward", out, h, w, *vectors, linear, 0, *sizes)
            harness.call("backward", below, h, of_delta, wt, sums, linear, *sizes)
            results = (out, fan_out), (below, fan_in)
            found += [harness.read(each, height)[:rows, :columns].copy() for each, columns in results]
            a[bad], delta[bad] = np.nan, np.inf
        others = np.delete(np.arange(rows), bad)
        for before, after in zip(found[:2], found[2:], strict=True):
            assert not np.array_equal(before, after)
            assert np.array_equal(before[others], after[others])


@every_form
def test_the_gradient_of_some_blocks_is_that_part_of_the_whole(harness):
    """What a patch computes: a and delta from some block on, and dw among the rows of the larger one."""
    if harness.form.stored_row is None:
        return  # its steps are not cut by weights
    lanes = harness.lanes
    for fan_in, fan_out in ((lanes + 1, lanes), (2 * lanes, 3 * lanes + 5), (3 * lanes + 3, lanes + 1)):
        rows, height = harness.heights(fan_in, fan_out)[1]
        a, W, _, delta = draw(fan_in, fan_out, rows, harness.dtype)
        whole, part = (blocked(np.zeros_like(W), end=harness.end) for _ in range(2))
        a, delta = harness.stored(a, height), harness.stored_delta(delta, height)
        harness.call("gradient", whole, a, delta, 0, rows, height, whole.shape[1], fan_in, fan_out)
        block = a.nbytes // layout.blocks(fan_in, harness.dtype)  # bytes
        for i in range(0, fan_in, lanes):
            for j in range(0, fan_out, lanes):
                place = part[j // lanes :, i:]
                columns = min(lanes, fan_in - i), min(lanes, fan_out - j)
                operands = a.ctypes.data + i // lanes * block, delta.ctypes.data + j // lanes * block
                harness.call("gradient", place, *operands, 0, rows, height, part.shape[1], *columns)
        assert np.array_equal(part, whole)


@every_form
def test_weights_are_prepared_square_by_square_without_a_transpose_too(harness):
    for fan_in, fan_out in SIZES:
        _, W, _, _ = draw(fan_in, fan_out, 1, harness.dtype)
        w, wt = harness.weights(W)
        source = blocked(W, end=harness.end)
        alone = guarded(np.zeros(source.shape, harness.dtype), harness.end)
        harness.call("prepare_weights", alone, 0, source, *W.shape, 0, source.size // harness.lanes**2)
        if harness.form.own_weights:  # it may leave a part of its room as it is
            assert np.array_equal(alone[~np.isnan(w)], w[~np.isnan(w)])
        else:
            assert np.array_equal(layout.unpack(wt, W.T.shape), W.T)
            assert not alone.any()


@every_activation
@every_form
def test_a_code_has_the_delta_that_is_given_where_the_form_supports_it(harness, activation):
    form = harness.form
    if form.code_delta is None:
        assert not form.supports(linear=True, codes=True)
        return
    g, derivative = reference.ACTIVATIONS[activation]
    id_ = layout.ACTIVATIONS.index(activation)
    for columns in (1, 5, harness.lanes + 1):
        for rows, height in harness.heights(columns, columns):
            rng = np.random.default_rng(columns)
            h = g(rng.normal(size=(rows, columns))).astype(harness.dtype)
            slope = rng.normal(size=(rows, columns)).astype(harness.dtype)
            out, stored = blocked(slope, height, harness.end), harness.stored(h, height)
            harness.call("code_delta", out, stored, id_, rows, height, len(out))
            found = np.moveaxis(out, 1, 0).reshape(height, -1)
            wanted = slope * derivative(harness.operand(h))
            harness.close(found[:rows, :columns], wanted, 1, (rows, columns), stored=False)
            assert not found[:rows, columns:].any()
            assert not found[rows:].any(), "rows below are written"


@every_form
def test_the_mean_code_has_a_delta_where_the_form_supports_it(harness):
    form = harness.form
    if form.sparsity_delta is None:
        assert not form.supports(linear=True, codes=True)
        return
    for columns in (1, 5, harness.lanes + 1):
        rows, height = harness.heights(columns, columns)[1]
        rng = np.random.default_rng(columns)
        h = rng.random((rows, columns)).astype(harness.dtype)
        delta = rng.normal(size=(rows, columns)).astype(harness.dtype)
        row_weight, slope = rng.random(rows).astype(harness.dtype), rng.normal(size=columns)
        padded = guarded(np.pad(slope, (0, -columns % harness.lanes)), harness.end)
        blocks = layout.blocks(columns, harness.dtype)
        added, stored = harness.empty(columns, height), harness.stored_delta(delta, height)
        weights = guarded(row_weight, harness.end)
        harness.call(
            "sparsity_delta", added, harness.stored(h, height), weights, padded, rows, height, blocks
        )
        code = harness.operand(h)
        wanted = row_weight[:, np.newaxis] * slope * code * (1 - code)
        found = rows_of_blocks(added, height, harness.dtype)[:rows]
        harness.close(found[:, :columns], wanted, 1, columns, stored=False)
        sums = vector(np.full(columns, 7, harness.dtype), harness.end)
        harness.call("add_delta", stored, added, sums, rows, height, blocks)
        total = harness.operand(delta) + found[:, :columns]
        harness.close(harness.read(stored, height)[:rows, :columns], total, 1, columns)
        harness.close(sums[:columns], 7 + found[:, :columns].sum(axis=0), rows, columns, stored=False)


def left(harness, dense, height):
    """`dense` as the form's `forward` writes a result that leaves the network; NaN where nothing is promised."""
    buffer = harness.empty(dense.shape[1], height)
    if harness.form.leaves:
        filled = buffer.reshape(-1, height, harness.lanes)
        filled[:, : len(dense)] = 0
        layout.pack(dense, filled)
    else:
        rows_of_columns(buffer, height, None)[: len(dense), : dense.shape[1]] = dense
    return buffer


@every_form
def test_rows_of_a_result_are_stored_in_any_matrix(harness):
    """Any number of rows and columns, to a matrix that ends or begins at a guard page, and with gaps between rows."""
    for columns in (1, harness.lanes - 1, harness.lanes, harness.lanes + 1, 51):
        _, height = harness.heights(columns, columns)[1]
        for rows in {1, min(7, height), min(harness.lanes + 3, height), height - 1, height}:
            dense = np.random.default_rng(rows).normal(size=(rows, columns)).astype(harness.dtype)
            h = left(harness, dense, height)
            out = guarded(np.full((rows, columns), 7, harness.dtype), harness.end)
            harness.call("store_rows", out, out.strides[0], h, columns, rows, height)
            assert np.array_equal(out, dense)
            wide = np.full((rows, columns + 2), 7, harness.dtype)
            harness.call(
                "store_rows", wide.ctypes.data + wide.itemsize, wide.strides[0], h, columns, rows, height
            )
            assert np.array_equal(wide[:, 1:-1], dense)
            assert (wide[:, [0, -1]] == 7).all(), "written beside the rows"


@pytest.mark.parametrize("missing", [0, 1])
@every_form
def test_errors_of_rows_are_numpys(harness, missing):
    for columns in (1, 7, 8, 9, harness.lanes, harness.lanes + 1, 51):
        _, height = harness.heights(columns, columns)[1]
        for rows in {1, *(min(count, height) for count in (7, 8, 19)), height - 1, height}:
            rng = np.random.default_rng(rows + columns)
            xhat, x = (rng.normal(size=(rows, columns)).astype(harness.dtype) for _ in range(2))
            x[rows // 2, 0] = np.nan
            weight = rng.random(columns)
            target = blocked(x, height, harness.end)
            if harness.form.target_in_form:
                target = harness.stored(x, height)
            padded = guarded(np.pad(weight, (0, -columns % harness.lanes)), harness.end)
            out = guarded(np.full(rows, 7.0), harness.end)
            sizes = columns, rows, height
            harness.call("row_errors", out, left(harness, xhat, height), target, padded, missing, *sizes)
            difference = (xhat - x).astype("f8")
            if missing:
                difference = np.nan_to_num(difference, nan=0.0)
            np.testing.assert_allclose(
                out, (difference**2) @ weight, rtol=1e-14 * columns, err_msg=str(sizes)
            )
            assert np.isnan(out[rows // 2]) == (missing == 0)


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_of_rows_have_the_same_bits_in_every_form_and_tile(dtype, missing):
    rng = np.random.default_rng(0)
    for columns in (1, 5, 8, 30, 51):
        xhat, x = (rng.normal(size=(131, columns)).astype(dtype) for _ in range(2))
        weight, errors = np.pad(rng.random(columns), (0, 16)), set()
        for form in (COLUMN_BLOCKS, ROW_LANES):
            harness = Harness(form, dtype, True)
            for tile in (131, 1, 8, 50):
                multiple, found = harness.heights(columns, columns)[1][1], []
                height = -(-len(x) // multiple) * multiple
                for first in range(0, len(x), tile):
                    part, of = x[first : first + tile], xhat[first : first + tile]
                    target = blocked(part, height)
                    if form.target_in_form:
                        target = harness.stored(part, height)
                    out = np.empty(len(part))
                    output = left(harness, of, height)
                    harness.call(
                        "row_errors", out, output, target, weight, missing, columns, len(part), height
                    )
                    found.append(out)
                errors.add(np.concatenate(found).tobytes())
        assert len(errors) == 1, columns


# -- forms ------------------------------------------------------------------------------------------------------------


def test_a_job_has_a_field_for_each_function_of_a_form():
    at = [name for name, _ in job.Job._fields_ if name.endswith("_at")]
    assert [name for name in at if name not in ITEMS] == [f"{name}_at" for name in products.FUNCTIONS]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_first_form_of_a_dtype_supports_every_job(dtype):
    for form in forms.forms_of(dtype)[:1]:
        assert all(form.supports(linear=linear, codes=codes) for linear in (0, 1) for codes in (0, 1))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_tile_is_whole_register_tiles(form):
    for dtype in ("float32", "float64"):
        for widths in ((1, 1), (30, 8, 30), (70, 33, 70), (784, 256, 784, 784)):
            assert form.height(widths, dtype) % form.row_multiple(widths, dtype) == 0
