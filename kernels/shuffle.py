"""Random orders of rows: those that ``numpy.random.Generator.permutation`` draws with PCG64, but without the GIL.

NumPy holds the GIL while it draws, which takes an eighth of the time of a small network's steps: two threads that train
one network each would wait for each other.

PCG64 is PCG XSL RR 128/64 (O'Neill, 2014): a linear congruential generator of 128 bits, of which a rotation of the two
halves' exclusive or comes out, in two draws of 32 bits. An order is drawn by the algorithm of Fisher and Yates.
"""

import numpy as np

from fastae.kernels.compiler import callee, kernel
from fastae.kernels.intrinsics import array_at, high_product

# Elements of the state, uint64: the generator's and its increment, of 128 bits each; whether 32 bits are left of the
# last number, and these
HIGH, LOW, INCREMENT_HIGH, INCREMENT_LOW, HAS_LEFT, LEFT, STATE_SIZE = range(7)
_FACTOR_HIGH, _FACTOR_LOW = np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645)
_ROWS_MOST = 1 << 32  # of an order: beyond, NumPy takes 64 bits for a number


@callee
def _shuffle(order, state):  # type: ignore[no-untyped-def]
    """Shuffle an array of int64. `state` moves on.

    A draw of as many bits as i has is refused if it is above i, which no processor can predict: so a refused draw
    exchanges an element with itself, instead of taking a branch.
    """
    high, low, left, has_left = state[HIGH], state[LOW], state[LEFT], state[HAS_LEFT] != 0
    i = np.int64(order.shape[0] - 1)
    mask = np.int64(1)
    while mask < i:
        mask = 2 * mask + 1
    while i > 0:
        draw = left
        if not has_left:
            product = low * _FACTOR_LOW
            high = (
                high_product(low, _FACTOR_LOW)
                + high * _FACTOR_LOW
                + low * _FACTOR_HIGH
                + state[INCREMENT_HIGH]
            )
            low = product + state[INCREMENT_LOW]
            high += np.uint64(low < product)
            word, turn = high ^ low, high >> np.uint64(58)
            word = (word >> turn) | (word << ((np.uint64(64) - turn) & np.uint64(63)))
            draw, left = word & np.uint64(0xFFFFFFFF), word >> np.uint64(32)
        has_left = not has_left
        j = np.int64(draw) & mask
        accepted = j <= i
        j = j if accepted else i
        order[i], order[j] = order[j], order[i]
        i -= np.int64(accepted)
        mask = mask >> 1 if i <= mask >> 1 else mask
    state[HIGH], state[LOW], state[LEFT], state[HAS_LEFT] = high, low, left, np.uint64(has_left)


@kernel
def draw_orders(orders_at, row_numbers_at, rows, count, state_at):  # type: ignore[no-untyped-def]
    """Shuffle `rows` row numbers `count` times, each time from their first order.

    orders_at        int64 (count, rows): written        row_numbers_at   int64 (rows,), or 0: 0 .. rows - 1
    state_at         uint64 (STATE_SIZE,): the generator's state, which moves on
    """
    orders, state = array_at(orders_at, (count, rows), np.int64), array_at(state_at, (STATE_SIZE,), np.uint64)
    for c in range(count):
        order = orders[c]
        if row_numbers_at != 0:
            numbers = array_at(row_numbers_at, (rows,), np.int64)
            for i in range(rows):
                order[i] = numbers[i]
        else:
            for i in range(rows):
                order[i] = i
        _shuffle(order, state)


def orders(
    generator: np.random.Generator,
    row_numbers: np.ndarray | None,
    rows: int,
    count: int,
    memory: np.ndarray | None = None,
) -> np.ndarray:
    """`count` orders of rows, int64 (count, rows), as repeated calls of ``generator.permutation`` would draw them.

    Parameters
    ----------
    generator : numpy.random.Generator
        Moves on as after these calls.
    row_numbers : ndarray of shape (rows,), int64, or None
        The numbers of the rows to put in order. None: 0 .. rows - 1.
    memory : ndarray of shape (more or as many, rows), int64, C-contiguous, optional
        Where to write them. The pages of new memory would take as long to come as the orders to be drawn.
    """
    bits = generator.bit_generator
    result = np.empty((count, rows), np.int64) if memory is None else memory[:count]
    if not isinstance(bits, np.random.PCG64) or rows >= _ROWS_MOST:
        for c in range(count):
            order = generator.permutation(rows)
            result[c] = order if row_numbers is None else row_numbers[order]
        return result
    numbers = None if row_numbers is None else np.ascontiguousarray(row_numbers, np.int64)
    with bits.lock:
        stored = bits.state
        words = stored["state"]["state"], stored["state"]["inc"]
        halves = [half for word in words for half in (word >> 64, word & (1 << 64) - 1)]
        state = np.array([*halves, stored["has_uint32"], stored["uinteger"]], np.uint64)
        numbers_at = 0 if numbers is None else numbers.ctypes.data
        draw_orders(result.ctypes.data, numbers_at, rows, count, state.ctypes.data)
        high, low, _, _, has_left, left = map(int, state)
        stored["state"]["state"] = high << 64 | low
        stored["has_uint32"], stored["uinteger"] = has_left, left
        bits.state = stored
    return result
