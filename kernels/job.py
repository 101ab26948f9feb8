"""What the threads of a crew are told and share: records of named fields. No kernel lives here.

Each record is a class that Python fills by attribute, and a NumPy dtype of the same name in capitals through which a
kernel reads the same memory: ``record_at(job_at, JOB).rows``. Fields whose name ends in ``_at`` are addresses of
compiled functions; other addresses have the name of what lies there, with its shape beside them.
"""

import ctypes
from inspect import get_annotations
from typing import Any, TypeVar

import numpy as np

_Structure = TypeVar("_Structure", bound=type[ctypes.Structure])


def _record(structure: _Structure) -> _Structure:
    """Lay out a structure's annotated fields: int64 for int, float64 for float."""
    kinds: dict[type, Any] = {int: ctypes.c_int64, float: ctypes.c_double}
    structure._fields_ = [(name, kinds[kind]) for name, kind in get_annotations(structure).items()]
    return structure


@_record
class Job(ctypes.Structure):
    """One call of the engine. Strides are in bytes, sizes in elements, addresses 0 where there is nothing."""

    task: int  # STEPS_TASK, INFER_TASK or ERRORS_TASK
    plan: int  # the plan of layout.py, LAYER (layers,)
    layers: int
    code_layer: int  # the layer whose output is the code, counted from 0

    # The matrix X
    x: int
    row_stride: int
    column_stride: int
    kind: int  # KINDS
    index: int  # int64 (rows,): row numbers
    sample_weight: int  # float64 (rows of X,)
    shift: int  # float64 (columns,), padded
    scale: int  # float64 (columns,), padded
    rows: int  # rows that the steps walk through
    first_row: int  # number of X's first row, for the noise: X may be a part of a larger matrix

    # Steps
    batch: int  # rows of a step; infer: rows claimed at a time, at most height
    steps: int
    epoch: int  # of the first step
    seed: int  # of the noise
    sums: int  # 1: loss and gradient are sums over the rows, not divided by the rows' weights

    # Tiles
    height: int  # rows of a tile in memory
    row_multiple: int  # rows are computed in multiples of this: whole register tiles
    target_in_form: int  # 1: the rows that the output is compared with lie as the form's tiles do

    # Parameters and what a step computes; flat: (size,)
    size: int
    parameters: int  # flat
    weights: int  # flat: what products read as W, prepared by the form; parameters where that is the same
    transposed: int  # (transposed_size,): W' of every layer but the first, prepared by the form
    transposed_size: int
    ones: int  # (columns of all outputs,): 1, and 0 in padding lanes
    gradients: int  # (shards, size)
    parts: int  # how many of `gradients` are added up where that is not the step's shards
    gradient: int  # flat: the last step's
    totals: int  # float64 (SHARDS_MOST, 2): loss and sum of weights by shard
    norms: int  # float64 (stretches,): sums of squared weights
    losses: int  # float64 (steps, 2): loss and sum of weights by step
    stretches: int
    taken: int  # int64 (most items of a phase,): the phase each item was claimed for last

    # Optimizer
    optimizer: int  # NONE, SGD or ADAM
    moments: int  # (2, size)
    rates: int  # float64 (steps,)
    momentum: float
    nesterov: int
    beta_1: float
    beta_2: float
    epsilon: float
    decay: float
    steps_before: int

    # Objective
    alpha: float
    missing: int  # 1: NaN cells are missing
    noise: int  # NO_NOISE, GAUSSIAN, MASK or SWAP
    noise_level: float
    sparse: int  # 1: the mean code has a cost
    sparsity_target: float
    sparsity_weight: float
    codes: int  # float64 (SHARDS_MOST, code): sums of codes by shard
    slopes: int  # float64 (code,), padded: the cost's derivative by each unit's mean

    # Inference: layers first_layer .. last_layer - 1
    first_layer: int
    last_layer: int
    out: int  # INFER_TASK: (rows, columns of the last layer); ERRORS_TASK: float64 (rows,)
    out_stride: int
    column_weight: int  # float64 (columns,), padded

    # The form's functions (products.py)
    forward_at: int
    residual_at: int
    backward_at: int
    gradient_at: int
    from_lines_at: int
    prepare_weights_at: int
    sparsity_delta_at: int
    add_delta_at: int

    # What else is compiled for the engine's dtype
    load_at: int
    shard_at: int
    transpose_at: int
    update_at: int
    infer_at: int


@_record
class Member(ctypes.Structure):
    """What one thread of a crew keeps: a cache line."""

    number: int  # 0: the leader
    held: int  # number of the phase that it holds an item of, + 1; or 0
    item: int
    progress: int  # rows of the item's shard that are done
    quota: int  # rows x features that it may still process in this call; at least one tile
    refill: int  # a helper's next quota
    present: int  # a helper: 1 from when it is woken until it goes back to sleep
    wake: int  # set by open_job and admit: this helper is to be woken


JOB, MEMBER = np.dtype(Job), np.dtype(Member)

STEPS_TASK, INFER_TASK, ERRORS_TASK = range(3)  # task
NONE, SGD, ADAM = range(3)  # optimizer
NO_NOISE, GAUSSIAN, MASK, SWAP = range(4)  # noise

_KINDS = "f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"
KINDS = {np.dtype(name): kind for kind, name in enumerate(_KINDS)}  # dtype of X -> kind
KINDS[np.dtype(bool)] = KINDS[np.dtype("u1")]

# The control block that a crew shares: places of int64 words, in bytes, a cache line apart
OPEN, INSIDE, CLAIM, DONE, NEXT, CANCEL, OUTCOME, STEPS_DONE, CONTROL_BYTES = range(0, 9 * 64, 64)
FINISHED_CLAIM = -1

# How a run ended, or did not yet
COMPLETE, CANCELLED, DIVERGED = 1, 2, 3  # the word OUTCOME
BUSY, WAITING, OVER = 0, 1, 2  # what run returns

TRANSPOSE, CODE, SHARD, UPDATE, PHASES = range(5)
