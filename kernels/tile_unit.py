"""The tile registers of AMX as words of simd.py, an emulation of them, and whether the system lets a process use them.

There are eight tile registers, of 16 lines each. A product C += A B takes

    A   (16 rows, 32 columns) of bfloat16        B   (16 pairs of rows, 16 columns, 2) of bfloat16
    C   (16, 16) of float32

In memory, the lines of a tile register lie one after the other. A kernel uses the registers within a ``with`` statement
over ``Amx(words)`` or ``Emulation(words)``, which have the same methods: they belong to a thread, and are set up and
released there.
"""

import ctypes
import sys
from functools import cache
from typing import Self

from llvmlite import ir

from fastae.kernels.layout import LINE
from fastae.kernels.simd import I8, I64, Value, Words, cgutils

ROWS = 16  # lines of a tile register
TILE = ROWS * LINE  # bytes of a tile register
REGISTERS = 8

# Linux, x86-64 (asm/prctl.h): a process must ask for the state that tile registers need, and may be refused.
_ARCH_PRCTL, _GET_PERMISSION, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1022, 0x1023, 18


@cache
def granted() -> bool:
    """Request AMX for this process; return whether it may be used. Threads and forked children may use it, too.

    Only on Linux, and only where ``TARGET.amx`` says that the CPU has it: other systems are not asked. Linux refuses
    if a thread has a signal stack (sigaltstack) that is too small to hold the tile registers, about 12 KB, and refuses
    such stacks from then on.
    """
    if sys.platform != "linux":
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    number, allowed = ctypes.c_long(_ARCH_PRCTL), ctypes.c_uint64()
    if call(number, ctypes.c_long(_REQUEST_PERMISSION), ctypes.c_long(_TILE_DATA)) != 0:
        return False
    if call(number, ctypes.c_long(_GET_PERMISSION), ctypes.byref(allowed)) != 0:
        return False
    return bool(allowed.value >> _TILE_DATA & 1)


class Amx:
    """The instructions. LLVM takes the numbers of tile registers as they are: it allocates none of them."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def __enter__(self) -> Self:
        # palette 1; then the bytes per line of each register from byte 16 on, and its lines from byte 48 on
        table = bytearray(64)
        table[0] = 1
        table[16 : 16 + 2 * REGISTERS] = LINE.to_bytes(2, "little") * REGISTERS
        table[48 : 48 + REGISTERS] = bytes([ROWS]) * REGISTERS
        constant = ir.Constant(ir.ArrayType(I8, len(table)), table)
        place = cgutils.global_constant(self.words.builder, "tile.configuration", constant)
        self._call("ldtilecfg", self.words.builder.bitcast(place, I8.as_pointer()))
        return self

    def __exit__(self, *error: object) -> None:
        self._call("tilerelease")

    def zero(self, tile: int) -> None:
        """Set a tile register to zero."""
        self._call("tilezero", I8(tile))

    def load(self, tile: int, address: Value) -> None:
        """Load a tile register."""
        self._call("tileloadd64", I8(tile), self.words.pointer(address, I8), I64(LINE))

    def store(self, tile: int, address: Value) -> None:
        """Store a tile register."""
        self._call("tilestored64", I8(tile), self.words.pointer(address, I8), I64(LINE))

    def multiply_add(self, c: int, a: int, b: int) -> None:
        """C += A B (tdpbf16ps)."""
        self._call("tdpbf16ps", I8(c), I8(a), I8(b))

    def _call(self, name: str, *operands: Value) -> None:
        self.words._call(f"llvm.x86.{name}", ir.VoidType(), list(operands))


class Emulation:
    """The same on memory, in words that every CPU has. It is slow: for tests of kernels on CPUs without AMX."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def __enter__(self) -> Self:
        words = self.words
        self._place = words.stack(REGISTERS * TILE)
        self._fill(0, REGISTERS, float("nan"))  # a register must be set before it is used
        return self

    def __exit__(self, *error: object) -> None:
        self._fill(0, REGISTERS, float("nan"))

    def zero(self, tile: int) -> None:
        self._fill(tile, 1, 0.0)

    def load(self, tile: int, address: Value) -> None:
        self._copy(self._at(tile), address)

    def store(self, tile: int, address: Value) -> None:
        self._copy(address, self._at(tile))

    def multiply_add(self, c: int, a: int, b: int) -> None:
        words = self.words

        def row(c_m: Value, a_m: Value) -> list[Value]:
            def pair(a_mk: Value, b_k: Value, line: Value) -> list[Value]:
                x, y = words.unpaired(words.broadcast(a_mk)), words.unpaired(words.load(b_k))
                line = words.fma(x[1], y[1], words.fma(x[0], y[0], line))
                return [words.offset(a_mk, words.itemsize), words.offset(b_k, LINE), line]

            *_, line = words.loop(words.count(ROWS), [a_m, self._at(b), words.load(c_m)], pair)
            words.store(line, c_m)
            return [words.offset(c_m, LINE), words.offset(a_m, LINE)]

        words.loop(words.count(ROWS), [self._at(c), self._at(a)], row)

    def _at(self, tile: int) -> Value:
        return self.words.offset(self._place, tile * TILE)

    def _fill(self, tile: int, count: int, value: float) -> None:
        words = self.words

        def line(place: Value) -> list[Value]:
            words.store(words.constant(value), place)
            return [words.offset(place, LINE)]

        words.loop(words.count(count * ROWS), [self._at(tile)], line)

    def _copy(self, target: Value, source: Value) -> None:
        words = self.words

        def line(target: Value, source: Value) -> list[Value]:
            words.store(words.load(source), target)
            return [words.offset(target, LINE), words.offset(source, LINE)]

        words.loop(words.count(ROWS), [target, source], line)
