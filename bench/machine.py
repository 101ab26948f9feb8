"""What figures depend on: CPU and features, threads, load, versions, environment variables of other libraries."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
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
