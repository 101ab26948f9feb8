"""Makes the object files of ``prebuilt.py``: all kernels for all targets of this platform.

    python -m fastae.kernels.build [DIRECTORY]        by default where they are looked for, beside the sources

The wheel build calls it (``setup_commands.py``). A checkout needs no object files: its kernels are compiled when they
are first used. If it has some, they are used until a source file of the kernels changes.

A kernel is compiled by Numba as it would be at first use, by a process that is told of the target. Then its wrapper,
with Numba's error path, is replaced by one without: kernels raise no errors. What is left calls nothing but FUNCTIONS.
The same sources, compiled by the same versions of Numba and LLVM, give the same bytes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple


class Machine(NamedTuple):
    """A kind of CPU: the name that LLVM compiles for, and the features that it must have, beyond the platform's."""

    cpu: str
    features: tuple[str, ...] = ()


_V3 = "avx avx2 bmi bmi2 cx16 f16c fma lzcnt movbe popcnt sahf sse3 sse4.1 sse4.2 ssse3 xsave"
_V4 = f"{_V3} avx512bw avx512cd avx512dq avx512f avx512vl"
X86 = {
    "generic": Machine("generic"),
    "avx2": Machine("x86-64-v3", tuple(_V3.split())),
    "avx512": Machine("x86-64-v4", tuple(_V4.split())),
}
BFLOAT16 = Machine("x86-64-v4", tuple(f"{_V4} avx512bf16".split()))
ARM = {"neon": Machine("generic")}
# Modules without kernels, and amx.py, whose kernels are compiled at first use, on the few CPUs that have AMX
LEFT_OUT = "build", "setup_commands", "amx"
GROUPS = "float32", "float64", "calls"  # of all targets; the group bfloat16 needs AVX512_BF16
# Functions of the C library that a kernel may call
FUNCTIONS = {
    "memcpy",
    "memmove",
    "memset",
    "sqrt",
    "sqrtf",
    "exp",
    "expf",
    "log",
    "logf",
    "pow",
    "powf",
    "fma",
    "fmaf",
}


def jobs() -> list[tuple[str, str, Machine]]:
    """The files to make for this platform: instruction set, group of kernels, CPU. The longest work comes first."""
    from fastae.kernels.target import processor

    x86 = processor() == "x86_64"
    bfloat16 = [("avx512", "bfloat16", BFLOAT16)] if x86 else []
    machines = X86 if x86 else ARM
    return [(isa, group, machine) for group in GROUPS for isa, machine in machines.items()] + bfloat16


def build(directory: Path) -> None:
    """Make all object files, one process per CPU at a time; raise an error if one cannot be made."""
    directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(lambda job: _start(directory, *job), jobs()):
            pass


def _start(directory: Path, isa: str, group: str, machine: Machine) -> None:
    """Make one file, in a process whose Numba compiles for `machine`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    features = ",".join(f"+{feature}" for feature in machine.features)
    environment |= {"NUMBA_CPU_NAME": machine.cpu, "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-m", "fastae.kernels.build", str(directory), "--only", isa, group]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{isa} {group}: {done.stderr}")


# -- in the process that compiles -------------------------------------------------------------------------------------


def kernels_of(group: str) -> list[tuple[str, Any, str | None]]:
    """The functions of a group, by name: the symbol, the kernel, and the dtype it is compiled for."""
    from fastae import kernels
    from fastae.kernels import compiler, prebuilt
    from fastae.kernels.forms import FORMS
    from fastae.kernels.products import FUNCTIONS as PRODUCTS

    for module in iter_modules(kernels.__path__):
        if module.name not in LEFT_OUT:
            import_module(f"fastae.kernels.{module.name}")
    groups: dict[Any, set[str]] = {}  # of products: the dtypes of the forms they belong to
    for form in FORMS:
        for product in PRODUCTS:
            groups.setdefault(getattr(form, product), set()).update(form.dtypes)
    for dtypes in groups.values():
        if "float32" in dtypes:  # which a bfloat16 engine takes as well
            dtypes.discard("bfloat16")
    found: dict[str, tuple[Any, str | None]] = {}
    for kernel in compiler.registry:
        package, _, module_name = kernel.function.__module__.rpartition(".")
        if package == "fastae.kernels" and module_name not in LEFT_OUT:
            by_dtype = isinstance(kernel, compiler.ByAddress)
            if group in (groups.get(kernel, {"float32", "float64"}) if by_dtype else {"calls"}):
                element = "float32" if group == "bfloat16" else group if by_dtype else None
                symbol = prebuilt.symbol_of(compiler.name_of(kernel.function), element)
                if found.setdefault(symbol, (kernel, element))[0] is not kernel:
                    raise RuntimeError(f"two kernels are called {symbol}")
    return [(symbol, *found[symbol]) for symbol in sorted(found)]


def make(directory: Path, isa: str, group: str) -> None:
    """Compile a group of kernels for the CPU that Numba was told of, and write its file."""
    from llvmlite import binding

    from fastae.kernels import in_place, prebuilt, sources
    from fastae.kernels.target import TARGET

    if TARGET.isa != isa:
        raise RuntimeError(f"{TARGET.cpu} stands for {TARGET.isa}, not {isa}")
    kernels = kernels_of(group)
    modules = [binding.parse_assembly(_without_error_path(*kernel)) for kernel in kernels]
    first, *others = modules
    for module in others:
        first.link_in(module)
    image = _object(first, [symbol for symbol, _, _ in kernels], in_place.target_machine())
    features = next(machine.features for i, g, machine in jobs() if (i, g) == (isa, group))
    facts = {
        "target": prebuilt.file_target(asdict(TARGET), group),
        "features": sorted(features),
        "functions": [symbol for symbol, _, _ in kernels],
    }
    content = json.dumps(facts, sort_keys=True).encode() + b"\n" + image
    stamp = sources.source_hash()
    if stamp is None or not sources.unchanged():
        raise RuntimeError("the source files changed meanwhile")
    (directory / f"{isa}.{group}").write_bytes(prebuilt.digest(stamp, content) + content)


def _without_error_path(symbol: str, kernel: Any, element: str | None) -> str:
    """The LLVM IR of a kernel as the function `symbol`: a call of what Numba's own wrapper calls, and nothing else.

    Kernels own no memory of Python's, so what counts references to it has nothing to do.
    """
    from fastae.kernels import compiler, in_place

    integers, returns = compiler.shape_of(kernel.function)
    llvm, core, wrapper = in_place.llvm_of(kernel.function, element)
    bodies = {
        name: body for body in re.findall(r"^define .*?^}\n", llvm, re.M | re.S) for name in [_name(body)]
    }
    for name in (wrapper, "NRT_incref", "NRT_decref"):
        if name in bodies:
            llvm = llvm.replace(bodies[name], "")
    for name in ("NRT_incref", "NRT_decref"):
        if re.search(rf"@{name}\b", llvm):
            llvm = re.sub(rf"^declare .*@{name}\(.*\n", "", llvm, flags=re.M)
            llvm += f"define internal void @{name}(ptr %meminfo) alwaysinline nounwind {{\n  ret void\n}}\n"
    arguments = [f"{'ptr' if element and i == 0 else 'i64'} %{i}" for i in range(integers)]
    kind, end = (
        ("i64", "%value = load i64, ptr %result\n  ret i64 %value") if returns else ("void", "ret void")
    )
    return llvm + (
        f'define {kind} @"{symbol}"({", ".join(arguments)}) nounwind {{\n'
        f"  %result = alloca i64\n  %error = alloca ptr\n"
        f'  %status = call i32 @"{core}"({", ".join(["ptr %result", "ptr %error", *arguments])}) noinline\n'
        f"  {end}\n}}\n"
    )


def _name(body: str) -> str:
    """The name of the function that a definition in LLVM IR defines."""
    found = re.search(r'@"?([^"(]+)"?\(', body)
    assert found is not None
    return found.group(1)


def _object(module: Any, symbols: list[str], machine: Any) -> bytes:
    """The object file of a module: these functions and what they call. Other names do not depend on the process."""
    from llvmlite import binding

    for function in module.functions:
        if not function.is_declaration and function.name not in symbols:
            function.linkage = "internal"
    for variable in module.global_variables:
        if str(variable.linkage) != "Linkage.external":
            variable.linkage = "internal"
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(0))
    passes = binding.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)
    for i, value in enumerate([*module.functions, *module.global_variables]):
        if value.linkage == binding.Linkage.internal:
            value.name = f"part.{i}"
    called = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    outside = called | {v.name for v in module.global_variables if v.linkage == binding.Linkage.external}
    if outside - FUNCTIONS:
        raise RuntimeError(f"kernels may not use {', '.join(sorted(outside - FUNCTIONS))}")
    module.name = "fastae"
    image: bytes = machine.emit_object(module)
    return image


def main() -> None:
    """Run the command."""
    from fastae.kernels import prebuilt

    parser = argparse.ArgumentParser(
        prog="python -m fastae.kernels.build", description="Compile all kernels ahead."
    )
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path(prebuilt.DIRECTORY), help="where to write"
    )
    parser.add_argument("--only", nargs=2, metavar=("ISA", "GROUP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        make(options.directory, *options.only)
        return
    start = time.perf_counter()
    build(options.directory)
    files = sorted(options.directory.iterdir())
    size = sum(file.stat().st_size for file in files)
    print(f"{len(files)} files, {size:,} bytes, {time.perf_counter() - start:.0f} s: {options.directory}")


if __name__ == "__main__":
    main()
