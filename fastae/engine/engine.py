"""Engine: losses and gradients, reconstructions and codes of one network, on all cores, in memory allocated once.

Each public call becomes a job (``jobs.py``), which a crew of threads works on (``crew.py``). No arithmetic is here.
Matrices of rows are (m, n), codes (m, k).
"""

import ctypes
import inspect
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastae.checks import (
    check_count,
    check_index,
    check_matrix,
    check_orders,
    check_ordinal,
    check_out,
    check_seed,
    check_target,
    check_vector,
    check_weights,
    in_units,
)
from fastae.engine import jobs, thread_pool
from fastae.engine.activations import Held, check_names, read
from fastae.engine.crew import Crew
from fastae.engine.prepared import PreparedCall
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
        and all other arithmetic are float32. Needs a CPU with AVX512_BF16. Intel's are slower with it than in float32:
        there AMX is used, if the CPU has AMX_BF16, the system grants it and the network is not narrow; otherwise the
        first such engine of a process issues a RuntimeWarning.

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
            from fastae.kernels import forms, padding, split, step, stretch, tile
            from fastae.kernels.target import TARGET

        self._forms = forms.forms_of("bfloat16" if in_bfloat16 else self.dtype.name)
        if not self._forms:
            raise RuntimeError(
                f"dtype bfloat16 requires a CPU with AVX512_BF16, but kernels are compiled for {TARGET.cpu}"
            )
        if in_bfloat16 and not TARGET.bfloat16_pays:
            kind = network.widths, 1, 0, self.dtype
            if not forms.choose(self._forms, *kind, linear=True, codes=False).on_tile_registers:
                _warn_of_slow_bfloat16(TARGET.cpu)
        self._split, self._all_forms, self._is_dirty = split, forms, padding.checker()
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
        self._squares = layout.aligned_zeros(8 * (1 + max(stretches, patches)), np.float64)
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
            squares=address(self._squares),
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
        Y: npt.ArrayLike | None = None,
        index: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        target_shift: npt.ArrayLike | None = None,
        target_scale: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
        objective: Objective = PLAIN,
        seed: int = 0,
        epoch: int = 0,
        out: Parameters | None = None,
    ) -> tuple[float, Parameters]:
        """Compute the loss S over the rows of `X`, 1/(2m) sum((xhat - x)^2) by default, and its gradient.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        X : array-like of shape (m, n), any float or integer dtype, any strides
            Rows. They are read tile by tile: never copied whole, never written.
        Y : array-like of shape (m, q), any float or integer dtype, any strides, optional
            What the network's q outputs are compared with, instead of the row of `X`; read as `X` is, with the same
            `index`. A cell that is NaN makes the loss NaN or, if the objective has `missing`, is not part of the
            error. Default: `X`, as the network sees it without noise.
        index : array-like of int, optional
            Numbers of the rows of `X` to use, in this order. Default: all rows.
        shift : array-like of shape (n,), optional
            Subtracted from each row before it enters the network. Default: 0.
        scale : array-like of shape (n,), optional
            Then multiplied with each row. The network sees (X - shift) * scale, computed in float64 and rounded once.
            Default: 1.
        target_shift : array-like of shape (q,), optional
            Subtracted from each row of `Y`. Default: 0.
        target_scale : array-like of shape (q,), optional
            Then multiplied with each row of `Y`; the output is compared with (Y - target_shift) * target_scale.
            Default: 1.
        sample_weight : array-like of shape (m,), optional
            Weight w_i >= 0 of each row of `X`: S = 1/(2 sum(w)) sum_i w_i ||xhat_i - x_i||^2. Default: 1.
        objective : Objective, optional
            The loss, penalties, noise in the input, missing cells. Default: the squared error alone.
        seed : int, default 0
            Seed of the noise.
        epoch : int, default 0
            Number of the epoch; the noise differs in each.
        out : Parameters, optional
            Overwritten by the gradient. Default: new ones. For many calls on the same arrays, see
            ``prepare_loss_and_gradient``.

        Returns
        -------
        loss : float
            The loss S, with its penalties.
        gradient : Parameters
            Its gradient: ``gradient["W1"]``, ``gradient["b1"]``, ...; `out` if it was given.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size, or targets of the loss "bernoulli" are outside [0, 1].
            The message names it.
        """
        if out is not None:
            self._check_params(out, "out", written=True)
            if out is params:
                raise ValueError("out must not be params: the engine reads these while it writes it")
        gradient = Parameters(self.network, self.dtype) if out is None else out
        losses = self.run_steps(
            params,
            X,
            Y=Y,
            gradient=gradient,
            objective=objective,
            seed=seed,
            epoch=epoch,
            index=index,
            shift=shift,
            scale=scale,
            target_shift=target_shift,
            target_scale=target_scale,
            sample_weight=sample_weight,
        )
        return float(losses[0, 0]), gradient

    def prepare_loss_and_gradient(
        self, params: Parameters, X: np.ndarray, *, gradient: Parameters | None = None, **options: Any
    ) -> PreparedCall:
        """Prepare a call of ``loss_and_gradient`` that is made many times, on new numbers in the same arrays.

        ``call = engine.prepare_loss_and_gradient(params, X)`` checks everything. Then each ``loss = call()`` reads
        ``params.flat`` and `X` as they are by then, writes ``call.gradient``, and allocates nothing.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        X : ndarray of shape (m, n), any float or integer dtype, any strides
            Rows.
        gradient : Parameters, optional
            Overwritten by each call. Default: new ones.
        options : keyword arguments
            Options of ``loss_and_gradient``, except `out`. `index`, `shift`, `scale` and `sample_weight` are copied.

        Returns
        -------
        call : PreparedCall
            A callable without arguments that returns the loss. It has been called once.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size. The message names it.
        """
        if not isinstance(X, np.ndarray):
            raise TypeError(f"X must be a NumPy array, to be read again in each call, got {type(X).__name__}")
        self._check_options("prepare_loss_and_gradient", options)
        if gradient is None:
            gradient = Parameters(self.network, self.dtype)
        if options.get("sample_weight") is not None:
            options["sample_weight"] = np.array(options["sample_weight"])
        self._check_params(params)
        call = PreparedCall(self, params, X, gradient)
        self.run_steps(params, X, gradient=gradient, prepared=call, **options)
        call()
        return call

    def activations(
        self, params: Parameters, X: npt.ArrayLike, names: Sequence[str], **options: Any
    ) -> dict[str, np.ndarray]:
        """Compute activations and deltas of chosen layers and rows: z and h of any layer, and dS/dz.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        X : array-like of shape (m, n), any float or integer dtype, any strides
            Rows. They are never copied whole, never written.
        names : sequence of str
            What to return, by the names in ``fastae.reference``: "z1", "h1", ..., "z{L}", "xhat" of a network of L
            layers; "dz1", ..., "dz{L}", the deltas; and "dxhat" if the last layer is linear.
        options : keyword arguments
            Options of ``loss_and_gradient``, except `out`: the rows (`index`), and what decides the loss. Activations
            are those of the input with its noise, if the objective has any.

        Returns
        -------
        dict of str to ndarray of shape (rows, units of the layer), the engine's dtype
            An array for each name. Deltas are derivatives of the loss of these rows, a mean over them: dW of a layer is
            the transposed input of the layer times its delta.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size, or a name is unknown. The message names it.
        """
        self._check_options("activations", options)
        checked, held = check_names(names, self.network), Held()
        gradient = Parameters(self.network, self.dtype)
        self.run_steps(params, X, gradient=gradient, prepared=held, **options)
        return read(self, held, checked, params)

    def vjp(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        d_xhat: npt.ArrayLike,
        d_code: npt.ArrayLike | None = None,
        *,
        with_input: bool = False,
    ) -> "Parameters | tuple[Parameters, np.ndarray]":
        """Compute the gradient of any cost S from dS/dxhat, its derivatives with respect to the output.

        This is the vector-Jacobian product of the network: the chain rule for a cost that the engine does not know.

        The rows go through the network again, so that nothing has to be kept from an earlier call: it takes as long as
        ``loss_and_gradient``, and with `with_input` one more product, of the first layer.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        X : array-like of shape (m, n), any float or integer dtype, any strides
            Rows, as the network sees them. They are read tile by tile: never copied whole, never written.
        d_xhat : array-like of shape (m, q), any float or integer dtype, any strides
            dS/dxhat, with respect to each of the network's q outputs; read as `X` is.
        d_code : array-like of shape (m, k), any float or integer dtype, any strides, optional
            dS/dcode, where S depends on the code other than through xhat; read as `X` is. Default: 0.
        with_input : bool, default False
            Also return dS/dX.

        Returns
        -------
        gradient : Parameters
            ``gradient["W1"]`` is dS/dW1, and so on: sums over the rows, not divided by m.
        d_X : ndarray of shape (m, n), the engine's dtype
            dS/dX, only if `with_input`.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size, or `d_code` is given although the code is the
            network's output. The message names it.
        """
        network = self.network
        X = check_matrix(X, network.widths[0], "X")
        d_xhat = check_target(d_xhat, X, network.widths[-1], "d_xhat")
        if d_code is not None:
            if network.code_layer == network.n_layers:
                raise ValueError(
                    "d_code must be None, because the network's code is its output: add it to d_xhat"
                )
            d_code = check_target(d_code, X, network.widths[network.code_layer], "d_code")
        gradient, rows = Parameters(network, self.dtype), len(X)
        form = self._form_for(rows, codes=d_code is not None)
        job = self._steps_job(form, rows)
        alive = jobs.set_matrix(job, X, self.dtype, index=None, shift=None, scale=None)
        alive += jobs.set_given(job, d_xhat, d_code, self.dtype)
        losses, rates = np.zeros((1, 2)), np.zeros(1)
        self._check_params(params)
        alive += jobs.set_steps(job, params, gradient, None, None, rates, losses)
        d_X = np.empty(X.shape if with_input else (0, 0), self.dtype)
        if with_input:
            first = self.plan[0]
            transposed = layout.aligned_zeros(int(first.bias - first.weight), self.dtype)
            zeros = layout.aligned_zeros(int(first.output), self.dtype)
            alive += transposed, zeros
            job.first_transposed, job.zeros = address(transposed), address(zeros)
            job.input_delta, job.input_delta_stride = address(d_X), d_X.strides[0]
        job.weights = address(params.flat if self._weights is None else self._weights)
        with self._turn.take():
            self._take_steps(job, form, rows, 1)
        del alive
        return (gradient, d_X) if with_input else gradient

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
        out: np.ndarray | None = None,
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
        out : ndarray of shape (rows, n), the engine's dtype, C-contiguous, optional
            Overwritten by the results. Default: a new array.

        Returns
        -------
        ndarray of shape (rows, n), the engine's dtype
            The network's output; shift and scale are not undone. `out` if it was given.

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
            out=out,
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
        out: np.ndarray | None = None,
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
        out : ndarray of shape (rows, k), the engine's dtype, C-contiguous, optional
            Overwritten by the results. Default: a new array.

        Returns
        -------
        ndarray of shape (rows, k), the engine's dtype
            The codes. `out` if it was given.

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
            out=out,
        )

    def decode(self, params: Parameters, code: npt.ArrayLike, *, out: np.ndarray | None = None) -> np.ndarray:
        """Compute xhat from codes, with the layers above the code layer.

        Parameters
        ----------
        params : Parameters
            Parameters of this engine's network and dtype.
        code : array-like of shape (m, k)
            Codes, as ``encode`` returns them.
        out : ndarray of shape (m, n), the engine's dtype, C-contiguous, optional
            Overwritten by the results. Default: a new array.

        Returns
        -------
        ndarray of shape (m, n), the engine's dtype
            The network's output. `out` if it was given.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size, or no layer lies above the code layer.
        """
        if self.network.code_layer == self.network.n_layers:
            raise ValueError("network has no layer above its code: there is nothing to decode with")
        return self._infer(params, code, self.network.code_layer, self.network.n_layers, name="code", out=out)

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
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Compute sum_j c_j (xhat_ij - x_ij)^2 for each row i of `X`, whatever the loss in training was.

        Reconstructions are not stored.

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
        out : ndarray of shape (rows,), float64, C-contiguous, optional
            Overwritten by the results. Default: a new array.

        Returns
        -------
        ndarray of shape (rows,), float64
            The error of each row, where x is what the network sees: the scaled row. Differences are computed in the
            engine's dtype, their squares and sums in float64. `out` if it was given.

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
            out=out,
        )

    # -- for the training loop ----------------------------------------------------------------------------------

    def run_steps(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        gradient: Parameters,
        Y: npt.ArrayLike | None = None,
        index: npt.ArrayLike | None = None,
        orders: npt.NDArray[np.int64] | None = None,
        shift: npt.ArrayLike | None = None,
        scale: npt.ArrayLike | None = None,
        target_shift: npt.ArrayLike | None = None,
        target_scale: npt.ArrayLike | None = None,
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
        prepared: PreparedCall | Held | None = None,
    ) -> np.ndarray:
        """Take one step per learning rate in `rates`, over successive batches of the rows, in one job.

        `index` holds the numbers of the rows to use, of shape (rows,) or, with an order for each of several epochs,
        (epochs, rows). `orders` are the same, but not copied: numbers of rows of `X` as int64, C-contiguous
        (epochs, rows), which nobody changes during the call. `Y`, `target_shift` and `target_scale` are as for
        ``loss_and_gradient``; the numbers of rows are those of `Y`, too.

        With an `optimizer`, `params` and ``state.moments`` change in place; ``state.steps`` is read but not changed.
        Without one, no parameter changes. `gradient` receives the last step's gradient.

        If `X` is a part of a larger matrix, `first_row` is the number of its first row there. With `sums`, loss and
        gradient are sums over the rows of that part, for ``combine_sums``. The noise depends on `seed`, on the row and
        on the epoch; `epoch` is the number of the first one. With `prepared`, the job is held there, not run.

        Returns an array of shape (steps, 2): the loss of each step before its update, and the sum of its rows' weights,
        which may be in another unit than `sample_weight`, the same for all steps, unless they are `sums`. If a loss is
        not finite, its step is not taken, and the array ends with it. A ValueError says that a target of the loss
        "bernoulli" is outside [0, 1], with an `optimizer` after the steps before it have been taken.
        """
        X = check_matrix(X, self.network.widths[0], "X")
        outputs = self.network.widths[-1]
        if not isinstance(objective, Objective):
            raise TypeError(f"objective must be an Objective, got {objective!r}")
        if Y is not None:
            Y = check_target(Y, X, outputs)
        elif target_shift is not None or target_scale is not None:
            raise ValueError("target_shift and target_scale are of Y, which is not given")
        elif outputs != X.shape[1]:
            raise ValueError(
                f"network puts out {outputs} features, but X has {X.shape[1]}: pass targets of {outputs} features as Y"
            )
        if sums and (objective.alpha or objective.sparsity_weight):
            raise ValueError("sums are of rows: objective must have neither alpha nor sparsity_weight")
        if batch_size is not None:
            check_count("batch_size", batch_size)
        rates = np.ascontiguousarray(rates, np.float64)
        chosen = None if orders is None else check_orders(orders, X.shape[0])
        if index is not None:
            chosen = check_index(index, X.shape[0], by_epoch=rates.size > 1)
        rows = X.shape[0] if chosen is None else chosen.shape[-1]
        batch = rows if batch_size is None else min(int(batch_size), rows)
        if chosen is not None and chosen.ndim == 2 and rates.size != len(chosen) * -(-rows // batch):
            raise ValueError(
                f"index orders the rows of {len(chosen)} epochs, but rates are of {rates.size} steps of {batch} rows"
            )
        form = self._form_for(batch, codes=objective.sparsity_weight > 0)
        job = self._steps_job(form, batch)
        alive = jobs.set_matrix(job, X, self.dtype, index=chosen, shift=shift, scale=scale)
        if Y is not None:
            alive += jobs.set_target(job, Y, self.dtype, shift=target_shift, scale=target_scale)
        unit = 1.0  # in which job.sample_weight is measured
        if sample_weight is not None:
            weights, unit = in_units(check_weights(sample_weight, X.shape[0]), chosen)
            alive.append(weights)
            job.sample_weight = address(weights)
        losses = np.zeros((rates.size, 2))
        self._check_params(params, written=optimizer is not None)
        self._check_params(gradient, "gradient", written=True)
        if gradient.flat is params.flat:
            raise ValueError("gradient must not be params: the engine reads these while it writes it")
        if self._is_dirty(gradient.flat, self.plan):  # which not all kernels overwrite
            gradient.clear_padding()
        alive += jobs.set_steps(job, params, gradient, optimizer, state, rates, losses)
        alive += jobs.set_objective(job, objective, self.network, self.dtype, unit)
        check_seed(seed, MOST_SEED)
        for name, number in ("epoch", epoch), ("first_row", first_row):
            check_ordinal(name, number)
        job.seed, job.epoch = seed, epoch
        job.first_row, job.as_sums = first_row, sums
        job.weights = address(params.flat if self._weights is None else self._weights)
        outside = jobs.OutsideRange("X" if Y is None else "Y")
        if job.loss == fields.BERNOULLI:
            job.out_of_range = address(outside.noted)
        if prepared is not None:
            prepared._hold(job, form, batch, losses, [alive, rates], outside)
            return losses[:0]
        with self._turn.take():
            done, diverged = self._take_steps(job, form, batch, rates.size)
        outside.refuse()
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
        alive = jobs.set_steps(job, params, gradient, optimizer, state, rates, losses)
        job.alpha, job.n_parts, job.gradients = alpha, len(parts), address(parts)
        with self._turn.take():
            self._run(job, fields.WEIGHTS, 1)
        del alive
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
        out: np.ndarray | None = None,
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
        shape: tuple[int, ...] = (rows, self.network.widths[last])
        dtype: np.dtype[Any] = self.dtype
        if column_weight is not None:
            shape, dtype = (rows,), np.dtype(np.float64)
        if out is None:
            out = np.empty(shape, dtype)
        else:
            check_out(out, shape, dtype, {name: X, "params": params.flat})
        if column_weight is None:
            job.task = fields.INFER_TASK
        else:
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

    def _steps_job(self, form: Any, batch: int) -> Job:
        """A job of steps on `batch` rows, in a form of products."""
        job = self._new_job(form)
        job.batch = batch
        if form.tile_of_steps is not None:
            tile = form.tile_of_steps(self.network.widths, batch, self._size, self.dtype)
            job.height, job.row_multiple = tile
        return job

    def _check_options(self, method: str, options: dict[str, Any]) -> None:
        """Raise an error if the options of a method have a name that ``loss_and_gradient`` does not have."""
        unknown = options.keys() - (inspect.signature(self.loss_and_gradient).parameters.keys() - {"out"})
        if unknown:
            raise TypeError(f"{method} has no option {', '.join(sorted(unknown))}")

    def _is_small(self, batch: int, steps: int) -> bool:
        """Whether a job of steps takes so little time that the calling thread does it alone."""
        return 6.0 * batch * self._size * steps <= SMALL_JOB

    def _cut(self, job: Job, form: Any, batch: int) -> int:
        """Have a job's steps cut into items; returns the most items of rows that any step has."""
        if form.stored_row is not None and self._split.by_weights(self._size):
            return self._cut_by_weights(job, batch)
        return self._cut_by_rows(job, job.rows, batch)

    def _take_steps(self, job: Job, form: Any, batch: int, steps: int) -> tuple[int, bool]:
        """Run a job of steps, once all about it is set except how it is cut; returns as ``Crew.run``."""
        items, flops = self._cut(job, form, batch), 6.0 * batch * self._size
        # One item of rows: other threads would find almost nothing to do, however many steps there are
        alone = items == 1 and flops < SMALL_JOB
        return self._share(job, fields.TRANSPOSE, flops, steps, batch, alone=alone)

    def _form_for(self, batch: int, *, codes: bool) -> Any:
        """The form of products in which steps on `batch` rows are fastest, of the forms that support them.

        `codes`: the code has a delta of its own.
        """
        return self._all_forms.choose(
            self._forms,
            self.network.widths,
            batch,
            self._size,
            self.dtype,
            linear=self.network.activations[-1] == "identity",
            codes=codes,
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

        It ends with three tiles of the input or, if that is wider, the output; the last one is as wide as the code if
        that is wider still. Where they are not needed they are not touched, and so take no physical memory.
        """
        inputs, code, outputs = (
            layout.blocks(self.network.widths[layer], self.dtype) * layout.lanes(self.dtype)
            for layer in (0, self.network.code_layer, -1)
        )
        widest = max(inputs, outputs)
        before = int(self._tile_map(self.plan, height, 0, self.dtype.itemsize).clean) // self.dtype.itemsize
        return before + height * (2 * widest + max(widest, code))

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
        if flops * steps <= SMALL_JOB:  # as ``_is_small``
            return self._crew.run_alone(job, claim)
        if alone or self._most_threads == 1:
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
        if name == "params" and self._is_dirty(flat, self.plan):
            raise ValueError("params.flat is not zero in its padding: call params.clear_padding()")


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@cache
def _warn_of_slow_bfloat16(cpu: str) -> None:
    """Once per process."""
    text = (
        f"dtype bfloat16 is slower than float32 on {cpu}: its AVX512_BF16 gains nothing, and AMX is not used "
        "(the CPU lacks AMX_BF16, the system does not grant it, or the network is too narrow)"
    )
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _forget_threads() -> None:
    """In a forked child, which has no thread but this one: none holds a lock, works on a job or listens for one."""
    for engine in _engines:
        engine._turn = Turn()
        engine._crew.forget_helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
