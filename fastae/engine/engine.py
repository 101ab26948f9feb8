"""Engine: losses and gradients, reconstructions and codes of one network, on all cores, in memory allocated once.

Each public call becomes a job (``jobs.py``), which a crew of threads works on (``crew.py``). No arithmetic is here.
Matrices of rows are (m, n), codes (m, k).
"""

import ctypes
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastae.checks import (
    check_count,
    check_index,
    check_matrix,
    check_seed,
    check_vector,
    check_weights,
    in_units,
)
from fastae.engine import jobs, thread_pool
from fastae.engine.crew import Crew
from fastae.engine.thread_count import ThreadCount
from fastae.engine.turn import Turn
from fastae.kernels import fork, layout
from fastae.kernels import job as fields
from fastae.kernels.job import Job
from fastae.kernels.layout import address
from fastae.network import DType, Network, Parameters, check_dtype
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State

MOST_SEED = (1 << 63) - 1
SMALL_JOB = 4e6  # FLOPs up to which a job stays on the calling thread
LARGE_STEP = 100e6  # FLOPs of a step per thread above which all threads are used, unless they lack CPUs
KINDS_MOST = 100  # kinds of jobs for which an engine keeps a thread count
SMALL_TILE = 8  # least rows that a thread claims in inference, because each claim reads all weights
FIRST_CALL = 2e7  # rows times weights that a job's first jitted call processes, before its speed is known


class Engine:
    """Computes losses, gradients, codes and reconstructions of one network, in memory that is allocated once.

    Parameters
    ----------
    network : Network
        The network to compute with.
    n_threads : int, optional
        Maximum number of threads. Default: the CPUs that this process may use (on Linux, by affinity and cgroup quota;
        on macOS and Windows, all CPUs), which are never exceeded. Small steps use fewer threads when that is measured
        to be faster. Results are bit-identical for any number of threads.
    dtype : "float32", "float64", "bfloat16" or NumPy dtype, default "float32"
        Type of parameters, arithmetic and results; losses are added up in float64. With "bfloat16", the operands of
        matrix products are rounded to 8 bits of precision and their products added up in float32; parameters, results
        and all other arithmetic are float32. Needs a CPU with AVX512_BF16; on Intel's, which are slower with it than
        in float32, the first such engine of a process issues a RuntimeWarning.

    Raises
    ------
    TypeError, ValueError
        An argument has the wrong type or is out of range.
    RuntimeError
        The CPU, or the CPU that Numba compiles for, lacks the instructions that "bfloat16" needs.

    Notes
    -----
    Several Python threads may use an engine; their calls run one after another. Calls of two engines run side by side.
    An engine still works in a forked child process. A fork waits for other threads that compile.
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
        in_bfloat16 = isinstance(dtype, str) and dtype == "bfloat16"
        self.network, self.n_threads = network, int(n_threads)
        # More threads than CPUs are never faster: a thread that others wait for may itself wait for a CPU.
        self._most_threads = min(self.n_threads, thread_pool.available_cpus())
        self.dtype = check_dtype("float32" if in_bfloat16 else dtype)

        with fork.importing:  # here, not above: LLVM is loaded when the first engine is created
            from fastae.kernels import forms, split, step, stretch, tile
            from fastae.kernels.target import TARGET

        self._forms = forms.forms_of("bfloat16" if in_bfloat16 else self.dtype.name)
        if not self._forms:
            raise RuntimeError(
                f"dtype bfloat16 requires a CPU with AVX512_BF16, but kernels are compiled for {TARGET.cpu}"
            )
        if in_bfloat16 and not TARGET.bfloat16_pays:
            _warn_of_slow_bfloat16(TARGET.cpu)
        self._split, self._all_forms = split, forms
        self._addresses, self._prepare_weights = step.addresses, stretch.prepare_weights
        self._tile_map = tile.tile_map
        self._form = self._forms[0]
        widths, dtype, lanes = network.widths, self.dtype, layout.lanes(self.dtype)
        self.plan, size, transposed = layout.plan(widths, network.activations, dtype)
        code, last = widths[network.code_layer], self.plan[-1]
        height = max((form.most_height or form.height)(widths, dtype) for form in self._forms)
        elements = self._tile_elements(height)
        work = [layout.aligned_zeros(elements, dtype) for _ in range(self._most_threads)]
        self._size, self._shape = size, (size,)
        self._weights = None  # W as products read it, where that is not W itself
        if self._form.own_weights:
            self._weights = layout.aligned_zeros(size, dtype)
        self._transposed = layout.aligned_zeros(transposed, dtype)
        sums = int(last["column_sums"]) + layout.blocks(int(last["fan_out"]), dtype) * lanes
        self._ones = layout.aligned_zeros(sums, dtype)
        for layer in self.plan:
            start = layer["column_sums"]
            self._ones[start : start + layer["fan_out"]] = 1
        self._gradients = layout.aligned_zeros(0, dtype).reshape(0, size)
        self._totals = np.zeros((split.ROWS_ITEMS_MOST + 1, 2))
        stretches, patches = int(split.stretches(self.plan, lanes)), int(split.patches(self.plan, lanes))
        self._norms = np.zeros(max(stretches, patches))
        self._codes = np.zeros((split.SHARDS_MOST, code))
        self._slopes = jobs.padded(0.0, code, dtype)
        self._kept = self._deltas = self._band_sums = layout.aligned_zeros(0, dtype)
        self._blanks = {form: self._blank(form, transposed, stretches, patches) for form in self._forms}
        self._crew = Crew(work, max(stretches, patches, split.ROWS_ITEMS_MOST))
        self._thread_counts: dict[tuple[Any, ...], ThreadCount] = {}
        self._turn = Turn()
        _engines.add(self)

    def _blank(self, form: Any, transposed: int, stretches: int, patches: int) -> Job:
        """The fields that all jobs in one form of products share; ``_new_job`` adds the addresses of functions."""
        return Job(
            plan=address(self.plan),
            layers=len(self.plan),
            code_layer=self.network.code_layer - 1,
            n_parameters=self._size,
            stretches=stretches,
            patches=patches,
            slabs=1,
            stored_row=form.stored_row or 0,
            transposed=address(self._transposed),
            transposed_size=transposed,
            orders=1,
            ones=address(self._ones),
            totals=address(self._totals),
            norms=address(self._norms),
            codes=address(self._codes),
            slopes=address(self._slopes),
            height=form.height(self.network.widths, self.dtype),
            row_multiple=form.row_multiple(self.network.widths, self.dtype),
            target_in_form=form.target_in_form,
        )

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
        on_not_finite: Callable[[], object] | None = None,
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
        on_not_finite : callable, optional
            Called without arguments if a cell is infinite or, unless it is a missing one, NaN, as the network sees it;
            it may raise an error. Default: the results are returned all the same.

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
        return self._infer(
            params,
            X,
            0,
            last,
            index=index,
            shift=shift,
            scale=scale,
            missing=missing,
            on_not_finite=on_not_finite,
        )

    def encode(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        index: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        missing: bool = False,
        on_not_finite: Callable[[], object] | None = None,
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
        on_not_finite : callable, optional
            Called without arguments if a cell is infinite or, unless it is a missing one, NaN, as the network sees it;
            it may raise an error. Default: the results are returned all the same.

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
        return self._infer(
            params,
            X,
            0,
            last,
            index=index,
            shift=shift,
            scale=scale,
            missing=missing,
            on_not_finite=on_not_finite,
        )

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
        on_not_finite: Callable[[], object] | None = None,
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
        on_not_finite : callable, optional
            Called without arguments if a cell is infinite or, unless it is a missing one, NaN, as the network sees it;
            it may raise an error. Default: the results are returned all the same.

        Returns
        -------
        ndarray of shape (rows,), float64
            The error of each row, where x is what the network sees: the scaled row. Differences are computed in the
            engine's dtype, their squares and sums in float64.

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
        weight = 1.0 if column_weight is None else check_vector(column_weight, n, "column_weight")
        return self._infer(
            params,
            X,
            0,
            self.network.n_layers,
            index=index,
            shift=shift,
            scale=scale,
            column_weight=jobs.padded(weight, n, self.dtype),
            missing=missing,
            on_not_finite=on_not_finite,
        )

    # -- for the training loop ----------------------------------------------------------------------------------

    def run_steps(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        gradient: Parameters,
        index: npt.ArrayLike | None = None,
        orders: npt.NDArray[np.int64] | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        batch_size: int | None = None,
        optimizer: Optimizer | None = None,
        state: State | None = None,
        rates: npt.ArrayLike = (0.0,),
        objective: Objective = PLAIN,
        seed: int = 0,
        epoch: int = 0,
        first_row: int = 0,
        sums: bool = False,
    ) -> np.ndarray:
        """Take one step per learning rate in `rates`, over successive batches of the rows, in one job.

        `index` holds the numbers of the rows to use, of shape (rows,) or, with an order for each of several epochs,
        (epochs, rows). `orders` are the same, but neither checked nor copied: numbers of rows of `X`, C-contiguous
        (epochs, rows), which nobody changes during the call.

        With an `optimizer`, `params` and ``state.moments`` change in place; ``state.steps`` is read but not changed.
        Without one, no parameter changes. `gradient` receives the last step's gradient.

        If `X` is a part of a larger matrix, `first_row` is the number of its first row there. With `sums`, loss and
        gradient are sums over the rows of that part, for ``combine_sums``. The noise depends on `seed`, on the row and
        on the epoch; `epoch` is the number of the first one.

        Returns an array of shape (steps, 2): the loss of each step before its update, and the sum of its rows' weights,
        which may be in another unit than `sample_weight`, the same for all steps, unless they are `sums`. If a loss is
        not finite, its step is not taken, and the array ends with it.
        """
        X = check_matrix(X, self.network.widths[0], "X")
        if self.network.widths[-1] != self.network.widths[0]:
            raise ValueError(f"network puts out {self.network.widths[-1]} features, but X has {X.shape[1]}")
        if not isinstance(objective, Objective):
            raise TypeError(f"objective must be an Objective, got {objective!r}")
        if sums and (objective.alpha or objective.sparsity_weight):
            raise ValueError("sums are of rows: objective must have neither alpha nor sparsity_weight")
        if batch_size is not None:
            check_count("batch_size", batch_size)
        rates = np.ascontiguousarray(rates, np.float64)
        chosen = orders
        if index is not None:
            chosen = check_index(index, X.shape[0], by_epoch=rates.size > 1)
        rows = X.shape[0] if chosen is None else chosen.shape[-1]
        batch = rows if batch_size is None else min(int(batch_size), rows)
        if chosen is not None and chosen.ndim == 2 and rates.size != len(chosen) * -(-rows // batch):
            raise ValueError(
                f"index orders the rows of {len(chosen)} epochs, but rates are of {rates.size} steps of {batch} rows"
            )
        form = self._form_for(batch, objective)
        job = self._new_job(form)
        if form.tile_of_steps is not None:
            tile = form.tile_of_steps(self.network.widths, batch, self._size, self.dtype)
            job.height, job.row_multiple = tile
        by_weights = form.stored_row is not None and self._split.by_weights(self._size)
        alive = jobs.set_matrix(job, X, self.dtype, index=chosen, shift=shift, scale=scale)
        unit = 1.0  # in which job.sample_weight is measured
        if sample_weight is not None:
            weights, unit = in_units(check_weights(sample_weight, X.shape[0]), chosen)
            alive.append(weights)
            job.sample_weight = address(weights)
        losses = np.zeros((rates.size, 2))
        self._check_params(params, written=optimizer is not None)
        self._check_params(gradient, "gradient", written=True)
        jobs.set_steps(job, params, gradient, optimizer, state, rates, losses)
        jobs.set_objective(job, objective, self.network, unit)
        check_seed(seed, MOST_SEED)
        job.seed, job.epoch = seed, epoch
        job.batch, job.first_row, job.as_sums = batch, first_row, sums
        job.weights = address(params.flat if self._weights is None else self._weights)
        with self._turn.take():
            items = self._cut_by_weights(job, batch) if by_weights else self._cut_by_rows(job, rows, batch)
            flops = 6.0 * batch * self._size
            # One item of rows: other threads would find almost nothing to do, however many steps there are
            alone = items == 1 and flops < SMALL_JOB
            done, diverged = self._share(job, fields.TRANSPOSE, flops, rates.size, batch, alone=alone)
        if sums and unit != 1:
            losses *= unit
            gradient.flat *= gradient.dtype.type(unit)
        return losses[: done + diverged]

    def combine_sums(
        self,
        params: Parameters,
        parts: np.ndarray,
        weight: float,
        *,
        gradient: Parameters,
        optimizer: Optimizer | None = None,
        state: State | None = None,
        rate: float = 0.0,
        alpha: float = 0.0,
    ) -> float:
        """Take one step from the gradients of several sets of rows, each a sum over its rows.

        `parts` (parts, size of the flat buffer) holds gradients of ``run_steps`` with `sums`. They are added in this
        order and divided by `weight`, the sum of all rows' weights; then the penalty's gradient is added. `gradient`
        receives the result. Returns what the penalty adds to the loss.
        """
        parts = np.ascontiguousarray(parts, self.dtype)
        if parts.ndim != 2 or parts.shape[1] != self._size or not len(parts):
            raise ValueError(f"parts must be of shape (parts, {self._size}), got {parts.shape}")
        losses, rates = np.array([[0.0, float(weight)]]), np.array([float(rate)])
        self._check_params(params, written=optimizer is not None)
        self._check_params(gradient, "gradient", written=True)
        job = self._new_job(self._form)
        jobs.set_steps(job, params, gradient, optimizer, state, rates, losses)
        job.alpha, job.n_parts, job.gradients = alpha, len(parts), address(parts)
        with self._turn.take():
            self._run(job, fields.WEIGHTS, 1)
        return float(losses[0, 0])

    def stop_on(self, stop: threading.Event) -> None:
        """From now on, end a call with ``side_by_side.Stopped`` within about 50 ms after `stop` has been set.

        A step is never taken in part.
        """
        self._crew.stop = stop

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
        on_not_finite: Callable[[], object] | None = None,
    ) -> np.ndarray:
        """Run rows through layers first .. last - 1: their outputs, or errors if there is a `column_weight`."""
        self._check_params(params)
        if not isinstance(missing, (bool, np.bool_)):
            raise TypeError(f"missing must be True or False, got {missing!r}")
        columns = self.network.widths[first]
        X = check_matrix(X, columns, name)
        chosen = None if index is None else check_index(index, X.shape[0])
        rows = X.shape[0] if chosen is None else chosen.shape[-1]
        job = self._new_job(self._form_for_inference(rows, first, last))
        alive = jobs.set_matrix(job, X, self.dtype, index=chosen, shift=shift, scale=scale)
        if column_weight is None:
            out = np.empty((rows, self.network.widths[last]), self.dtype)
            job.task = fields.INFER_TASK
        else:
            out = np.empty(rows)
            job.task, job.column_weight = fields.ERRORS_TASK, address(column_weight)
        job.missing, job.parameters = missing, jobs.line_address(params)
        job.weights = address(params.flat if self._weights is None else self._weights)
        job.out, job.out_stride = address(out), out.strides[0]
        job.first_layer, job.last_layer = first, last
        noted = ctypes.c_int64()
        if on_not_finite is not None:
            job.not_finite = ctypes.addressof(noted)
        # Tiles as equal as possible: as few per thread as can hold all rows, and the same number for each thread.
        tiles = -(-rows // (self._most_threads * job.height))
        tile = max(SMALL_TILE, -(-rows // (self._most_threads * tiles)))
        job.batch = min(job.height, -(-tile // job.row_multiple) * job.row_multiple)
        with self._turn.take():
            if self._weights is not None:
                self._prepare_weights(ctypes.addressof(job), self.dtype.itemsize)
            self._share(job, 0, 2.0 * rows * self._size, 1, rows)
        del alive
        if on_not_finite is not None and noted.value:
            on_not_finite()
        return out

    def _form_for(self, batch: int, objective: Objective) -> Any:
        """The form of products in which steps on `batch` rows are fastest, of the forms that support them."""
        return self._all_forms.choose(
            self._forms,
            self.network.widths,
            batch,
            self._size,
            self.dtype,
            linear=self.network.activations[-1] == "identity",
            sparse=objective.sparsity_weight > 0,
        )

    def _cut_by_rows(self, job: Job, rows: int, batch: int) -> int:
        """Have a job's steps cut by rows, in memory for their gradients; returns the most shards of any step."""
        shards = self._split.most_shards(rows, batch, self._size, job.row_multiple)
        if self._gradients.shape[0] < shards:
            self._gradients = layout.aligned_zeros(shards * self._size, self.dtype).reshape(shards, -1)
        job.gradients = address(self._gradients)
        return shards

    def _cut_by_weights(self, job: Job, batch: int) -> int:
        """Have a job's steps cut by weights, in memory for a slab; returns the most bands of any slab."""
        split = self._split
        job.cut, job.slabs = fields.BY_WEIGHTS, -(-batch // split.SLAB)
        job.slab = int(split.round_up(-(-batch // job.slabs), job.row_multiple))
        job.band, job.slab_height = (
            rule(job.slab, job.row_multiple) for rule in (split.band_rows, split.slab_height)
        )
        bands = -(-job.slab // job.band)
        kept, deltas = self._tile_elements(job.slab_height), job.slab_height * int(self.plan[-1].output)
        if self._kept.size < kept:
            # `_kept` last: if an allocation fails, or Ctrl-C comes in between, the next call allocates again.
            self._deltas = layout.aligned_zeros(deltas, self.dtype)
            self._kept = layout.aligned_zeros(kept, self.dtype)
        if self._band_sums.size < bands * self._ones.size:
            self._band_sums = layout.aligned_zeros(bands * self._ones.size, self.dtype)
        job.kept, job.deltas, job.band_sums = map(address, (self._kept, self._deltas, self._band_sums))
        return bands

    def _tile_elements(self, height: int) -> int:
        """Elements of memory that TileMap (kernels/tile.py) maps, for tiles of so many rows.

        It ends with three tiles of the input, the last one as wide as the code if that is wider. Where they are not
        needed they are not touched, and so take no physical memory.
        """
        code = layout.blocks(self.network.widths[self.network.code_layer], self.dtype) * layout.lanes(
            self.dtype
        )
        inputs = int(self.plan[0].output)
        before = int(self._tile_map(self.plan, height, 0, self.dtype.itemsize).clean) // self.dtype.itemsize
        return before + height * (2 * inputs + max(inputs, code))

    def _form_for_inference(self, rows: int, first: int, last: int) -> Any:
        """The form of products in which these rows pass fastest through layers first .. last - 1."""
        widths = self.network.widths
        if widths[first] > widths[0]:  # a converted input needs memory, which there is for a row of X
            return self._form
        return self._all_forms.choose_for_inference(self._forms, widths[first : last + 1], rows, self.dtype)

    def _new_job(self, form: Any) -> Job:
        """A job with the fields that all jobs in this form share; the first one loads or compiles what they call."""
        blank = self._blanks[form]
        if not blank.forward_at:
            blank = Job.from_buffer_copy(blank)
            for name, place in self._addresses(form, self.dtype).items():
                setattr(blank, name, place)
            self._blanks[form] = blank  # whole: another thread may be here too
        return Job.from_buffer_copy(blank)

    def _share(
        self, job: Job, claim: int, flops: float, steps: int, rows: int, *, alone: bool = False
    ) -> tuple[int, bool]:
        """Run the job on as many threads as are fastest, given the FLOPs and rows of each step; or on one, `alone`."""
        if alone or flops * steps <= SMALL_JOB:
            return self._run(job, claim, 1)
        if self._most_threads == 1:
            return self._run(job, claim, 1)
        kind = jobs.kind_of(job, steps, rows)
        if kind not in self._thread_counts:
            if len(self._thread_counts) == KINDS_MOST:
                self._thread_counts.clear()
            large = flops > LARGE_STEP * self._most_threads
            self._thread_counts[kind] = ThreadCount(self._most_threads, large=large)
        return self._run(job, claim, self._most_threads, self._thread_counts[kind])

    def _run(
        self, job: Job, claim: int, n_threads: int, thread_count: ThreadCount | None = None
    ) -> tuple[int, bool]:
        """See ``Crew.run``."""
        quota = max(1, int(FIRST_CALL * self.network.widths[0] // max(self._size, 1)))
        return self._crew.run(job, claim, n_threads if thread_count is None else thread_count, quota)

    def _check_params(self, params: Parameters, name: str = "params", *, written: bool = False) -> None:
        """Raise an error unless kernels may read and, where they are `written`, write these parameters."""
        if not isinstance(params, Parameters):
            raise TypeError(f"{name} must be Parameters, got {type(params).__name__}")
        if params.network is not self.network and params.network != self.network:
            raise ValueError(f"{name} are of {params.network}, but the engine is for {self.network}")
        if params.dtype is not self.dtype and params.dtype != self.dtype:
            raise ValueError(f"{name} are {params.dtype}, but the engine computes in {self.dtype}")
        flat = params.flat
        flags = flat.flags
        if flat.dtype != self.dtype or flat.shape != self._shape or not flags.c_contiguous:
            raise ValueError(
                f"{name}.flat has shape {flat.shape} and dtype {flat.dtype}, but {name} were made with shape "
                f"({self._size},) and dtype {self.dtype}"
            )
        if written and not flags.writeable:
            raise ValueError(f"{name}.flat is read-only, but the engine writes it")


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@cache
def _warn_of_slow_bfloat16(cpu: str) -> None:
    """Once per process."""
    text = (
        f"dtype bfloat16 is slower than float32 on {cpu}: its AVX512_BF16 gains nothing, and AMX is not used"
    )
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _forget_threads() -> None:
    """In a forked child, which has no thread but this one: none holds a lock, works on a job or listens for one."""
    for engine in _engines:
        engine._turn = Turn()
        engine._crew.forget_helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
