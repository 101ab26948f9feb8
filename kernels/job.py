"""The records that describe a job to the threads of a crew, and the memory they share. No kernel is here.

Each record is a class that Python fills by attribute, and a NumPy dtype of the same name in capitals, through which
kernels read the same memory: ``record_at(job_at, JOB).rows``. Fields whose names end in ``_at`` are addresses of
compiled functions. Any other address has the name of the array that lies there, and its shape in a comment; the dtype
is the engine's unless it is given.
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
    """One call of the engine. Strides are in bytes, sizes in elements; the address of an absent array is 0."""

    task: int  # STEPS_TASK, INFER_TASK or ERRORS_TASK
    plan: int  # the plan of layout.py, LAYER (layers,)
    layers: int
    code_layer: int  # the layer whose output is the code, counted from 0

    # The matrix X
    x: int  # (rows of X, columns), of any dtype in DTYPE_IDS
    row_stride: int
    column_stride: int
    dtype_id: int  # the id of X's dtype, by DTYPE_IDS
    index: int  # int64 (orders, rows): the rows of X to use, in the order of each epoch
    orders: int  # epochs of the steps that have an order of their own, or 1
    sample_weight: int  # float64 (rows of X,)
    shift: int  # float64 (columns,), padded
    scale: int  # float64 (columns,), padded
    rows: int  # rows of an epoch, or of inference
    # The number of X's first row, which the noise depends on: X may be a part of a larger matrix
    first_row: int

    # The matrix Y, which the network's output is compared with; its rows are numbered as X's. Absent: X itself. For
    # GIVEN, it holds the derivatives of the cost with respect to the output
    y: int  # (rows of X, columns of the output), of any dtype in DTYPE_IDS
    y_row_stride: int
    y_column_stride: int
    y_dtype_id: int
    y_shift: int  # float64 (columns,), padded
    y_scale: int  # float64 (columns,), padded

    # Steps
    batch: int  # rows of a step; in inference, rows claimed at a time: at most height
    steps: int
    epoch: int  # the number of the first step's epoch
    seed: int  # of the noise
    as_sums: int  # 1: loss and gradient are sums over the rows, not divided by the sum of their weights

    # Tiles
    height: int  # rows of a tile in memory
    row_multiple: int  # the rows that products compute are a multiple of this: whole register tiles
    target_in_form: int  # 1: ``residual`` takes a stored target, not a blocked one

    # How a step is divided into items (split.py)
    cut: int  # BY_ROWS or BY_WEIGHTS; all that follows here is for BY_WEIGHTS only
    slab: int  # rows of a slab at most
    slabs: int  # slabs of a batch at most; 1 for BY_ROWS
    patches: int
    slab_height: int  # rows of a slab in memory
    stored_row: int  # bytes from a row of a stored matrix to the next
    kept: int  # the memory of a slab, mapped by TileMap: its input, and the output of each layer
    deltas: int  # (slab_height, padded columns of all outputs but the last): the delta of each hidden layer
    band_sums: int  # (bands of a slab, padded columns of all outputs): each band's column sums of deltas

    # Parameters and what a step computes; "flat" stands for (n_parameters,), a flat buffer
    n_parameters: int  # with padding
    parameters: int  # flat
    weights: int  # flat: W as the form's products read it; equal to `parameters` if they read W itself
    transposed: int  # (transposed_size,): W' of every layer but the first, prepared by the form
    transposed_size: int
    ones: int  # (columns of all outputs,): 1, and 0 in padding lanes
    gradients: int  # (shards, n_parameters)
    n_parts: int  # the number of `gradients` to add up; 0: one per shard of the step
    gradient: int  # flat: the gradient of the last step
    totals: int  # float64 (ROWS_ITEMS_MOST + 1, 2): each shard's or band's loss and sum of row weights; last, a step's
    weight_squares: int  # float64 (stretches or patches, 8): partial sums of the squared weights of each
    # float64 (1 + stretches or patches, 8): the factor that clips the gradient; then partial sums of the squares of the
    # gradient of each
    gradient_squares: int
    losses: int  # float64 (steps, 2): each step's loss and sum of row weights
    stretches: int
    taken: int  # int64 (most items of a phase,): the phase for which each item was last claimed
    group_done: int  # int64 values, APART, for each group of items of a phase: how many of these are done

    # Optimizer
    optimizer: int  # NONE, SGD or ADAM
    moments: int  # (2, n_parameters)
    rates: int  # float64 (steps,)
    # float64 (layers, 2): of the rates of each W and b, 0 if it is frozen; no array: all are 1
    rate_factors: int
    clip_norm: float  # the gradient's norm at most; 0: it is not clipped
    momentum: float
    nesterov: int
    beta_1: float
    beta_2: float
    epsilon: float
    weight_decay: float
    steps_before: int  # steps that the optimizer took before this job

    # Objective
    loss: int  # SQUARED_ERROR, HUBER, BERNOULLI or GIVEN
    # (1,): from which absolute value on a residual counts linearly; absent unless the loss is HUBER
    huber_delta: int
    out_of_range: int  # int64 (1,): set to 1 if a target of BERNOULLI is outside [0, 1]
    alpha: float
    missing: int  # 1: NaN stands for a missing cell
    noise: int  # NO_NOISE, GAUSSIAN, MASK or SWAP
    noise_level: float
    sparse: int  # 1: sparsity_weight > 0, so the mean code has a cost
    sparsity_target: float
    sparsity_weight: float
    codes: int  # float64 (SHARDS_MOST, k): each shard's weighted sum of codes, of k units
    slopes: int  # float64 (k,), padded: the derivative of the cost with respect to each unit's mean

    # GIVEN: derivatives of the cost that the caller gives, besides Y, and wants
    given_code: int  # (rows of X, k), of any dtype in DTYPE_IDS: with respect to the code; absent: 0
    given_row_stride: int
    given_column_stride: int
    given_dtype_id: int
    input_delta: int  # (rows, columns): written: with respect to the network's input; absent: not wanted
    input_delta_stride: int
    first_transposed: int  # W' of the first layer, prepared by the form, for that
    zeros: int  # (columns of the input,), padded: 0

    # Inference: layers first_layer .. last_layer - 1
    first_layer: int
    last_layer: int
    out: int  # INFER_TASK: (rows, columns of the last layer's output); ERRORS_TASK: float64 (rows,)
    out_stride: int
    column_weight: int  # float64 (columns,), padded
    # int64 (1,): set to 1 if a cell is infinite or, unless it is a missing one, NaN; 0: not checked
    not_finite: int

    # The functions of the form (products.py)
    forward_at: int
    residual_at: int
    backward_at: int
    gradient_at: int
    from_rows_at: int
    from_blocked_at: int
    delta_from_blocked_at: int
    prepare_weights_at: int
    sparsity_delta_at: int
    code_delta_at: int
    add_delta_at: int
    store_rows_at: int
    row_errors_at: int

    # The other functions that are compiled for the engine's dtype (step.ITEMS)
    load_at: int
    shard_at: int
    transpose_at: int
    band_at: int
    update_at: int
    patch_at: int
    clip_at: int
    update_parts_at: int
    infer_at: int


@_record
class Member(ctypes.Structure):
    """The state of one thread of a crew. A phase's number is round * PHASES + phase."""

    number: int  # 0: the leader
    held: int  # the number of the phase whose item it holds, or FREE: it holds none
    item: int  # the item it holds
    progress: int  # rows of that item that are done
    quota: int  # rows times features still to process before ``run`` returns, rounded up to whole tiles
    refill: int  # a helper's quota, each time
    present: int  # of a helper, 1 from when it is to be woken until it decides to sleep
    wake: int  # of a helper, 1 if the caller of open_job or admit must wake it


# Bytes between what different threads write: a cache line of Apple's CPUs, two of others, which Intel's load in pairs
APART = 128

JOB = np.dtype(Job)
MEMBER = np.dtype(
    {
        "names": list(get_annotations(Member)),
        "formats": [np.int64] * len(get_annotations(Member)),
        "itemsize": APART,
    }
)

# Ids
STEPS_TASK, INFER_TASK, ERRORS_TASK = range(3)  # job.task
NONE, SGD, ADAM = range(3)  # job.optimizer
SQUARED_ERROR, HUBER, BERNOULLI, GIVEN, LOSSES = range(5)  # job.loss, and their number
# Machine epsilons by which a target of BERNOULLI may lie outside [0, 1], as scaling rounds
BERNOULLI_SLACK = 8
INPUT, TARGET, GIVEN_CODE = range(3)  # the matrices whose rows are loaded: X, Y and job.given_code
NO_NOISE, GAUSSIAN, MASK, SWAP = range(4)  # job.noise
TRANSPOSE, CODE, ROWS, WEIGHTS, CLIP, PHASES = range(6)  # the phases of a round (step.py), and their number
BY_ROWS, BY_WEIGHTS = range(2)  # job.cut

# The dtypes of matrices whose rows are read; the id of each is its place. A bool is read as a uint8.
SOURCE_DTYPES = tuple(map(np.dtype, ("f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")))
DTYPE_IDS = {dtype: id_ for id_, dtype in enumerate(SOURCE_DTYPES)}
DTYPE_IDS[np.dtype(bool)] = DTYPE_IDS[np.dtype("u1")]

# The control words, which a crew shares: int64 values, APART. These are their offsets in bytes:
#   OPEN        members with a number below this may work on the job; 0: it is closed
#   INSIDE      helpers that may be reading the job
#   CLAIM       the number of the phase whose items are claimed now (see Member), or FINISHED_CLAIM
#   DONE        groups of this phase's items that are done
#   NEXT        inference: how often rows have been claimed
#   CANCEL      1: stop as soon as possible
#   OUTCOME     0, or how the steps ended: COMPLETE, CANCELLED or DIVERGED
#   STEPS_DONE  steps taken
OPEN, INSIDE, CLAIM, DONE, NEXT, CANCEL, OUTCOME, STEPS_DONE, CONTROL_BYTES = range(0, 9 * APART, APART)
FINISHED_CLAIM = -1
FREE = -1  # Member.held
COMPLETE, CANCELLED, DIVERGED = 1, 2, 3

BUSY, WAITING, OVER = 0, 1, 2  # what ``run`` returns (step.py)
