"""Engine: the loss and gradient of a batch, reconstructions and codes, on all cores, in memory allocated once.

What it hands to the kernels is a job (``kernels/job.py``): addresses, strides and sizes. No arithmetic stands here.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastae.checks import check_count, check_index, check_matrix, check_vector
from fastae.engine import thread_pool
from fastae.engine.thread_count import Pace
from fastae.kernels import job as fields
from fastae.kernels import layout
from fastae.kernels.layout import address
from fastae.network import DType, Network, Parameters, check_dtype
from fastae.objective import PLAIN, Objective

SMALL_JOB = 4e6  # FLOPs below which a job stays on the calling thread
LARGE_STEP = 100e6  # FLOPs a thread above which threads pay in every step: it is not tried out
KINDS_MOST = 100  # of steps, that an engine learns about
PATIENCE = 0.05  # seconds a jitted call should last, so that signals are handled in time
SMALL_TILE = 32  # rows through the layers that a thread takes at a time: all weights are read for them
FIRST_CALL = 2e7  # rows times weights that the first one goes through: nobody knows yet how long that takes
WORKSPACE = 1 << 20  # bytes of tiles a thread should keep to: less than L2
# What jobs that take alike have in common, besides steps and rows
_KIND = [fields.TASK, fields.OPTIMIZER, fields.TURNED, fields.FIRST_LAYER, fields.LAST_LAYER]


class Engine:
    """Computes losses, gradients, codes and reconstructions of one network, in memory that is allocated once.

    Parameters
    ----------
    network : Network
        The network to compute with.
    n_threads : int, optional
        Maximum number of threads. Default: the CPUs that this process may use (affinity and cgroup quota). Small steps
        use fewer threads when that is measured to be faster. Results have the same bits for any number of threads.
    dtype : "float32", "float64", "bfloat16" or NumPy dtype, default "float32"
        Type of parameters, arithmetic and results; losses are added up in float64. With "bfloat16", the operands of
        matrix products are rounded to 8 bits of precision and their products added up in float32; parameters, results
        and all other arithmetic are float32. Needs a CPU with AVX512_BF16.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type or is out of range.
    RuntimeError
        The CPU, or the CPU that Numba compiles for, lacks the instructions that "bfloat16" needs.

    Notes
    -----
    Several Python threads may use an engine; their calls run one after another. Calls of two engines run side by side.
    An engine still works in a forked child process.
    """

    def __init__(
        self, network: Network, n_threads: int | None = None, dtype: DType | Literal["bfloat16"] = "float32"
    ) -> None:
        if not isinstance(network, Network):
            raise TypeError(f"network must be a Network, got {type(network).__name__}")
        if n_threads is None:
            n_threads = thread_pool.available_cpus()
        if isinstance(n_threads, bool) or not isinstance(n_threads, (int, np.integer)):
            raise TypeError(f"n_threads must be an integer or None, got {n_threads!r}")
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {n_threads}")
        narrow = isinstance(dtype, str) and dtype == "bfloat16"
        self.network, self.n_threads = network, int(n_threads)
        self.dtype = check_dtype("float32" if narrow else dtype)

        from numba import config  # here, not above: the compiler is loaded when an engine is made

        if config.DISABLE_JIT:
            raise RuntimeError("NUMBA_DISABLE_JIT is set, but the kernels do not run uncompiled")
        from numba.core.errors import NumbaError

        from fastae.kernels import bfloat16, layer, partition, rowlanes, shard, step, stretch
        from fastae.kernels.target import TARGET

        if narrow and not TARGET.bfloat16:
            raise RuntimeError(
                f"dtype bfloat16 takes a CPU with AVX512_BF16, but kernels are compiled for {TARGET.cpu}"
            )
        self._step, self._not_compiled = step, NumbaError
        self._form, self._rowlanes = bfloat16 if narrow else layer, rowlanes  # of products
        self._partition, self._narrow_all = partition, stretch.narrow_all
        self.plan, size, transposed = layout.plan(network.widths, network.activations, self.dtype)
        lanes = layout.lanes(self.dtype)
        last = self.plan[-1]
        outputs = layout.blocks(last[layout.FAN_OUT], self.dtype) * lanes
        width = int(last[layout.OUTPUT] + outputs)  # elements that a row takes in a tile
        # Measured: flat from 144 to 256 rows at every width; less for a very wide network, to stay within L2.
        self.tile_rows = 192 if width * self.dtype.itemsize * 192 <= WORKSPACE else 144
        sums = int(last[layout.COLUMN_SUMS] + outputs)
        code = layout.blocks(network.widths[network.code_layer], self.dtype) * lanes
        # A clean copy of a corrupted input, as loaded and as turned, and a spare tile; untouched, so no memory, where
        # nothing needs them. Where rows lie in the lanes, tiles are of another height.
        inputs = int(self.plan[0][layout.OUTPUT])
        most = self.tile_rows if narrow else max(self.tile_rows, rowlanes.height(network.widths, self.dtype))
        extra = (2 * inputs + max(inputs, code)) * most
        scratch = int(shard.target_place(self.plan, most, lanes)) + extra
        self._work = [layout.aligned_zeros(scratch, self.dtype) for _ in range(self.n_threads)]
        self._narrow = layout.aligned_zeros(size, self.dtype) if narrow else None
        self._transposed = layout.aligned_zeros(transposed, self.dtype)
        self._ones = layout.aligned_zeros(sums, self.dtype)
        for row in self.plan:
            start = row[layout.COLUMN_SUMS]
            self._ones[start : start + row[layout.FAN_OUT]] = 1
        self._size = size
        self._gradients = layout.aligned_zeros(0, self.dtype).reshape(0, size)
        self._totals = np.zeros((partition.SHARDS_MOST, 2))
        stretches = int(partition.stretches(self.plan, lanes))
        self._norms = np.zeros(stretches)
        self._taken = np.zeros(max(stretches, partition.SHARDS_MOST), np.int64)
        self._codes = np.zeros((partition.SHARDS_MOST, network.widths[network.code_layer]))
        self._slopes = np.zeros(code)
        self._job = np.zeros(fields.JOB, np.int64)
        self._blank = np.zeros(fields.JOB, np.int64)  # what all jobs have in common
        self._blank[fields.PLAN_AT], self._blank[fields.LAYERS] = address(self.plan), len(self.plan)
        self._blank[fields.HEIGHT], self._blank[fields.SIZE] = self.tile_rows, size
        self._blank[fields.STRETCHES] = stretches
        self._blank[fields.MULTIPLE] = layer.row_multiple(network.widths[1:], self.dtype)
        self._blank[fields.ONES], self._blank[fields.TOTALS] = address(self._ones), address(self._totals)
        self._blank[fields.NORMS], self._blank[fields.CODES] = address(self._norms), address(self._codes)
        self._blank[fields.SLOPES] = address(self._slopes)
        self._blank[fields.CODE_LAYER] = network.code_layer - 1
        self._blank[fields.TAKEN] = address(self._taken)
        self._blank[fields.WT], self._blank[fields.WT_SIZE] = address(self._transposed), transposed
        self._form_team()
        self._paces: dict[tuple[int, ...], Pace] = {}
        self._lock = threading.Lock()
        _engines.add(self)

    # -- public -----------------------------------------------------------------------------------------------

    def loss_and_gradient(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        index: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        objective: Objective = PLAIN,
        seed: int = 0,
        epoch: int = 0,
    ) -> tuple[float, Parameters]:
        """Compute the loss S = 1/(2m) sum((xhat - x)^2) over the rows of `X`, and its gradient.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        X : array-like of shape (m, n), any float or integer dtype, any strides
            Rows. They are read tile by tile: never copied whole, never written.
        index : array-like of int, optional
            Numbers of the rows of `X` to use, in this order. Default: all rows.
        shift : array-like of shape (n,), optional
            Subtracted from each row before it enters the network. Default: 0.
        scale : array-like of shape (n,), optional
            Then multiplied with each row. The network sees (X - shift) * scale, computed in float64 and rounded once.
            Default: 1.
        sample_weight : array-like of shape (m,), optional
            Weight w_i >= 0 of each row of `X`: S = 1/(2 sum(w)) sum_i w_i ||xhat_i - x_i||^2. Default: 1.
        objective : Objective, optional
            Penalties, noise in the input, missing cells. Default: none of them.
        seed : int, default 0
            Seed of the noise.
        epoch : int, default 0
            Number of the epoch; the noise differs in each.

        Returns
        -------
        loss : float
            The loss S, with its penalties.
        gradient : Parameters
            Its gradient: ``gradient["W1"]``, ``gradient["b1"]``, ...

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size. The message names it.
        """
        gradient = Parameters(self.network, self.dtype)
        losses = self.run_steps(
            params,
            X,
            gradient=gradient,
            objective=objective,
            seed=seed,
            epoch=epoch,
            index=index,
            shift=shift,
            scale=scale,
            sample_weight=sample_weight,
        )
        return float(losses[0, 0]), gradient

    def reconstruct(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        index: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        missing: bool = False,
    ) -> np.ndarray:
        """Compute xhat, the output of the last layer, for each row of `X`.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        X : array-like of shape (m, n), any float or integer dtype, any strides
            Rows. They are read tile by tile: never copied whole, never written.
        index : array-like of int, optional
            Numbers of the rows of `X` to use, in this order. Default: all rows.
        shift : array-like of shape (n,), optional
            Subtracted from each row before it enters the network. Default: 0.
        scale : array-like of shape (n,), optional
            Then multiplied with each row. The network sees (X - shift) * scale, computed in float64 and rounded once.
            Default: 1.
        missing : bool, default False
            Treat cells that are NaN as missing: 0 in the input and not part of the error.

        Returns
        -------
        ndarray of shape (rows, n), the engine's dtype
            The network's output; shift and scale are not undone.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size. The message names it.
        """
        last = self.network.n_layers
        return self._infer(params, X, 0, last, index=index, shift=shift, scale=scale, missing=missing)

    def encode(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        index: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        missing: bool = False,
    ) -> np.ndarray:
        """Compute the code, the output of the network's code layer, for each row of `X`.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        X : array-like of shape (m, n), any float or integer dtype, any strides
            Rows. They are read tile by tile: never copied whole, never written.
        index : array-like of int, optional
            Numbers of the rows of `X` to use, in this order. Default: all rows.
        shift : array-like of shape (n,), optional
            Subtracted from each row before it enters the network. Default: 0.
        scale : array-like of shape (n,), optional
            Then multiplied with each row. The network sees (X - shift) * scale, computed in float64 and rounded once.
            Default: 1.
        missing : bool, default False
            Treat cells that are NaN as missing: 0 in the input and not part of the error.

        Returns
        -------
        ndarray of shape (rows, k), the engine's dtype
            The codes.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size. The message names it.
        """
        last = self.network.code_layer
        return self._infer(params, X, 0, last, index=index, shift=shift, scale=scale, missing=missing)

    def decode(self, params: Parameters, code: npt.ArrayLike) -> np.ndarray:
        """Compute xhat from codes, with the layers above the code layer.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        code : array-like of shape (m, k)
            Codes, as ``encode`` returns them.

        Returns
        -------
        ndarray of shape (m, n), the engine's dtype
            The network's output.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size, or no layer lies above the code layer.
        """
        if self.network.code_layer == self.network.n_layers:
            raise ValueError("network has no layer above its code: there is nothing to decode with")
        return self._infer(params, code, self.network.code_layer, self.network.n_layers, name="code")

    def errors(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        index: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        column_weight: npt.ArrayLike | None = None,
        missing: bool = False,
    ) -> np.ndarray:
        """Compute sum_j c_j (xhat_ij - x_ij)^2 for each row i of `X`. Reconstructions are not stored.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        X : array-like of shape (m, n), any float or integer dtype, any strides
            Rows. They are read tile by tile: never copied whole, never written.
        index : array-like of int, optional
            Numbers of the rows of `X` to use, in this order. Default: all rows.
        shift : array-like of shape (n,), optional
            Subtracted from each row before it enters the network. Default: 0.
        scale : array-like of shape (n,), optional
            Then multiplied with each row. The network sees (X - shift) * scale, computed in float64 and rounded once.
            Default: 1.
        column_weight : array-like of shape (n,), optional
            The factors c_j; 1 / scale^2 gives errors in the squared units of `X`. Default: 1.
        missing : bool, default False
            Treat cells that are NaN as missing: 0 in the input and not part of the error.

        Returns
        -------
        ndarray of shape (rows,), float64
            The error of each row, where x is what the network sees: the scaled row.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size. The message names it.
        """
        if self.network.widths[-1] != self.network.widths[0]:
            raise ValueError(
                f"network puts out {self.network.widths[-1]} features, not {self.network.widths[0]}"
            )
        n = self.network.widths[0]
        padded = np.zeros(layout.blocks(n, self.dtype) * layout.lanes(self.dtype))
        padded[:n] = 1 if column_weight is None else check_vector(column_weight, n, "column_weight")
        return self._infer(
            params,
            X,
            0,
            self.network.n_layers,
            index=index,
            shift=shift,
            scale=scale,
            column_weight=padded,
            missing=missing,
        )

    # -- for the training loop ----------------------------------------------------------------------------------

    def run_steps(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        gradient: Parameters,
        index: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        batch_size: int | None = None,
        optimizer: int = 0,
        moments: np.ndarray | None = None,
        rates: npt.ArrayLike = (0.0,),
        settings: npt.ArrayLike = (0.0,) * fields.SETTINGS_SIZE,
        objective: Objective = PLAIN,
        seed: int = 0,
        epoch: int = 0,
        first_row: int = 0,
        sums: bool = False,
    ) -> np.ndarray:
        """Steps over successive batches of the rows, in as few jitted calls as can be.

        `rates` holds a learning rate a step; `optimizer` and `settings` are those of ``kernels/job.py``, without
        the objective's. `epoch` is the first one's number, for the noise, and `first_row` that of the first row of `X`,
        where it is a block of a larger matrix. With `sums`, for such a block, loss and gradient are sums over the rows,
        for ``combine_sums``. Returns
        (steps, 2): the loss of each step, before it is taken, and the sum of its rows' weights. Fewer steps than rates
        come back where a loss was not finite: it is the last, and that step was not taken.
        """
        X = check_matrix(X, self.network.widths[0], "X")
        if self.network.widths[-1] != self.network.widths[0]:
            raise ValueError(f"network puts out {self.network.widths[-1]} features, but X has {X.shape[1]}")
        if sums and (objective.alpha or objective.sparsity_weight):
            raise ValueError("sums are of rows: objective must have neither alpha nor sparsity_weight")
        job, alive = self._describe(X, index, shift, scale, self.network.widths[0])
        unit = 1.0  # of the weights
        if sample_weight is not None:
            weights = check_vector(sample_weight, X.shape[0], "sample_weight")
            if not (weights >= 0).all() or not np.isfinite(weights).all():
                raise ValueError("sample_weight must be finite and not negative")
            used = weights if index is None else weights[alive[0]]
            largest = used.max()
            if not largest > 0:
                raise ValueError("sample_weight is zero in every row")
            if not 2.0**-30 < largest < 2.0**30:  # in another unit S is the same, and float32 has room for it
                unit = float(2.0 ** np.floor(np.log2(largest)))
                weights = weights / unit
            alive.append(weights)
            job[fields.SAMPLE_WEIGHT] = address(weights)
        rates = np.ascontiguousarray(rates, np.float64)
        settings = np.array(settings, np.float64)
        losses = np.zeros((rates.size, 2))
        self._describe_update(job, params, gradient, optimizer, moments, rates, settings, losses)
        self._describe_objective(job, settings, objective, unit, seed, epoch)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        rows = int(job[fields.ROWS])
        batch = rows if batch_size is None else min(int(batch_size), rows)
        job[fields.BATCH], job[fields.FIRST_ROW], job[fields.SUMS] = batch, first_row, sums
        job[fields.WEIGHTS] = address(params.flat if self._narrow is None else self._narrow)
        widths, linear = self.network.widths, self.network.activations[-1] == "identity"
        plain = linear and self._narrow is None and not objective.sparsity_weight
        if plain and self._rowlanes.pays(widths, batch, self._size, self.dtype):
            self._use(self._rowlanes, job)
            job[fields.HEIGHT] = self._rowlanes.height(widths, self.dtype)
            job[fields.MULTIPLE], job[fields.TURNED] = self._rowlanes.row_multiple(self.dtype), 1
        else:
            self._use(self._form, job)
        with self._lock:
            shards = self._partition.most_shards(rows, batch, self._size, int(job[fields.MULTIPLE]))
            if self._gradients.shape[0] < shards:
                self._gradients = layout.aligned_zeros(shards * self._size, self.dtype).reshape(shards, -1)
            job[fields.GRADIENTS] = address(self._gradients)
            flops = 6.0 * batch * self._size
            if shards == 1 and flops < SMALL_JOB:
                flops = 0.0  # a step of one shard has little else to share out
            self._share(job, fields.TRANSPOSE, flops, rates.size, batch)
            done = int(self._control[fields.STEPS_DONE])
            diverged = self._control[fields.OUTCOME] == fields.DIVERGED
        losses[:, 1] *= unit
        if sums and unit != 1:
            losses[:, 0] *= unit
            gradient.flat *= gradient.dtype.type(unit)
        return losses[: done + diverged]

    def combine_sums(
        self,
        params: Parameters,
        parts: np.ndarray,
        weight: float,
        *,
        gradient: Parameters,
        optimizer: int = 0,
        moments: np.ndarray | None = None,
        rate: float = 0.0,
        settings: npt.ArrayLike = (0.0,) * fields.SETTINGS_SIZE,
        alpha: float = 0.0,
    ) -> float:
        """One step from the gradients of blocks of rows, each a sum over its rows (``run_steps`` with `sums`).

        `parts` is (blocks, size of the flat buffer); they are added in that order, divided by `weight`, the sum of all
        rows' weights, and the penalty added, into `gradient`. Returns what the penalty adds to the loss.
        """
        settings = np.array(settings, np.float64)
        settings[fields.ALPHA] = alpha
        parts = np.ascontiguousarray(parts, self.dtype)
        if parts.ndim != 2 or parts.shape[1] != self._size or not len(parts):
            raise ValueError(f"parts must be of shape (blocks, {self._size}), got {parts.shape}")
        losses, rates = np.array([[0.0, weight]]), np.array([float(rate)])
        job = self._blank.copy()
        self._describe_update(job, params, gradient, optimizer, moments, rates, settings, losses)
        job[fields.PARTS], job[fields.GRADIENTS] = len(parts), address(parts)
        self._use(self._form, job)
        with self._lock:
            self._run(job, fields.UPDATE, 1)
        return float(losses[0, 0])

    # -- within -------------------------------------------------------------------------------------------------

    def _infer(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        first: int,
        last: int,
        *,
        name: str = "X",
        index: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        missing: bool = False,
        column_weight: np.ndarray | None = None,
    ) -> np.ndarray:
        self._check_params(params)
        columns = self.network.widths[first]
        X = check_matrix(X, columns, name)
        job, alive = self._describe(X, index, shift, scale, columns)
        rows = int(job[fields.ROWS])
        if column_weight is None:
            out = np.empty((rows, self.network.widths[last]), self.dtype)
            job[fields.TASK] = fields.INFER_TASK
        else:
            out = np.empty(rows)
            job[fields.TASK], job[fields.COLUMN_WEIGHT] = fields.ERRORS_TASK, address(column_weight)
        job[fields.MISSING], job[fields.PARAMETERS] = missing, address(params.flat)
        job[fields.WEIGHTS] = address(params.flat if self._narrow is None else self._narrow)
        job[fields.OUT], job[fields.OUT_STRIDE] = address(out), out.strides[0]
        job[fields.FIRST_LAYER], job[fields.LAST_LAYER] = first, last
        # As many turns as have to be, in each of which all threads take as many rows.
        turns = -(-rows // (self.n_threads * self.tile_rows))
        each = max(SMALL_TILE, -(-rows // (self.n_threads * turns)))
        job[fields.BATCH] = min(self.tile_rows, self._partition.round_up(each, int(job[fields.MULTIPLE])))
        self._use(self._form, job)
        with self._lock:
            if self._narrow is not None:
                self._narrow_all(job)
            self._share(job, 0, 2.0 * rows * self._size, 1, rows)
        del alive
        return out

    def _share(self, job: np.ndarray, claim: int, flops: float, steps: int, rows: int) -> None:
        """The job on as many threads as pay, given the FLOPs and the rows of each of its steps (pace.py)."""
        if flops * steps <= SMALL_JOB:
            self._run(job, claim, 1)
        elif self.n_threads == 1 or flops > LARGE_STEP * self.n_threads:
            self._run(job, claim, self.n_threads)
        else:
            kind = steps, rows, *job[_KIND].tolist()
            if kind not in self._paces:
                if len(self._paces) == KINDS_MOST:
                    self._paces.clear()
                # More threads than CPUs never pay: one that is waited for may be waiting for another's CPU.
                self._paces[kind] = Pace(min(self.n_threads, thread_pool.available_cpus()))
            self._run(job, claim, self.n_threads, self._paces[kind])

    def _run(self, job: np.ndarray, claim: int, most: int, pace: Pace | None = None) -> None:
        """The job to its end, on `most` threads or as many as `pace` has it, in calls that last PATIENCE at most.

        Ctrl-C is raised when no thread is at work any more; it may leave steps undone, but none in part.
        """
        step, members, control = self._step, self._members, self._control
        self._job[:] = job
        quota = max(1, int(FIRST_CALL * self.network.widths[0] // max(self._size, 1)))
        members[:, fields.REFILL] = quota
        members[0, fields.HELD] = 0
        self._taken[:] = -1
        error: BaseException | None = None
        stepping = job[fields.TASK] == fields.STEPS_TASK  # else all of the job is one step
        threads = done = 0  # threads let into the job, steps taken so far
        while True:
            try:
                status = fields.BUSY
                while status != fields.OVER:
                    began = time.perf_counter()
                    wanted = most if pace is None else pace.threads
                    if error is not None:
                        control[fields.CANCEL] = 1
                    elif threads != wanted:
                        opened, threads = threads > 0, wanted
                        if opened:
                            step.admit(control, members, threads)
                        else:
                            step.open_job(control, members, claim, threads)
                        for member in range(1, threads):
                            if members[member, fields.WAKE]:
                                thread_pool.lend(self._helper(member))
                    members[0, fields.QUOTA] = quota
                    status = step.run(self._job, control, members[0], address(self._work[0]))
                    while status == fields.WAITING:
                        time.sleep(0)
                        status = step.run(self._job, control, members[0], address(self._work[0]))
                    took, longest = time.perf_counter() - began, PATIENCE
                    if pace is not None:
                        taken = int(control[fields.STEPS_DONE] if stepping else status == fields.OVER)
                        pace.record(took, taken - done)
                        done = taken
                        longest = pace.slice(PATIENCE)
                    quota = max(1, int(quota * min(4.0, longest / max(took, 1e-6))))
                break
            except self._not_compiled:  # nothing has run, on any thread, and nothing will
                raise
            except BaseException as raised:
                error = error or raised
        if error is not None:
            self._form_team()  # it is not known which helpers were woken
            raise error

    def _form_team(self) -> None:
        """What threads share and keep, as it is before any helper listens."""
        self._control = layout.aligned_zeros(fields.CONTROL, np.int64)
        self._members = layout.aligned_zeros(self.n_threads * 8, np.int64).reshape(-1, 8)
        self._members[:, fields.MEMBER] = np.arange(self.n_threads)

    def _helper(self, member: int) -> Callable[[], None]:
        """What a helper thread does as `member`; holds on to memory, not to the engine."""
        step, job, control = self._step, self._job, self._control
        me, work = self._members[member], self._work[member]

        def take_part() -> None:
            me[fields.HELD], me[fields.QUOTA] = 0, me[fields.REFILL]
            while step.run(job, control, me, address(work)) != fields.OVER:
                time.sleep(0)

        return take_part

    def _describe(
        self, X: np.ndarray, index: Any, shift: Any, scale: Any, columns: int
    ) -> tuple[np.ndarray, list[Any]]:
        """The job's common part, and the arrays it points at, to be kept alive; the first is the row index, if any."""
        job = self._blank.copy()
        job[fields.X], job[fields.ROW_STRIDE], job[fields.COLUMN_STRIDE] = address(X), *X.strides
        if X.shape[1] == 1:
            job[fields.COLUMN_STRIDE] = X.itemsize
        job[fields.KIND], job[fields.ROWS] = fields.KINDS[X.dtype], X.shape[0]
        alive: list[Any] = []
        if index is not None:
            rows = check_index(index, X.shape[0])
            alive.append(rows)
            job[fields.INDEX], job[fields.ROWS] = address(rows), rows.size
        if shift is not None or scale is not None:
            lanes = layout.lanes(self.dtype)
            for place, name, value, default in (
                (fields.SHIFT, "shift", shift, 0.0),
                (fields.SCALE, "scale", scale, 1.0),
            ):
                padded = np.zeros(-(-columns // lanes) * lanes)
                padded[:columns] = default if value is None else check_vector(value, columns, name)
                alive.append(padded)
                job[place] = address(padded)
        alive.append(X)
        return job, alive

    def _use(self, form: Any, job: np.ndarray) -> None:
        """The job's products in one form: layer.py's, rowlanes.py's or bfloat16.py's."""
        job[fields.FORWARD_AT : fields.ADD_PULL_AT + 1] = self._step.addresses(form, self.dtype)

    def _describe_update(
        self,
        job: np.ndarray,
        params: Parameters,
        gradient: Parameters,
        optimizer: int,
        moments: np.ndarray | None,
        rates: np.ndarray,
        settings: np.ndarray,
        losses: np.ndarray,
    ) -> None:
        """Steps, and what they write to; the last three float64, one rate and two numbers of `losses` a step."""
        self._check_params(params)
        self._check_params(gradient, "gradient")
        if rates.ndim != 1 or rates.size == 0:
            raise ValueError(f"rates must be one a step, and one at least, got shape {rates.shape}")
        if settings.shape != (fields.SETTINGS_SIZE,):
            raise ValueError(f"settings must be {fields.SETTINGS_SIZE} numbers, got shape {settings.shape}")
        if optimizer != fields.NONE:
            if moments is None or moments.dtype != self.dtype or moments.shape != (2, self._size):
                raise ValueError(
                    f"moments must be {self.dtype}, of shape {(2, self._size)}, for an optimizer"
                )
            if not moments.flags.c_contiguous or not moments.flags.writeable:
                raise ValueError("moments must be C-contiguous, and not read-only")
            job[fields.MOMENTS] = address(moments)
        job[fields.TASK], job[fields.STEPS], job[fields.OPTIMIZER] = fields.STEPS_TASK, rates.size, optimizer
        job[fields.PARAMETERS], job[fields.GRADIENT] = address(params.flat), address(gradient.flat)
        job[fields.RATES], job[fields.SETTINGS] = address(rates), address(settings)
        job[fields.LOSSES] = address(losses)

    def _describe_objective(
        self, job: np.ndarray, settings: np.ndarray, objective: Objective, unit: float, seed: int, epoch: int
    ) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(f"objective must be an Objective, got {objective!r}")
        settings[fields.ALPHA], settings[fields.NOISE_LEVEL] = objective.alpha / unit, objective.noise_level
        settings[fields.SPARSITY_TARGET] = objective.sparsity_target
        settings[fields.SPARSITY_WEIGHT] = objective.sparsity_weight
        job[fields.MISSING], job[fields.SPARSE] = objective.missing, objective.sparsity_weight > 0
        job[fields.NOISE] = fields.NOISES.index(objective.noise or "")
        job[fields.SEED], job[fields.EPOCH] = seed, epoch
        layer = self.network.code_layer
        if objective.sparsity_weight > 0 and (
            layer == self.network.n_layers or self.network.activations[layer - 1] != "sigmoid"
        ):
            raise ValueError("sparsity_weight needs a code, below the last layer, of sigmoid units")

    def _check_params(self, params: Parameters, name: str = "params") -> None:
        if not isinstance(params, Parameters):
            raise TypeError(f"{name} must be Parameters, got {type(params).__name__}")
        if params.network != self.network:
            raise ValueError(f"{name} are of {params.network}, but the engine is for {self.network}")
        if params.dtype != self.dtype:
            raise ValueError(f"{name} are {params.dtype}, but the engine computes in {self.dtype}")


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def _forget_threads() -> None:
    """In a forked child, where no other thread is left: none holds a lock, is in a job or listens for one."""
    for engine in _engines:
        engine._lock = threading.Lock()
        engine._form_team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
