"""EnsembleCheckpoint: the trained networks of an ensemble in a file; an interrupted fit goes on with the next one."""

import time
from typing import Any

from fastae import storage
from fastae.estimator.ensemble_training import Member
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import History

_HISTORY = {
    "loss": [0.0],
    "validation_loss": [0.0],
    "best_epoch": 0,
    "learning_rate": [0.0],
    "seconds": 0.0,
    "rows": 0,
    "stop_reason": "",
    "steps": 0,
    "epochs": 0,
}


class EnsembleCheckpoint(Checkpoint):
    """As ``Checkpoint``, for whole networks: a network that was in training begins anew, with the same bits."""

    KIND, CONTENT = "EnsembleCheckpoint", {"run": {}, "histories": [_HISTORY]}

    def restore_members(self, members: list[Member]) -> int:
        """Set the networks that are in the file to what they were; returns their number."""
        stored, self._stored = self._stored, None
        if stored is None:
            return 0
        with stored.blamed():
            histories: list[dict[str, Any]] = stored.about["histories"]
            if len(histories) > len(members):
                raise ValueError(f"it has {len(histories)} networks, but n_estimators is {len(members)}")
            for i, history in enumerate(histories):
                params, state = members[i].params, members[i].state
                params.flat[:] = stored.tensor(f"{i}.params", params.flat.shape, params.dtype)
                state.moments[:] = stored.tensor(f"{i}.moments", state.moments.shape, params.dtype)
                state.steps, state.epochs = history.pop("steps"), history.pop("epochs")
                members[i].history = History(state, **history)
        return len(histories)

    def write_members(self, members: list[Member]) -> None:
        """Write the networks that are trained."""
        began = time.perf_counter()
        histories: list[dict[str, Any]] = []
        tensors: dict[str, Any] = {}
        for i, member in enumerate(members):
            history = {name: value for name, value in vars(member.history).items() if name != "state"}
            histories.append(history | {"steps": member.state.steps, "epochs": member.state.epochs})
            tensors |= {f"{i}.params": member.params.flat, f"{i}.moments": member.state.moments}
        storage.write(self.path, self.KIND, {"run": self._run, "histories": histories}, tensors)
        ended = time.perf_counter()
        self._due = ended + max(self.SECONDS, self.SHARE * (ended - began))
