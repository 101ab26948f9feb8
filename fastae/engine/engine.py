"""Engine: losses and gradients, reconstructions and codes of one network, on all cores, in memory allocated once.

Each call becomes a job (``jobs.py``), which a ``Runner`` runs in its memory and on its threads. No arithmetic is here.
Matrices of rows are (m, n), codes (m, k).
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
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
    refuse_target_scale,
)
from fastae.engine import jobs
from fastae.engine.activations import check_names, read
from fastae.engine.prepared import PreparedCall
from fastae.engine.runner import Runner
from fastae.kernels import job as fields
from fastae.kernels import layout
from fastae.kernels.layout import address
from fastae.network import DType, Network, Parameters
from fastae.objective import PLAIN, Objective
from fastae.optimizers import Optimizer, State

MOST_SEED = (1 << 63) - 1
SMALL_TILE = 8  # least rows that a thread claims in inference, because each claim reads all weights
# The options of ``loss_and_gradient``, but `out`: other methods take them as well
OPTIONS = {
    "Y",
    "index",
    "shift",
    "scale",
    "target_shift",
    "target_scale",
    "sample_weight",
    "objective",
    "seed",
    "epoch",
}


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
    An engine still works in a forked child process. A fork waits for other threads that compile. A copy of an engine,
    also from a pickle, is a new engine with the same arguments.
    """

    def __init__(
        self, network: Network, n_threads: int | None = None, dtype: DType | Literal["bfloat16"] = "float32"
    ) -> None:
        self._runner = runner = Runner(network, n_threads, dtype)
        self._arguments = network, n_threads, dtype
        self.network, self.n_threads = runner.network, runner.n_threads
        self.dtype, self.plan = runner.dtype, runner.plan

    def __reduce__(self) -> tuple[Any, ...]:
        return Engine, self._arguments

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
            self._runner.check_params(out, "out", written=True)
            if out is params:
                raise ValueError("out must not be params: the engine reads these while it writes it")
        gradient = Parameters(self.network, self.dtype) if out is None else out
        prepared = self._prepare_steps(
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
        return float(self._run_prepared(prepared)[0, 0]), gradient

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
            Options of ``loss_and_gradient``, except `out`. `Y` is read again in each call, as `X` is, and so must be an
            ndarray, too. The others are copied.

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
        _check_options("prepare_loss_and_gradient", options)
        Y = options.get("Y")
        if Y is not None and not isinstance(Y, np.ndarray):
            raise TypeError(f"Y must be a NumPy array, to be read again in each call, got {type(Y).__name__}")
        if gradient is None:
            gradient = Parameters(self.network, self.dtype)
        if options.get("sample_weight") is not None:
            options["sample_weight"] = np.array(options["sample_weight"])
        prepared = self._prepare_steps(params, X, gradient=gradient, **options)
        call = PreparedCall(self, self._runner, params, X, gradient, prepared)
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
            the transposed input of the layer times its delta. A row whose `sample_weight` is 0 does not count, whatever
            it holds: its activations are those of a row of zeros, its deltas are 0.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type, dtype, shape or size, or a name is unknown. The message names it.
        """
        _check_options("activations", options)
        checked = check_names(names, self.network)
        gradient = Parameters(self.network, self.dtype)
        prepared = self._prepare_steps(params, X, gradient=gradient, **options)
        return read(self._runner, prepared, checked, params)

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
        if not isinstance(with_input, (bool, np.bool_)):
            raise TypeError(f"with_input must be True or False, got {with_input!r}")
        X = check_matrix(X, network.widths[0], "X")
        d_xhat = check_target(d_xhat, X, network.widths[-1], "d_xhat")
        if d_code is not None:
            if network.code_layer == network.n_layers:
                raise ValueError(
                    "d_code must be None, because the network's code is its output: add it to d_xhat"
                )
            d_code = check_target(d_code, X, network.widths[network.code_layer], "d_code", "the code has")
        gradient, rows = Parameters(network, self.dtype), len(X)
        runner = self._runner
        form = runner.form_for_steps(rows, codes=d_code is not None)
        job = runner.steps_job(form, rows)
        alive = jobs.set_matrix(job, X, self.dtype, index=None, shift=None, scale=None)
        alive += jobs.set_given(job, d_xhat, d_code, self.dtype)
        losses, rates = np.zeros((1, 2)), np.zeros(1)
        runner.check_params(params)
        alive += jobs.set_steps(job, params, gradient, None, None, rates, losses)
        d_X = np.empty(X.shape if with_input else (0, 0), self.dtype)
        if with_input:
            first = self.plan[0]
            transposed = layout.aligned_zeros(int(first.bias - first.weight), self.dtype)
            zeros = layout.aligned_zeros(int(first.output), self.dtype)
            alive += transposed, zeros
            job.first_transposed, job.zeros = address(transposed), address(zeros)
            job.input_delta, job.input_delta_stride = address(d_X), d_X.strides[0]
        job.weights = runner.weights_at(params)
        with runner.turn.take():
            runner.take_steps(job, form, rows, 1)
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
        on the epoch; `epoch` is the number of the first one.

        Returns an array of shape (steps, 2): the loss of each step before its update, and the sum of its rows' weights,
        which may be in another unit than `sample_weight`, the same for all steps, unless they are `sums`. If a loss is
        not finite, its step is not taken, and the array ends with it. A ValueError says that a target of the loss
        "bernoulli" is outside [0, 1], with an `optimizer` after the steps before it have been taken.
        """
        prepared = self._prepare_steps(
            params,
            X,
            gradient=gradient,
            Y=Y,
            index=index,
            orders=orders,
            shift=shift,
            scale=scale,
            target_shift=target_shift,
            target_scale=target_scale,
            sample_weight=sample_weight,
            batch_size=batch_size,
            optimizer=optimizer,
            state=state,
            rates=rates,
            objective=objective,
            seed=seed,
            epoch=epoch,
            first_row=first_row,
            sums=sums,
        )
        losses = self._run_prepared(prepared)
        if sums and prepared.unit != 1:
            losses *= prepared.unit
            gradient.flat *= gradient.dtype.type(prepared.unit)
        return losses

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
        runner = self._runner
        parts = np.ascontiguousarray(parts, self.dtype)
        if parts.ndim != 2 or parts.shape[1] != runner.size or not len(parts):
            raise ValueError(f"parts must be of shape (parts, {runner.size}), got {parts.shape}")
        losses, rates = np.array([[0.0, float(weight)]]), np.array([float(rate)])
        runner.check_params(params, written=optimizer is not None)
        runner.check_params(gradient, "gradient", written=True)
        job = runner.job_for(runner.forms[0])
        alive = jobs.set_steps(job, params, gradient, optimizer, state, rates, losses)
        job.alpha, job.n_parts, job.gradients = alpha, len(parts), address(parts)
        with runner.turn.take():
            runner.run(job, fields.WEIGHTS, 1)
        del alive
        return float(losses[0, 0])

    def stop_on(self, stop: threading.Event) -> None:
        """From now on, end a call with ``side_by_side.Stopped`` within about 50 ms after `stop` has been set.

        A step is never taken in part.
        """
        self._runner.crew.stop = stop

    # -- within -------------------------------------------------------------------------------------------------

    def _prepare_steps(
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
    ) -> jobs.PreparedSteps:
        """Check the arguments of ``run_steps``, and describe its job."""
        X = check_matrix(X, self.network.widths[0], "X")
        outputs = self.network.widths[-1]
        if not isinstance(objective, Objective):
            raise TypeError(f"objective must be an Objective, got {objective!r}")
        if Y is not None:
            Y = check_target(Y, X, outputs)
        else:
            refuse_target_scale(target_shift, target_scale)
            if outputs != X.shape[1]:
                raise ValueError(
                    f"network puts out {outputs} features, but X has {X.shape[1]}: pass targets of {outputs} features "
                    "as Y"
                )
        if sums and (objective.alpha or objective.sparsity_weight):
            raise ValueError("sums are of rows: objective must have neither alpha nor sparsity_weight")
        if batch_size is not None:
            check_count(batch_size, "batch_size")
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
        runner = self._runner
        form = runner.form_for_steps(batch, codes=objective.sparsity_weight > 0)
        job = runner.steps_job(form, batch)
        alive = jobs.set_matrix(job, X, self.dtype, index=chosen, shift=shift, scale=scale)
        if Y is not None:
            alive += jobs.set_target(job, Y, self.dtype, shift=target_shift, scale=target_scale)
        unit = 1.0  # in which job.sample_weight is measured
        if sample_weight is not None:
            weights, unit = in_units(check_weights(sample_weight, X.shape[0]), chosen)
            alive.append(weights)
            job.sample_weight = address(weights)
        losses = np.zeros((rates.size, 2))
        runner.check_params(params, written=optimizer is not None)
        runner.check_params(gradient, "gradient", written=True)
        if gradient.flat is params.flat:
            raise ValueError("gradient must not be params: the engine reads these while it writes it")
        written = [gradient.flat] if optimizer is None else [gradient.flat, params.flat]
        for name, read_rows in ("X", X), ("Y", Y):
            for array in written:
                if read_rows is not None and np.may_share_memory(read_rows, array):
                    raise ValueError(f"{name} overlaps the parameters or the gradient that the engine writes")
        if runner.is_dirty(gradient.flat, self.plan):  # which not all kernels overwrite
            gradient.clear_padding()
        alive += jobs.set_steps(job, params, gradient, optimizer, state, rates, losses)
        alive += jobs.set_objective(job, objective, self.network, self.dtype, unit)
        check_seed(seed, MOST_SEED)
        for name, number in ("epoch", epoch), ("first_row", first_row):
            check_ordinal(number, name)
        job.seed, job.epoch = seed, epoch
        job.first_row, job.as_sums = first_row, sums
        job.weights = runner.weights_at(params)
        outside = jobs.OutsideRange("X" if Y is None else "Y")
        if job.loss == fields.BERNOULLI:
            job.out_of_range = outside.address
        alive.append(rates)
        return jobs.PreparedSteps(job, form, batch, losses, alive, outside, unit)

    def _run_prepared(self, prepared: jobs.PreparedSteps) -> np.ndarray:
        """Take prepared steps: the losses of those that were taken, and the one that is not finite."""
        job, form, batch, losses, _, outside, _ = prepared
        runner = self._runner
        with runner.turn.take():
            done, diverged = runner.take_steps(job, form, batch, len(losses))
        outside.refuse()
        return losses[: done + diverged]

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
        runner = self._runner
        runner.check_params(params)
        if not isinstance(missing, (bool, np.bool_)):
            raise TypeError(f"missing must be True or False, got {missing!r}")
        columns = self.network.widths[first]
        X = check_matrix(X, columns, name, "the decoder takes" if first else "the network takes")
        chosen = None if index is None else check_index(index, X.shape[0])
        rows = X.shape[0] if chosen is None else chosen.shape[-1]
        job = runner.job_for(runner.form_for_inference(rows, first, last))
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
        job.weights = runner.weights_at(params)
        job.out, job.out_stride = address(out), out.strides[0]
        job.first_layer, job.last_layer = first, last
        noted = ctypes.c_int64()
        if on_not_finite is not None:
            job.not_finite = ctypes.addressof(noted)
        # Tiles as equal as possible: as few per thread as can hold all rows, and the same number for each thread.
        tiles = -(-rows // (runner.most_threads * job.height))
        tile = max(SMALL_TILE, -(-rows // (runner.most_threads * tiles)))
        job.batch = min(job.height, -(-tile // job.row_multiple) * job.row_multiple)
        with runner.turn.take():
            runner.run_inference(job, rows)
        del alive
        if on_not_finite is not None and noted.value:
            on_not_finite()
        return out


def _check_options(method: str, options: dict[str, Any]) -> None:
    """Raise an error if the options of a method have a name that ``loss_and_gradient`` does not have."""
    unknown = options.keys() - OPTIONS
    if unknown:
        raise TypeError(f"{method} has no option {', '.join(sorted(unknown))}")
