"""What lies between the input and the loss: z, h and delta of any layer for chosen rows, as kernels compute them.

The rows go through the network and back as in a step that is cut by weights (kernels/split.py), because its activations
and deltas are kept until its end. Here they are read by name, slab by slab. No arithmetic is here but the division by
the sum of the rows' weights, which the kernels leave to the sum over rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastae.engine.jobs import PreparedSteps
from fastae.engine.runner import Runner
from fastae.kernels import job as fields
from fastae.kernels import layout
from fastae.kernels.job import Job
from fastae.kernels.layout import address
from fastae.kernels.split import SLAB
from fastae.network import Network, Parameters

# The fields of a job that its form decides, besides the addresses of functions
_OF_FORM = "height", "row_multiple", "target_in_form", "stored_row"


def names_of(network: Network) -> list[str]:
    """The names of all that can be read, as in fastae.reference: z1, h1, ..., zL, xhat, dz1, ..., dzL, dxhat."""
    last = network.n_layers
    forward = [f"{kind}{layer}" for layer in range(1, last + 1) for kind in "zh"]
    forward[-1] = "xhat"
    linear = network.activations[-1] == "identity"  # else kernels do not compute dxhat on its own
    return forward + [f"dz{layer}" for layer in range(1, last + 1)] + ["dxhat"] * linear


def check_names(names: Sequence[str], network: Network) -> list[str]:
    """`names` as a list of known names."""
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of names, got the string {names!r}")
    checked, known = list(names), names_of(network)
    for name in checked:
        if name not in known:
            raise ValueError(f"names has {name!r}, but the network has {', '.join(known)}")
    if not checked:
        raise ValueError("names is empty")
    return checked


def read(
    runner: Runner, prepared: PreparedSteps, names: list[str], params: Parameters
) -> dict[str, np.ndarray]:
    """The arrays of these names, each of shape (rows, columns of the layer) and the engine's dtype.

    `prepared` is one step on all the rows, without an optimizer; its job is changed.
    """
    job, form, rows = prepared.job, runner.forms[0], prepared.batch
    if prepared.form is not form:  # rows in lanes cannot be cut by weights
        blank = runner.job_for(form)
        for name, *_ in Job._fields_:
            if name in _OF_FORM or name.endswith("_at"):
                setattr(job, name, getattr(blank, name))
    height = min(rows, SLAB)
    steps = -(-rows // height)
    results = {name: np.empty((rows, _columns(runner, name)), runner.dtype) for name in names}
    losses, rates = np.zeros((steps, 2)), np.zeros(steps)
    with runner.turn.take():
        if job.sparse:  # the mean code is that of all rows
            runner.take_steps(job, form, rows, 1)
        job.losses, job.rates, job.batch = address(losses), address(rates), height
        runner.cut_by_weights(job, height)
        for step in range(steps):  # a slab each
            first = step * height
            job.steps = step + 1
            begin = fields.ROWS if step or job.sparse else fields.TRANSPOSE
            count = min(height, rows - first)
            small = runner.is_small(count, 1)
            runner.run(job, step * fields.PHASES + begin, 1 if small else runner.most_threads)
            slab = _Slab(runner, job, form, params, count)
            for name, result in results.items():
                result[first : first + count] = slab.read(name)
    prepared.outside.refuse()
    total = losses[:, 1].sum()
    for name, result in results.items():
        if name.startswith("d"):
            result *= runner.dtype.type(1 / total if total > 0 else 0)
    return results


def _layer(runner: Runner, name: str) -> int:
    """The layer that a name is of, counted from 0."""
    return (runner.network.n_layers if name.endswith("xhat") else int(name.lstrip("dzh"))) - 1


def _columns(runner: Runner, name: str) -> int:
    return runner.network.widths[_layer(runner, name) + 1]


class _Slab:
    """The activations and deltas of `count` rows, which a job that is cut by weights has left in an engine's memory."""

    def __init__(self, runner: Runner, job: Job, form: Any, params: Parameters, count: int) -> None:
        self._runner, self._job, self._form, self._params, self._count = runner, job, form, params, count
        self._lanes = layout.lanes(runner.dtype)

    def read(self, name: str) -> np.ndarray:
        """The array of this name; deltas are multiplied with the sum of the weights of all rows."""
        layer, runner = _layer(self._runner, name), self._runner
        if not name.startswith("d"):
            linear = name.startswith("z")
            return self._output(layer, layout.IDENTITY if linear else runner.plan[layer].activation)
        # The last layer's delta has taken the place of its output
        memory = runner.kept if layer == runner.network.n_layers - 1 else runner.deltas
        stored = self._blocks(memory[runner.plan[layer].output * self._job.slab_height :], layer)
        if self._form.stored_row == layout.LINE:
            return self._dense(stored, layer)
        # bfloat16, row by row, then in pairs
        halves = stored.view(np.uint16).reshape(len(stored), -1, self._lanes)
        by_rows = halves[:, : self._job.slab_height].astype(np.uint32) << 16
        return self._dense(by_rows.view(np.float32), layer)

    def _output(self, layer: int, activation: int) -> np.ndarray:
        """g(a W + b), given a, the stored output of the layer below, or the input."""
        runner, job = self._runner, self._job
        row, itemsize, height = runner.plan[layer], runner.dtype.itemsize, job.slab_height
        out = layout.aligned_zeros(self._elements(layer), runner.dtype)
        below = runner.plan[layer - 1].output * height if layer else 0
        places = (
            address(out),
            address(runner.kept) + below * itemsize,
            job.weights + row.weight * itemsize,
            address(self._params.flat) + row.bias * itemsize,
            job.ones + row.column_sums * itemsize,
        )
        computed = -(-self._count // job.row_multiple) * job.row_multiple
        sizes = computed, height, row.fan_in, row.fan_out
        self._form.forward.call(runner.dtype)(*map(int, (*places, activation, 1, *sizes)))
        return self._dense(self._blocks(out, layer), layer)

    def _elements(self, layer: int) -> int:
        blocks = layout.blocks(self._runner.network.widths[layer + 1], self._runner.dtype)
        return blocks * self._job.slab_height * self._lanes

    def _blocks(self, memory: np.ndarray, layer: int) -> np.ndarray:
        """The matrix that begins `memory`, blocked (blocks, height, lanes)."""
        return memory[: self._elements(layer)].reshape(-1, self._job.slab_height, self._lanes)

    def _dense(self, blocked: np.ndarray, layer: int) -> np.ndarray:
        return layout.unpack(blocked, (self._count, self._runner.network.widths[layer + 1]))
