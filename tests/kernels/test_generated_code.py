"""The code that LLVM makes of the kernels for CPUs that tests need not run on: loads, accesses to the stack, masks.

Bounds are what the code has today. A bound that is exceeded is not an error in results, but a loop that became slower:
look at it with ``python tests/support/assembly.py CPU DTYPE --only KERNEL --show``. If less is needed, lower the bound.
"""

import functools

import assembly
import pytest
from llvmlite import binding

pytestmark = pytest.mark.skipif(binding.llvm_version_info < (22,), reason="bounds are those of LLVM 22")

AVX512 = ("skylake-avx512", "sapphirerapids", "znver4", "znver5", "x86-64-v4")
AVX2 = ("haswell", "x86-64-v3")
NEON = ("neoverse-n1", "neoverse-v2", "apple-m1")
ISA = {cpu: isa for isa, cpus in {"avx512": AVX512, "avx2": AVX2, "neon": NEON}.items() for cpu in cpus}
QUICK = ("skylake-avx512", "haswell", "neoverse-n1")
CASES = [
    pytest.param(
        cpu,
        dtype,
        marks=[] if cpu in QUICK and dtype == "float32" else pytest.mark.exhaustive,
        id=f"{cpu}-{dtype}",
    )
    for cpu in ISA
    for dtype in ("float32", "float64")
]

# Multiply-adds and loads of each register tile: per line, operands are read from memory once, and each element of the
# other operand once. Column blocks: tiles of 3, 2 and 1 blocks; rows in lanes: the tile, the short one, a gradient's.
TILES = {
    "avx512": {
        "blocks": [(24, 11), (16, 10), (16, 17)],
        "lanes": (16, 10),
        "short": (10, 7),
        "gradient": (16, 8),
        "gradient_more": (20, 9),
    },
    "avx2": {"blocks": [(12, 8)], "lanes": (12, 8), "short": (8, 6), "gradient": (8, 8)},
    "neon": {"blocks": [(16, 8)], "lanes": (24, 14), "short": (16, 10), "gradient": (16, 16)},
}
# The same of gradients in column blocks; their tile of one block has as many rows as a block has columns.
GRADIENT_TILES = {
    "avx512": {"float32": [(24, 11), (16, 10), (16, 17)], "float64": [(24, 11), (16, 10), (8, 9)]},
    "avx2": {"float32": [(8, 6)], "float64": [(8, 6)]},
    "neon": {"float32": [(16, 8)], "float64": [(16, 8)]},
}
# Accesses to the stack in an innermost loop, where there are any: a square of 16 x 16 lines, or the sums of eight
# rows, are more than 16 registers of 32 bytes or 32 of 16 bytes hold; of products, constants of the activations.
SPILLS = {  # of addresses
    (f"gemm.{product}", cpu, dtype): {"float32": 6, "float64": 4}[dtype] if product == "forward" else 2
    for product in ("forward", "residual", "backward")
    for cpu in ("skylake-avx512", "x86-64-v4")
    for dtype in ("float32", "float64")
} | {
    ("nearest.compare", cpu, dtype): 2
    for cpu in ("skylake-avx512", "x86-64-v4")
    for dtype in ("float32", "float64")
}
SPILLS_OF_ISA = {
    ("activations.exp_words", "neon", "float32"): 3,
    ("activations.sigmoid_with_derivative_words", "avx2", "float64"): 1,
    ("cost.output_delta", "avx512", "float32"): 1,  # these: constants of the logarithm
    ("cost.output_delta", "avx512", "float64"): 1,
    ("cost.output_delta", "avx2", "float32"): 16,
    ("cost.output_delta", "avx2", "float64"): 25,
    ("cost.output_delta", "neon", "float32"): 34,
    ("cost.output_delta", "neon", "float64"): 74,
    ("cost.row_errors", "avx2", "float32"): 42,
    ("cost.row_errors", "avx2", "float64"): 12,
    ("cost.row_errors", "neon", "float32"): 73,
    ("cost.row_errors", "neon", "float64"): 29,
    ("transpose.transpose", "avx2", "float32"): 155,
    ("transpose.transpose", "avx2", "float64"): 30,
    ("transpose.transpose", "neon", "float32"): 75,
    ("transpose.transpose", "neon", "float64"): 2,
    ("rowlanes.from_rows", "avx512", "float32"): 8,  # addresses of rows
    ("rowlanes.from_rows", "avx2", "float32"): 170,  # not used there
    ("rowlanes.from_rows", "avx2", "float64"): 34,
    ("rowlanes.from_rows", "neon", "float32"): 81,
    ("rowlanes.from_rows", "neon", "float64"): 2,
    ("rowlanes.row_errors", "avx2", "float32"): 16,
    ("rowlanes.row_errors", "avx2", "float64"): 12,
    ("rowlanes.row_errors", "neon", "float32"): 22,
    ("rowlanes.row_errors", "neon", "float64"): 25,
    ("rowlanes.store_rows", "avx2", "float32"): 158,
    ("rowlanes.store_rows", "avx2", "float64"): 30,
    ("rows.load_lines", "avx2", "float32"): 12,
    ("rows.load_lines", "avx2", "float64"): 2,
    ("rows.write_rows", "neon", "float64"): 3,
}
read = functools.cache(assembly.read)


def kernels(cpu, dtype):
    if not assembly.can_compile_for(cpu):
        pytest.skip(f"this LLVM has no code generator for {cpu}")
    found = read(cpu, dtype)[dtype]
    assert len(found) >= 30
    assert any(name.startswith("bfloat16") for name in found) == (
        cpu in ("sapphirerapids", "znver4", "znver5") and dtype == "float32"
    )
    return found


def tiles(name, cpu, dtype):
    """(multiply-adds, loads) of the register tiles of a product, in the order of the code; None for other kernels."""
    module, kernel = name.split(".")
    product, of = kernel.removesuffix("_short").removesuffix("_more"), TILES[ISA[cpu]]
    if name != "nearest.compare" and product not in ("forward", "residual", "backward", "gradient"):
        return None
    if module == "rowlanes":
        if product == "gradient":
            return [of.get(kernel, of["gradient"])]
        return [of["lanes" if kernel == product else "short"]]
    if product == "gradient":
        return GRADIENT_TILES[ISA[cpu]][dtype]
    return [tile for tile in of["blocks"] for _ in ("unrolled", "what is left")]


@pytest.mark.parametrize(("cpu", "dtype"), CASES)
def test_products_load_each_operand_once_per_register_tile(cpu, dtype):
    for name, kernel in kernels(cpu, dtype).items():
        wanted = tiles(name, cpu, dtype)
        if wanted is None:
            continue
        loops = [loop for loop in kernel.loops if loop.fmas]
        assert len(loops) == len(wanted), name
        for loop, (fmas, loads) in zip(loops, wanted, strict=True):
            assert loop.fmas % fmas == 0, name
            assert loop.loads - loop.spills <= loop.fmas // fmas * loads, (name, loop)


@pytest.mark.parametrize(("cpu", "dtype"), CASES)
def test_innermost_loops_stay_off_the_stack(cpu, dtype):
    for name, kernel in kernels(cpu, dtype).items():
        most = SPILLS.get((name, cpu, dtype), SPILLS_OF_ISA.get((name, ISA[cpu], dtype), 0))
        for loop in kernel.loops:
            assert loop.spills <= most, (name, loop)


@pytest.mark.parametrize(("cpu", "dtype"), CASES)
def test_no_mask_is_tested_lane_by_lane(cpu, dtype):
    for name, kernel in kernels(cpu, dtype).items():
        assert kernel.masks == 0, name


LOOPS = """
kernel:
	xorl	%eax, %eax
	vmovups	8(%rsp), %ymm1
.LBB0_1:
	xorl	%ecx, %ecx
	movq	%rdx, 24(%rsp)
.LBB0_2:
	vfmadd231ps	(%rdi), %ymm1, %ymm0
	vfmadd231ps	{second}, %ymm1, %ymm2
	vmovaps	%ymm0, (%rsi)
	incq	%rcx
	cmpq	%rcx, %r8
	jne	.LBB0_2
# %bb.3:                                # %cond.load
	incq	%rax
	cmpq	%rax, %r9
	jne	.LBB0_1
	retq
"""
NEON_LOOP = """
kernel:
LBB0_1:
	ldp	q0, q1, [x0], #32
	fmla.4s	v2, v0, v1
	str	q2, [sp, #16]
	cbnz	x1, LBB0_1
	ret
"""


def test_what_is_counted():
    """An inner loop of two multiply-adds within an outer one, and the same with an operand on the stack."""
    clean = assembly.analyse(LOOPS.format(second="%ymm3"))
    assert clean == assembly.Kernel([assembly.Loop(6, 2, 1, 0)], 1, 1)
    spilled = assembly.analyse(LOOPS.format(second="32(%rsp)"))
    assert spilled == assembly.Kernel([assembly.Loop(6, 2, 2, 1)], 2, 1)
    neon = assembly.analyse(NEON_LOOP)
    assert neon == assembly.Kernel([assembly.Loop(4, 1, 2, 1)], 1, 0)


def test_a_register_tile_that_does_not_fit_is_seen():
    """With 6 x 1 lines on NEON, accumulators are on the stack."""
    if not assembly.can_compile_for("neoverse-n1"):
        pytest.skip("this LLVM has no code generator for ARM")
    kernel = assembly.read("neoverse-n1", "float32", "--only", "gemm.forward", "--rows", "6")
    kernel = kernel["float32"]["gemm.forward"]
    assert max(loop.spills for loop in kernel.loops) > 0
