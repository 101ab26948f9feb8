"""The nearest of many points to each row, and of each group of points, without storing the distances.

For points p as the units of a linear layer, z'W + b = |p|^2 - 2 z'p is the squared distance of a row z, but for |z|^2.
The products are those of gemm.py. Instead of being stored, a register tile lowers what is kept of its rows:

    least    (height, 2, lanes)               the least product in each lane; and the number of its unit
    groups   blocked (blocks, height, lanes)  the least product of each group

A unit is a column of W, in a slot of its own: the first members of all groups fill the first blocks, then the second
members, and so on, so that a group has the same lane in each. All other units follow. Slots without a unit have a bias
of infinity.
"""

import numpy as np

from fastae.kernels.compiler import ByAddress, carray
from fastae.kernels.gemm import (
    ROW_MULTIPLE,
    RegisterTile,
    Storage,
    lines,
    panels,
    product,
    register_tiles,
    rows_of,
)
from fastae.kernels.intrinsics import array_at, flush_subnormals, restore_float_state
from fastae.kernels.layout import LINE
from fastae.kernels.rounding import round_up
from fastae.kernels.rows import copy_rows, write_rows
from fastae.kernels.simd import Value, Words, vector_kernel


def _write_compare(words, least, groups, a, w, bias, numbers, own, rows, height, depth, blocks):  # type: ignore[no-untyped-def]
    """Lower what is kept of some rows by their products with `blocks` blocks of units.

    least    see above                   groups   the same; 0 if these units belong to no group
    a        (rows, depth)               w        (depth, units)
    bias     (units,)                    numbers  (units,): the number of each unit, as the dtype
    own      (rows,): the number of a unit that does not count for the row, as the dtype; -1: all count
    """
    storage = Storage(words, height)
    w_block = storage.weight_block(depth)
    for n, j in panels(words, blocks):
        w_j, groups_j = words.offset(w, (j, w_block)), words.offset(groups, (j, storage.block))
        bias_j, numbers_j = (words.offset(vector, (j, LINE)) for vector in (bias, numbers))
        strides = [size * rows_of(n) for size in (2 * LINE, LINE, LINE, words.itemsize)]
        places = [least, groups_j, a, own]
        for least_i, groups_ij, a_i, own_i in register_tiles(words, rows, rows_of(n), places, strides):
            tile = product(storage, [lines(words, bias_j, n)] * rows_of(n), a_i, w_j, w_block, depth)
            of_units = lines(words, numbers_j, n)
            tile = _without_own(words, tile, of_units, own_i)
            _lower(words, tile, of_units, least_i)
            with words.when(groups, "!=", 0):
                _lower_groups(storage, tile, groups_ij)


def _without_own(words: Words, tile: RegisterTile, numbers: list[Value], own: Value) -> RegisterTile:
    """A register tile with infinity in the place of each row's own unit."""
    result, infinity = [], words.constant(np.inf)
    for i, row in enumerate(tile):
        number = words.broadcast(words.offset(own, i * words.itemsize))
        pairs = zip(row, numbers, strict=True)
        result.append([words.where(of_unit, "==", number, infinity, value) for value, of_unit in pairs])
    return result


def _lower(words: Words, tile: RegisterTile, numbers: list[Value], least: Value) -> None:
    """Lower `least` of the rows of a register tile."""
    for i, row in enumerate(tile):
        place = words.offset(least, i * 2 * LINE)
        lowest, number = words.load(place), words.load(words.offset(place, LINE))
        for value, of_unit in zip(row, numbers, strict=True):
            number = words.where(value, "<", lowest, of_unit, number)
            lowest = words.where(value, "<", lowest, value, lowest)
        words.store(lowest, place)
        words.store(number, words.offset(place, LINE))


def _lower_groups(storage: Storage, tile: RegisterTile, groups: Value) -> None:
    """Lower `groups` of the rows of a register tile."""
    words = storage.words
    for i, row in enumerate(tile):
        for k, value in enumerate(row):
            place = words.offset(groups, (storage.block, k), i * LINE)
            before = words.load(place)
            words.store(words.where(value, "<", before, value, before), place)


_compare = vector_kernel(_write_compare)


@ByAddress
def nearest(
    work,
    found,
    of_groups,
    x,
    w,
    bias,
    numbers,
    own,
    rows,
    depth,
    blocks,
    members,
    groups,
    group_blocks,
    height,
):  # type: ignore[no-untyped-def]
    """For each row, the number of the unit with the least product, and the least product of each group.

    Products that are NaN do not count; if none does, the unit's number is 0, and the product of a group infinite.

    work       memory of ``work_lines`` lines
    found      int64 (rows,): written        of_groups   (rows, groups), row-major: written
    x          (rows, depth), row-major      w           blocked (depth, units in their slots), depth padded
    bias       (units in their slots,)       numbers     the same: the number of each unit, as the dtype
    own        (rows,), padded to a multiple of ROW_MULTIPLE: as for ``_write_compare``
    members, group_blocks     the members of each group, and the blocks that hold one member of each
    height     rows that are compared with a block of units before the next: a multiple of ROW_MULTIPLE
    """
    state = flush_subnormals()
    like = carray(work, (1,))
    itemsize, lanes = like.itemsize, LINE // like.itemsize
    tile = np.int64(like.ctypes.data)
    least_at = tile + round_up(depth, lanes) * height * itemsize
    groups_at = least_at + 2 * LINE * height
    least = array_at(least_at, (height, 2, lanes), like.dtype)
    kept = array_at(groups_at, (group_blocks * height * lanes,), like.dtype)
    numbers_found = array_at(found, (rows,), np.int64)
    w_block = round_up(depth, lanes) * LINE
    for first in range(0, rows, height):
        here = min(height, rows - first)
        computed = round_up(here, ROW_MULTIPLE)
        copy_rows(like, (tile, height, x, depth * itemsize, 0, first, here, depth))
        for i in range(computed):
            for lane in range(lanes):
                least[i, 0, lane] = np.inf
                least[i, 1, lane] = 0
        for i in range(kept.size):
            kept[i] = np.inf
        sizes = own + first * itemsize, computed, height, depth
        for j in range(members):
            k = j * group_blocks
            units = w + k * w_block, bias + k * LINE, numbers + k * LINE
            _compare(like, (least_at, groups_at, tile, *units, *sizes, group_blocks))
        k = members * group_blocks
        units = w + k * w_block, bias + k * LINE, numbers + k * LINE
        _compare(like, (least_at, 0, tile, *units, *sizes, blocks - k))
        for i in range(here):
            lowest, number = least[i, 0, 0], least[i, 1, 0]
            for lane in range(1, lanes):
                if least[i, 0, lane] < lowest:
                    lowest, number = least[i, 0, lane], least[i, 1, lane]
            numbers_found[first + i] = np.int64(number)
        stride = groups * itemsize
        write_rows(like, (of_groups + first * stride, stride, groups_at, height, groups, here))
    restore_float_state(state)


def work_lines(depth_blocks: int, group_blocks: int, height: int) -> int:
    """The lines of memory that ``nearest`` works in."""
    return (depth_blocks + 2 + group_blocks) * height
