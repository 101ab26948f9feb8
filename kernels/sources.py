"""The source files of the kernels: a hash over them, and whether they are still the ones that were imported.

The package imports this file before any other of its own. The others are imported when they are first used, and
compiled later still. In between, an upgrade, a `git pull` or an editor may change them; what is then compiled is
neither the old version nor the new one.
"""

import hashlib
import os
from functools import cache

_DIRECTORY = os.path.dirname(os.path.abspath(__file__))


def _stamps() -> dict[str, tuple[int, int]]:
    """Size and time of change of each source file, by name; empty where they cannot be read, as in an archive."""
    try:
        with os.scandir(_DIRECTORY) as entries:
            files = [entry for entry in entries if entry.name.endswith(".py")]
            stats = {file.name: file.stat() for file in files if file.name[:-3].isidentifier()}
    except OSError:
        return {}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


_IMPORTED = _stamps()


@cache
def source_hash() -> str | None:
    """SHA-256 over every source file, by name and content; None if they had changed before the first call."""
    return _hash_of_now()


def unchanged() -> bool:
    """Whether the files are still those that were imported, so that compiled code is that of ``source_hash()``."""
    return source_hash() is not None and _hash_of_now() == source_hash()


def _hash_of_now() -> str | None:
    digest = hashlib.sha256()
    try:
        for name in sorted(_IMPORTED):
            with open(os.path.join(_DIRECTORY, name), "rb") as file:
                digest.update(name.encode() + b"\0" + file.read() + b"\0")
    except OSError:
        return None
    return digest.hexdigest() if _IMPORTED and _stamps() == _IMPORTED else None
