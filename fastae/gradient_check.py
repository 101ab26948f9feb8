"""Gradients are checked against central differences of the cost, which do not depend on the chain rule.

The differences are those of the cost in `fastae.reference`, in float64, whatever the dtype of the gradient under test.
Use small networks and few rows: each entry that is checked takes four forward passes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastae import reference
from fastae.checks import check_count, check_number, check_seed
from fastae.engine.engine import Engine
from fastae.network import Activation, Network, Parameters
from fastae.objective import Loss, Objective

__all__ = ["check_gradients", "check_network"]

Array = npt.NDArray[np.float64]
_Probe = tuple[float, list[npt.NDArray[np.bool_]]]  # the cost, and which units of each relu layer are on
# Differences of fourth order: the factors of the cost at so many steps from 0, in twelfths of a step
CENTRAL = {-2: 1, -1: -8, 1: 8, 2: -1}
LEFT = {0: 25, -1: -48, -2: 36, -3: -16, -4: 3}
RIGHT = {-place: -factor for place, factor in LEFT.items()}


class _Engine(Protocol):
    def loss_and_gradient(
        self, params: Any, X: Any, /, *, sample_weight: Any
    ) -> tuple[Any, Mapping[str, npt.ArrayLike]]: ...


def check_gradients(
    params: Mapping[str, npt.ArrayLike],
    X: npt.ArrayLike,
    *,
    engine: _Engine | None = None,
    gradient: Mapping[str, npt.ArrayLike] | None = None,
    activations: Sequence[Activation] | None = None,
    sample_weight: npt.ArrayLike | None = None,
    Y: npt.ArrayLike | None = None,
    loss: Loss = "squared_error",
    huber_delta: float = 1.0,
    step: float = 1e-3,
    n_samples: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Compare a gradient with central differences of the cost, parameter by parameter.

    Parameters
    ----------
    params : mapping
        Dense arrays "W1", "b1", "W2", ...: a `fastae.Parameters` or a dict, float32 or float64. Not changed.
    X : array-like of shape (m, n)
        Rows over which the cost is computed, in the scale that the network sees.
    engine : Engine, optional
        Object whose ``loss_and_gradient(params, X, sample_weight=...)`` is tested, with `Y` and an `objective` if they
        are given here. Default: `fastae.reference.backward`.
    gradient : mapping, optional
        Instead of `engine`: your own gradient at these `params`, dense arrays under the names of the parameters, or
        under these with a "d" before them ("dW1", "db1", ...).
    activations : sequence of "sigmoid", "tanh", "relu" or "identity", optional
        One activation per layer, as for `fastae.reference.forward`.
    sample_weight : array-like of shape (m,), optional
        Weight of each row, as for `fastae.reference.cost`. Default: 1.
    Y : array-like of shape (m, q), optional
        Target of the network's q outputs. Default: `X`.
    loss : "squared_error", "huber" or "bernoulli", default "squared_error"
        The cost of a cell, as for `fastae.reference.cost`. Where a step crosses a residual at which "huber" turns
        linear, the differences are less exact.
    huber_delta : float, default 1.0
        The residual at which "huber" turns linear.
    step : float, default 1e-3
        Largest change of a pre-activation in the entry's own layer. With the default, float64 reaches about 1e-10.
        If the step would cross the kink of a relu, the differences are one-sided, or it is divided by 10, at most three
        times. Where a pre-activation of a relu is exactly 0, its slope is taken for 0, as `fastae.reference` does, if
        the entry moves all such rows to the same side: those of a bias always are.
    n_samples : int, optional
        Number of entries to check in each parameter, drawn without replacement. Default: all.
    seed : int, default 0
        Seed of the draw.

    Returns
    -------
    dict of str to float
        For each parameter max|g - d| / max(max|g|, max|d|) over the entries checked, where g is the gradient under
        test and d the differences; 0 if both are zero throughout. A correct gradient has less than 1e-7 in float64
        and about 1e-5 in float32. If the gradient is tiny compared with the cost, as in a saturated layer, rounding
        dominates the differences, and the relative error is larger.

    Raises
    ------
    ValueError, TypeError
        As `fastae.reference.forward` and `fastae.reference.cost`, or `step` is not a positive number, `n_samples` is
        not an integer of at least 1, or `seed` not one of at least 0; or `gradient` lacks an array, or `engine` has no
        ``loss_and_gradient``.

    Notes
    -----
    Differences are of fourth order, (8 (S(s) - S(-s)) - (S(2s) - S(-2s))) / (12 s). Their truncation error is s^4/30
    times the fifth derivative, so s can be large enough to make the rounding error, eps |S| / s, negligible [1]_.
    One-sided ones are (25 S(0) - 48 S(-s) + 36 S(-2s) - 16 S(-3s) + 3 S(-4s)) / (12 s), with 6 times the error, or
    the same to the right.

    References
    ----------
    .. [1] W. H. Press, S. A. Teukolsky, W. T. Vetterling and B. P. Flannery, "Numerical Recipes", 3rd edition,
       section 5.7, Cambridge University Press, 2007; B. Fornberg, "Generation of finite difference formulas on
       arbitrarily spaced grids", Mathematics of Computation 51 (1988) 699-706, table 1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastae
    >>> rng = np.random.default_rng(0)
    >>> params = {"W1": rng.normal(size=(3, 2)), "b1": np.zeros(2), "W2": rng.normal(size=(2, 3)), "b2": np.zeros(3)}
    >>> errors = fastae.check_gradients(params, rng.normal(size=(5, 3)))
    >>> sorted(errors)
    ['W1', 'W2', 'b1', 'b2']
    >>> max(errors.values()) < 1e-7
    True
    """
    _check_is_mapping(params)
    if engine is not None and not hasattr(engine, "loss_and_gradient"):
        raise TypeError(
            f"engine must have a method loss_and_gradient, got {type(engine).__name__}: pass arrays as `gradient`"
        )
    check_seed(seed)
    check_number(step, "step")
    if not 0 < step < np.inf:
        raise ValueError(f"step must be positive and finite, got {step!r}")
    if n_samples is not None:
        check_count(n_samples, "n_samples")
    if activations is None:
        activations = getattr(getattr(params, "network", None), "activations", None)

    x = np.asarray(X, dtype=np.float64)
    target = x if Y is None else np.asarray(Y, dtype=np.float64)
    options: dict[str, Any] = {"loss": loss, "huber_delta": huber_delta}
    theta = {name: np.array(params[name], dtype=np.float64) for name in params}
    t = reference.forward(x, theta, activations)
    inputs, last = _largest_inputs(x, t), [name for name in t if name.startswith("z")][-1]
    relu = [f"z{layer}" for layer, name in enumerate(activations or (), start=1) if name == "relu"]

    if gradient is not None:
        if engine is not None:
            raise ValueError("gradient and engine exclude each other")
    elif engine is None:
        gradient = reference.backward(X, params, activations, sample_weight, Y=Y, **options)
    else:
        more: dict[str, Any] = {} if Y is None else {"Y": Y}
        if loss != "squared_error":
            more["objective"] = Objective(loss=loss, huber_delta=huber_delta)
        _, gradient = engine.loss_and_gradient(params, X, sample_weight=sample_weight, **more)
    tested = {name: _entry(gradient, name, array.shape) for name, array in theta.items()}

    def probe(array: Array, index: tuple[Any, ...], offset: float) -> _Probe:
        centre = array[index]
        array[index] = centre + offset
        t = reference.forward(x, theta, activations)
        array[index] = centre
        S = reference.cost(target, t["xhat"], sample_weight, z=t[last], **options)
        return float(S), [t[z] > 0 for z in relu]

    rng = np.random.default_rng(seed)
    errors = {}
    for name, array in theta.items():
        entries = np.arange(array.size)
        if n_samples is not None and n_samples < array.size:
            entries = rng.choice(array.size, n_samples, replace=False)
        difference = np.empty(entries.size)
        for i, entry in enumerate(entries):
            index = np.unravel_index(entry, array.shape)
            reach = inputs[name][index[0]] if name.startswith("W") else 1.0  # z moves by reach * offset
            difference[i] = _derivative(partial(probe, array, index), step / (reach or 1.0))
        errors[name] = _relative_error(tested[name].ravel()[entries], difference)
    return errors


def check_network(network: Network, seed: int = 0) -> dict[str, dict[str, float]]:
    """Check the gradients of a network at random parameters: those of the reference and of engines of both dtypes.

    Parameters
    ----------
    network : Network
        The network to check.
    seed : int, default 0
        Seed of the parameters and of the 40 rows.

    Returns
    -------
    dict of str to dict of str to float
        The relative errors of ``check_gradients``, under "reference", "float64" and "float32".
    """
    params = Parameters.random(network, seed, "float64")
    X = np.random.default_rng(seed).normal(size=(40, network.widths[0]))
    errors = {"reference": check_gradients(params, X)}
    for dtype in ("float64", "float32"):
        same = Parameters(network, dtype)
        for name, array in params.items():
            same[name] = array
        errors[dtype] = check_gradients(same, X, engine=Engine(network, dtype=dtype))
    return errors


def _check_is_mapping(params: object) -> None:
    if not isinstance(params, Mapping):
        given = type(params).__name__
        raise TypeError(
            f"params must be a mapping of arrays, got {given}: the order is check_gradients(params, X)"
        )


def _largest_inputs(x: Array, t: Mapping[str, npt.NDArray[Any]]) -> dict[str, Array]:
    """For each W, the largest absolute value of each of its layer's inputs."""
    h = [x, *(t[name] for name in t if name.startswith("h"))]
    return {f"W{layer}": np.abs(h_in).max(axis=0) for layer, h_in in enumerate(h, start=1)}


def _entry(gradient: Mapping[str, npt.ArrayLike], name: str, shape: tuple[int, ...]) -> Array:
    """The gradient of the parameter of this name."""
    if not isinstance(gradient, Mapping):
        raise TypeError(f"gradient must be a mapping of arrays by name, got {type(gradient).__name__}")
    found = next((gradient[key] for key in (f"d{name}", name) if key in gradient), None)
    if found is None:
        raise ValueError(f"gradient lacks {name}: arrays are named {name} or d{name}")
    g = np.array(found, dtype=np.float64)
    if g.shape != shape:
        raise ValueError(f"the gradient of {name} has shape {g.shape}, but {shape} is needed")
    return g


def _derivative(probe: Callable[[float], _Probe], step: float) -> float:
    """The derivative at 0 of the cost that `probe` returns, between the kinks of the relus that it returns as well."""
    for s in (step, step / 10, step / 100, step / 1000):
        for factors in (CENTRAL, LEFT, RIGHT):
            costs, units = zip(*(probe(place * s) for place in factors), strict=True)
            if all(np.array_equal(a, b) for a, b in zip(units[0], units[-1], strict=True)):
                return _difference(factors, costs, s)
    return _difference(CENTRAL, [probe(place * s)[0] for place in CENTRAL], s)


def _difference(factors: Mapping[int, int], costs: Sequence[float], s: float) -> float:
    """The derivative at 0, from the costs at the places that `factors` belong to; exactly 0 if all costs are equal."""
    pairs = zip(factors.values(), costs, strict=True)
    return sum(factor * (cost - costs[0]) for factor, cost in pairs) / (12 * s)


def _relative_error(g: Array, d: Array) -> float:
    scale = np.maximum(np.abs(g).max(), np.abs(d).max())  # np.maximum lets a NaN through
    return 0.0 if scale == 0 else float(np.abs(g - d).max() / scale)
