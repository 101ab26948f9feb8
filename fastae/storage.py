"""Safetensors files, written completely or not at all. Nothing is pickled, so loading a file cannot execute code.

A file holds dense row-major tensors and, under the metadata key "fastae", a JSON object: the version of the format, the
kind of object that is stored, and what else that kind needs. This module does not interpret kinds; their writers do:
``Parameters``, the estimators and ``Checkpoint``.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = (
    1  # increase it if an older fastae would misread files, or if the layout of checkpoints' buffers changes
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a write, which name no file


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A context that yields a path to write a file to, and renames that file to `path` if no error occurs.

    The file lies beside `path` under a hidden name with the same suffix. It is flushed to the disk before the rename,
    so that `path` is at all times either the old file or the complete new one. After an error the file is removed. A
    link is followed; a device or a pipe is written directly.

    Raises
    ------
    OSError
        The directory does not exist or is not writable, or the disk is full. The error names `path`, whose file is
        unchanged.
    """
    check_place(path)
    final = Path(os.path.realpath(path))
    if _is_device(final):
        yield final
        return
    temporary = final.with_name(f".fastae-{secrets.token_hex(6)}{final.suffix}")
    try:
        yield temporary
        if final.exists():
            shutil.copymode(final, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except OSError as error:
        if error.filename == os.fspath(temporary) or (error.filename is None and error.errno in _NO_ROOM):
            error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _flush_directory(final.parent)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise the OSError that creating a file at `path` would raise; it names the path."""
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)} is a directory")
    if not final.parent.is_dir():
        raise FileNotFoundError(f"{os.fspath(path)}: {final.parent} is not a directory")
    if not _is_device(final) and not os.access(final.parent, os.W_OK):
        raise PermissionError(f"{os.fspath(path)}: {final.parent} is not writable")


def _is_device(path: Path) -> bool:
    """Whether `path` exists but is not a file: a device or a pipe."""
    return path.exists() and not path.is_file()


def _flush_directory(directory: Path) -> None:
    """Flush a rename to the disk, on systems that can flush directories (not Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write(
    path: str | os.PathLike[str], kind: str, about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write a file of `tensors` and of the metadata `about`, which must be JSON; completely or not at all."""
    from safetensors.numpy import save

    from fastae import __version__

    text = json.dumps({"format": FORMAT, "kind": kind, "fastae": __version__, **about}, default=plain)
    dense = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # not save_file, which would replace a device by a file, and does not keep a file's mode
    data = save(dense, metadata={"fastae": text})
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


def plain(value: Any) -> Any:
    """Convert NumPy's numbers, arrays and dtypes to what JSON can hold."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (np.dtype, type)):
        return np.dtype(value).name
    raise TypeError(f"a file cannot hold {value!r}: only numbers, strings, lists and dicts of these")


@dataclass(frozen=True)
class Stored:
    """The content of a file."""

    path: str
    kind: str
    about: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor of that name; raises a ValueError if it is missing or its shape is not `shape`."""
        with self.blamed():
            tensor = self.tensors[name]
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tensor.shape}, but {shape} is needed")
        return tensor

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A context that turns errors about missing or wrong content into a ValueError that names the file."""
        try:
            yield
        except KeyError as error:
            raise ValueError(f"{self.path} is damaged: it lacks {error.args[0]!r}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None


def read(path: str | os.PathLike[str]) -> Stored:
    """Read a file that ``write`` has written.

    Raises
    ------
    OSError
        The file does not exist or is not readable.
    ValueError
        The file is truncated, is not a safetensors file, was not written by fastae, or has a format that this version
        does not know.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    with open(path, "rb"):  # raises Python's own errors, which name the file
        pass
    try:
        with safe_open(path, framework="np") as file:
            about = _about(name, (file.metadata() or {}).get("fastae"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{name} is not a complete safetensors file: {error}") from None
    return Stored(name, about["kind"], about, tensors)


def _about(name: str, text: str | None) -> dict[str, Any]:
    """The metadata of a file, from its JSON; raises a ValueError that names the file."""
    if text is None:
        raise ValueError(f"{name} is a safetensors file, but not one of fastae's")
    try:
        about = dict(json.loads(text))
        version = about["format"]
        if version == FORMAT and not isinstance(about["kind"], str):
            raise TypeError("kind is not a string")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name} is damaged: its metadata is not the JSON that fastae writes ({error})"
        ) from None
    if version != FORMAT:
        from fastae import __version__

        raise ValueError(
            f"{name} has format {version} (written by fastae {about.get('fastae')}), but fastae {__version__} "
            f"reads format {FORMAT}"
        )
    return about
