"""Where the time of a step goes: every stage of a tile, timed by itself on one thread, beside the FMA peak.

``python -m fastae.bench.stages`` prints a table for each of the nine sizes (``cases.py``); arguments are parts of the
ids of those wanted, as in ``n=784-k=64``. A stage is one call of a
kernel on a tile (products.py) that stays in L2, as in a step. Loading reads new rows of X in each call, as in a step.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import fastae
from fastae import reference
from fastae.bench.cases import CASES, Case, chosen
from fastae.bench.probe import Probe
from fastae.engine import thread_pool
from fastae.kernels import forms, job, layout, optimizer, rows
from fastae.kernels.compiler import ByAddress, jitted
from fastae.kernels.intrinsics import call_at, flush_subnormals, restore_float_state
from fastae.kernels.split import shards_of
from fastae.kernels.transpose import transpose_squares

# Each of these calls its kernel `times` times.


@jitted
def layer_times(times, at, arguments):
    """Call the function at address `at`, with subnormals flushed to zero as in a step."""
    state = flush_subnormals()
    for _ in range(times):
        call_at(at, arguments)
    restore_float_state(state)


@jitted
def load_times(times, like, tile, height, source, last, m, spare):
    """Load m rows at a time of rows 0 .. last - 1 of a ``rows.Source`` into a tile (blocks, height, lanes)."""
    row = 0
    for _ in range(times):
        rows.load_rows(like, tile, height, source, row, m, spare)
        row += m
        if row + m > last:
            row = 0


@jitted
def load_by_form_times(times, at, stored, x, row_stride, last, m, height, columns):
    """The same by ``from_rows`` of a form, at address `at`, into a stored matrix (columns, height)."""
    row = 0
    for _ in range(times):
        call_at(at, (stored, x, row_stride, 0, row, m, height, columns))
        row += m
        if row + m > last:
            row = 0


def source_of(X: np.ndarray) -> rows.Source:
    """The rows of X, neither shifted nor scaled."""
    dtype_id, (row_stride, column_stride) = job.DTYPE_IDS[X.dtype], X.strides
    return rows.Source(X.ctypes.data, X.shape[1], row_stride, column_stride, dtype_id, 0, 0, 0)


@jitted
def add_up_times(times, total, parts, count):
    """Add up gradients: total (size,) from parts (count, size)."""
    for _ in range(times):
        optimizer.add_up(total, parts, count, 0, 0.5)


@jitted
def transpose_times(times, source, target, fan_in, fan_out, lanes):
    """Transpose W (fan_in, fan_out) in the blocked layout."""
    for _ in range(times):
        squares = source.size // (lanes * lanes)
        places = target.ctypes.data, source.ctypes.data
        transpose_squares(source, *places, fan_in, fan_out, 0, squares)


class Stage(NamedTuple):
    """A kernel on one tile: its name, its useful FLOPs (0 if it does no products), and run(times), which repeats it."""

    name: str
    flops: float
    run: Callable[[int], None]


class Tile:
    """One tile of a case, in the form of products that its steps use, and the stages of a step on that tile."""

    def __init__(self, case: Case, height: int | None = None) -> None:
        self.case, self.network = case, case.network
        self.like = layout.aligned_zeros(layout.lanes(case.dtype), case.dtype)
        self.plan, self.size, transposed = layout.plan(
            self.network.widths, self.network.activations, case.dtype
        )
        widths = self.network.widths
        supported = forms.forms_of(case.dtype)
        self.form = forms.choose(supported, widths, case.m, self.size, case.dtype, linear=True, codes=False)
        self.multiple = self.form.row_multiple(widths, case.dtype)
        self.height = height or self.form.height(widths, case.dtype)
        self.rows = min(case.m // self.multiple * self.multiple, self.height)
        last = self.plan[-1]
        outputs = self._padded(last.fan_out)
        self.tiles = self._zeros((int(last.output) + outputs) * self.height)
        self.loaded = (
            self._zeros(int(self.plan[0].output) * self.height) if self.form.from_blocked else self.tiles
        )
        self.sums, self.ones = (self._zeros(int(last.column_sums) + outputs) for _ in range(2))
        self.loss, self.spare = self._zeros(len(self.like)), layout.aligned_zeros(16, np.float64)
        self.weight = self._zeros(self.height)
        self.weight[:] = 1
        self.gradient, self.transposed = self._zeros(self.size), self._zeros(transposed)
        self.parameters = case.parameters.flat
        for i, row in enumerate(self.plan):
            self.ones[row.column_sums : row.column_sums + row.fan_out] = 1
            if i:
                fan_in, fan_out = self._padded(row.fan_in), self._padded(row.fan_out)
                target = self.transposed[row.transposed :][: fan_in * fan_out]
                layout.pack(case.parameters[f"W{i + 1}"].T, target.reshape(-1, fan_out, len(self.like)))

    def stages(self) -> list[Stage]:
        """The stages in order: load, forward 1 .. L - 1, residual L, then gradient and backward from L down.

        "convert" follows "load" if the form's matrices are not blocked, unless the form reads rows itself.
        """
        last = len(self.plan) - 1
        if self.form.from_rows is not None:
            stages = [self.load_by_form(self.form.from_rows)]
        else:
            stages = [self.load()]
            if self.form.from_blocked is not None:
                stages.append(self.convert(self.form.from_blocked))
        stages += [self.forward(i) for i in range(last)]
        stages.append(self.residual())
        for i in range(last, -1, -1):
            stages.append(self.weight_gradient(i))
            if i:
                stages.append(self.backward(i))
        return stages

    def load(self) -> Stage:
        source, last = source_of(self.case.X), self.case.X.shape[0]
        arguments = (
            *(self.like, self.loaded.ctypes.data, self.height, source),
            *(last, self.rows, self.spare.ctypes.data),
        )
        return Stage("load", 0, lambda times: load_times(times, *arguments))

    def load_by_form(self, from_rows: ByAddress) -> Stage:
        source, last = source_of(self.case.X), self.case.X.shape[0]
        arguments = (
            *(from_rows.address(self.case.dtype), self._output(-1), source.x, source.row_stride),
            *(last, self.rows, self.height, self.case.n),
        )
        return Stage("load", 0, lambda times: load_by_form_times(times, *arguments))

    def convert(self, from_blocked: ByAddress) -> Stage:
        blocks = int(layout.blocks(self.network.widths[0], self.case.dtype))
        arguments = self._output(-1), self._at(self.loaded), self.rows, self.height, blocks
        return Stage("convert", 0, _repeat(from_blocked, self.case, arguments))

    def forward(self, i: int) -> Stage:
        row = self.plan[i]
        arguments = (
            *(self._output(i), self._output(i - 1), *self._weights(i)),
            *(self._at(self.ones, row.column_sums), int(row.activation), 1, *self._sizes(i)),
        )
        return Stage(f"forward {i + 1}", self._flops(i), _repeat(self.form.forward, self.case, arguments))

    def residual(self) -> Stage:
        i = len(self.plan) - 1
        target = self._output(-1) if self.form.target_in_form else self._at(self.loaded)
        arguments = (
            *(self._output(i), self._output(i - 1), *self._weights(i), target),
            *(self._at(self.weight), 0, self._at(self.sums, self.plan[i].column_sums), self._at(self.loss)),
            *self._sizes(i),
        )
        return Stage(f"residual {i + 1}", self._flops(i), _repeat(self.form.residual, self.case, arguments))

    def weight_gradient(self, i: int) -> Stage:
        row = self.plan[i]
        arguments = (
            *(self._at(self.gradient, row.weight), self._output(i - 1), self._output(i), 0),
            *(self.rows, self.height, self._padded(row.fan_in), int(row.fan_in), int(row.fan_out)),
        )
        return Stage(f"gradient {i + 1}", self._flops(i), _repeat(self.form.gradient, self.case, arguments))

    def backward(self, i: int) -> Stage:
        """From the delta of layer i, counted from 0, to the delta of the layer below, which overwrites its output."""
        row, below = self.plan[i], self.plan[i - 1]
        arguments = (
            *(self._output(i - 1), self._output(i - 1), self._output(i)),
            self._at(self.transposed, row.transposed),
            *(self._at(self.sums, below.column_sums), int(below.activation)),
            *self._sizes(i),
        )
        return Stage(f"backward {i + 1}", self._flops(i), _repeat(self.form.backward, self.case, arguments))

    def check(self) -> None:
        """Run all stages once, in order, and compare every gradient with the reference's."""
        for array in (self.sums, self.loss, self.gradient):
            array[:] = 0
        for stage in self.stages():
            stage.run(1)
        gradient = fastae.Parameters(self.network, self.case.array_dtype)
        gradient.flat[:] = self.gradient / self.rows
        for row in self.plan:
            count = self._padded(row.fan_out)
            gradient.flat[row.bias :][:count] = self.sums[row.column_sums :][:count] / self.rows
        expected = reference.backward(self.case.X[: self.rows], self.case.dense, self.network.activations)
        for name in gradient:
            error = np.abs(gradient[name] - expected[f"d{name}"]).max()
            assert error <= 2e-5 * np.abs(expected[f"d{name}"]).max(), name

    def _zeros(self, count: int) -> np.ndarray:
        return layout.aligned_zeros(int(count), self.case.dtype)

    def _padded(self, columns: int) -> int:
        return int(layout.blocks(columns, self.case.dtype) * len(self.like))

    def _at(self, array: np.ndarray, place: int = 0) -> int:
        return int(array.ctypes.data + place * array.itemsize)

    def _output(self, i: int) -> int:
        """The address of layer i's output; layer -1 is the input."""
        return self._at(self.tiles, self.plan[i].output * self.height if i >= 0 else 0)

    def _weights(self, i: int) -> tuple[int, int]:
        return self._at(self.parameters, self.plan[i].weight), self._at(self.parameters, self.plan[i].bias)

    def _sizes(self, i: int) -> tuple[int, ...]:
        return self.rows, self.height, int(self.plan[i].fan_in), int(self.plan[i].fan_out)

    def _flops(self, i: int) -> float:
        return 2.0 * self.rows * int(self.plan[i].fan_in) * int(self.plan[i].fan_out)


def _repeat(kernel: ByAddress, case: Case, arguments: tuple[int, ...]) -> Callable[[int], None]:
    """A function run(times) that calls `kernel` with these arguments `times` times."""
    at = kernel.address(case.dtype)
    return lambda times: layer_times(times, at, arguments)


def repeats(run: Callable[[int], object], seconds: float = 1e-3) -> int:
    """The `times` for which run(times) takes about `seconds`."""
    run(1)
    start = time.perf_counter()
    run(3)
    return max(1, int(3 * seconds / max(time.perf_counter() - start, 1e-7)))


def _time(run: Callable[[int], object], probe: Probe | None = None, readings: int = 11) -> float:
    """Median seconds of one repetition; a probe reads the FMA peak before each reading."""
    times, seconds = repeats(run), []
    for _ in range(readings):
        if probe is not None:
            probe()
        start = time.perf_counter()
        run(times)
        seconds.append((time.perf_counter() - start) / times)
    return statistics.median(seconds)


def report(case: Case) -> None:
    """Print the table of one case: milliseconds of a whole step, stage by stage."""
    tile, probe, threads = Tile(case), Probe(1, case.array_dtype), thread_pool.available_cpus()
    tile.check()
    engine = fastae.Engine(case.network, threads, case.dtype)
    engine.loss_and_gradient(case.parameters, case.X)
    tiles = case.m / tile.rows
    lines = [(s.name, s.flops * tiles, _time(s.run, probe) * tiles) for s in tile.stages()]
    shards = shards_of(case.m, tile.size, tile.multiple)
    parts = layout.aligned_zeros(shards * tile.size, case.dtype).reshape(shards, -1)
    lines.append(
        (f"add up {shards} shards", 0, _time(lambda n: add_up_times(n, tile.gradient, parts, shards)))
    )
    transpose_seconds, lanes = 0.0, len(tile.like)
    for row in tile.plan[1:]:
        fan_in, fan_out = tile._padded(row.fan_in), tile._padded(row.fan_out)
        source = tile.parameters[row.weight : row.bias]
        target = tile.transposed[row.transposed :][: source.size]
        run = lambda n, a=source, b=target, i=fan_in, o=fan_out: transpose_times(n, a, b, i, o, lanes)  # noqa: E731
        transpose_seconds += _time(run)
    lines.append(("transpose", 0, transpose_seconds))
    total = sum(seconds for *_, seconds in lines)
    whole = _time(lambda n: [engine.loss_and_gradient(case.parameters, case.X) for _ in range(n)])

    height = f"{tile.rows} rows; {tile.form.name}"
    print(f"\n{case.id}: tiles of {height}, one thread's FMA peak {probe.median:.0f} GF/s")
    print(f"  {'stage':<18}{'ms':>9}{'of all':>9}{'GF/s':>9}{'of peak':>9}")
    for name, flops, seconds in lines:
        gflops = flops / seconds / 1e9
        rated = f"{gflops:9.1f}{gflops / probe.median:9.0%}" if flops else ""
        print(f"  {name:<18}{seconds * 1e3:9.3f}{seconds / total:9.1%}{rated}")
    rate = case.flops / total / 1e9
    print(f"  {'sum, one thread':<18}{total * 1e3:9.3f}{1:9.0%}{rate:9.1f}{rate / probe.median:9.0%}")
    print(
        f"  a step on {threads} threads: {whole * 1e3:.3f} ms; {total / threads * 1e3:.3f} ms if shared evenly"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m fastae.bench.stages", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("cases", nargs="*", help="parts of the names of cases, such as n=784; default: all")
    try:
        wanted = chosen(CASES, parser.parse_args().cases)
    except ValueError as error:
        sys.exit(str(error))
    for case in wanted:
        report(case)
