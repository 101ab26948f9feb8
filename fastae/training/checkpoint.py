"""Checkpoint: the file from which an interrupted training run goes on, to the same bits as if nothing had happened.

It holds what the training loop holds between two epochs, and what the run was, so that another one is refused.
"""

import hashlib
import json
import os
import time
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from fastae import storage
from fastae.network import Parameters
from fastae.optimizers import State


class Checkpoint:
    """A checkpoint file and, where a run is resumed, what it held.

    Parameters
    ----------
    path : path
    resume : bool, default False
        Go on from the file; where there is none, begin a run that writes it.

    Raises
    ------
    OSError
        No file can be made there.
    ValueError
        The file to go on from is damaged, or no checkpoint.
    """

    SECONDS = 5.0  # between two writes, at least: a kill takes back no more than that and an epoch
    SHARE = 20  # times what the last write took, at least, between two writes

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self.path = os.fspath(path)
        storage.check_place(path)
        self._stored = storage.read(path) if resume and os.path.exists(path) else None
        if self._stored is not None and self._stored.kind != "Checkpoint":
            raise ValueError(f"{self.path} is a file of {self._stored.kind}, not of Checkpoint")
        self.read_only = False  # of a process that takes part in a run that another one writes of
        self._run: dict[str, Any] = {}
        self._due = time.perf_counter() + self.SECONDS

    @classmethod
    def at(
        cls, checkpoint: "str | os.PathLike[str] | Checkpoint | None", resume: bool
    ) -> "Checkpoint | None":
        """The checkpoint that the arguments `checkpoint` and `resume` of a training function ask for."""
        if checkpoint is None and resume:
            raise ValueError("resume=True needs checkpoint, the file to go on from")
        if checkpoint is None or isinstance(checkpoint, Checkpoint):
            return checkpoint
        return cls(checkpoint, resume)

    # -- what the run is ------------------------------------------------------------------------------------------

    def keep(self, name: str, value: Any) -> Any:
        """`value`, kept in the file; where a run is resumed, the one that was kept there."""
        if self._stored is not None:
            value = self._stored.about["run"].get(name)
        self._run[name] = value
        return value

    def agree(self, name: str, settings: dict[str, Any]) -> None:
        """Keep `settings`; where a run is resumed, a difference is an error that says what was and what is."""
        now = json.loads(json.dumps(settings, default=_named))
        was = self.keep(name, now)
        if was is None:
            raise ValueError(f"{self.path} belongs to another run: it has no settings of the {name}")
        for setting, value in now.items():
            if was.get(setting) != value:
                raise ValueError(
                    f"{self.path} belongs to another run: {setting} was {was.get(setting)!r}, and is {value!r} now"
                )

    # -- where the run is -----------------------------------------------------------------------------------------

    @property
    def loop(self) -> dict[str, Any] | None:
        """What the training loop gave to ``write``; None where no run is resumed."""
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
        """Write the file: `best` are the best parameters so far, as ``Parameters.flat``, `loop` is for JSON."""
        if self.read_only:
            return
        began = time.perf_counter()
        about = {
            "run": self._run,
            "steps": state.steps,
            "epochs": state.epochs,
            "generator": generator.bit_generator.state,
            "loop": loop,
        }
        tensors = {"params": params.flat, "moments": state.moments}
        if best is not None:
            tensors["best"] = best
        storage.write(self.path, "Checkpoint", about, tensors)
        ended = time.perf_counter()
        self._due = ended + max(self.SECONDS, self.SHARE * (ended - began))

    def restore(self, params: Parameters, state: State, generator: np.random.Generator) -> np.ndarray | None:
        """Put parameters, state and generator back to where the run was; gives the `best` of then."""
        stored = self._stored
        assert stored is not None
        flat, moments = (
            stored.tensor("params", params.flat.shape),
            stored.tensor("moments", state.moments.shape),
        )
        best = stored.tensor("best", params.flat.shape) if "best" in stored.tensors else None
        with stored.blamed():
            steps, epochs = stored.about["steps"], stored.about["epochs"]
            generator.bit_generator.state = stored.about["generator"]
        params.flat[:], state.moments[:], state.steps, state.epochs = flat, moments, steps, epochs
        self._stored = None
        return best


def _named(value: Any) -> Any:
    """What settings are compared by: arrays by their digest, schedules and generators not at all."""
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return f"{value.dtype} {value.shape} {digest}"
    if isinstance(value, (np.generic, np.dtype, type)):
        return storage.plain(value)
    return {"is": type(value).__name__, **vars(value)} if is_dataclass(value) else None
