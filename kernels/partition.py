"""How a job is cut up: a step's rows into shards, the flat buffers into stretches. By the job alone, not by threads."""

from functools import lru_cache

from fastae.kernels.compiler import callee
from fastae.kernels.job import CODE, SHARD, TRANSPOSE, UPDATE

STRETCH = 2048  # elements of weights that an UPDATE item covers at most
SHARDS_MOST, SHARD_ROWS_LEAST, SHARD_FLOPS = 32, (16, 96, 512), 1_600_000


@callee
def round_up(count, multiple):  # type: ignore[no-untyped-def]
    """The least multiple that is no less than `count`: the rows computed for so many, the columns that hold so many."""
    return (count + multiple - 1) // multiple * multiple


@callee
def in_blocks(columns, lanes):  # type: ignore[no-untyped-def]
    """How many blocks hold so many columns."""
    return (columns + lanes - 1) // lanes


@callee
def shard_rows(rows, size, multiple):  # type: ignore[no-untyped-def]
    """Rows in each shard of a batch but the last, whole register tiles; `size` is that of the flat buffers.

    A shard has 512 rows or more, for its gradient has to be added up; a small batch, so that it can be shared out, is
    cut into up to four of 96 or two of 16 rows, of SHARD_FLOPS at least; or into two of 8 rows and ten times as much.
    (Shards of fewer rows cost too much where one thread has to do them all.) Their number is a power of two, which most
    numbers of threads share evenly; it never depends on the number of threads: the same job has the same shards.
    """
    two, four, many = SHARD_ROWS_LEAST
    least = SHARD_FLOPS // (6 * size)
    two = min(two, max(8, 10 * least))
    most = max(rows // many, min(rows // max(least, four), 4), min(rows // max(least, two), 2))
    most = min(most, SHARDS_MOST)
    shards = 1
    while 2 * shards <= most:
        shards *= 2
    each = (rows + shards - 1) // shards
    return round_up(each, multiple)


@callee
def shards_of(rows, size, multiple):  # type: ignore[no-untyped-def]
    """How many shards that makes. A smaller batch may have more: their rows are rounded up."""
    each = shard_rows(rows, size, multiple)
    return (rows + each - 1) // each


@lru_cache(1024)
def most_shards(rows: int, batch: int, size: int, multiple: int) -> int:
    """How many shards a step on `batch` of the rows has at most; the last step, on fewer, may have more."""
    return int(max(shards_of(each, size, multiple) for each in (batch, rows % batch or batch)))


@callee
def rows_in_step(job, step):  # type: ignore[no-untyped-def]
    """First row and row count of a step; steps walk through the rows batch by batch, and start over."""
    per_epoch = (job.rows + job.batch - 1) // job.batch
    first = step % per_epoch * job.batch
    return first, min(job.batch, job.rows - first)


@callee
def stretches(plan, lanes):  # type: ignore[no-untyped-def]
    """How many stretches the flat buffers fall into: whole squares of lanes x lanes weights, of one layer each."""
    most = STRETCH // (lanes * lanes)
    total = 0
    for i in range(plan.shape[0]):
        total += ((plan[i].bias - plan[i].weight) // (lanes * lanes) + most - 1) // most
    return total


@callee
def stretch(plan, item, lanes):  # type: ignore[no-untyped-def]
    """The layer of stretch `item`, its first and last square there, and its elements; a layer's last has its bias."""
    square, most = lanes * lanes, STRETCH // (lanes * lanes)
    for i in range(plan.shape[0]):
        squares = (plan[i].bias - plan[i].weight) // square
        count = (squares + most - 1) // most
        if item < count:
            first, last = item * most, min(item * most + most, squares)
            end = plan[i].weight + last * square
            if last == squares:
                end += round_up(plan[i].fan_out, lanes)
            return i, first, last, plan[i].weight + first * square, end
        item -= count
    return 0, 0, 0, 0, 0


@callee
def rows_of_shard(job, step, item):  # type: ignore[no-untyped-def]
    """First row and row count of a shard of a step."""
    first, rows = rows_in_step(job, step)
    each = shard_rows(rows, job.size, job.row_multiple)
    return first + each * item, min(each, rows - each * item)


@callee
def items_of(job, step, phase):  # type: ignore[no-untyped-def]
    """How many items a phase of a step has."""
    if phase == UPDATE or (phase == TRANSPOSE and step == 0):
        return job.stretches
    if phase == SHARD or (phase == CODE and job.sparse != 0):
        _, rows = rows_in_step(job, step)
        return shards_of(rows, job.size, job.row_multiple)
    return 0


@callee
def epoch_of(job, step):  # type: ignore[no-untyped-def]
    """The number of the epoch that a step is in."""
    return job.epoch + step // ((job.rows + job.batch - 1) // job.batch)
