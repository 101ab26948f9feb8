"""The split of a job: rows into steps, and these into shards and stretches, or into slabs, bands and patches.

It depends on nothing but the job, and covers each part exactly once.
"""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastae.kernels import job as fields
from fastae.kernels import layout, split
from fastae.kernels.rounding import round_up

ROWS = st.integers(1, 200_000)
SIZES = st.one_of(st.integers(8, 4000), st.integers(4000, 2_000_000))  # of the flat buffers
MULTIPLES = st.sampled_from([1, 8, 16, 24, 48, 128])
LANES = {"float32": 16, "float64": 8}


def a_job(rows, batch, *, n_parameters=800, multiple=16, stretches=5, epoch=0, sparse=False, **more):
    """What these functions read of a job of steps: the one place here that knows what a job is."""
    return fields.Job(
        rows=rows,
        orders=1,
        batch=batch,
        n_parameters=n_parameters,
        row_multiple=multiple,
        stretches=stretches,
        epoch=epoch,
        sparse=sparse,
        **{"slabs": 1} | more,
    )


def steps_an_epoch(rows, batch):
    return -(-rows // batch)


# -- shards -----------------------------------------------------------------------------------------------------------


@given(ROWS, SIZES, MULTIPLES)
def test_shards_are_whole_register_tiles_and_never_too_many(rows, size, multiple):
    each, shards = split.shard_rows(rows, size, multiple), split.shards_of(rows, size, multiple)
    assert each % multiple == 0
    assert 1 <= shards <= split.SHARDS_MOST
    assert (shards - 1) * each < rows <= shards * each  # the last one has at least one row


@given(ROWS, SIZES, MULTIPLES)
def test_shards_are_a_power_of_two_or_fewer_where_their_rows_are_rounded_up(rows, size, multiple):
    shards = split.shards_of(rows, size, 1)
    assert shards & (shards - 1) == 0
    assert split.shards_of(rows, size, multiple) <= shards


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16, 32, 64])
def test_rows_that_divide_evenly_are_shared_evenly(shards):
    assert split.shards_of(512 * shards, 800, 16) == shards
    assert split.shard_rows(512 * shards, 800, 16) == 512


@pytest.mark.parametrize(
    ("rows", "size", "shards"),
    [
        (31, 20_000, 1),
        (32, 20_000, 2),  # two of 16
        (15, 10**6, 1),
        (16, 10**6, 2),  # two of 8: a row is so much work
        (63, 4000, 1),  # so little work that a shard of 16 rows is not worth it
        (383, 4000, 2),
        (384, 4000, 4),  # four of 96
        (2047, 4000, 4),
        (4096, 4000, 8),  # 512 each from here on
        (767, 32_768, 4),
        (768, 32_768, 8),  # eight of 96: more weights, more work
        (10**6, 4000, 64),
    ],
)
def test_a_small_batch_has_fewer_shards_and_each_does_enough_work(rows, size, shards):
    assert split.shards_of(rows, size, 1) == shards


@given(ROWS, st.integers(1, 200_000), SIZES, MULTIPLES)
def test_most_shards_is_the_most_that_any_step_has(rows, batch, size, multiple):
    batch = min(batch, rows)
    steps = range(max(0, steps_an_epoch(rows, batch) - 2), steps_an_epoch(rows, batch))
    job = a_job(rows, batch, n_parameters=size, multiple=multiple)
    counts = [split.items_of(job, step, fields.ROWS) for step in (0, *steps)]
    assert split.most_shards(rows, batch, size, multiple) == max(counts)


def test_a_short_last_batch_may_have_more_shards_than_a_whole_one():
    assert split.shards_of(32_769, 800, 128) == 52  # 512.02 rows each are rounded up to 640
    assert split.shards_of(32_768, 800, 128) == 64
    assert split.most_shards(32_769 + 32_768, 32_769, 800, 128) == 64


# -- steps ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 3))
def test_every_row_is_in_one_step_of_each_epoch(rows, batch, epoch):
    batch = min(batch, rows)
    job, steps = a_job(rows, batch, epoch=7), steps_an_epoch(rows, batch)
    taken = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        first, count = split.rows_in_step(job, step)
        assert 1 <= count <= batch
        taken += range(first, first + count)
        assert split.epoch_of(job, step) == 7 + epoch
    assert taken == list(range(rows))


@given(st.integers(1, 3000), st.integers(1, 3000), SIZES, MULTIPLES)
def test_every_row_of_a_step_is_in_one_shard(rows, batch, size, multiple):
    batch = min(batch, rows)
    job = a_job(rows, batch, n_parameters=size, multiple=multiple)
    for step in {0, steps_an_epoch(rows, batch) - 1}:
        taken = []
        for item in range(split.items_of(job, step, fields.ROWS)):
            first, count = split.rows_of_item(job, step, fields.ROWS, item)
            assert count >= 1
            taken += range(first, first + count)
        first, count = split.rows_in_step(job, step)
        assert taken == list(range(first, first + count))


def test_the_last_batch_of_an_epoch_is_short():
    job = a_job(25, 10)
    steps = [split.rows_in_step(job, step) for step in range(6)]
    assert steps == [(0, 10), (10, 10), (20, 5)] * 2
    assert [split.epoch_of(job, step) for step in range(6)] == [0, 0, 0, 1, 1, 1]


# -- stretches --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 200), min_size=2, max_size=6), st.sampled_from(sorted(LANES)))
def test_stretches_cover_each_element_once_in_whole_squares_of_one_layer(widths, dtype):
    lanes = LANES[dtype]
    plan, size, _ = layout.plan(tuple(widths), ("relu",) * (len(widths) - 1), dtype)
    covered, squares = [], Counter()
    for item in range(split.stretches(plan, lanes)):
        layer, low, high, first, last = split.stretch(plan, item, lanes)
        row = plan[layer]
        weights = (high - low) * lanes * lanes
        assert first == row.weight + low * lanes * lanes
        assert 0 < weights <= split.STRETCH
        ends_layer = first + weights == row.bias
        bias = -(-row.fan_out // lanes) * lanes if ends_layer else 0
        assert last == first + weights + bias
        covered += range(first, last)
        squares.update((layer, square) for square in range(low, high))
    assert covered == list(range(size))
    assert max(squares.values()) == 1
    whole = {i: (row.bias - row.weight) // lanes**2 for i, row in enumerate(plan)}
    assert set(squares) == {(i, square) for i, count in whole.items() for square in range(count)}


# -- items ------------------------------------------------------------------------------------------------------------


def test_each_phase_has_its_items():
    job = a_job(5000, 2048, stretches=7)
    shards = [split.shards_of(rows, 800, 16) for rows in (2048, 2048, 904)]
    assert shards == [4, 4, 2]
    assert [split.items_of(job, step, fields.ROWS) for step in range(3)] == shards
    assert [split.items_of(job, step, fields.WEIGHTS) for step in range(3)] == [7, 7, 7]
    # W' of the first step's weights; afterwards an update leaves it
    assert [split.items_of(job, step, fields.TRANSPOSE) for step in range(3)] == [7, 0, 0]
    # a pass for the mean code, where it has a cost
    assert [split.items_of(job, step, fields.CODE) for step in range(3)] == [0, 0, 0]
    # the update after the gradient is complete, where it is to be clipped
    assert [split.items_of(job, step, fields.CLIP) for step in range(3)] == [0, 0, 0]
    clipped = a_job(5000, 2048, stretches=7, clip_norm=0.5)
    assert [split.items_of(clipped, step, fields.CLIP) for step in range(3)] == [7, 7, 7]
    sparse = a_job(5000, 2048, stretches=7, sparse=True)
    assert [split.items_of(sparse, step, fields.CODE) for step in range(3)] == shards


# -- by weights -------------------------------------------------------------------------------------------------------


def a_job_by_weights(rows, batch, *, multiple=16, **more):
    slabs = -(-batch // split.SLAB)
    slab = round_up(-(-batch // slabs), multiple)
    by_weights = {"cut": fields.BY_WEIGHTS, "slabs": slabs, "slab": slab, "patches": 9}
    return a_job(rows, batch, multiple=multiple, **by_weights, **more)


@given(st.integers(1, 9000), st.integers(1, 9000), MULTIPLES)
def test_every_row_of_a_step_is_in_one_band(rows, batch, multiple):
    batch = min(batch, rows)
    job = a_job_by_weights(rows, batch, multiple=multiple)
    for step in {0, steps_an_epoch(rows, batch) - 1}:
        taken, rounds = [], range(step * job.slabs, (step + 1) * job.slabs)
        for round_ in rounds:
            in_slab, tiles, (first, count) = [], [], split.rows_in_round(job, round_)
            bands = split.items_of(job, round_, fields.ROWS)
            assert bands <= split.bands_of(job.slab, multiple) <= split.BANDS_MOST
            for item in range(bands):
                top, size = split.rows_of_item(job, round_, fields.ROWS, item)
                assert size >= 1
                assert (top - first) % multiple == 0, "a band begins within a register tile"
                tiles.append(-(-size // multiple))
                in_slab += range(top, top + size)
            assert max(tiles, default=0) - min(tiles, default=0) <= 1, "bands are not equal"
            assert bands % 2 == 0 or bands in (1, sum(tiles))
            half = bands // 2
            assert abs(sum(tiles[:half]) - sum(tiles[half:])) <= 1 or bands == 1, "two threads differ"
            assert in_slab == list(range(first, first + count))
            assert count <= job.slab
            assert split.step_of(job, round_) == step
            taken += in_slab
        first, count = split.rows_in_step(job, step)
        assert taken == list(range(first, first + count))
        # a step ends with the round that holds its last rows, and what comes after it has no items
        last = [split.is_last_round(job, round_) for round_ in rounds]
        ends = last.index(True)
        assert split.rows_in_round(job, rounds[ends])[1] > 0
        for phase in range(fields.PHASES):
            assert [split.items_of(job, round_, phase) for round_ in rounds[ends + 1 :]] == [0] * (
                job.slabs - ends - 1
            )


@given(st.lists(st.integers(1, 900), min_size=2, max_size=6), st.sampled_from(sorted(LANES)))
def test_patches_cover_each_square_once(widths, dtype):
    lanes = LANES[dtype]
    plan, _, _ = layout.plan(tuple(widths), ("relu",) * (len(widths) - 1), dtype)
    squares = Counter()
    for item in range(split.patches(plan, lanes)):
        layer, top, bottom, left, right = split.patch(plan, item, lanes)
        assert 0 < right - left <= split.PATCH_BLOCKS
        assert 0 < (bottom - top) * lanes <= split.PATCH_ROWS
        squares.update((layer, i, j) for i in range(top, bottom) for j in range(left, right))
    wanted = {
        (layer, i, j)
        for layer, row in enumerate(plan)
        for i in range(-(-row.fan_in // lanes))
        for j in range(-(-row.fan_out // lanes))
    }
    assert set(squares) == wanted
    assert max(squares.values()) == 1


@pytest.mark.parametrize(
    ("rows", "bands", "most"),
    [
        (1, 1, 1),
        (8, 1, 8),
        (16, 2, 8),
        (17, 2, 9),
        (100, 6, 20),
        (200, 12, 24),
        (256, 16, 16),
        (300, 16, 24),
        (512, 16, 32),
        (600, 32, 24),
        (1024, 32, 32),
        (1500, 64, 24),
        (2048, 64, 32),
    ],
)
def test_a_slab_has_16_32_or_64_bands_unless_it_has_few_rows(rows, bands, most):
    """`most`: rows of the largest band."""
    assert split.bands_of(rows, 8) == bands
    assert max(split.band_of(item, rows, 8)[1] for item in range(bands)) == most


def test_each_phase_by_weights_has_its_items():
    job = a_job_by_weights(3 * split.SLAB + 10, 2 * split.SLAB, sparse=True)
    rounds = range(4)  # two of each step
    bands = [split.items_of(job, round_, fields.ROWS) for round_ in rounds]
    assert bands == [64, 64, 64, 1]
    assert [split.items_of(job, round_, fields.WEIGHTS) for round_ in rounds] == [9] * 4
    assert [split.items_of(job, round_, fields.TRANSPOSE) for round_ in rounds] == [5, 0, 0, 0]
    assert [split.items_of(job, round_, fields.CODE) for round_ in rounds] == [8, 0, 4, 0]
    assert [split.items_of(job, round_, fields.CLIP) for round_ in rounds] == [0, 0, 0, 0]
    assert [split.is_last_round(job, round_) for round_ in rounds] == [False, True, False, True]
    clipped = a_job_by_weights(3 * split.SLAB + 10, 2 * split.SLAB, clip_norm=0.5)
    assert [split.items_of(clipped, round_, fields.CLIP) for round_ in rounds] == [0, 5, 0, 5]


def test_the_rows_of_a_slab_do_not_all_begin_in_the_same_cache_sets():
    for rows in (16, 64, 256, 512, 1024, 2048):
        height = split.slab_height(rows, 8)
        assert rows <= height <= rows + 8
        assert height % 16 == 8
