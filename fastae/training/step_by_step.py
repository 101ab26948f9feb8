"""Steps that Python takes one by one: for tied weights, and for an optimizer of the user's own.

``StepByStep`` stands in for an engine in a training loop. It asks the engine for the gradient of each step, and adds
the gradients of tied weights in NumPy; then the optimizer's ``update`` takes the step, or the engine, in another call.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.checks import check_index, check_matrix, check_weights, in_units
from fastae.engine.engine import Engine
from fastae.kernels import layout
from fastae.network import Network, Parameters
from fastae.optimizers import Custom, InKernels, Optimizer, State

Tied = tuple[tuple[str, str], ...]


def check_tied(tied: Any, network: Network, optimizer: Optimizer) -> Tied:
    """`tied` as pairs of names of the network's weights, the second one being the first one transposed."""
    if isinstance(tied, str) or not isinstance(tied, Sequence):
        raise TypeError(f'tied must be pairs of names, such as (("W1", "W2"),), got {tied!r}')
    shapes, seen = network.shapes(), set[str]()
    for pair in tied:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f'tied must be pairs of names, such as (("W1", "W2"),), got {pair!r}')
        for name in pair:
            if not isinstance(name, str) or name not in shapes or not name.startswith("W"):
                weights = ", ".join(name for name in shapes if name.startswith("W"))
                raise ValueError(f"tied names {name!r}, but the weights are {weights}")
            if name in seen:
                raise ValueError(f"tied names {name!r} twice")
            seen.add(name)
        first, second = pair
        if shapes[second] != shapes[first][::-1]:
            raise ValueError(
                f"tied makes {second} the transpose of {first}, but their shapes are {shapes[second]} and "
                f"{shapes[first]}"
            )
        if isinstance(optimizer, InKernels) and second in (optimizer.rate_factors or {}):
            raise ValueError(f"rate_factors names {second!r}, which is tied: give the factor of {first!r}")
    return tuple((first, second) for first, second in tied)


def steps_with(engine: Engine, optimizer: Optimizer | None, tied: Tied = ()) -> "Engine | StepByStep":
    """What takes the steps of this optimizer: the engine itself, unless Python has to take them one by one."""
    return StepByStep(engine, tied) if tied or isinstance(optimizer, Custom) else engine


class StepByStep:
    """Has the methods of an engine that take steps; see the head of this file.

    Parameters
    ----------
    engine : Engine
    tied : pairs of names of weights
        The second of each pair is kept equal to the transpose of the first.
    """

    def __init__(self, engine: Engine, tied: Tied) -> None:
        self._engine, self._tied = engine, tied

    def run_steps(
        self,
        params: Parameters,
        X: npt.ArrayLike,
        *,
        gradient: Parameters,
        index: npt.ArrayLike | None = None,
        orders: npt.NDArray[np.int64] | None = None,
        sample_weight: npt.ArrayLike | None = None,
        batch_size: int | None = None,
        optimizer: Optimizer | None = None,
        state: State | None = None,
        rates: npt.ArrayLike = (0.0,),
        epoch: int = 0,
        **options: Any,
    ) -> np.ndarray:
        """As ``Engine.run_steps``, except that "swap" noise takes cells from rows of the same step."""
        self._tie(params)
        if optimizer is None:
            return self._engine.run_steps(
                params,
                X,
                gradient=gradient,
                index=index,
                orders=orders,
                sample_weight=sample_weight,
                batch_size=batch_size,
                rates=rates,
                epoch=epoch,
                **options,
            )
        assert state is not None
        X = check_matrix(X, params.network.widths[0], "X")
        weights = None if sample_weight is None else check_weights(sample_weight, X.shape[0])
        chosen = orders if index is None else check_index(index, X.shape[0], by_epoch=True)
        if chosen is None:
            chosen = np.arange(X.shape[0])
        chosen = np.atleast_2d(chosen)
        in_unit = None if weights is None else in_units(weights, chosen)[0]  # sums of which are finite
        rows = chosen.shape[1]
        batch = min(batch_size or rows, rows)
        per_epoch, each_rate = -(-rows // batch), np.array(rates, np.float64)
        losses = np.zeros((each_rate.size, 2))
        for step, rate in enumerate(each_rate.tolist()):
            first = step % per_epoch * batch
            order = chosen[step // per_epoch % len(chosen), first : first + batch]
            total = float(order.size if in_unit is None else in_unit[order].sum())
            if total > 0:
                here = self._engine.run_steps(
                    params,
                    X,
                    gradient=gradient,
                    orders=order[np.newaxis],
                    sample_weight=weights,
                    epoch=epoch + step // per_epoch,
                    **options,
                )
                losses[step] = here[0, 0], total
            else:
                gradient.flat[:] = 0
            if not np.isfinite(losses[step, 0]):
                return losses[: step + 1]
            self._update(params, gradient, optimizer, replace(state, steps=state.steps + step), rate)
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
        """As ``Engine.combine_sums``."""
        penalty = self._engine.combine_sums(params, parts, weight, gradient=gradient, alpha=alpha)
        if optimizer is not None:
            assert state is not None
            self._update(params, gradient, optimizer, state, rate)
        return penalty

    def _update(
        self, params: Parameters, gradient: Parameters, optimizer: Optimizer, state: State, rate: float
    ) -> None:
        """Take one step along the whole gradient."""
        for first, second in self._tied:
            shared, other = _squares(gradient, first), _squares(gradient, second)
            shared += _transposed(other)
            other[:] = 0
        if isinstance(optimizer, Custom):
            moments = state.moments
            optimizer.update(params, gradient, state, rate)
            if state.moments is not moments:
                state.moments = moments
                raise ValueError(
                    f"{type(optimizer).__name__}.update replaced state.moments, which must be changed in place: "
                    "state.moments[:] = array"
                )
        else:
            whole = gradient.flat[np.newaxis]
            self._engine.combine_sums(
                params, whole, 1.0, gradient=gradient, optimizer=optimizer, state=state, rate=rate
            )
        self._tie(params)

    def _tie(self, params: Parameters) -> None:
        """Set the second weights of each pair to the transpose of the first."""
        for first, second in self._tied:
            _squares(params, second)[:] = _transposed(_squares(params, first))


def _squares(params: Parameters, name: str) -> np.ndarray:
    """A view of a weight matrix: (blocks of columns, blocks of rows, lanes, lanes)."""
    layer, lanes = params.plan[int(name[1:]) - 1], layout.lanes(params.dtype)
    blocks = layout.blocks(layer["fan_out"], params.dtype)
    return params.flat[layer["weight"] : layer["bias"]].reshape(blocks, -1, lanes, lanes)


def _transposed(squares: np.ndarray) -> np.ndarray:
    """A view of the transposed matrix, in the same layout."""
    return squares.transpose(1, 0, 3, 2)
