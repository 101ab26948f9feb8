"""Safetensors files, written completely or not at all. Nothing is pickled, so loading a file cannot execute code.

A file holds dense row-major tensors and two entries of metadata. "fastae" is a JSON object: the version of the format,
the kind of object that is stored, and what else that kind needs. "sha256" is a digest of that JSON and of all tensors.
This module does not interpret kinds; their writers do: ``Parameters``, the estimators and ``Checkpoint``.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    fcntl: Any = import_module("fcntl")
except ImportError:  # Windows has no such locks
    fcntl = None

# Increase it if an older fastae would misread files, or if the layout of checkpoints' buffers changes. 2: with a digest
FORMAT, READ_FORMATS = 2, (1, 2)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a write, which name no file
_HIDDEN = ".fastae-"  # how names of files that are being written begin
_LOCK = ".lock"  # how names of their locks end
_SUFFIX_MOST = 16  # bytes of a suffix that a hidden name has too: some writers choose a format by it
_KEEPS_OPEN_FILES = os.name == "nt"  # the system does not replace a file that is open
# Seconds after which a hidden file without a lock is left over: earlier versions had no locks
_STALE = 86400.0


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A context that yields a path to write a file to, and renames that file to `path` if no error occurs.

    The file lies beside `path` under a hidden name with the same suffix. It is flushed to the disk before the rename,
    so that `path` is at all times either the old file or the complete new one. After an error the file is removed;
    those that killed processes left in the directory are removed, too. The new file has the old one's mode and, where
    this process may set them, its owner and group. A symbolic link is followed; other hard links keep the old content.
    A device or a pipe is written directly, and so receives an incomplete file if an error occurs.

    Raises
    ------
    OSError
        The directory does not exist or is not writable, the file is read-only, or the disk is full; on Windows, a
        program has the file open. The error names `path`, whose file is unchanged.
    """
    check_place(path)
    with _naming(path):
        if _is_stream(path):
            yield Path(path)
            return
        final = Path(os.path.realpath(path))
        with _hidden_name(final) as temporary:
            yield temporary
            if final.exists():
                _copy_owner_and_mode(final, temporary)
            with open(temporary, "rb+") as file:
                _flush(file.fileno())
            _replace(temporary, final)
        _flush_directory(final.parent)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise the OSError that writing a file at `path` would raise; it names the path. A pipe is not opened."""
    name, mode = os.fspath(path), None
    if not os.path.basename(name):
        raise IsADirectoryError(f"{name!r} is not the name of a file")
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(path).st_mode
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name} is a directory")
    if mode is not None and stat.S_ISSOCK(mode):
        raise OSError(f"{name} is a socket, which cannot be opened as a file")
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(f"{name} is read-only")
    if mode is not None and not stat.S_ISREG(mode):
        _check_reader(path)
        return
    directory = Path(os.path.realpath(path)).parent
    if not directory.is_dir():
        raise FileNotFoundError(f"{name}: {directory} is not a directory")
    trial = directory / f"{_HIDDEN}{secrets.token_hex(6)}{_LOCK}"
    with _naming(path):
        try:
            os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        finally:
            trial.unlink(missing_ok=True)


def overwritten_input(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> str | None:
    """The name of an input that writing to `path` would overwrite: the same file, whatever it is called; or None.

    Links are followed, and hard links are the same file. "-" is the file behind standard input, if there is one.
    """
    written = _identity(path)
    for source in inputs:
        if str(source) == "-":
            same = written is not None and written == _identity(0)
        else:
            same = os.path.realpath(path) == os.path.realpath(source)
            same = same or (written is not None and written == _identity(source))
        if same:
            return "standard input" if str(source) == "-" else os.fspath(source)
    return None


def _identity(file: int | str | os.PathLike[str]) -> tuple[int, int] | None:
    """What tells a file apart from all others; None for what does not exist or, like a terminal, is not a file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether `path` exists but is not a file: a device or a pipe."""
    return os.path.exists(path) and not os.path.isfile(path)


def _check_reader(path: str | os.PathLike[str]) -> None:
    """Raise a BrokenPipeError if `path` is an open pipe of this process, such as /dev/fd/63, that nobody reads.

    A pipe with a name may get a reader later, and is not touched.
    """
    if os.path.exists(os.path.realpath(path)):  # not so for /proc/self/fd/63, a link to "pipe:[8471]"
        return
    import select

    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLOUT)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            raise BrokenPipeError(errno.EPIPE, "nobody reads from this pipe", os.fspath(path))
    finally:
        os.close(handle)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """A context whose errors about a hidden file, a full disk or a pipe name `path`."""
    try:
        yield
    except OSError as error:
        hidden = os.path.basename(str(error.filename or "")).startswith(_HIDDEN)
        unnamed = error.filename is None and error.errno in (*_NO_ROOM, errno.EPIPE)
        if hidden or unnamed:
            error.filename = os.fspath(path)
        elif error.filename is None and _is_stream(path) and os.fspath(path) not in str(error):
            reason = f"{error.strerror or error}: not a regular file"
            raise OSError(error.errno or errno.ESPIPE, reason, os.fspath(path)) from error
        raise


@contextmanager
def _hidden_name(final: Path) -> Iterator[Path]:
    """A context with a hidden name beside `final`, whose file is removed at the end.

    A lock file beside it is held meanwhile: the system releases the lock when this process ends, however it ends, so
    that another process can tell whether the hidden file is still being written.
    """
    _remove_stale(final.parent)
    token = _HIDDEN + secrets.token_hex(6)
    suffix = final.suffix if len(os.fsencode(final.suffix)) <= _SUFFIX_MOST else ""
    temporary, lock = final.with_name(token + suffix), final.with_name(token + _LOCK)
    handle = _held_lock(lock)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def _held_lock(lock: Path) -> int | None:
    """Create a lock file and lock it; None on systems without such locks."""
    if fcntl is None:
        return None
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_WRONLY, 0o600)
        # A file system without locks raises: nobody else gets one there, so the file is left alone
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        os.close(handle)  # removed by another process before it was locked


_looked_at: set[Path] = set()


def _remove_stale(directory: Path) -> None:
    """Remove the hidden files that killed processes left in a directory. Each process looks once."""
    if directory in _looked_at:
        return
    _looked_at.add(directory)
    with suppress(OSError):  # such as a directory that may be written but not read
        hidden = [entry.name for entry in os.scandir(directory) if entry.name.startswith(_HIDDEN)]
        for token in {name[: len(_HIDDEN) + 12] for name in hidden}:
            with suppress(OSError):
                _remove_unless_held(directory, token, [name for name in hidden if name.startswith(token)])


def _remove_unless_held(directory: Path, token: str, names: list[str]) -> None:
    """Remove the hidden files that share a token, unless a process holds their lock or they have none and are new."""
    lock = directory / (token + _LOCK)
    if lock.name not in names:
        if any(time.time() - os.lstat(directory / name).st_mtime < _STALE for name in names):
            return
    elif fcntl is None:
        return
    else:
        handle = os.open(lock, os.O_WRONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError where it is held, or not possible
        finally:
            os.close(handle)
    for name in sorted(names, key=lambda name: name == lock.name):  # the lock last
        os.unlink(directory / name)


def _flush(handle: int) -> None:
    """Flush a file to the disk. On macOS, fsync would leave it in the disk's own cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        with suppress(OSError):  # not every file system can
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


def _replace(new: Path, old: Path) -> None:
    """Rename `new` to `old`; on Windows, not while any program has `old` open: it is tried again for a second."""
    last_try = time.monotonic() + 1.0
    while True:
        try:
            os.replace(new, old)
            return
        except PermissionError as error:
            if not _KEEPS_OPEN_FILES:
                raise
            if time.monotonic() > last_try:
                reason = "a program has the file open, and Windows does not replace open files"
                raise PermissionError(error.errno, reason, os.fspath(old)) from error
        time.sleep(0.02)


def _copy_owner_and_mode(old: Path, new: Path) -> None:
    """Give a new file the owner and group of the one that it replaces, where that is permitted, and its mode."""
    if hasattr(os, "chown"):
        about = os.stat(old)
        for owner, group in ((about.st_uid, -1), (-1, about.st_gid)):
            with suppress(PermissionError):
                os.chown(new, owner, group)
    shutil.copymode(old, new)


def _flush_directory(directory: Path) -> None:
    """Flush a rename to the disk, where the system and the directory's mode allow it (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(PermissionError):  # a directory may be written but not read
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# -- content ----------------------------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str], kind: str, about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write a file of `tensors` and of the metadata `about`, which must be JSON; completely or not at all.

    Each tensor is asked for twice, once for the digest and once to write it, so that only one is in memory at a time.
    """
    from fastae import __version__

    text = json.dumps({"format": FORMAT, "kind": kind, "fastae": __version__, **about}, default=plain)
    digest, places, end = _Digest(text), {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        tensor = _little(tensors[name])
        digest.add(name, tensor)
        code = {"f": "F", "i": "I", "u": "U"}[tensor.dtype.kind] + str(8 * tensor.itemsize)
        places[name] = {
            "dtype": code,
            "shape": tensor.shape,
            "data_offsets": (end, end := end + tensor.nbytes),
        }
    metadata = {"fastae": text, "sha256": digest.hex()}
    header = json.dumps({"__metadata__": metadata, **places}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in places:
            file.write(_little(tensors[name]).data)


def _little(tensor: np.ndarray) -> np.ndarray:
    """A tensor as files hold it: row-major and little-endian."""
    return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))


class _Digest:
    """A digest of the metadata, and of the tensors with their names, types and shapes."""

    def __init__(self, text: str) -> None:
        self._hash = hashlib.sha256(text.encode())

    def add(self, name: str, tensor: np.ndarray) -> None:
        self._hash.update(f"\n{name} {tensor.dtype.str} {tensor.shape} ".encode())
        self._hash.update(tensor.data if tensor.size else b"")

    def hex(self) -> str:
        return self._hash.hexdigest()


def plain(value: Any) -> Any:
    """Convert NumPy's numbers, arrays and dtypes to what JSON can hold."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (np.dtype, type)):
        return np.dtype(value).name
    raise TypeError(f"a file cannot hold {value!r}: only numbers, strings, lists and dicts of these")


def check_like(name: str, value: Any, example: Any) -> None:
    """Raise a ValueError unless `value`, which was read from JSON, is of the kind of `example`.

    An int stands for an integer in 0 .. 2^63 - 1, a float for any number, a list for a list of any length whose members
    are like its first one, a tuple for a list of its length, and a dict for one with its names, or any if it has none.
    """
    kind: Any = list if isinstance(example, tuple) else type(example)
    content: Any = value
    number = kind in (int, float)
    if not isinstance(value, (int, kind) if number else kind) or (number and isinstance(value, bool)):
        raise ValueError(f"{name} is not of type {kind.__name__}")
    if number and isinstance(value, int) and not (0 if kind is int else -(1 << 63)) <= value < 1 << 63:
        raise ValueError(f"{name} is out of range")
    if isinstance(example, dict):
        if example and (other := content.keys() ^ example.keys()):
            raise ValueError(f"{name} lacks {min(other)!r}, or should not have it")
        for key, member in example.items():
            check_like(f"{name}[{key!r}]", content[key], member)
    elif isinstance(example, (list, tuple)):
        fixed = isinstance(example, tuple)
        if fixed and len(content) != len(example):
            raise ValueError(f"{name} has {len(content)} members, but needs {len(example)}")
        for i, member in enumerate(content):
            check_like(f"{name}[{i}]", member, example[i if fixed else 0])


class DamagedError(ValueError):
    """A file lacks something or holds something wrong; the message names the file."""


@dataclass(frozen=True)
class Stored:
    """The content of a file."""

    path: str
    kind: str
    about: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def tensor(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """The tensor of that name; raises a ValueError if it is missing, or its shape or dtype is another."""
        with self.blamed():
            tensor = self.tensors[name]
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tensor.shape}, but {shape} is needed")
            if tensor.dtype != dtype:
                raise ValueError(f"{name} has dtype {tensor.dtype}, but {np.dtype(dtype)} is needed")
        return tensor

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A context that turns errors about missing or wrong content into a ValueError that names the file."""
        try:
            yield
        except DamagedError:
            raise
        except KeyError as error:
            raise DamagedError(f"{self.path} is damaged: it lacks {error.args[0]!r}") from None
        except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
            raise DamagedError(f"{self.path} is damaged: {error}") from None


def read(path: str | os.PathLike[str]) -> Stored:
    """Read a file that ``write`` has written.

    Raises
    ------
    OSError
        The file does not exist or is not readable.
    ValueError
        The file is truncated, is not a safetensors file, was not written by fastae, is damaged, or has a format that
        this version does not know.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fsdecode(path)
    with open(name, "rb"):  # raises Python's own errors, which name the file
        pass
    try:
        with safe_open(name, framework="np") as file:
            metadata = file.metadata() or {}
            about = _about(name, metadata.get("fastae"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{name} is not a complete safetensors file: {error}") from None
    except OSError as error:
        raise OSError(f"{name} cannot be read: {error}") from None
    except (TypeError, KeyError, AttributeError) as error:  # types that NumPy lacks
        raise DamagedError(f"{name} is damaged: {error}") from None
    stored = Stored(name, about["kind"], about, tensors)
    if about["format"] > 1 or "sha256" in metadata:
        digest = _Digest(metadata["fastae"])
        for key in sorted(tensors, key=lambda key: (-tensors[key].itemsize, key)):
            digest.add(key, tensors[key])
        if digest.hex() != metadata.get("sha256"):
            raise DamagedError(f"{name} is damaged: its content does not match its digest")
    return stored


def _about(name: str, text: str | None) -> dict[str, Any]:
    """The metadata of a file, from its JSON; raises a ValueError that names the file."""
    if text is None:
        raise ValueError(f"{name} is a safetensors file, but not one of fastae's")
    try:
        about = dict(json.loads(text))
        version = about["format"]
        if type(version) is not int:
            raise TypeError("format is not an integer")
        if version in READ_FORMATS and not isinstance(about["kind"], str):
            raise TypeError("kind is not a string")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(
            f"{name} is damaged: its metadata is not the JSON that fastae writes ({error})"
        ) from None
    if version not in READ_FORMATS:
        from fastae import __version__

        raise ValueError(
            f"{name} has format {version} (written by fastae {about.get('fastae')}), but fastae {__version__} "
            f"reads formats {READ_FORMATS[0]} to {FORMAT}"
        )
    return about
