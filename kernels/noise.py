"""Noise in the input, for denoising, and missing cells: what is done to a tile in lines before the first layer.

No generator holds a state: every random number is a hash of (seed, epoch, row, column), and so depends neither on
threads nor on tiles. The hash of a cell is Chris Wellons' 32-bit integer mix (lowbias32,
nullprogram.com/blog/2018/07/31) of its column and of a 64-bit key of the row, which is splitmix64 (Steele et al.,
OOPSLA 2014) of seed, epoch and row. Gaussian numbers are computed by the inverse of the error function (Giles, GPU
Computing Gems, 2011) from 24 random bits, which limits them to 5.3 standard deviations.
"""

import numpy as np
from llvmlite import ir

from fastae.kernels.compiler import callee
from fastae.kernels.elementary import log
from fastae.kernels.job import GAUSSIAN, MASK
from fastae.kernels.layout import LINE
from fastae.kernels.rounding import in_blocks
from fastae.kernels.simd import I32, I64, Value, Words, vector_kernel

_ERFINV_CENTRAL = (
    1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087, -4.39150654e-06, -3.5233877e-06,
    3.43273939e-07, 2.81022636e-08,
)  # fmt: skip
_ERFINV_TAIL = (
    2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773, -0.00367342844, 0.00134934322,
    0.000100950558, -0.000200214257,
)  # fmt: skip


@callee
def splitmix(x):  # type: ignore[no-untyped-def]
    """splitmix64: a 64-bit hash of a 64-bit integer."""
    x = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@callee
def row_key(seed, epoch, row):  # type: ignore[no-untyped-def]
    """The 64-bit key of a row in an epoch, as an int64."""
    key = splitmix(np.uint64(seed))
    key = splitmix(key ^ np.uint64(epoch))
    return np.int64(splitmix(key ^ np.uint64(row)))


def _hash(words: Words, columns: Value, key: Value) -> Value:
    """32 random bits in each lane: a hash of the cell's column and the row's key."""
    b = words.builder
    ints = columns.type

    def splat(x: int) -> Value:
        return ir.Constant(ints, [x & 0xFFFFFFFF] * words.lanes)

    low, high = b.trunc(key, I32), b.trunc(b.lshr(key, I64(32)), I32)
    x = b.add(b.mul(columns, splat(0x9E3779B9)), words.splat(low))
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97), (15, 0x7FEB352D)):
        x = b.mul(b.xor(x, b.lshr(x, splat(shift))), splat(factor))
        if shift == 16:
            x = b.add(x, words.splat(high))
    return b.xor(x, b.lshr(x, splat(16)))


def _columns(words: Words, first: Value) -> Value:
    """The column numbers of a line, from `first` on, as 32-bit integers."""
    ramp = ir.Constant(ir.VectorType(I32, words.lanes), list(range(words.lanes)))
    return words.builder.add(ramp, words.splat(words.builder.trunc(first, I32)))


def _gaussian(words: Words, bits: Value) -> Value:
    """A standard normal number from the upper 24 of the bits: sqrt(2) erfinv(u), u in (-1, 1)."""
    b = words.builder
    top = b.ashr(bits, ir.Constant(bits.type, [8] * words.lanes))
    u = words.mul(words.add(words.convert(top, True), words.constant(0.5)), words.constant(2.0**-23))
    one = words.constant(1.0)
    w = words.negative(log(words, words.mul(words.sub(one, u), words.add(one, u))))
    central = words.polynomial(words.sub(w, words.constant(2.5)), _ERFINV_CENTRAL)
    tail = words.polynomial(words.sub(words.sqrt(w), words.constant(3.0)), _ERFINV_TAIL)
    p = b.select(b.fcmp_ordered("<", w, words.constant(5.0)), central, tail)
    return words.mul(words.mul(u, words.constant(2.0**0.5)), p)


def _write_corrupt(words: Words, out, source, key, column, count, noise, level, missing):  # type: ignore[no-untyped-def]
    """One line of a row of the input: missing cells become 0, then noise is added; padding stays 0.

    If `missing` is 0, NaN is not a missing cell but an error in the data, and no noise hides it.

    out  (lanes,)     source  (lanes,): the clean row     level  (1,): see ``corrupt_row``
    """
    b = words.builder
    source_line, zero = words.load(source), words.constant(0.0)
    allowed = b.icmp_signed("!=", missing, words.count(0))
    x = b.select(allowed, words.missing_as_zero(source_line), source_line)
    words.store(x, out)
    bits = _hash(words, _columns(words, column), key)
    with words.when(noise, "==", GAUSSIAN):
        noisy = words.fma(_gaussian(words, bits), words.broadcast(level), x)
        words.store(b.select(words.first_lanes(count), noisy, zero), out)
    with words.when(noise, "==", MASK):
        top = b.lshr(bits, ir.Constant(bits.type, [8] * words.lanes))
        u = words.mul(words.convert(top, True), words.constant(2.0**-24))
        masked = b.select(b.fcmp_ordered("<", u, words.broadcast(level)), zero, x)
        words.store(b.select(words.is_nan(x), x, masked), out)


_corrupt_line = vector_kernel(_write_corrupt)


@callee
def corrupt_row(like, out, source, height, columns, key, noise, level, missing):  # type: ignore[no-untyped-def]
    """Write a row of the input from the clean row: missing cells become 0, then GAUSSIAN or MASK noise is added.

    out, source   the row's first line in blocks (blocks, height, lanes); `like` is an array of their dtype
    level         (1,): the standard deviation, or the probability that a cell is masked
    missing       1 if NaN cells are missing; else they stay NaN
    """
    lanes = LINE // like.itemsize
    for j in range(in_blocks(columns, lanes)):
        place, count = j * height * LINE, min(lanes, columns - j * lanes)
        _corrupt_line(like, (out + place, source + place, key, j * lanes, count, noise, level, missing))


@callee
def swapped(key, column, level, rows):  # type: ignore[no-untyped-def]
    """The row, of `rows`, whose cell replaces that of the row with this key, or -1: with probability 1 - level."""
    bits = splitmix(np.uint64(key) + np.uint64(column))
    if (bits >> np.uint64(40)) * 2.0**-24 >= level:
        return -1
    return np.int64(((bits & np.uint64(0xFFFFFFFF)) * np.uint64(rows)) >> np.uint64(32))
