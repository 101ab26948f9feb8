"""The assembly that LLVM makes of the kernels for a CPU that need not be this one, and what its inner loops contain.

    python tests/support/assembly.py CPU [DTYPE ...] [--only KERNEL --show]

Such a process pretends to be one on that CPU, so that ``target.py`` chooses the register tiles. Only the vector kernels
are compiled, without Numba: each is one function, and every inner loop of a product is in one of them. Nothing is run.
"""

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

_AVX2 = "avx avx2 fma f16c bmi bmi2".split()
_AVX512 = [*_AVX2, *"avx512f avx512vl avx512bw avx512dq avx512cd".split()]
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
CPUS = {
    "skylake-avx512": (X86, _AVX512),
    "sapphirerapids": (X86, [*_AVX512, "avx512bf16"]),
    "znver4": (X86, [*_AVX512, "avx512bf16"]),
    "znver5": (X86, [*_AVX512, "avx512bf16"]),
    "x86-64-v4": (X86, _AVX512),  # what wheels are built for
    "haswell": (X86, _AVX2),
    "x86-64-v3": (X86, _AVX2),
    "neoverse-n1": (ARM, []),
    "neoverse-v2": (ARM, []),
    "apple-m1": ("arm64-apple-macosx", []),
}
SCALARS = {"factor": 1, "constants": 7}  # arguments of kernels that are numbers of the dtype, not integers
# A module comes before those that import its kernels
MODULES = "lines transpose rows activations bfloat16 cost dense_layer gemm nearest noise optimizer rowlanes"


class Loop(NamedTuple):
    """What an innermost loop contains: instructions, vector multiply-adds, loads, accesses to the stack."""

    instructions: int
    fmas: int
    loads: int
    spills: int


class Kernel(NamedTuple):
    """The innermost loops of a kernel; and in all of it, accesses to the stack within loops, and scalarised masks."""

    loops: list[Loop]
    spills: int
    masks: int  # lanes that a masked load or store treats one by one


def read(cpu: str, *options: str) -> dict[str, dict[str, Kernel]]:
    """The kernels compiled for a CPU, by dtype and name; by a process of its own, with these options."""
    command = [sys.executable, __file__, cpu, *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {
        dtype: {
            name: Kernel([Loop(*loop) for loop in loops], spills, masks)
            for name, (loops, spills, masks) in kernels.items()
        }
        for dtype, kernels in json.loads(done.stdout).items()
    }


def can_compile_for(cpu: str) -> bool:
    """Whether LLVM was built with a code generator for this CPU."""
    from llvmlite import binding

    binding.initialize_all_targets()
    try:
        binding.Target.from_triple(CPUS[cpu][0])
    except RuntimeError:
        return False
    return True


# -- reading assembly -------------------------------------------------------------------------------------------------

_FMA = re.compile(r"\s(vfn?m(add|sub)\w*p[sd]|vdpbf16ps|fml[as](\.\w+)?|bfdot)\s")
_STACK = re.compile(r"\(%rsp[,)]|\[sp[,\]]")
_STACK_OR_FRAME = re.compile(r"\(%r[sb]p[,)]|\[(sp|x29)[,\]]")  # where the frame has a pointer of its own
_FRAME = re.compile(r"movq\s+%rsp, %rbp|(mov|add)\s+x29, sp")
_SCALARISED = re.compile(r"%cond\.(load|store)")


def _loads(line: str) -> int:
    """Loads of an instruction; those of constants are included."""
    code = line.strip()
    if "[" in code or "lCPI" in code:
        pair = code.startswith(("ldp", "ldnp"))
        return (2 if pair else 1) if code.startswith(("ld", "prfm")) else 0
    operands = code.partition("\t")[2]
    if "(" not in operands or code.startswith(("lea", "prefetch")):
        return 0
    return 0 if operands.endswith(")") and not code.startswith(("cmp", "test")) else 1


_JUMP = re.compile(r"\s(j\w+|b|b\.\w+|c?bn?z|tbn?z|cbz|cbnz)\s.*?([.L]*LBB\w+)")
_ENDS = re.compile(r"\s(jmpq?|b|br|ret|retq)(\s|$)")  # nothing continues after these
_TABLE = re.compile(r"(\s\.\w+\s+|=)([.L]*LBB\w+)-")  # an entry of a jump table


def _blocks(assembly: str) -> tuple[list[list[str]], list[set[int]]]:
    """The basic blocks of one function, and the numbers of those that follow each."""
    blocks, place, tables = [[]], {}, set()
    for line in assembly.splitlines():
        line = re.split(r"#\s|//|;", line)[0].rstrip()  # comments; in front of a number, ARM's # is none
        tables.update(label for _, label in _TABLE.findall(line))
        if re.match(r"[.\w]+:", line):
            blocks.append([])
            place[line.split(":")[0]] = len(blocks) - 1
        elif re.match(r"\s+[a-z]", line):
            blocks[-1].append(line)
            if _JUMP.search(line) or _ENDS.search(line):
                blocks.append([])
    follows = []
    for i, block in enumerate(blocks):
        last = block[-1] if block else ""
        jump, ends = _JUMP.search(last), _ENDS.search(last)
        after = {place[jump.group(2)]} if jump else set()
        if ends and not jump and "ret" not in ends.group(1):  # through a table
            after = {place[label] for label in tables}
        if not ends and i + 1 < len(blocks):
            after.add(i + 1)
        follows.append(after)
    return blocks, follows


def _loops(follows: list[set[int]]) -> list[set[int]]:
    """The blocks of each loop: what closes it is a jump to a block that is on every way from the start to the jump."""
    reached, left = set(), [0]
    while left:
        block = left.pop()
        if block not in reached:
            reached.add(block)
            left += follows[block]
    before = {n: {i for i in reached if n in follows[i]} for n in reached}
    dominators = {n: reached if n else {0} for n in reached}
    changed = True
    while changed:
        changed = False
        for n in sorted(reached - {0}):
            new = {n} | set.intersection(*(dominators[p] for p in before[n]))
            if new != dominators[n]:
                dominators[n], changed = new, True
    loops: dict[int, set[int]] = {}
    for n in sorted(reached):
        for head in follows[n] & dominators[n]:
            body, left = loops.setdefault(head, {head}), [n]
            while left:
                block = left.pop()
                if block not in body:
                    body.add(block)
                    left += before[block]
    return list(loops.values())


def analyse(assembly: str) -> Kernel:
    """What the loops of one function contain."""
    blocks, follows = _blocks(assembly)
    loops = _loops(follows)
    stack = _STACK_OR_FRAME if _FRAME.search(assembly) else _STACK

    def count(found, lines: list[str]) -> int:  # type: ignore[no-untyped-def]
        return sum(bool(found(line)) for line in lines)

    innermost = [body for body in loops if not any(other < body for other in loops)]
    result = []
    for body in sorted(innermost, key=min):
        lines = [line for i in sorted(body) for line in blocks[i]]
        result.append(
            Loop(len(lines), count(_FMA.search, lines), sum(map(_loads, lines)), count(stack.search, lines))
        )
    inside = [line for i in set().union(*loops) for line in blocks[i]]
    return Kernel(result, count(stack.search, inside), len(_SCALARISED.findall(assembly)))


# -- in the process that compiles -------------------------------------------------------------------------------------


def pretend(cpu: str) -> None:
    """Have ``target.py`` find this CPU."""
    import numba  # noqa: F401  which asks LLVM for this host
    from llvmlite import binding

    triple, features = CPUS[cpu]
    binding.get_process_triple = lambda: triple
    binding.get_host_cpu_name = lambda: cpu
    binding.get_host_cpu_features = lambda: dict.fromkeys(features, True)


def kernels() -> dict[str, object]:
    """The vector kernels by name: what writes each, given its words and numbers."""
    from fastae.kernels.compiler import Deferred

    found = {}
    for name in MODULES.split():
        module = import_module(f"fastae.kernels.{name}")
        for attribute, value in vars(module).items():
            if isinstance(value, Deferred) and "write" in vars(value):
                found.setdefault(id(value), (f"{name}.{attribute.lstrip('_')}", value.write))
    return dict(found.values())


def compile(name: str, write, cpu: str, dtype: str) -> str:
    """The assembly of one kernel."""
    from llvmlite import binding, ir

    from fastae.kernels.simd import F32, F64, I64, Words

    scalar = F64 if dtype == "float64" else F32
    arguments = []
    for parameter in list(inspect.signature(write).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL and parameter.name not in SCALARS:
            arguments += [I64] * (4 if "derivative" in name else 3)
        else:
            arguments += [scalar] * SCALARS[parameter.name] if parameter.name in SCALARS else [I64]
    module = ir.Module(name)
    module.triple = CPUS[cpu][0]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "kernel")
    builder = ir.IRBuilder(function.append_basic_block())
    write(Words(builder, scalar), *function.args)
    builder.ret_void()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(module.triple)
    machine = target.create_target_machine(cpu=cpu, opt=3, reloc="pic", codemodel="small")
    machine.set_asm_verbosity(True)
    parsed = binding.parse_assembly(str(module))
    parsed.data_layout = str(machine.target_data)
    options = binding.create_pipeline_tuning_options(3)
    options.loop_vectorization = options.slp_vectorization = True
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return machine.emit_assembly(parsed)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cpu", choices=CPUS)
    parser.add_argument("dtype", nargs="*", default=["float32", "float64"])
    parser.add_argument("--only", metavar="KERNEL", help="compile one kernel")
    parser.add_argument("--show", action="store_true", help="print the assembly")
    parser.add_argument(
        "--rows", type=int, help="of register tiles of one block, instead of what target.py chooses"
    )
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    pretend(options.cpu)
    from fastae.kernels.target import TARGET

    if options.rows:
        TARGET.register_tiles[1] = options.rows
    found: dict[str, dict[str, Kernel]] = {}
    for dtype in options.dtype:
        for name, write in kernels().items():
            if name.startswith("bfloat16") and not (TARGET.bfloat16 and dtype == "float32"):
                continue
            if options.only in (None, name):
                assembly = compile(name, write, options.cpu, dtype)
                if options.show:
                    print(assembly)
                found.setdefault(dtype, {})[name] = analyse(assembly)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
