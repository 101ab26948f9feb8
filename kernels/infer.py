"""Rows through some of the layers and out: what the last one puts out, or only how far that is from the row."""

import numpy as np
from numba import carray

from fastae.kernels.compiler import ByAddress, callee
from fastae.kernels.job import (
    BATCH,
    CANCEL,
    COLUMN_WEIGHT,
    ERRORS_TASK,
    FIRST_LAYER,
    HEIGHT,
    JOB,
    LAST_LAYER,
    LAYERS,
    MISSING,
    MULTIPLE,
    NEXT,
    OUT,
    OUT_STRIDE,
    PLAN_AT,
    QUOTA,
    ROWS,
    TASK,
)
from fastae.kernels.layout import FAN_IN, FAN_OUT, OUTPUT, PLAN
from fastae.kernels.partition import in_blocks, round_up
from fastae.kernels.rows import store_rows
from fastae.kernels.shard import SCRATCH, WORK_MOST, forward_layers, load_input, target_place
from fastae.kernels.simd import array_at, fetch_add, load_acquire
from fastae.kernels.target import LINE


@callee
def _row_errors(job, work, output, target, columns, first, rows):  # type: ignore[no-untyped-def]
    """OUT of each row: sum over columns of COLUMN_WEIGHT (xhat - x)^2 in float64, cells that are missing left out.

    xhat starts at work[output], x at work[target].
    """
    lanes, height = LINE // work.itemsize, job[HEIGHT]
    out = array_at(job[OUT], (job[ROWS],), np.float64)
    weight = array_at(job[COLUMN_WEIGHT], (round_up(columns, lanes),), np.float64)
    for i in range(rows):
        total = 0.0
        for j in range(in_blocks(columns, lanes)):
            start = (j * height + i) * lanes
            x, xhat = (
                work[target + start : target + start + lanes],
                work[output + start : output + start + lanes],
            )
            for c in range(lanes):
                difference = float(xhat[c]) - float(x[c])
                if job[MISSING] != 0 and x[c] != x[c]:
                    difference = 0.0
                total += weight[j * lanes + c] * (difference * difference)
        out[first + i] = total


@ByAddress
def infer(out, job_at, control_at, me_at):  # type: ignore[no-untyped-def]
    """Layers FIRST_LAYER .. LAST_LAYER - 1 on all rows, BATCH at a time, each claimed, while the quota lasts.

    What comes out goes into OUT or, for ERRORS_TASK, each row's error does. `out` is the thread's work.
    """
    job = array_at(job_at, (JOB,), np.int64)
    plan = array_at(job[PLAN_AT], (job[LAYERS], PLAN), np.int64)
    me = array_at(me_at, (8,), np.int64)
    work = carray(out, (WORK_MOST,))
    size, height = work.itemsize, job[HEIGHT]
    lanes, base = LINE // size, np.int64(work.ctypes.data)
    start, last = job[FIRST_LAYER], job[LAST_LAYER] - 1
    columns = plan[start, FAN_IN]
    source = plan[start - 1, OUTPUT] * height if start > 0 else 0
    scratch = target_place(plan, height, lanes) - SCRATCH * lanes
    while me[QUOTA] > 0:
        if load_acquire(control_at + CANCEL * 8) != 0:
            return
        first = fetch_add(control_at + NEXT * 8, 1) * job[BATCH]
        if first >= job[ROWS]:
            return
        rows = min(job[BATCH], job[ROWS] - first)
        target = load_input(work, job, job_at, base, scratch, columns, source, first, rows, 0)
        output, features = plan[last, OUTPUT] * height, plan[last, FAN_OUT]
        whole = round_up(rows, job[MULTIPLE])
        forward_layers(work, job, plan, base, base + output * size, whole, height, start, last + 1)
        if job[TASK] == ERRORS_TASK:
            _row_errors(job, work, output, target, features, first, rows)
        else:
            stride = job[OUT_STRIDE]
            store_rows(work, job[OUT] + first * stride, stride, base + output * size, height, features, rows)
        me[QUOTA] -= rows * columns
