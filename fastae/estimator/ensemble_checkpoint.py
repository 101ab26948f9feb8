"""EnsembleCheckpoint: the trained networks of an ensemble in a file; an interrupted fit goes on with the next one."""

from typing import Any, cast

from fastae.estimator.ensemble_training import Trainee
from fastae.training.checkpoint import Checkpoint
from fastae.training.history import STORED, History, stored_history


class EnsembleCheckpoint(Checkpoint):
    """As ``Checkpoint``, for whole networks: a network that was in training begins anew, with the same bits."""

    KIND, CONTENT = "EnsembleCheckpoint", {"run": {}, "histories": [{**STORED, "steps": 0, "epochs": 0}]}

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
        histories: list[dict[str, Any]] = []
        tensors: dict[str, Any] = {}
        for i, trainee in enumerate(trainees):
            history = stored_history(cast(History, trainee.history))
            histories.append(history | {"steps": trainee.state.steps, "epochs": trainee.state.epochs})
            tensors |= {f"{i}.params": trainee.params.flat, f"{i}.moments": trainee.state.moments}
        self._write({"histories": histories}, tensors)
