"""A call of ``loss_and_gradient`` that is prepared once, then made many times on new numbers in the same arrays.

On a small network, a call spends more time in Python than in kernels: it checks its arguments, describes them to the
kernels and allocates the results. A prepared call repeats a job that the engine has run, and does none of that again.
"""

from typing import TYPE_CHECKING

import numpy as np

from fastae.checks import check_ordinal
from fastae.engine.jobs import PreparedSteps
from fastae.engine.runner import Runner
from fastae.kernels import job as fields
from fastae.network import Parameters

if TYPE_CHECKING:
    from fastae.engine.engine import Engine


class PreparedCall:
    """``loss = call()``: the loss and gradient of the numbers that are in the prepared arrays by then.

    ``Engine.prepare_loss_and_gradient`` makes it. Several threads may use it: their calls, and all others of the
    engine, run one after another. It works in a forked child, and keeps alive all that it reads and writes.

    Parameters
    ----------
    engine : Engine
        What computes. Like `params`, `X` and `gradient`, it is an attribute, too.
    runner : Runner
        That of the engine.
    params : Parameters
        What each call reads.
    X : ndarray of shape (m, n)
        The rows that each call reads.
    gradient : Parameters
        What each call overwrites.
    steps : PreparedSteps
        The one step that each call takes.
    """

    def __init__(
        self,
        engine: "Engine",
        runner: Runner,
        params: Parameters,
        X: np.ndarray,
        gradient: Parameters,
        steps: PreparedSteps,
    ) -> None:
        self.engine, self.params, self.X, self.gradient = engine, params, X, gradient
        self._flat, self._gradient_flat = params.flat, gradient.flat
        self._runner, self._plan, self._is_dirty = runner, runner.plan, runner.is_dirty
        self._job, self._form, self._batch, self._losses = steps.job, steps.form, steps.batch, steps.losses
        self._alive, self._outside = steps.alive, steps.outside
        self._small = runner.is_small(steps.batch, 1)
        self._version = -1  # of the runner's memory that the job points to, which other calls may replace

    def __call__(self, epoch: int | None = None) -> float:
        """Compute the loss and the gradient.

        Parameters
        ----------
        epoch : int, optional
            Number of the epoch from this call on: the noise of the objective differs in each. Default: that of the
            call before.

        Returns
        -------
        loss : float
            The loss. Its gradient is in ``gradient``.

        Raises
        ------
        TypeError, ValueError
            `epoch` is not an integer from 0 on, ``params.flat`` is not zero in its padding, or targets of the loss
            "bernoulli" are outside [0, 1].
        """
        runner = self._runner
        if self._is_dirty(self._flat, self._plan):
            raise ValueError("params.flat is not zero in its padding: call params.clear_padding()")
        if self._is_dirty(self._gradient_flat, self._plan):  # which not all kernels overwrite
            self.gradient.clear_padding()
        if epoch is not None:
            check_ordinal(epoch, "epoch")
        with runner.turn.take():
            if epoch is not None:
                self._job.epoch = epoch
            if self._version != runner.memory_version:
                runner.cut(self._job, self._form, self._batch)
                self._version = runner.memory_version
            if self._small:
                runner.crew.run_alone(self._job, fields.TRANSPOSE)
            else:
                runner.take_steps(self._job, self._form, self._batch, 1)
            self._outside.refuse()
            return float(self._losses.item(0))
