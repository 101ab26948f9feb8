"""What the command ``fastae doctor`` looks up: versions, the CPU, its register tiles, threads, the kernels' cache."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "numba", "llvmlite", "scikit-learn", "scipy", "safetensors", "narwhals")
EXTRAS = ("pyarrow", "matplotlib", "onnx", "pandas", "polars", "dask")
FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512bf16", "neon")


def report() -> dict[str, dict[str, Any]]:
    """Facts by section, for JSON."""
    from fastae import __version__
    from fastae.engine import thread_pool
    from fastae.kernels.target import TARGET

    versions = {"fastae": __version__, "python": platform.python_version()}
    return {
        "versions": versions | {name: _version(name) for name in (*PACKAGES, *EXTRAS)},
        "cpu": {
            "machine": f"{platform.system()} {platform.machine()}",
            "features": _host_features(),
            "compiled_for": f"{TARGET.cpu}, {TARGET.isa}",
            "register_tiles": [f"{rows}x{blocks}" for blocks, rows in sorted(TARGET.tiles.items())],
        },
        "threads": {"cpus": os.cpu_count(), "used_by_default": thread_pool.available_cpus()},
        "cache": _cache(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _host_features() -> list[str]:
    from llvmlite import binding

    has = binding.get_host_cpu_features()
    return [name for name in FEATURES if has.get(name)]


def _cache() -> dict[str, Any]:
    """Where the compiled kernels are kept, and what is there."""
    from fastae.kernels import step

    place = step.run.stats.cache_path
    if place is None:
        return {"place": None, "state": "no directory can be written: each process compiles the kernels anew"}
    files = [file for pattern in ("*.nbi", "*.nbc") for file in Path(place).glob(pattern)]
    compiled = len(list(Path(place).glob("shard.shard_item-*.nbc")))
    state = (
        f"{compiled} compiled of the main kernel"
        if compiled
        else "empty: the first use compiles, about 8 s a dtype"
    )
    if not os.access(place if os.path.isdir(place) else os.path.dirname(place), os.W_OK):
        state += "; may not be written to"
    return {
        "place": place,
        "state": state,
        "files": len(files),
        "bytes": sum(f.stat().st_size for f in files),
    }
