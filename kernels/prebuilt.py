"""Loads the kernels that the package was built with: object files, placed in memory by LLVM. No compiler is imported.

``build.py`` writes them, a file for each target and group of kernels, below ``objects/``. A file holds

    a digest of all that follows, of the platform and of the kernels' sources
    a line of JSON: for which CPUs the code is, and which functions it holds
    the object file

So a damaged file, and one that was built from other sources, count as absent. Nothing in a file is run or interpreted
before the digest has been checked. Where no file fits, kernels are compiled on first use (``in_place.py``).
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from functools import cache
from typing import Any

from fastae.kernels import fork
from fastae.kernels.sources import source_hash

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "objects")
_SIZE = hashlib.sha256().digest_size


def platform_name() -> str:
    """The operating system and processor: code for one is no code for another."""
    from fastae.kernels.target import processor

    return f"{sys.platform}-{processor()}"


def digest(sources: str, content: bytes | memoryview) -> bytes:
    """Of the content of a file on this platform, built from sources with this hash."""
    result = hashlib.sha256(f"fastae kernels 1\0{platform_name()}\0{sources}\0".encode())
    result.update(content)
    return result.digest()


def symbol_of(name: str, element: str | None) -> str:
    """What the function of a kernel for a dtype is called in an object file."""
    return name if element is None else f"{name} {element}"


def address(name: str, element: str | None) -> int | None:
    """The address of a function, given the name of its kernel and its dtype; None if it must be compiled."""
    if why_not() is not None:
        return None
    with fork.importing:
        for group in ("calls",) if element is None else (element, "bfloat16"):
            functions = _load(group)
            if isinstance(functions, str):
                return None
            if symbol_of(name, element) in functions:
                return functions[symbol_of(name, element)]
    return None


def why_compiled() -> str | None:
    """The reason why kernels are not taken from the package; None if they are."""
    from fastae.kernels.target import TARGET

    reason = why_not()
    groups = ("calls", "float32", "float64") + ("bfloat16",) * TARGET.bfloat16
    for loaded in map(_load, groups if reason is None else ()):
        if isinstance(loaded, str):
            return loaded
    return reason


@cache
def why_not() -> str | None:
    """Why no file can be used, whatever it holds."""
    if not os.path.isdir(DIRECTORY):
        return "the package was installed without them"
    from fastae.kernels.target import numba_setting

    setting = numba_setting()
    if setting is not None:
        return f"{setting} is set"
    return None if source_hash() is not None else "the source files have changed since they were imported"


@cache
def _load(group: str) -> dict[str, int] | str:
    """The addresses of a group's functions; or why it cannot be loaded."""
    from fastae.kernels.target import TARGET, host_features

    target = file_target(asdict(TARGET), group)
    path = os.path.join(DIRECTORY, f"{target['isa']}.{group}")
    try:
        with open(path, "rb") as file:
            saved = file.read()
    except OSError as error:
        return f"{path}: {error.strerror}"
    if saved[:_SIZE] != digest(source_hash() or "", memoryview(saved)[_SIZE:]):
        return f"{path} is damaged, or was built from other sources"
    end = saved.index(b"\n", _SIZE)
    facts = json.loads(saved[_SIZE:end])
    if facts["target"] != target or not host_features().issuperset(facts["features"]):
        return f"they are not for {TARGET.cpu}"
    return _addresses(saved[end + 1 :], facts["functions"])


def file_target(target: dict[str, Any], group: str) -> dict[str, Any]:
    """The facts of a Target that the code of a group depends on. JSON has no integers as keys."""
    facts = {name: value for name, value in target.items() if name not in ("cpu", "register_tiles", "amx")}
    facts["register_tiles"] = [list(tile) for tile in sorted(target["register_tiles"].items())]
    return facts | {"bfloat16": facts["bfloat16"] and group == "bfloat16"}


def _addresses(image: bytes, names: list[str]) -> dict[str, int] | str:
    """Place an object file in memory, for good; the addresses of these functions, or what LLVM says is wrong."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    library = binding.JITLibraryBuilder().add_object_img(image).add_current_process()
    for name in names:
        library.export_symbol(name)
    try:
        jit = binding.create_lljit_compiler(suppress_errors=True)
        linked = library.link(jit, "fastae")
    except RuntimeError as error:
        return str(error)
    addresses = {name: linked[name] for name in names}
    for owner in (linked, jit):
        owner.detach()  # never freed: threads may still run this code while the process ends
    return addresses
