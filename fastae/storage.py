"""Files: written whole or not at all, in safetensors, with JSON beside the tensors. Nothing here is pickled.

A file holds dense row-major tensors and, under the metadata key "fastae", a JSON object with the format's version, the
kind of thing it is and what that kind needs. What a kind means is known by whoever writes it: ``Parameters``, the
estimators and ``Checkpoint``. Reading one runs no code of its own.
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

FORMAT = 1  # raised where an older fastae would misread a file, or the layout that checkpoints keep changes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a write raises, without a name


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path to write a file to, which becomes `path` once the block has ended without an error.

    The file is made beside `path`, under a hidden name of the same suffix, brought to the disk and renamed, so that
    `path` is always the old file or the new one, whole. After an error what was written is removed. A link is followed;
    a device or a pipe is written as it is.

    Raises
    ------
    OSError
        The directory does not exist or may not be written to, or the disk is full: it names `path`, which is as it was.
    """
    check_place(path)
    final = Path(os.path.realpath(path))
    if _is_device(final):
        yield final
        return
    made = final.with_name(f".fastae-{secrets.token_hex(6)}{final.suffix}")
    try:
        yield made
        if final.exists():
            shutil.copymode(final, made)
        with open(made, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(made, final)
    except OSError as error:
        if error.filename == os.fspath(made) or (error.filename is None and error.errno in _NO_ROOM):
            error.filename = os.fspath(path)
        raise
    finally:
        made.unlink(missing_ok=True)
    _flush_directory(final.parent)


def check_place(path: str | os.PathLike[str]) -> None:
    """That a file can be made at `path`: raises the OSError which trying would, naming the path."""
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)} is a directory")
    if not final.parent.is_dir():
        raise FileNotFoundError(f"{os.fspath(path)}: {final.parent} is no directory")
    if not _is_device(final) and not os.access(final.parent, os.W_OK):
        raise PermissionError(f"{os.fspath(path)}: {final.parent} may not be written to")


def _is_device(path: Path) -> bool:
    """A device or a pipe: it is there, and no file."""
    return path.exists() and not path.is_file()


def _flush_directory(directory: Path) -> None:
    """Bring a rename to the disk, where directories can be flushed (not on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write(
    path: str | os.PathLike[str], kind: str, about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write a file of `tensors` and `about`, which JSON must be able to hold, as ``written_whole`` does."""
    from safetensors.numpy import save

    from fastae import __version__

    text = json.dumps({"format": FORMAT, "kind": kind, "fastae": __version__, **about}, default=plain)
    dense = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    data = save(
        dense, metadata={"fastae": text}
    )  # not save_file, which renames over a device, with a mode of its own
    with written_whole(path) as made:
        made.write_bytes(data)


def plain(value: Any) -> Any:
    """What JSON can hold of NumPy's numbers, arrays and dtypes."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (np.dtype, type)):
        return np.dtype(value).name
    raise TypeError(f"a file cannot hold {value!r}: only numbers, texts, lists and dicts of them")


@dataclass(frozen=True)
class Stored:
    """What a file holds."""

    path: str
    kind: str
    about: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor of that name and shape."""
        with self.blamed():
            tensor = self.tensors[name]
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tensor.shape}, but {shape} is needed")
        return tensor

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Where something needed is missing from the file, or has the wrong shape, say which file that is."""
        try:
            yield
        except KeyError as error:
            raise ValueError(f"{self.path} is damaged: it lacks {error.args[0]!r}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None


def read(path: str | os.PathLike[str]) -> Stored:
    """All that a file written by ``write`` holds.

    Raises
    ------
    OSError
        There is no such file, or it may not be read.
    ValueError
        The file is cut off, no safetensors file, not one of fastae's, or of a format that this version does not know.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    with open(path, "rb"):  # for Python's own errors, which name the file
        pass
    try:
        with safe_open(path, framework="np") as file:
            about = _about(name, (file.metadata() or {}).get("fastae"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{name} is no whole safetensors file: {error}") from None
    return Stored(name, about["kind"], about, tensors)


def _about(name: str, text: str | None) -> dict[str, Any]:
    if text is None:
        raise ValueError(f"{name} is a safetensors file, but not one of fastae's")
    try:
        about = dict(json.loads(text))
        version = about["format"]
        if version == FORMAT and not isinstance(about["kind"], str):
            raise TypeError("kind is no text")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name} is damaged: its metadata is no such JSON as fastae writes ({error})"
        ) from None
    if version != FORMAT:
        from fastae import __version__

        raise ValueError(
            f"{name} has format {version} (written by fastae {about.get('fastae')}), but fastae {__version__} "
            f"reads format {FORMAT}"
        )
    return about
