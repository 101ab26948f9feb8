"""Vector operations: load, store, fma, broadcast, shuffle, ... It knows no layers.

A *word* is a method of ``Words``. It emits the instructions of one operation on a **line**: a vector of one cache line,
16 lanes of float32 or 8 of float64. LLVM splits a line into 2 ymm or 4 xmm registers if the CPU has no zmm. Kernels in
other files are written in words and, where they compute integers and masks, with ``words.builder``, the builder of LLVM
IR that words use, too. Instructions of one kind of CPU are called here, in intrinsics.py and in tile_unit.py alone.

``vector_kernel`` turns a function written in words into one that jitted functions call as ``f(like, (numbers...))``:
`like` is an array whose dtype determines the lanes; the numbers are addresses, sizes in bytes or elements, and scalars
of that dtype.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir

from fastae.kernels.compiler import intrinsic, of_numba
from fastae.kernels.layout import LINE
from fastae.kernels.target import TARGET

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
Value = Any
cgutils, types = of_numba("numba.core.cgutils"), of_numba("numba.core.types")


class Words:
    """The words of one dtype. Each emits its instructions at the position of the builder."""

    def __init__(self, builder: ir.IRBuilder, scalar: ir.Type):
        self.builder = builder
        self.scalar = scalar
        self.double = scalar == F64
        self.itemsize = 8 if self.double else 4
        self.lanes = LINE // self.itemsize
        self.line = ir.VectorType(scalar, self.lanes)
        self.int_line = ir.VectorType(I64 if self.double else I32, self.lanes)
        self.bits = 52 if self.double else 23
        self.bias = 1023 if self.double else 127

    def wide(self) -> "Words":
        """The words of float64, at the same position."""
        return self if self.double else Words(self.builder, F64)

    # -- integers and control ---------------------------------------------------------------------------------

    def count(self, value: int) -> Value:
        """A constant int64."""
        return I64(value)

    def offset(self, address: Value, *terms: Value | tuple[Value, int]) -> Value:
        """address + sum of terms; a pair is a value times a constant."""
        for term in terms:
            term = self.times(*term) if isinstance(term, tuple) else term
            if isinstance(term, int):
                if term == 0:
                    continue
                term = I64(term)
            address = self.builder.add(address, term)
        return address

    def times(self, value: Value | int, factor: Value | int) -> Value | int:
        """The product of two integers; an int if it is known when compiling."""
        if isinstance(value, int) and isinstance(factor, int):
            return value * factor
        if isinstance(factor, int):
            if factor in (0, 1):
                return value if factor else 0
            factor = I64(factor)
        return self.builder.mul(value, factor)

    def round_up(self, count: Value, multiple: int) -> Value:
        """The least multiple that is not below `count`."""
        return self.times(self.quotient(count, multiple), multiple)

    def quotient(self, count: Value, divisor: int) -> Value:
        """count / divisor, rounded up; `count` >= 0."""
        return self.builder.sdiv(self.builder.add(count, I64(divisor - 1)), I64(divisor))

    def loop(self, count: Value, carried: list[Value], body: Callable[..., list[Value]]) -> list[Value]:
        """Loop `count` (>= 0) times: body(*carried) returns the next carried values. Returns the last ones."""
        with self._loop(count, carried) as (phis, new):
            new += body(*phis)
        return phis

    def walk(self, count: Value, places: list[Value], strides: list[Value | int]) -> Iterator[list[Value]]:
        """Loop `count` (>= 0) times: a ``for`` statement over this emits its body once, as that of the loop.

        It gives the places, which move by `strides` in each iteration. After the loop, they have moved `count` times.
        """
        with self._loop(count, places) as (phis, new):
            yield phis
            new += [self.offset(place, stride) for place, stride in zip(phis, strides, strict=True)]

    @contextmanager
    def _loop(self, count: Value, carried: list[Value]) -> Iterator[tuple[list[Value], list[Value]]]:
        """A loop whose body is what is emitted in this context: the carried values, and a list for the next ones."""
        b = self.builder
        before = b.block
        head, inside, after = (b.append_basic_block(f"loop.{part}") for part in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        left = b.phi(I64)
        phis: list[Value] = [b.phi(value.type) for value in carried]
        new: list[Value] = []
        b.cbranch(b.icmp_signed(">", left, I64(0)), inside, after)
        b.position_at_end(inside)
        yield phis, new
        one_less = b.sub(left, I64(1))
        end = b.block
        b.branch(head)
        left.add_incoming(count, before)
        left.add_incoming(one_less, end)
        for phi, first, last in zip(phis, carried, new, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(last, end)
        b.position_at_end(after)

    def cases(self, value: Value, count: int) -> Iterator[int]:
        """Switch on the integer `value`: a ``for`` statement over this emits its body for 0, then for 1, ...

        In the body, the variable is a constant of Python, below `count`. For other values nothing is done.
        """
        b = self.builder
        after = b.append_basic_block("cases.after")
        blocks = [b.append_basic_block(f"case.{i}") for i in range(count)]
        switch = b.switch(value, after)
        for i, block in enumerate(blocks):
            switch.add_case(I64(i), block)
            b.position_at_end(block)
            yield i
            b.branch(after)
        b.position_at_end(after)

    @contextmanager
    def when(self, value: Value, comparison: str, constant: int) -> Iterator[None]:
        """If the integer `value` compares so with `constant`: what is emitted in this context."""
        with self.builder.if_then(self.builder.icmp_signed(comparison, value, I64(constant))):
            yield

    # -- memory -----------------------------------------------------------------------------------------------

    def pointer(self, address: Value, kind: ir.Type) -> Value:
        return self.builder.inttoptr(address, kind.as_pointer())

    def load(self, address: Value, aligned: bool = True) -> Value:
        value = self.builder.load(self.pointer(address, self.line))
        value.align = LINE if aligned else self.itemsize
        return value

    def stack(self, size: Value | int) -> Value:
        """The address of `size` bytes on the stack, which begin on a cache line. A size that varies: not in a loop."""
        if isinstance(size, int):
            place = cgutils.alloca_once(self.builder, ir.ArrayType(I8, size))
        else:
            place = self.builder.alloca(I8, size)
        place.align = LINE
        return self.builder.ptrtoint(place, I64)

    def load_count(self, address: Value) -> Value:
        """The int64 at `address`."""
        return self.builder.load(self.pointer(address, I64))

    def prefetch(self, address: Value) -> None:
        """Begin to fetch the cache line of `address` into L2 (x86: prefetcht1); no address is invalid."""
        place = self.pointer(address, I8)
        self._call("llvm.prefetch.p0", ir.VoidType(), [place, I32(0), I32(2), I32(1)])

    def load_doubles(self, address: Value) -> Value:
        """A line from (lanes,) float64, rounded to the dtype."""
        value = self.builder.load(self.pointer(address, ir.VectorType(F64, self.lanes)))
        value.align = 8
        return self.convert(value, True)

    def store(self, value: Value, address: Value, aligned: bool = True) -> None:
        instruction = self.builder.store(value, self.pointer(address, self.line))
        instruction.align = LINE if aligned else self.itemsize

    def first_lanes(self, count: Value, lanes: int = 0) -> Value:
        """The mask of the first `count` lanes of a line, or of a vector of `lanes`."""
        b, lanes = self.builder, lanes or self.lanes
        ramp = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        return b.icmp_signed("<", ramp, self.splat(b.trunc(count, I32), lanes))

    def load_short(self, address: Value, lanes: int) -> Value:
        """A vector of fewer lanes than a line has."""
        value = self.builder.load(self.pointer(address, ir.VectorType(self.scalar, lanes)))
        value.align = self.itemsize
        return value

    def store_short(self, value: Value, address: Value) -> None:
        """Store a vector of fewer lanes than a line has, or a line that does not begin on a cache line."""
        instruction = self.builder.store(value, self.pointer(address, value.type))
        instruction.align = self.itemsize

    def load_first(
        self, address: Value, count: Value, element: ir.Type | None = None, size: int = 0
    ) -> Value:
        """The first `count` lanes of a line from memory, zero in the others, whose memory is not read.

        Elements are `size` bytes apart, by default those of the dtype.
        """
        vector, size = ir.VectorType(element or self.scalar, self.lanes), size or self.itemsize
        zero = ir.Constant(vector, None)
        if not _has_masks(vector.element):
            return self._load_first_unmasked(address, count, vector, size)
        name = f"llvm.masked.load.v{self.lanes}{_suffix(vector.element)}.p0"
        pointer, mask = self.pointer(address, vector), self.first_lanes(count)
        kinds = [pointer.type, I32, mask.type, vector]
        return self._call(name, vector, [pointer, I32(size), mask, zero], kinds)

    def store_first(self, value: Value, address: Value, count: Value) -> None:
        """Store the first `count` lanes of a line, or of a shorter vector."""
        lanes = value.type.count
        if not _has_masks(self.scalar):
            with self._if_whole(count, lanes) as (whole, part):
                with whole:
                    self.store_short(value, address)
                with part:
                    slot = cgutils.alloca_once(self.builder, value.type)
                    self.builder.store(value, slot)
                    self._copy(address, self.builder.ptrtoint(slot, I64), count, self.scalar)
            return
        name = f"llvm.masked.store.v{lanes}{_suffix(self.scalar)}.p0"
        pointer, mask = self.pointer(address, value.type), self.first_lanes(count, lanes)
        kinds = [value.type, pointer.type, I32, mask.type]
        self._call(name, ir.VoidType(), [value, pointer, I32(self.itemsize), mask], kinds)

    def _load_first_unmasked(self, address: Value, count: Value, vector: ir.Type, align: int) -> Value:
        """``load_first`` where LLVM would test each lane of a mask: as a whole, or element by element."""
        b = self.builder
        with self._if_whole(count, vector.count) as (whole, part):
            with whole:
                line = b.load(self.pointer(address, vector))
                line.align = align
                after_whole = b.block
            with part:
                slot = cgutils.alloca_once(b, vector)
                b.store(ir.Constant(vector, None), slot)
                self._copy(b.ptrtoint(slot, I64), address, count, vector.element)
                short = b.load(slot)
                after_part = b.block
        result = b.phi(vector)
        result.add_incoming(line, after_whole)
        result.add_incoming(short, after_part)
        return result

    def _if_whole(self, count: Value, lanes: int) -> Any:
        """The contexts of an if statement: for `count` >= `lanes`, and for fewer."""
        return self.builder.if_else(self.builder.icmp_signed(">=", count, I64(lanes)), likely=True)

    def _copy(self, target: Value, source: Value, count: Value, element: ir.Type) -> None:
        """Copy `count` elements, one at a time."""
        size = element.width // 8 if isinstance(element, ir.IntType) else (8 if element == F64 else 4)
        for place, other in self.walk(count, [target, source], [size, size]):
            value = self.builder.load(self.pointer(other, element))
            value.align = 1
            self.builder.store(value, self.pointer(place, element)).align = 1

    def broadcast(self, address: Value) -> Value:
        """One element, in every lane."""
        value = self.builder.load(self.pointer(address, self.scalar))
        value.align = self.itemsize
        return self.splat(value)

    # -- arithmetic -------------------------------------------------------------------------------------------

    def constant(self, x: float) -> Value:
        return ir.Constant(self.line, [x] * self.lanes)

    def int_constant(self, value: int) -> Value:
        """A line of integers as wide as the dtype."""
        return ir.Constant(self.int_line, [value] * self.lanes)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """x y + z, rounded once if the CPU has an instruction for it; a library call would be far too slow."""
        if TARGET.fma:
            return self._same("fma", x, y, z)
        return self.builder.fadd(self.builder.fmul(x, y), z)

    def add(self, x: Value, y: Value) -> Value:
        return self.builder.fadd(x, y)

    def sub(self, x: Value, y: Value) -> Value:
        return self.builder.fsub(x, y)

    def mul(self, x: Value, y: Value) -> Value:
        return self.builder.fmul(x, y)

    def negative(self, x: Value) -> Value:
        return self.builder.fneg(x)

    def at_least(self, x: Value, bound: float) -> Value:
        """max(x, bound); NaN stays NaN."""
        low = self.constant(bound)
        return self.builder.select(self.builder.fcmp_ordered(">", low, x), low, x)

    def magnitude(self, x: Value) -> Value:
        return self._same("fabs", x)

    def with_sign(self, x: Value, y: Value) -> Value:
        """|x| with the sign of y."""
        return self._same("copysign", x, y)

    def clipped(self, x: Value, bound: Value) -> Value:
        """x between -bound and bound; NaN stays NaN."""
        b, low = self.builder, self.negative(bound)
        x = b.select(b.fcmp_ordered("<", bound, x), bound, x)
        return b.select(b.fcmp_ordered(">", low, x), low, x)

    def at_most(self, x: Value, bound: float) -> Value:
        """min(x, bound); NaN stays NaN."""
        high = self.constant(bound)
        return self.builder.select(self.builder.fcmp_ordered("<", high, x), high, x)

    def over_root(self, x: Value, y: Value, plus: Value) -> Value:
        """x / (sqrt(y) + plus), y >= 0, within 3 ulp. AVX-512: by a 14-bit estimate of 1 / sqrt(y), y a normal number.

        There, y below the least normal number counts as that, and y above the largest one as the largest.
        """
        if TARGET.isa != "avx512":
            return self.builder.fdiv(x, self.add(self.sqrt(y), plus))
        name, kind, steps = ("pd", np.float64, 2) if self.double else ("ps", np.float32, 1)
        y = self.at_most(self.at_least(y, float(np.finfo(kind).tiny)), float(np.finfo(kind).max))
        bits = ir.IntType(self.lanes)
        operands = [y, ir.Constant(self.line, None), bits(-1)]
        estimate = f"llvm.x86.avx512.rsqrt14.{name}.512"
        root = self._call(estimate, self.line, operands, [self.line, self.line, bits])
        for _ in range(steps):  # Newton's method for 1 / sqrt(y): r becomes r (3 - y r^2) / 2
            half = self.mul(self.mul(y, root), self.constant(-0.5))
            root = self.fma(root, self.fma(half, root, self.constant(0.5)), root)
        return self.builder.fdiv(x, self.fma(y, root, plus))

    def polynomial(self, x: Value, coefficients: tuple[float, ...]) -> Value:
        """The sum of coefficients[i] x^i, by Horner's rule."""
        result = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            result = self.fma(result, x, self.constant(coefficient))
        return result

    def look_up(self, entries: list[int], index: Value) -> Value:
        """entries[index mod len(entries)], a line of integers; `entries` fill a register (vpermd, vpermq).

        With AVX2, a line is two registers: its halves are looked up one by one.
        """
        b, count = self.builder, len(entries)
        register = ir.VectorType(self.int_line.element, count)
        table = ir.Constant(register, [ir.Constant(register.element, entry) for entry in entries])
        if count == self.lanes:
            name = f"llvm.x86.avx512.permvar.{'di' if self.double else 'si'}.512"
            return self._call(name, register, [table, index], [register] * 2)

        def numbers(first: int, last: int) -> Value:
            return ir.Constant(ir.VectorType(I32, last - first), [I32(i) for i in range(first, last)])

        halves = [b.shuffle_vector(index, index, numbers(first, first + count)) for first in (0, count)]
        found = [
            self._call("llvm.x86.avx2.permd", register, [table, half], [register] * 2) for half in halves
        ]
        return b.shuffle_vector(*found, numbers(0, self.lanes))

    def relu(self, z: Value) -> Value:
        return self.at_least(z, 0.0)

    def positive(self, h: Value) -> Value:
        """1 where h > 0, else 0; NaN stays NaN."""
        b = self.builder
        return b.select(b.fcmp_ordered("<=", h, self.constant(0.0)), self.constant(0.0), self.constant(1.0))

    def sqrt(self, x: Value) -> Value:
        return self._same("sqrt", x)

    def where(self, x: Value, comparison: str, y: Value, value: Value, other: Value) -> Value:
        """`value` in the lanes where x compares so with y; `other` where not, or where either is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(comparison, x, y), value, other)

    def is_nan(self, x: Value) -> Value:
        """The mask of the lanes that are NaN."""
        return self.builder.fcmp_unordered("uno", x, x)

    def missing_as_zero(self, x: Value) -> Value:
        """x, but 0 in the lanes that are NaN."""
        return self.builder.select(self.is_nan(x), self.constant(0.0), x)

    def residual(self, xhat: Value, x: Value) -> Value:
        """xhat - x, but 0 where x alone is NaN: a missing cell. Its input was 0, so a NaN in xhat has another cause."""
        return self.sub(xhat, self.builder.select(self.is_nan(x), xhat, x))

    def transposed(self, lines: list[Value]) -> list[Value]:
        """The transpose of a square of lines: log2(lanes) rounds, each of which interleaves its two halves."""
        halves = [
            [(i + first) // 2 + (i % 2) * self.lanes for i in range(self.lanes)] for first in (0, self.lanes)
        ]
        half = self.lanes // 2
        for _ in range(self.lanes.bit_length() - 1):
            lines = [self.shuffle(lines[i], lines[i + half], order) for i in range(half) for order in halves]
        return lines

    def lane_sums(self, lines: list[Value]) -> Value:
        """The sums over the lanes of 1, 2, 4, ... lines, as one vector of so many lanes; at most a line's lanes.

        Each round turns two lines into one: the even parts of both, side by side, plus their odd parts. In the first
        two rounds a part is a quarter of a line, 128 bits, which one instruction moves; later, lanes within quarters.
        A single line is paired with itself.
        """
        count, quarter = len(lines), self.lanes // 4
        # For each lane, the input line whose partial sum it holds
        of = [[i] * self.lanes for i in range(count)]
        rounds = [(self.lanes, quarter)] * 2 + [(quarter, 1)] * (quarter.bit_length() - 1)
        for span, part in rounds:
            first, second = (
                [
                    line + lane
                    for start in range(0, self.lanes, span)
                    for line in (0, self.lanes)
                    for lane in range(start, start + span)
                    if lane // part % 2 == odd
                ]
                for odd in (0, 1)
            )
            pairs = [(i, i + 1) for i in range(0, len(lines), 2)] if len(lines) > 1 else [(0, 0)]
            of = [[(of[i] + of[j])[lane] for lane in first] for i, j in pairs]
            lines = [
                self.add(self.shuffle(lines[i], lines[j], first), self.shuffle(lines[i], lines[j], second))
                for i, j in pairs
            ]
        return self.shuffle(lines[0], lines[0], [of[0].index(i) for i in range(count)])

    def tree_sum(self, values: list[Value]) -> Value:
        """The sum of as many values as a line has lanes, added up in the order in which ``lane_sums`` adds lanes."""
        quarter = self.lanes // 4
        part = quarter
        while len(values) > quarter:  # quarters 0 and 1, 2 and 3; then both sums
            pairs = [
                (i + lane, i + part + lane) for i in range(0, len(values), 2 * part) for lane in range(part)
            ]
            values = [self.add(values[i], values[j]) for i, j in pairs]
        while len(values) > 1:
            values = [self.add(*values[i : i + 2]) for i in range(0, len(values), 2)]
        return values[0]

    # -- bfloat16, the upper half of a float32: 32 of them fit in a line of float32, two in each lane --------------

    def dot(self, x: Value, y: Value, z: Value) -> Value:
        """z + x0 y0 + x1 y1 in each lane, of the two bfloat16 in each of x and y (vdpbf16ps)."""
        # pairs are passed as integers: older versions of LLVM accept nothing else, newer ones convert them
        pairs = [self.builder.bitcast(value, self.int_line) for value in (x, y)]
        return self._call("llvm.x86.avx512bf16.dpbf16ps.512", self.line, [z, *pairs])

    def to_bfloat16(self, first: Value, second: Value) -> Value:
        """Two lines as one: `first`, then `second`, rounded to bfloat16, to nearest even (vcvtne2ps2bf16)."""
        halves = ir.VectorType(I16, 2 * self.lanes)
        if not TARGET.bfloat16:
            b, half = self.builder, ir.VectorType(I16, self.lanes)
            x, y = (b.trunc(b.lshr(self._rounded(x), self.int_constant(16)), half) for x in (first, second))
            return b.bitcast(self.shuffle(x, y, list(range(2 * self.lanes))), self.line)
        line = self._call("llvm.x86.avx512bf16.cvtne2ps2bf16.512", halves, [second, first])
        return self.builder.bitcast(line, self.line)

    def _rounded(self, x: Value) -> Value:
        """The bits of x whose upper halves are x in bfloat16. As vcvtne2ps2bf16 does, take subnormal x as zero."""
        b, bits = self.builder, self.builder.bitcast(x, self.int_line)
        size = b.and_(bits, self.int_constant(0x7FFFFFFF))
        is_odd = b.and_(b.lshr(bits, self.int_constant(16)), self.int_constant(1))
        near = b.add(b.add(bits, self.int_constant(0x7FFF)), is_odd)
        near = b.select(
            b.icmp_unsigned("<", size, self.int_constant(1 << 23)),
            b.and_(bits, self.int_constant(1 << 31)),
            near,
        )
        return b.select(self.is_nan(x), b.or_(bits, self.int_constant(1 << 22)), near)

    def load_bfloat16(self, address: Value) -> Value:
        """A line from (lanes,) bfloat16 of float32's lanes."""
        b = self.builder
        value = b.load(self.pointer(address, ir.VectorType(I16, self.lanes)))
        value.align = LINE // 2
        return b.bitcast(b.shl(b.zext(value, self.int_line), self.int_constant(16)), self.line)

    def paired(self, line: Value) -> Value:
        """The result of ``to_bfloat16``, reordered: each lane of `first` beside the same lane of `second`."""
        halves = self.builder.bitcast(line, ir.VectorType(I16, 2 * self.lanes))
        order = [i // 2 + i % 2 * self.lanes for i in range(2 * self.lanes)]
        return self.builder.bitcast(self.shuffle(halves, halves, order), self.line)

    def unpaired(self, pairs: Value) -> tuple[Value, Value]:
        """The two lines, `first` and `second`, of the result of ``paired``, as rounded."""
        b = self.builder
        bits = b.bitcast(pairs, self.int_line)
        first, second = b.shl(bits, self.int_constant(16)), b.and_(bits, self.int_constant(0xFFFF0000))
        return b.bitcast(first, self.line), b.bitcast(second, self.line)

    # -- conversion -------------------------------------------------------------------------------------------

    def convert(self, value: Value, signed: bool, to: ir.Type | None = None) -> Value:
        """Convert a vector of any element type to this dtype (or `to`), rounding once."""
        b, to = self.builder, to or self.scalar
        source, vector = value.type.element, ir.VectorType(to, self.lanes)
        if isinstance(source, ir.IntType):
            return (b.sitofp if signed else b.uitofp)(value, vector)
        if source == to:
            return value
        return (b.fptrunc if source == F64 else b.fpext)(value, vector)

    def half_to_single(self, bits: Value) -> Value:
        """Convert IEEE half, as 16-bit integers, to float32 by integer arithmetic, which every CPU has."""
        b = self.builder
        ints, floats = ir.VectorType(I32, self.lanes), ir.VectorType(F32, self.lanes)
        extended = b.zext(bits, ints)

        def splat(x: int) -> Value:
            return ir.Constant(ints, [x] * self.lanes)

        magnitude = b.shl(b.and_(extended, splat(0x7FFF)), splat(13))
        normal = b.add(magnitude, splat(112 << 23))
        # a subnormal half is 2^-14 (1 + fraction) - 2^-14: no subnormal float32 occurs, which kernels may flush to zero
        least = splat(113 << 23)
        raised = b.bitcast(b.add(magnitude, least), floats)
        small = b.bitcast(b.fsub(raised, b.bitcast(least, floats)), ints)
        special = b.or_(magnitude, splat(0x7F800000))
        result = b.select(b.icmp_unsigned("<", magnitude, splat(0x400 << 13)), small, normal)
        result = b.select(b.icmp_unsigned(">=", magnitude, splat(0x7C00 << 13)), special, result)
        sign = b.shl(b.and_(extended, splat(0x8000)), splat(16))
        return b.bitcast(b.or_(result, sign), floats)

    # -- lanes and calls --------------------------------------------------------------------------------------

    def splat(self, value: Value, lanes: int = 0) -> Value:
        """A scalar in every lane of a line, or of a vector of `lanes`."""
        lanes = lanes or self.lanes
        undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        return self.shuffle(self.builder.insert_element(undefined, value, I32(0)), undefined, [0] * lanes)

    def shuffle(self, x: Value, y: Value, order: list[int]) -> Value:
        """The lanes with the numbers in `order`; those of y count on from those of x."""
        return self.builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), order))

    def _same(self, name: str, *operands: Value) -> Value:
        return self._call(f"llvm.{name}.v{self.lanes}{_suffix(self.scalar)}", self.line, list(operands))

    def _call(
        self, name: str, result: ir.Type, operands: list[Value], kinds: list[ir.Type] | None = None
    ) -> Value:
        kind = ir.FunctionType(result, kinds or [operand.type for operand in operands])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), operands)


def _has_masks(element: ir.Type) -> bool:
    """Whether the CPU has instructions that load and store the lanes of a mask, of these elements."""
    small = isinstance(element, ir.IntType) and element.width < 32
    return TARGET.isa == "avx512" or (TARGET.isa == "avx2" and not small)


def _suffix(element: ir.Type) -> str:
    """The suffix for an element type in the name of an intrinsic."""
    if isinstance(element, ir.IntType):
        return f"i{element.width}"
    return "f64" if element == F64 else "f32"


def vector_kernel(write: Callable[..., None]) -> Any:
    """Turn write(words, *numbers) into ``f(like, (numbers...))`` for jitted code; see the head of this file."""

    @intrinsic
    def call(typingctx, like, numbers):  # type: ignore[no-untyped-def]
        dtype = like.dtype
        signature = types.void(like, numbers)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            words = Words(builder, F64 if dtype == types.float64 else F32)
            write(words, *cgutils.unpack_tuple(builder, arguments[1]))
            return context.get_dummy_value()

        return signature, generate

    call.write = write  # for tests of the generated code
    return call
