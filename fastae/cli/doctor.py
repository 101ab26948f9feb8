"""The facts that ``fastae doctor`` shows: versions, the CPU, its register tiles, threads, where kernels come from."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "numba", "llvmlite", "scikit-learn", "scipy", "safetensors", "narwhals")
EXTRAS = ("pyarrow", "matplotlib", "onnx", "pandas", "polars", "dask")
FEATURES = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512vl",
    "avx512bw",
    "avx512dq",
    "avx512bf16",
    "amx-bf16",
    "neon",
)


def report() -> dict[str, dict[str, Any]]:
    """Collect the facts, by section."""
    from fastae import __version__
    from fastae.engine import thread_pool
    from fastae.kernels.target import TARGET, host_features

    features = host_features()
    versions = {"fastae": __version__, "python": platform.python_version()}
    return {
        "versions": versions | {name: _version(name) for name in (*PACKAGES, *EXTRAS)},
        "cpu": {
            "machine": f"{platform.system()} {platform.machine()}",
            "features": [name for name in FEATURES if name in features],
            "compiled_for": f"{TARGET.cpu}, {TARGET.isa}",
            "register_tiles": [f"{rows}x{blocks}" for blocks, rows in sorted(TARGET.register_tiles.items())],
        },
        "threads": {"cpus": os.cpu_count(), "used_by_default": thread_pool.available_cpus()},
        "kernels": _kernels(),
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


def _kernels() -> dict[str, Any]:
    """Describe where the kernels come from: the package, or the compiler."""
    from fastae.kernels import prebuilt

    reason = prebuilt.why_compiled()
    if reason is None:
        return {"come_from": "the package", "place": prebuilt.DIRECTORY}
    return {"come_from": "the compiler", "because": reason}


def _cache() -> dict[str, Any]:
    """Describe the directory of kernels that were compiled here."""
    from fastae.kernels import in_place, prebuilt, private_files

    place = in_place.cache_path()
    not_used = [f"{path} ({reason})" for path, reason in in_place.tried.items() if reason] or None
    if place is None:
        state = "no directory is writable and private: every process compiles the kernels"
        return {"place": None, "state": state, "not_used": not_used}
    files = list(Path(place).glob("*.nbc"))
    usable = [file for file in files if private_files.can_read(file)]
    compiled = sum(file.name.startswith("shard.shard_item-") for file in usable)
    state = (
        f"holds {compiled} compiled versions of the main kernel"
        if compiled
        else "empty: the first use compiles for about 8 s per dtype"
        if prebuilt.why_compiled()
        else "empty: no kernel had to be compiled"
    )
    if len(usable) < len(files):
        state += f"; {len(files) - len(usable)} files cannot be read, or others can write to them"
    if not os.access(place if os.path.isdir(place) else os.path.dirname(place), os.W_OK):
        state += "; not writable"
    return {
        "place": place,
        "state": state,
        "not_used": not_used,
        "files": len(usable),
        "bytes": sum(file.stat().st_size for file in usable),
    }
