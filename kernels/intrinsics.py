"""What jitted code calls beside vector kernels: memory at an address, atomic operations, the state of the processor.

Each becomes the few instructions of one operation on integers.
"""

from llvmlite import ir

from fastae.kernels.compiler import intrinsic, of_numba
from fastae.kernels.layout import LINE
from fastae.kernels.simd import F32, F64, I8, I32, I64, Value, Words, cgutils, types
from fastae.kernels.target import TARGET

populate_array = of_numba("numba.np.arrayobj.populate_array")


@intrinsic
def load_int64(typingctx, address):  # type: ignore[no-untyped-def]
    """The int64 at `address`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(arguments[0], I64.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def load_float64(typingctx, address):  # type: ignore[no-untyped-def]
    """The float64 at `address`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(arguments[0], F64.as_pointer()))

    return types.float64(types.int64), generate


@intrinsic
def high_product(typingctx, x, y):  # type: ignore[no-untyped-def]
    """The upper 64 bits of the product of two uint64 (x86: mul)."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        whole = ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, whole) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(whole, 64)), I64)

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def fetch_add(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Atomically add to the int64 at `address`; return its value before (x86: lock xadd)."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def compare_and_swap(typingctx, address, expected, new):  # type: ignore[no-untyped-def]
    """Atomically set the int64 at `address` to `new` if it is `expected`; return whether it was (x86: lock cmpxchg)."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], I64.as_pointer())
        pair = builder.cmpxchg(pointer, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def load_acquire(typingctx, address):  # type: ignore[no-untyped-def]
    """Load the int64 at `address`; all that its writer wrote before it is visible afterwards."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        # sequentially consistent, so that it comes after an ``exchange`` before it; on x86 the same instruction
        return builder.load_atomic(builder.inttoptr(arguments[0], I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def store_release(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Store an int64; all that this thread wrote before it is visible to a thread that loads it by load_acquire."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.store_atomic(arguments[1], builder.inttoptr(arguments[0], I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def exchange(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Store an int64; return its value before. Later loads wait until all threads can see the store (x86: xchg)."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.atomic_rmw("xchg", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def array_at(typingctx, address, shape, dtype):  # type: ignore[no-untyped-def]
    """The C-contiguous array of `shape`, a tuple, at `address`; faster to compile than ``numba.carray``."""
    array = types.Array(dtype.dtype, len(shape), "C")

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        struct = context.make_array(array)(context, builder)
        item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(array.dtype)))
        sizes, strides = cgutils.unpack_tuple(builder, arguments[1]), [item]
        for size in sizes[:0:-1]:
            strides.insert(0, builder.mul(strides[0], size))
        data = builder.inttoptr(arguments[0], struct.data.type)
        populate_array(struct, data, sizes, strides, item, meminfo=None)
        return struct._getvalue()

    return array(types.int64, shape, dtype), generate


@intrinsic
def record_at(typingctx, address, dtype):  # type: ignore[no-untyped-def]
    """The record of a structured `dtype` at `address`. Its fields are read and written in place."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return dtype.dtype(types.int64, dtype), generate


@intrinsic
def call_at(typingctx, address, integers):  # type: ignore[no-untyped-def]
    """Call the ``compiler.ByAddress`` function at `address`; the first of `integers` becomes its pointer argument."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        values = cgutils.unpack_tuple(builder, arguments[1])
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(address, integers), generate


@intrinsic
def any_nonzero(typingctx, like, numbers):  # type: ignore[no-untyped-def]
    """any_nonzero(like, (lines_at, count, first)): 1 if `count` lines have a nonzero element in lane `first` or after.

    NaN is not zero. `like` is an array of the lines' dtype.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        words = Words(builder, F64 if like.dtype == types.float64 else F32)
        lines_at, count, first = cgutils.unpack_tuple(builder, arguments[1])

        def line(place: Value, found: Value) -> list[Value]:
            nonzero = builder.fcmp_unordered("!=", words.load(place, aligned=False), words.constant(0.0))
            return [words.offset(place, LINE), builder.or_(found, nonzero)]

        none = words.first_lanes(words.count(0))
        _, found = words.loop(count, [lines_at, none], line)
        found = builder.and_(found, builder.not_(words.first_lanes(first)))
        bits = ir.IntType(words.lanes)
        return builder.zext(builder.icmp_unsigned("!=", builder.bitcast(found, bits), bits(0)), I64)

    return types.int64(like, numbers), generate


@intrinsic
def call_for_int64(typingctx, address, integer):  # type: ignore[no-untyped-def]
    """What the C function at `address` returns, given an int64: an int64, or an address."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(I64, [I64])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])

    return types.int64(address, types.int64), generate


@intrinsic
def pause(typingctx):  # type: ignore[no-untyped-def]
    """Tell the core that this thread waits in a loop (x86: pause; ARM: isb, since yield does nothing there)."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        name, operands = ("llvm.x86.sse2.pause", []) if TARGET.x86 else ("llvm.aarch64.isb", [I32(15)])
        if TARGET.x86 or TARGET.isa == "neon":
            kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)
        return context.get_dummy_value()

    return types.void(), generate


# The bit of MXCSR that flushes subnormal results to zero; subnormal operands keep their value
_FLUSH = 0x8000


@intrinsic
def flush_subnormals(typingctx):  # type: ignore[no-untyped-def]
    """Flush subnormal results to zero on this thread (x86: ldmxcsr); return the state for ``restore_float_state``."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if not TARGET.x86:
            return I64(0)
        slot = cgutils.alloca_once(builder, I32)
        _mxcsr(builder, "stmxcsr", slot)
        before = builder.load(slot)
        builder.store(builder.or_(before, I32(_FLUSH)), slot)
        _mxcsr(builder, "ldmxcsr", slot)
        return builder.zext(before, I64)

    return types.int64(), generate


@intrinsic
def restore_float_state(typingctx, state):  # type: ignore[no-untyped-def]
    """Undo ``flush_subnormals``: restore the whole control and status register."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if TARGET.x86:
            slot = cgutils.alloca_once(builder, I32)
            builder.store(builder.trunc(arguments[0], I32), slot)
            _mxcsr(builder, "ldmxcsr", slot)
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _mxcsr(builder: ir.IRBuilder, name: str, slot: Value) -> None:
    """Store the control and status register in `slot` ("stmxcsr"), or load it from there ("ldmxcsr")."""
    pointer = builder.bitcast(slot, I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer()])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}"), [pointer])
