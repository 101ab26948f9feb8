"""Files that only this user can have written, each with a digest of its content and of what it is for.

Compiled code is unpickled and run, so nobody else may be able to place it, and no damaged file may be read as code.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

_DIGEST = hashlib.sha256
_SIZE = _DIGEST().digest_size
_DRAFT = ".draft"  # the ending of a file that is being written
_FLAGS = ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # a named pipe must not make a reader wait
_READ = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in _FLAGS)


def make_directory(path: str) -> None:
    """Make a directory for this user alone, or check the one that is there; raise an OSError if it is not trusted."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    check_directory(path)


def check_directory(path: str) -> None:
    """Raise a PermissionError if `path`, or where it leads as a link, is not this user's or others can write there."""
    _check_owner(os.lstat(path))
    _check(os.stat(path))


def _check(stats: os.stat_result) -> None:
    _check_owner(stats)
    if os.name == "posix" and stats.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("others can write to it")


def _check_owner(stats: os.stat_result) -> None:
    if hasattr(os, "geteuid") and stats.st_uid != os.geteuid():
        raise PermissionError("it belongs to another user")


def read(path: str, purpose: bytes) -> memoryview | None:
    """The content that `write` saved for the same purpose; None if it is not there, damaged, or not trusted."""
    try:
        check_directory(os.path.dirname(path))
        with _open(path) as file:
            saved = memoryview(file.read())
    except OSError:
        return None
    digest, content = saved[:_SIZE], saved[_SIZE:]
    return content if digest == _digest(purpose, content) else None


def can_read(path: str | Path) -> bool:
    """Whether `read` would read this file, if it is whole."""
    try:
        check_directory(os.path.dirname(path))
        _open(path).close()
    except OSError:
        return False
    return True


def write(path: str, purpose: bytes, content: bytes) -> None:
    """Save a file: readers see the old one or all of the new one, even if this process is killed."""
    directory = os.path.dirname(path)
    make_directory(directory)
    _remove_old_drafts(directory)
    descriptor, draft = tempfile.mkstemp(_DRAFT, ".", directory)  # which only this user can read
    try:
        with open(descriptor, "wb") as file:
            file.write(_digest(purpose, content) + content)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _open(path: str | Path) -> BinaryIO:
    """Open a regular file that is this user's and that nobody else can write to."""
    file = open(path, "rb", opener=lambda path, _: os.open(path, _READ))
    try:
        stats = os.fstat(file.fileno())
        if not stat.S_ISREG(stats.st_mode):
            raise PermissionError("it is not a regular file")
        _check(stats)
    except BaseException:
        file.close()
        raise
    return file


def _digest(purpose: bytes, content: bytes | memoryview) -> bytes:
    digest = _DIGEST(_DIGEST(purpose).digest())
    digest.update(content)
    return digest.digest()


def _remove_old_drafts(directory: str) -> None:
    """Remove what writers left that were killed an hour ago or more."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(_DRAFT):
                with contextlib.suppress(OSError):  # another process removed it
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > 3600:
                        os.unlink(entry)
