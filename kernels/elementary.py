"""Elementary functions of a line: exp, sigmoid, tanh and log, written in the words of simd.py.

exp: exp(x) = 2^n p(r), |r| <= ln2/2, by Cody and Waite's two-part ln2 (Software Manual for the Elementary Functions,
1980) and a Chebyshev polynomial, relative error 1.0e-8 (float32, degree 6) and 1.7e-17 (float64, degree 11).
sigmoid, tanh: 2^(n / 2^k) p(r), |r| <= ln2 / 2^(k+1), with the powers 2^(j / 2^k) in a table (Tang, ACM TOMS 15, 1989)
that fits in a register: k = 4 and 3 (float32, degree 3, 1.6e-9 and 2.6e-8), k = 3 (float64, degree 7, 3.0e-18).
"""

import math

from fastae.kernels.simd import Value, Words
from fastae.kernels.target import TARGET

# Tails (exp(r) - 1 - r) / r^2, lowest power first, on |r| <= ln2 / 2^(k+1), by k
_EXP_TAILS_F32 = {
    0: (0.5, 0.16666576666119928, 0.04166655421298415, 0.008363232883682618, 0.0013926250831497611),
    3: (0.5000651589738431, 0.16667382574452358),
    4: (0.500016290988424, 0.16666845815010387),
}
_EXP_TAILS_F64 = {
    0: (
        0.5,
        0.16666666666666669,
        0.041666666666623824,
        0.008333333333330039,
        0.0013888888917367081,
        0.00019841269863171557,
        2.4801521057868204e-05,
        2.7557268276905696e-06,
        2.7620201591031547e-07,
        2.5100472505694996e-08,
    ),
    3: (
        0.5000000000000308,
        0.16666666666664828,
        0.041666666568411816,
        0.008333333355583908,
        0.0013889786503821985,
        0.0001984108896460563,
    ),
}
# tanh(z) = z + z s P(s), s = z^2, |z| < 0.625 (Cephes, tanhf.c and tanh.c; P is a quotient in float64).
_TANH_F32 = (-3.33332819422e-1, 1.33314422036e-1, -5.37397155531e-2, 2.06390887954e-2, -5.70498872745e-3)
_TANH_F64_P = (-1.61468768441708447952e3, -9.92877231001918586564e1, -9.64399179425052238628e-1)
_TANH_F64_Q = (4.84406305325125486048e3, 2.23548839060100448583e3, 1.12811678491632931402e2, 1.0)
# atanh(s) / s by powers of s^2, s <= 1/3, within 1.6e-8 and 1.8e-17
_ATANH_F32, _ATANH_F64 = (tuple(1 / (2 * k + 1) for k in range(terms)) for terms in (7, 16))
# (log(1 + f) - f + f^2 / 2) / f^3 on sqrt(1/2) <= 1 + f < sqrt(2) (Cephes, logf.c), lowest power first.
_LOG = (
    3.3333331174e-1,
    -2.4999993993e-1,
    2.0000714765e-1,
    -1.6668057665e-1,
    1.4249322787e-1,
    -1.2420140846e-1,
    1.1676998740e-1,
    -1.1514610310e-1,
    7.0376836292e-2,
)


def _table_size(words: Words) -> int:
    """The k of a table of 2^k powers, 2^(j / 2^k), that fits in a register; 0 if there is no such lookup."""
    if TARGET.isa == "avx512":
        return 3 if words.double else 4
    return 3 if TARGET.isa == "avx2" and not words.double else 0


def _exp_parts(words: Words, x: Value, sign: int, k: int) -> tuple[Value, Value]:
    """exp(sign x) = p 2^(n / 2^k) as (p, bits), n in the low bits of the integer line `bits`; x finite and clamped.

    k is ``_table_size``, with which the polynomial p is short, or 0, which is more exact: powers in a table are
    rounded.
    """
    tail = (_EXP_TAILS_F64 if words.double else _EXP_TAILS_F32)[k]
    high, low = (
        (6.93145751953125e-1, 1.42860682030941723212e-6) if words.double else (0.693359375, -2.12194440e-4)
    )
    # Adding it rounds to a multiple of 2^-k, and leaves n in the low bits
    magic = words.constant(1.5 * 2.0 ** (words.bits - k))
    shifted = words.fma(x, words.constant(sign * math.log2(math.e)), magic)
    n = words.sub(shifted, magic)
    # s = sign r, so that no negation is needed
    s = words.fma(n, words.constant(-sign * high), x)
    s = words.fma(n, words.constant(-sign * low), s)
    signed = (1.0, float(sign), *(c * sign**i for i, c in enumerate(tail, start=2)))
    return words.polynomial(s, signed), words.builder.bitcast(shifted, words.int_line)


def _power_of_two(words: Words, bits: Value, plus: int, k: int) -> Value:
    """2^(n / 2^k + plus), n in the low bits of `bits`; a normal number."""
    b, shift, base = words.builder, words.bits - k, (words.bias + plus) << words.bits
    shifted = b.shl(bits, words.int_constant(shift))
    if k == 0:
        return b.bitcast(b.add(shifted, words.int_constant(base)), words.line)
    # What the shift leaves in the significand, j = n mod 2^k, gives way to the significand of 2^(j / 2^k)
    significands = (math.ldexp(2.0 ** (j / 2**k) - 1.0, words.bits) for j in range(2**k))
    entries = [base + round(value) - (j << shift) for j, value in enumerate(significands)]
    return b.bitcast(b.add(shifted, words.look_up(entries, bits)), words.line)


def exp(words: Words, x: Value) -> Value:
    """exp(x), within 1 ulp, subnormal results included; overflow gives inf, underflow 0, and NaN stays NaN."""
    low, high = (-746.0, 710.0) if words.double else (-104.0, 89.0)
    p, bits = _exp_parts(words, words.at_most(words.at_least(x, low), high), 1, 0)
    b = words.builder
    # 2^n as two factors, neither of which overflows or underflows unless the product does
    signed = b.sub(bits, b.bitcast(words.constant(1.5 * 2.0**words.bits), words.int_line))
    first = b.ashr(signed, words.int_constant(1))
    p = words.mul(p, _power_of_two(words, first, 0, 0))
    return words.mul(p, _power_of_two(words, b.sub(signed, first), 0, 0))


def sigmoid(words: Words, z: Value, one: Value | None = None) -> Value:
    """`one` / (1 + exp(-z)); `one` is 1, or 0 in padding lanes. Subnormal results keep their relative accuracy.

    1 + exp(-z) is computed as d = 2^-shift + 2^-shift exp(-z), so that exp(-z) never overflows; then 2^-shift / d.
    """
    shift, k = 512 if words.double else 64, _table_size(words)
    low, high = (-746.0, 40.0) if words.double else (-104.0, 40.0)
    p, bits = _exp_parts(words, words.at_most(words.at_least(z, low), high), -1, k)
    scale = words.constant(2.0**-shift)
    d = words.fma(p, _power_of_two(words, bits, -shift, k), scale)
    return words.builder.fdiv(scale if one is None else words.mul(one, scale), d)


def sigmoid_and_log(words: Words, z: Value) -> tuple[Value, Value]:
    """1 / (1 + exp(-z)), and log(1 + exp(-|z|)), each within a few ulp however large |z| is; z finite.

    With e = exp(-|z|), 1 / (1 + e) and s = e / (2 + e) share a division, and log(1 + e) = 2 atanh(s), by Taylor's
    series in s^2 <= 1/9: where e is far below 1, 1 + e is not used. |z| is limited so that e does not underflow.
    """
    b, one, k = words.builder, words.constant(1.0), _table_size(words)
    p, bits = _exp_parts(words, words.at_most(words.magnitude(z), 708.0 if words.double else 87.0), -1, k)
    e = words.mul(p, _power_of_two(words, bits, 0, k))
    one_more, two_more = words.add(e, one), words.add(e, words.constant(2.0))
    shared = b.fdiv(one, words.mul(one_more, two_more))
    numerator = b.select(b.fcmp_ordered("<", z, words.constant(0.0)), e, one)
    s = words.mul(e, words.mul(shared, one_more))
    series = words.polynomial(words.mul(s, s), _ATANH_F64 if words.double else _ATANH_F32)
    return words.mul(numerator, words.mul(shared, two_more)), words.mul(words.add(s, s), series)


def tanh(words: Words, z: Value) -> Value:
    """tanh(z): a polynomial below 0.625, else sign(z) (1 - 2 / (exp(2|z|) + 1))."""
    b = words.builder
    size = words.magnitude(z)
    s = words.mul(z, z)
    if words.double:
        series = b.fdiv(words.polynomial(s, _TANH_F64_P), words.polynomial(s, _TANH_F64_Q))
    else:
        series = words.polynomial(s, _TANH_F32)
    small = words.fma(words.mul(z, s), series, z)
    p, bits = _exp_parts(words, words.at_most(words.add(size, size), 44.0), 1, _table_size(words))
    d = words.fma(p, _power_of_two(words, bits, 0, _table_size(words)), words.constant(1.0))
    large = words.sub(words.constant(1.0), b.fdiv(words.constant(2.0), d))
    return b.select(b.fcmp_unordered("<", size, words.constant(0.625)), small, words.with_sign(large, z))


def log(words: Words, x: Value) -> Value:
    """log(x) for normal positive x, to about 1e-7 in either dtype: Cephes' logf."""
    b = words.builder
    root_half = b.bitcast(words.constant(0.5**0.5), words.int_line)
    exponent = b.ashr(b.sub(b.bitcast(x, words.int_line), root_half), words.int_constant(words.bits))
    mantissa = b.sub(b.bitcast(x, words.int_line), b.shl(exponent, words.int_constant(words.bits)))
    f = words.sub(b.bitcast(mantissa, words.line), words.constant(1.0))
    square = words.mul(f, f)
    tail = words.fma(words.mul(f, square), words.polynomial(f, _LOG), words.mul(square, words.constant(-0.5)))
    return words.fma(b.sitofp(exponent, words.line), words.constant(math.log(2)), words.add(f, tail))
