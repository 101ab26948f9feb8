"""The CPU that kernels are compiled for, and the register tiles that follow from it. No kernel is here.

The features are those that Numba compiles for (``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES``, by default this host's,
as LLVM knows them). An instruction that the code generator does not know would abort the process.

A register tile of ``rows x blocks`` cache lines must fit in the vector registers together with one row of B and one
element of A in every lane. A cache line of 64 bytes is 1 zmm, 2 ymm or 4 xmm/NEON registers:

    AVX-512  32 registers   8 x 3 lines = 24, 8 x 2 = 16, 16 x 1 = 16
    AVX2     16 registers   6 x 1 line  = 12
    NEON     32 registers   4 x 1 line  = 16; 6 x 1 = 24 would fit, but LLVM keeps some of them on the stack
    SSE2     16 registers   2 x 1 line  = 8
"""

import os
import sys
from dataclasses import dataclass

from llvmlite import binding


@dataclass(frozen=True)
class Target:
    """The CPU that kernels are compiled for: its name, its relevant instruction sets, and the register tiles."""

    cpu: str
    isa: str  # "avx512", "avx2", "neon" or "generic"
    fma: bool
    x86: bool
    bfloat16: bool  # AVX512_BF16: products of pairs of bfloat16, added up in float32
    register_tiles: dict[int, int]  # blocks -> rows
    amx: bool = False  # AMX_BF16 beside AVX512_BF16; whether the system grants it, tile_unit.py knows

    @property
    def most_blocks(self) -> int:
        """The blocks of the widest register tile."""
        return max(self.register_tiles)

    @property
    def bfloat16_pays(self) -> bool:
        """Whether products of pairs of bfloat16 are faster than float32: on AMD's cores, not on Intel's (measured)."""
        return self.bfloat16 and self.cpu.startswith("znver")


_AVX2 = {"avx", "avx2", "fma"}
_AVX512 = _AVX2 | {"avx512f", "avx512vl", "avx512bw", "avx512dq"}
_AMX = {"amx-tile", "amx-bf16"}
# If only a CPU's name is set, Numba keeps the host's features; here, features that such a CPU lacks are taken away.
_NO_AVX2 = ("generic", "x86-64", "x86-64-v2", "nehalem", "sandybridge", "ivybridge")
_NO_AVX512 = ("haswell", "broadwell", "skylake", "znver1", "znver2", "znver3", "x86-64-v3")


# Numba's settings that change the code it generates. It reads them from the environment, or from this file.
_SETTINGS = (
    "CPU_NAME CPU_FEATURES ENABLE_AVX DISABLE_JIT OPT DEBUGINFO BOUNDSCHECK LOOP_VECTORIZE SLP_VECTORIZE"
)
_SETTINGS_FILE = ".numba_config.yaml"


def numba_setting() -> str | None:
    """What is set that changes the code which Numba generates; None if nothing is."""
    names = (f"NUMBA_{name}" for name in _SETTINGS.split())
    found = next((name for name in names if name in os.environ), None)
    if found is None and os.path.exists(_SETTINGS_FILE):
        return _SETTINGS_FILE
    config = sys.modules.get("numba.core.config")
    if found is None and (
        getattr(config, "CPU_NAME", None) or getattr(config, "CPU_FEATURES", None) is not None
    ):
        return "numba.config"
    return found


def host_features() -> set[str]:
    """The features of this CPU that LLVM knows."""
    try:
        return {name for name, present in binding.get_host_cpu_features().items() if present}
    except RuntimeError:  # LLVM cannot tell on this system
        return set()


def processor() -> str:
    """The kind of processor that this process runs on, as LLVM calls it: "x86_64", "aarch64", ...

    Python's ``platform.machine()`` is that of the system, which may run the processes of another processor, too.
    """
    name = str(binding.get_process_triple()).split("-")[0].lower()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(name, name)


def _features() -> tuple[str, set[str]]:
    """The CPU's name and enabled features, by Numba's own rule (``JITCPUCodegen._get_host_cpu_features``)."""
    name = flags = None
    if numba_setting():
        from numba.core import config

        name, flags = config.CPU_NAME, config.CPU_FEATURES
    if flags is None:
        has = host_features()
    else:
        has = {flag[1:] for flag in flags.split(",") if flag.startswith("+")}
    if name in _NO_AVX2:
        has = set()
    if name in _NO_AVX512:
        has &= _AVX2
    return name or binding.get_host_cpu_name(), has


def _target() -> Target:
    """The target for the features that Numba compiles for."""
    name, has = _features()
    if processor() == "aarch64":
        return Target(name, "neon", True, False, False, {1: 4})
    if processor() != "x86_64":
        return Target(name, "generic", False, False, False, {1: 2})
    if has >= _AVX512:
        bfloat16 = "avx512bf16" in has
        return Target(name, "avx512", True, True, bfloat16, {1: 16, 2: 8, 3: 8}, bfloat16 and has >= _AMX)
    if has >= _AVX2:
        return Target(name, "avx2", True, True, False, {1: 6})
    return Target(name, "generic", "fma" in has, True, False, {1: 2})


TARGET = _target()
