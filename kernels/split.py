"""How a job is divided into items: the rows of a step into shards, the flat buffers into stretches.

The split depends only on the job, never on the number of threads. Here `n_parameters` is the size of a flat
buffer, and `multiple` is job.row_multiple, the rows of whole register tiles.
"""

from functools import lru_cache

from fastae.kernels.compiler import callee
from fastae.kernels.job import CODE, SHARD, TRANSPOSE, UPDATE

STRETCH = 2048  # weights of a stretch at most
SHARDS_MOST = 32
SHARD_FLOPS = (
    1_600_000  # least work of a shard of fewer than 512 rows; this and the following: see shard_rows
)
ROWS_OF_MANY, ROWS_OF_4, ROWS_OF_2, ROWS_OF_LARGE = 512, 96, 16, 8


@callee
def round_up(count, multiple):  # type: ignore[no-untyped-def]
    """The least multiple that is not below `count`."""
    return (count + multiple - 1) // multiple * multiple


@callee
def in_blocks(columns, lanes):  # type: ignore[no-untyped-def]
    """The number of blocks, of `lanes` columns each, that hold `columns` columns."""
    return (columns + lanes - 1) // lanes


@callee
def shard_rows(rows, n_parameters, multiple):  # type: ignore[no-untyped-def]
    """Rows in each shard of a batch of `rows` rows, except the last: whole register tiles.

    A shard has 512 rows or more, because its gradient has to be added to the others. A smaller batch is divided all
    the same, so that threads can share it: into up to four shards of at least 96 rows, or two of at least 16, each of
    at least SHARD_FLOPS; or into two of 8 rows and ten times SHARD_FLOPS. (Shards of fewer rows cost too much where one
    thread does them all.) The number of shards is a power of two, which 2, 4, 8, ... threads
    share evenly.
    """
    least = SHARD_FLOPS // (6 * n_parameters)  # rows that are enough work
    least_of_two = min(ROWS_OF_2, max(ROWS_OF_LARGE, 10 * least))
    up_to_four = min(rows // max(least, ROWS_OF_4), 4)
    up_to_two = min(rows // max(least, least_of_two), 2)
    most = min(max(rows // ROWS_OF_MANY, up_to_four, up_to_two), SHARDS_MOST)
    shards = 1
    while 2 * shards <= most:
        shards *= 2
    each = (rows + shards - 1) // shards
    return round_up(each, multiple)


@callee
def shards_of(rows, n_parameters, multiple):  # type: ignore[no-untyped-def]
    """The number of shards of a batch.

    A smaller batch may get more shards, because rounding up makes each shard of the larger one bigger.
    """
    each = shard_rows(rows, n_parameters, multiple)
    return (rows + each - 1) // each


@lru_cache(1024)
def most_shards(rows: int, batch: int, n_parameters: int, multiple: int) -> int:
    """The most shards of any step of an epoch. Its last step, on fewer rows than `batch`, may have more."""
    return int(max(shards_of(count, n_parameters, multiple) for count in (batch, rows % batch or batch)))


@callee
def rows_in_step(job, step):  # type: ignore[no-untyped-def]
    """First row and row count of a step's batch. Steps go through the rows batch by batch, epoch after epoch.

    Where `index` holds an order for each epoch, rows are counted through all of it.
    """
    per_epoch = (job.rows + job.batch - 1) // job.batch
    epoch, first = step // per_epoch, step % per_epoch * job.batch
    return epoch % job.orders * job.rows + first, min(job.batch, job.rows - first)


@callee
def stretches(plan, lanes):  # type: ignore[no-untyped-def]
    """The number of stretches of the flat buffers. Each holds whole squares of lanes x lanes weights of one layer."""
    most = STRETCH // (lanes * lanes)
    total = 0
    for i in range(plan.shape[0]):
        total += ((plan[i].bias - plan[i].weight) // (lanes * lanes) + most - 1) // most
    return total


@callee
def stretch(plan, item, lanes):  # type: ignore[no-untyped-def]
    """Where stretch `item` lies: (layer, first square, last square + 1, first element, last element + 1).

    Squares count within the layer, elements within the flat buffers. A layer's last stretch also holds its bias.
    """
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
    each = shard_rows(rows, job.n_parameters, job.row_multiple)
    return first + each * item, min(each, rows - each * item)


@callee
def items_of(job, step, phase):  # type: ignore[no-untyped-def]
    """The number of items of a phase of a step; 0 if the step does not have this phase."""
    if phase == UPDATE or (phase == TRANSPOSE and step == 0):
        return job.stretches
    if phase == SHARD or (phase == CODE and job.sparse != 0):
        _, rows = rows_in_step(job, step)
        return shards_of(rows, job.n_parameters, job.row_multiple)
    return 0


@callee
def epoch_of(job, step):  # type: ignore[no-untyped-def]
    """The number of a step's epoch."""
    return job.epoch + step // ((job.rows + job.batch - 1) // job.batch)
