"""Checkpoint: the file from which an interrupted training run resumes, with the same bits as an uninterrupted run.

It holds the state of the training loop between two epochs, and the settings of the run, so that a run with other
settings cannot resume from it.
"""

import hashlib
import json
import os
import time
from dataclasses import is_dataclass
from typing import Any, Self

import numpy as np

from fastae import storage
from fastae.data.open import files_of
from fastae.network import Parameters
from fastae.optimizers import State
from fastae.training.history import STORED

# What the JSON of a checkpoint holds, besides the settings of the run and the state of the generator
_CONTENT = {
    "run": {},
    "steps": 0,
    "epochs": 0,
    "generator": {},
    "loop": {
        "watch": (0.0, 0, 0, 1.0),
        "history": STORED,
        "rate": (0, 0.0),
    },
}


class Checkpoint:
    """A checkpoint file and, where a run is resumed, its content.

    Parameters
    ----------
    path : path
    resume : bool, default False
        Resume from the file; if there is no such file, start a run that writes it.

    Raises
    ------
    OSError
        A file cannot be written there.
    ValueError
        The file to resume from is damaged, or is not a checkpoint.
    """

    KIND, CONTENT = "Checkpoint", _CONTENT  # of the file
    SECONDS = 5.0  # at least, between two writes: a kill loses no more than these and one epoch
    SHARE = 20  # at least this many times the duration of the last write, between two writes

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self.path = os.fspath(_path_of(path))
        storage.check_place(path)
        self._stored = storage.read(path) if resume and os.path.exists(path) else None
        if self._stored is not None and self._stored.kind != self.KIND:
            raise ValueError(f"{self.path} is a file of {self._stored.kind}, not of {self.KIND}")
        if self._stored is not None:
            with self._stored.blamed():
                for name, example in self.CONTENT.items():
                    storage.check_like(name, self._stored.about[name], example)
        self.read_only = False  # for a process whose run is written by another process
        self._run: dict[str, Any] = {}
        self._due = time.perf_counter() + self.SECONDS

    @classmethod
    def at(cls, checkpoint: "str | os.PathLike[str] | Checkpoint | None", resume: bool) -> Self | None:
        """The checkpoint for the arguments `checkpoint` and `resume` of a training function."""
        if checkpoint is None and resume:
            raise ValueError("resume=True needs checkpoint, the file to resume from")
        if checkpoint is None or isinstance(checkpoint, cls):
            return checkpoint
        return cls(_path_of(checkpoint), resume)

    @staticmethod
    def check_not_input(checkpoint: "str | os.PathLike[str] | Checkpoint | None", X: Any) -> None:
        """Raise a ValueError if `checkpoint` is a file that `X` is read from."""
        if checkpoint is not None:
            path = checkpoint.path if isinstance(checkpoint, Checkpoint) else _path_of(checkpoint)
            if name := storage.overwritten_input(path, files_of(X)):
                raise ValueError(f"checkpoint is the same file as the input {name}, which would be lost")

    # -- settings of the run --------------------------------------------------------------------------------------

    def keep(self, name: str, value: Any) -> Any:
        """Store `value` in the file and return it; where a run is resumed, return the value stored before."""
        if self._stored is not None:
            with self._stored.blamed():
                stored = self._stored.about["run"][name]
                if value is not None:
                    storage.check_like(name, stored, tuple(value) if isinstance(value, list) else value)
            value = stored
        self._run[name] = value
        return value

    def agree(self, name: str, settings: dict[str, Any]) -> None:
        """Store `settings`; where a run is resumed, raise a ValueError that names the first one that differs."""
        now = json.loads(json.dumps(settings, default=_named))
        self._run[name] = now
        if self._stored is None:
            return
        was = self._stored.about["run"].get(name)
        if not isinstance(was, dict):
            raise ValueError(f"{self.path} belongs to another run: it has no settings of the {name}")
        for setting, value in now.items():
            if was.get(setting) != value:
                raise ValueError(
                    f"{self.path} belongs to another run: {setting} was {was.get(setting)!r}, and is {value!r} now"
                )

    # -- state of the run -----------------------------------------------------------------------------------------

    @property
    def loop(self) -> dict[str, Any] | None:
        """The `loop` that was passed to ``write``; None where no run is resumed."""
        return None if self._stored is None else self._stored.about["loop"]

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return not self.read_only and time.perf_counter() >= self._due

    def write(
        self,
        params: Parameters,
        state: State,
        generator: np.random.Generator,
        best: np.ndarray | None,
        loop: dict[str, Any],
    ) -> None:
        """Write the file; `best` are the best parameters, as ``Parameters.flat``, and `loop` is stored as JSON."""
        about = {
            "steps": state.steps,
            "epochs": state.epochs,
            "generator": generator.bit_generator.state,
            "loop": loop,
        }
        tensors = {"params": params.flat, "moments": state.moments}
        if best is not None:
            tensors["best"] = best
        self._write(about, tensors)

    def _write(self, about: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        """Write the file with the settings of the run, and note when it is next due."""
        if self.read_only:
            return
        began = time.perf_counter()
        storage.write(self.path, self.KIND, {"run": self._run, **about}, tensors)
        ended = time.perf_counter()
        self._due = ended + max(self.SECONDS, self.SHARE * (ended - began))

    def restore(self, params: Parameters, state: State, generator: np.random.Generator) -> np.ndarray | None:
        """Restore parameters, state and generator from the file; returns `best`."""
        stored = self._stored
        assert stored is not None
        flat, moments = (
            stored.tensor("params", params.flat.shape, params.dtype),
            stored.tensor("moments", state.moments.shape, params.dtype),
        )
        best = stored.tensor("best", params.flat.shape, params.dtype) if "best" in stored.tensors else None
        with stored.blamed():
            steps, epochs = stored.about["steps"], stored.about["epochs"]
            generator.bit_generator.state = stored.about["generator"]
        params.flat[:], state.moments[:], state.steps, state.epochs = flat, moments, steps, epochs
        self._stored = None
        return best


def _path_of(checkpoint: str | os.PathLike[str] | Checkpoint) -> str | os.PathLike[str]:
    """The argument `checkpoint` of a training function, if it is a path; else a TypeError."""
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be a path or a Checkpoint, got {checkpoint!r}")
    return checkpoint


def _named(value: Any) -> Any:
    """The value by which a setting is compared: a digest for arrays, None for schedules, generators and the like."""
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return f"{value.dtype} {value.shape} {digest}"
    if isinstance(value, (np.generic, np.dtype, type)):
        return storage.plain(value)
    if not is_dataclass(value):
        return None
    return {"is": type(value).__name__} | {name: _storable(own) for name, own in vars(value).items()}


def _storable(value: Any) -> Any:
    """The value, or None where JSON cannot hold it: an optimizer of the user's own may have any attribute."""
    try:
        json.dumps(value, default=_named, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return value
