"""What figures depend on: CPU and features, threads, load, versions, environment variables of other libraries."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastae
from fastae.bench.pools import blas_libraries
from fastae.engine import thread_pool
from fastae.kernels.target import TARGET

_PACKAGES = ("numpy", "scipy", "numba", "scikit-learn", "torch", "jax", "pyod")
_PREFIXES = ("OPENBLAS_", "OMP_", "MKL_", "GOTO_", "NUMBA_", "XLA_", "BLIS_")


def describe() -> dict[str, Any]:
    """The description as JSON values; `load` is the average over the last minute."""
    return {
        "cpu": _cpu_name(),
        "target": TARGET.cpu,
        "features": TARGET.isa,
        "threads": thread_pool.available_cpus(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {"fastae": fastae.__version__} | {p: v for p in _PACKAGES if (v := _version(p))},
        "blas": blas_libraries(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_PREFIXES)},
    }


class OtherWork:
    """How much of this process's CPUs other processes, and the hypervisor, take from now on; 0 without /proc/stat."""

    def __init__(self) -> None:
        self._start = self._readings()

    def share(self) -> float:
        """The share of the CPUs' time since the start."""
        (total, busy, own), (total_0, busy_0, own_0) = self._readings(), self._start
        return max(0.0, (busy - busy_0) - (own - own_0)) / max(total - total_0, 1e-9)

    @staticmethod
    def _readings() -> tuple[float, float, float]:
        """Seconds of these CPUs, those of them that were busy, and those that this process used."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
        except OSError:
            return 0.0, 0.0, 0.0
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = [[int(word) for word in line.split()[1:9]] for line in lines if line.split()[0] in names]
        total = sum(map(sum, ticks)) / os.sysconf("SC_CLK_TCK")
        idle = sum(of[3] + of[4] for of in ticks) / os.sysconf("SC_CLK_TCK")
        return total, total - idle, time.process_time()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
