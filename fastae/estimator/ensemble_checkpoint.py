"""EnsembleCheckpoint: the trained networks of an ensemble in a file; an interrupted fit goes on with the next one."""

import time
from typing import Any

from fastae import storage
from fastae.estimator.ensemble_training import Trainee
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

    def restore_networks(self, trainees: list[Trainee]) -> int:
        """Set the networks that are in the file to what they were; returns their number."""
        stored, self._stored = self._stored, None
        if stored is None:
            return 0
        with stored.blamed():
            histories: list[dict[str, Any]] = stored.about["histories"]
            if len(histories) > len(trainees):
                raise ValueError(f"it has {len(histories)} networks, but n_estimators is {len(trainees)}")
            for i, history in enumerate(histories):
                params, state = trainees[i].params, trainees[i].state
                params.flat[:] = stored.tensor(f"{i}.params", params.flat.shape, params.dtype)
                state.moments[:] = stored.tensor(f"{i}.moments", state.moments.shape, params.dtype)
                state.steps, state.epochs = history.pop("steps"), history.pop("epochs")
                trainees[i].history = History(state, **history)
        return len(histories)

    def write_networks(self, trainees: list[Trainee]) -> None:
        """Write the networks that are trained."""
        began = time.perf_counter()
        histories: list[dict[str, Any]] = []
        tensors: dict[str, Any] = {}
        for i, trainee in enumerate(trainees):
            history = {name: value for name, value in vars(trainee.history).items() if name != "state"}
            histories.append(history | {"steps": trainee.state.steps, "epochs": trainee.state.epochs})
            tensors |= {f"{i}.params": trainee.params.flat, f"{i}.moments": trainee.state.moments}
        storage.write(self.path, self.KIND, {"run": self._run, "histories": histories}, tensors)
        ended = time.perf_counter()
        self._due = ended + max(self.SECONDS, self.SHARE * (ended - began))
