"""How a step is divided into items. The split depends only on the job, never on the number of threads.

There are two ways (job.cut), which ``by_weights`` chooses between:

    BY_ROWS       The rows are cut into *shards*. A shard goes through the network tile by tile, and what is computed
                  for its rows stays in its thread's cache. Each shard has a gradient of its own. To add these up and
                  update the weights, the flat buffers are cut into *stretches*.
    BY_WEIGHTS    The rows go through the network in *bands*, and all activations and deltas are kept. Then the weights
                  are cut into *patches*. A patch computes its gradient over all rows, and updates its weights at once:
                  gradients are neither stored nor added up. So that memory does not grow with the batch, it goes
                  through in *slabs* of rows; if there are several, gradients are added up slab by slab, in place.

A *round* is a slab, or for BY_ROWS a whole step.

Shards suit few weights: the traffic of a shard grows with the number of weights, and there are at most 64 shards. Bands
and patches suit many weights: their traffic grows with rows times columns, and there are enough for many threads.

Here `n_parameters` is the size of a flat buffer, and `multiple` is job.row_multiple, the rows of whole register tiles.
"""

from functools import lru_cache

from fastae.kernels.compiler import callee
from fastae.kernels.job import BY_WEIGHTS, CLIP, CODE, ROWS, TRANSPOSE, WEIGHTS
from fastae.kernels.rounding import in_blocks, round_up

STRETCH = 2048  # weights of a stretch at most
SHARDS_MOST = 64
# See shard_rows. The first is the least work of a shard of fewer than 512 rows.
SHARD_FLOPS = 1_600_000
ROWS_OF_MANY, ROWS_OF_4, ROWS_OF_2, ROWS_OF_LARGE = 512, 96, 16, 8

WEIGHTS_MANY = 64_000  # elements of the flat buffers from which a step is cut by weights; see by_weights
SLAB = 2048  # rows of a slab at most
BANDS_MOST = 64  # bands of a slab
ROWS_ITEMS_MOST = max(SHARDS_MOST, BANDS_MOST)
GROUP = 16  # items that are counted together: a single counter would be slow from about 100 threads on
PATCH_BLOCKS = 3  # blocks of columns of a patch at most: the widest register tile
PATCH_ROWS = 256  # rows of W in a patch at most


# -- by rows: shards and stretches ------------------------------------------------------------------------------------


@callee
def shard_rows(rows, n_parameters, multiple):  # type: ignore[no-untyped-def]
    """Rows in each shard of a batch of `rows` rows, except the last: whole register tiles.

    A shard has 512 rows or more, because its gradient has to be added to the others. A smaller batch is divided all
    the same, so that threads can share it: into up to four shards of at least 96 rows, or two of at least 16, each of
    at least SHARD_FLOPS; or into eight of 96 rows or two of 8 rows, each of ten times SHARD_FLOPS. (Shards of fewer
    rows cost too much where one thread does them all.) The number of shards is a power of two, which 2, 4, 8, ...
    threads share evenly.
    """
    least = SHARD_FLOPS // (6 * n_parameters)  # rows that are enough work
    least_of_two = min(ROWS_OF_2, max(ROWS_OF_LARGE, 10 * least))
    up_to_eight = min(rows // max(10 * least, ROWS_OF_4), 8)
    up_to_four = min(rows // max(least, ROWS_OF_4), 4)
    up_to_two = min(rows // max(least, least_of_two), 2)
    most = min(max(rows // ROWS_OF_MANY, up_to_eight, up_to_four, up_to_two), SHARDS_MOST)
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


# -- by weights: slabs, bands and patches -----------------------------------------------------------------------------


@callee
def _patches_of(layer, lanes):  # type: ignore[no-untyped-def]
    """(down, across): how many patches of a layer lie below each other, and side by side."""
    down = in_blocks(layer.fan_in, PATCH_ROWS)
    return down, in_blocks(in_blocks(layer.fan_out, lanes), PATCH_BLOCKS)


@callee
def patches(plan, lanes):  # type: ignore[no-untyped-def]
    """The number of patches of a network."""
    total = 0
    for i in range(plan.shape[0]):
        down, across = _patches_of(plan[i], lanes)
        total += down * across
    return total


@callee
def patch(plan, item, lanes):  # type: ignore[no-untyped-def]
    """Where patch `item` lies: (layer, first block of rows of W, last + 1, first block of columns, last + 1).

    A block of rows has `lanes` rows. Patches of a layer have as equal sizes as whole blocks allow.
    """
    for i in range(plan.shape[0]):
        down, across = _patches_of(plan[i], lanes)
        if item < down * across:
            row, column = item % down, item // down
            rows, columns = in_blocks(plan[i].fan_in, lanes), in_blocks(plan[i].fan_out, lanes)
            return (
                i,
                row * rows // down,
                (row + 1) * rows // down,
                column * columns // across,
                (column + 1) * columns // across,
            )
        item -= down * across
    return 0, 0, 0, 0, 0


def by_weights(n_parameters: int) -> bool:
    """Whether steps are cut by weights, however many rows they have.

    Measured on two threads: as fast as by rows, or faster, for networks of 250 columns and more, and 2 to 8% slower
    for fewer than 50,000 weights, because the rows that a thread keeps have to move to the cache of the other one.
    """
    return n_parameters >= WEIGHTS_MANY


@callee
def bands_of(rows, multiple):  # type: ignore[no-untyped-def]
    """The number of bands of a slab: 16, 32 or 64, which so many threads share, or fewer if `rows` are few.

    A band then has about 16 rows, or 8 of up to 16: fewer rows are slower, because every band reads all weights, and
    more are not faster. The number is even, unless each band is one register tile or there is only one band, so that
    the work of two threads differs by at most a register tile.
    """
    tiles = in_blocks(rows, multiple)
    most = 16 if rows <= 512 else 32 if rows <= 1024 else BANDS_MOST
    least = in_blocks(8 if rows <= 16 else 16, multiple)  # register tiles of a band
    return max(1, min(most, tiles, (tiles + least) // (2 * least) * 2))


@callee
def band_of(item, rows, multiple):  # type: ignore[no-untyped-def]
    """First row and row count of band `item` of a slab of `rows` rows.

    Bands are as equal as whole register tiles allow.
    """
    tiles, bands = in_blocks(rows, multiple), bands_of(rows, multiple)
    first = item * tiles // bands * multiple
    return first, min((item + 1) * tiles // bands * multiple, rows) - first


def slab_height(rows: int, multiple: int) -> int:
    """Rows of a slab in memory: an odd multiple, or else all blocks would begin in the same few sets of the cache."""
    return rows if rows // multiple % 2 else rows + multiple


# -- who looks for which item first, and how finished items are counted -----------------------------------------------


@callee
def share_begin(number, size, items):  # type: ignore[no-untyped-def]
    """The item that member `number` of `size` looks for first, of a phase's `items`.

    It goes on to the next one, and from the last to the first. So it first claims the items of its own share, the same
    in every step: what it wrote in the last step is still in its own cache. Then it goes on to the shares of others.
    """
    return number * items // max(size, number + 1)


@callee
def group_of(item, items):  # type: ignore[no-untyped-def]
    """The group that `item` belongs to, of a phase's `items`, and the number of items in it."""
    group = item // GROUP
    return group, min(GROUP, items - group * GROUP)


# -- rounds and items -------------------------------------------------------------------------------------------------


@callee
def rows_in_step(job, step):  # type: ignore[no-untyped-def]
    """First row and row count of a step's batch. Steps go through the rows batch by batch, epoch after epoch.

    Where `index` holds an order for each epoch, rows are counted through all of it.
    """
    per_epoch = (job.rows + job.batch - 1) // job.batch
    epoch, first = step // per_epoch, step % per_epoch * job.batch
    return epoch % job.orders * job.rows + first, min(job.batch, job.rows - first)


@callee
def epoch_of(job, step):  # type: ignore[no-untyped-def]
    """The number of a step's epoch."""
    return job.epoch + step // ((job.rows + job.batch - 1) // job.batch)


@callee
def step_of(job, round_):  # type: ignore[no-untyped-def]
    """The step that a round belongs to."""
    return round_ // job.slabs


@callee
def rows_in_round(job, round_):  # type: ignore[no-untyped-def]
    """First row and row count of a round. A step of fewer rows than `batch` may have rounds without rows at its end."""
    first, rows = rows_in_step(job, step_of(job, round_))
    if job.cut != BY_WEIGHTS:
        return first, rows
    before = min(round_ % job.slabs * job.slab, rows)
    return first + before, min(job.slab, rows - before)


@callee
def is_last_round(job, round_):  # type: ignore[no-untyped-def]
    """Whether a round holds the last rows of its step."""
    if job.cut != BY_WEIGHTS:
        return True
    _, rows = rows_in_step(job, step_of(job, round_))
    return (round_ % job.slabs + 1) * job.slab >= rows


@callee
def rows_of_item(job, round_, phase, item):  # type: ignore[no-untyped-def]
    """First row and row count of an item of ROWS or CODE: of a shard, or of a band."""
    if job.cut == BY_WEIGHTS and phase == ROWS:
        first, rows = rows_in_round(job, round_)
        before, count = band_of(item, rows, job.row_multiple)
        return first + before, count
    first, rows = rows_in_step(job, step_of(job, round_))
    each = shard_rows(rows, job.n_parameters, job.row_multiple)
    return first + each * item, min(each, rows - each * item)


@callee
def items_of(job, round_, phase):  # type: ignore[no-untyped-def]
    """The number of items of a phase of a round; 0 if the round does not have this phase."""
    if phase == TRANSPOSE:
        return job.stretches if round_ == 0 else 0
    if phase == CLIP and (job.clip_norm == 0 or not is_last_round(job, round_)):
        return 0
    if (phase == WEIGHTS or phase == CLIP) and job.cut != BY_WEIGHTS:
        return job.stretches
    _, rows = rows_in_round(job, round_)
    if rows == 0 or (phase == CODE and (job.sparse == 0 or round_ % job.slabs != 0)):
        return 0
    if phase == WEIGHTS:
        return job.patches
    if phase == CLIP:
        return job.stretches
    if job.cut == BY_WEIGHTS and phase == ROWS:
        return bands_of(rows, job.row_multiple)
    _, rows = rows_in_step(job, step_of(job, round_))
    return shards_of(rows, job.n_parameters, job.row_multiple)
