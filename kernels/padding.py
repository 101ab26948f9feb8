"""Whether the padding of a flat buffer is zero, as products rely on. layout.py says where padding lies.

The cost of a linear last layer would count what its padding columns hold; other padding adds to penalties.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from fastae.kernels.array_header import HEADER, builtin, facts_of, have_headers, returned
from fastae.kernels.compiler import callee, kernel
from fastae.kernels.intrinsics import any_nonzero, array_at, load_int64, record_at
from fastae.kernels.layout import LAYER, LINE, address
from fastae.kernels.rounding import in_blocks, round_up


@callee
def _first_dirty(flat_at, like, plan):  # type: ignore[no-untyped-def]
    """The first layer, counted from 1, whose padding is not zero everywhere; 0 if there is none.

    flat_at   the flat buffer      like   an array of its dtype      plan   LAYER (layers,)
    """
    lanes = LINE // like.itemsize
    for i in range(plan.shape[0]):
        layer = plan[i]
        blocks, height = in_blocks(layer.fan_out, lanes), round_up(layer.fan_in, lanes)
        weights, used = flat_at + layer.weight * LINE // lanes, layer.fan_out - (blocks - 1) * lanes
        dirty = any_nonzero(like, (flat_at + layer.bias * LINE // lanes + (blocks - 1) * LINE, 1, used))
        if used < lanes:  # the last block of columns
            dirty |= any_nonzero(like, (weights + (blocks - 1) * height * LINE, layer.fan_in, used))
        for block in range(blocks if layer.fan_in < height else 0):  # the last rows of each block
            below = weights + (block * height + layer.fan_in) * LINE
            dirty |= any_nonzero(like, (below, height - layer.fan_in, 0))
        if dirty != 0:
            return i + 1
    return 0


@kernel
def first_dirty(flat_at, itemsize, plan_at, layers) -> int:  # type: ignore[no-untyped-def]
    """The first layer, counted from 1, whose padding is not zero everywhere; 0 if there is none."""
    plan = array_at(plan_at, (layers,), LAYER)
    if itemsize == 4:
        return _first_dirty(flat_at, array_at(flat_at, (1,), np.float32), plan)
    return _first_dirty(flat_at, array_at(flat_at, (1,), np.float64), plan)


@kernel
def _is_dirty_of_objects(self, arguments, count) -> int:  # type: ignore[no-untyped-def]
    """Arguments: a flat buffer, aligned and of float32 or float64, and its plan. Whether padding is not zero."""
    facts = facts_of(self)
    flat, table = record_at(load_int64(arguments), HEADER), record_at(load_int64(arguments + 8), HEADER)
    plan = array_at(table.data, (load_int64(table.shape),), LAYER)
    if flat.dtype == facts.float32:
        layer = _first_dirty(flat.data, array_at(flat.data, (1,), np.float32), plan)
    else:
        layer = _first_dirty(flat.data, array_at(flat.data, (1,), np.float64), plan)
    return returned(layer != 0, facts)


@cache
def checker() -> Callable[[np.ndarray, np.ndarray], bool]:
    """A function of a flat buffer, (size,) of float32 or float64, and its plan: whether padding is not zero everywhere.

    It checks neither argument. The first call of ``checker`` loads or compiles it.
    """
    if have_headers():
        return builtin(_is_dirty_of_objects)
    call = first_dirty.loaded()
    return lambda flat, plan: bool(call(address(flat), flat.itemsize, address(plan), len(plan)))
