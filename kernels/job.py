"""What the threads of a team are told and share: the places in the vectors that say it. No kernel lives here."""

import numpy as np

# A job: an int64 vector of addresses, strides in bytes and sizes in elements
(
    TASK,  # STEPS_TASK, INFER_TASK or ERRORS_TASK
    PLAN_AT,  # the plan of layout.py, (LAYERS, PLAN)
    LAYERS,
    X,  # the matrix: its address, strides and kind (KINDS)
    ROW_STRIDE,
    COLUMN_STRIDE,
    KIND,
    INDEX,  # int64 row numbers, or 0
    SAMPLE_WEIGHT,  # float64 weights by row, or 0
    SHIFT,  # float64 columns, or 0
    SCALE,
    ROWS,  # rows that the steps walk through
    BATCH,  # rows a step takes; infer: rows that are claimed at a time, HEIGHT at most
    STEPS,
    HEIGHT,  # rows of a tile
    MULTIPLE,  # rows are computed in multiples of this: whole register tiles
    SIZE,  # elements of the flat buffers
    STRETCHES,  # pieces that they are cut into
    PARAMETERS,  # flat
    WEIGHTS,  # what products take: PARAMETERS, or the flat buffer with weights as bfloat16.py has them
    ONES,  # lines of ones, zero in padding lanes, by COLUMN_SUMS
    WT,  # every W' but the first layer's
    WT_SIZE,
    GRADIENTS,  # (shards, flat)
    PARTS,  # how many of them are added up, where that is not a step's shards
    TOTALS,  # float64 (shards, 2)
    NORMS,  # float64 (stretches,): the weights' sums of squares
    GRADIENT,  # flat
    OPTIMIZER,
    MOMENTS,  # (2, flat)
    RATES,  # float64 (steps,)
    SETTINGS,  # float64, of optimizer.py
    LOSSES,  # float64 (steps, 2): the loss and the sum of weights of each step
    OUT,  # infer: the result and its row stride, layers [FIRST_LAYER, LAST_LAYER)
    OUT_STRIDE,
    FIRST_LAYER,
    LAST_LAYER,
    COLUMN_WEIGHT,  # errors: float64 columns
    MISSING,  # 1: cells that are NaN are missing
    NOISE,  # its id, SEED and EPOCH that it is drawn by
    SEED,
    EPOCH,  # of the first step
    CODE_LAYER,  # which layer's output the code is
    SPARSE,  # 1: the mean code has a cost
    CODES,  # float64 (shards, code): sums of codes
    SLOPES,  # float64 (code,), padded: the cost's derivative by each unit's mean
    FIRST_ROW,  # number of the matrix's first row, for the noise: the matrix may be a block of a larger one
    FORWARD_AT,  # where the layer kernels lie: addresses
    RESIDUAL_AT,
    BACKWARD_AT,
    GRADIENT_AT,
    LOAD_AT,  # and what else is compiled for the engine's dtype
    SHARD_AT,
    TRANSPOSE_AT,
    UPDATE_AT,
    INFER_AT,
    PREPARE_AT,  # puts loaded rows into the form that products take; 0 where they are loaded in it
    NARROW_AT,  # and the others of bfloat16.py; 0 where products are in the engine's dtype
    NARROW_WEIGHTS_AT,
    PULL_AT,
    ADD_PULL_AT,
    TAKEN,  # (most items of a phase,): which phase each was claimed for last
    TURNED,  # 1: rows lie in the lanes, as rowlanes.py has them
    SUMS,  # 1: loss and gradient as sums over the rows, not divided by the rows' weights
    JOB,
) = range(65)
STEPS_TASK, INFER_TASK, ERRORS_TASK = range(3)

_KINDS = "f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"
KINDS = {np.dtype(name): kind for kind, name in enumerate(_KINDS)}  # dtype -> KIND
KINDS[np.dtype(bool)] = KINDS[np.dtype("u1")]

NO_NOISE, GAUSSIAN, MASK, SWAP = range(4)

NONE, SGD, ADAM = range(3)  # OPTIMIZER
# SETTINGS, of the optimizer (optimizer.py), then of the objective (fastae/objective.py)
MOMENTUM, NESTEROV, BETA_1, BETA_2, EPSILON, DECAY, STEPS_BEFORE, ALPHA = range(8)
NOISE_LEVEL, SPARSITY_TARGET, SPARSITY_WEIGHT, SETTINGS_SIZE = range(8, 12)

# The control block: int64s a cache line apart
OPEN, INSIDE, CLAIM, DONE, NEXT, CANCEL, OUTCOME, STEPS_DONE, CONTROL = range(0, 72, 8)
FINISHED_CLAIM = -1

# What a thread of the team keeps: a cache line of int64s
(
    MEMBER,  # 0: the leader
    HELD,  # the phase it holds an item of + 1, or 0
    ITEM,
    PROGRESS,  # rows done of its shard
    QUOTA,  # rows x features it may still go through in this call, at least one tile
    REFILL,  # a helper's next quota
    PRESENT,  # a helper: 1 from when it is woken until it goes back to sleep
    WAKE,  # set by open_job: this helper is to be woken
) = range(8)

# How a run ended, or did not yet
COMPLETE, CANCELLED, DIVERGED = 1, 2, 3
BUSY, WAITING, OVER = 0, 1, 2

TRANSPOSE, CODE, SHARD, UPDATE, PHASES = range(5)
