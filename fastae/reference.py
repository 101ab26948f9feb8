"""The equations in pure NumPy, with every intermediate by name: the oracle of every test, not built for speed.

Rows are samples: m rows, n features. Layer l has weights W{l} and a bias vector b{l}, which is added to every row. The
default network has three layers with the activations (sigmoid, sigmoid, identity):

    z1 = x W1 + b1      h1 = g(z1)          g(z) = 1 / (1 + exp(-z)),  g'(z) = h (1 - h)
    z2 = h1 W2 + b2     h2 = g(z2)
    xhat = h2 W3 + b3                       S = 1/(2m) * sum((xhat - x)^2)

    dxhat = (xhat - x) / m
    dW3 = h2' dxhat     db3 = sum_rows dxhat     dh2 = dxhat W3'     dz2 = dh2 * h2 (1 - h2)
    dW2 = h1' dz2       db2 = sum_rows dz2       dh1 = dz2 W2'       dz1 = dh1 * h1 (1 - h1)
    dW1 = x' dz1        db1 = sum_rows dz1

`cost` has the other losses. Every stack of dense layers is computed in the same way. With L layers, the last one has
z{L}, xhat = g(z{L}) and dz{L} = dxhat * g'(z{L}). Results are float32 if x and all parameters are, otherwise the dtype
that NumPy promotes them to.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastae.checks import check_real

if TYPE_CHECKING:
    from fastae.network import Activation
    from fastae.objective import Loss

__all__ = ["ACTIVATIONS", "backward", "cost", "forward", "sigmoid", "step", "train", "vjp"]

Array = npt.NDArray[np.floating[Any]]


def sigmoid(z: Array) -> Array:
    """Compute g(z) = 1 / (1 + exp(-z)) elementwise.

    Parameters
    ----------
    z : ndarray of any shape, float32 or float64
        Pre-activation.

    Returns
    -------
    ndarray of z's shape and dtype
        In [0, 1]: exactly 0, 0.5 and 1 at -inf, 0 and inf; NaN stays NaN.
    """
    e = np.exp(-np.abs(z))  # at most 1, where exp(-z) overflows for z << 0
    g: Array = np.where(z < 0, e, 1) / (1 + e)
    return g


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "sigmoid": (sigmoid, lambda h: h * (1 - h)),
    "tanh": (np.tanh, lambda h: 1 - h * h),
    "relu": (lambda z: np.maximum(z, 0), lambda h: (h > 0).astype(h.dtype)),
    "identity": (lambda z: z, lambda h: np.ones_like(h)),
}
"""By name: h = g(z), and g'(z) as a function of h."""


def forward(
    x: npt.ArrayLike, params: Mapping[str, Any], activations: "Sequence[Activation] | None" = None
) -> dict[str, Array]:
    """Run the rows of x through all layers.

    Parameters
    ----------
    x : array-like of shape (m, n)
        Input, one sample per row; real numbers.
    params : mapping of str to array-like
        "W1" of shape (n, n1), "b1" of shape (n1,), "W2" of shape (n1, n2), and so on for L layers.
    activations : sequence of "sigmoid", "tanh", "relu" or "identity", optional
        One activation per layer. Default: ``params.network.activations`` if `params` has it, otherwise sigmoid in
        every layer but the last, which is linear.

    Returns
    -------
    dict of str to ndarray
        z1, h1, z2, h2, ..., z{L}, xhat, each of shape (m, the layer's width).

    Raises
    ------
    ValueError
        Names or shapes do not fit together. The message names the array.
    TypeError
        An array does not hold real numbers.
    """
    x, params, activations = _check(x, params, activations)
    t: dict[str, Array] = {}
    h = x
    for layer, activation in enumerate(activations, start=1):
        g, _ = ACTIVATIONS[activation]
        z = t[f"z{layer}"] = h @ params[f"W{layer}"] + params[f"b{layer}"]
        h = t[f"h{layer}" if layer < len(activations) else "xhat"] = g(z)
    return t


def cost(
    x: npt.ArrayLike,
    xhat: npt.ArrayLike,
    sample_weight: npt.ArrayLike | None = None,
    *,
    loss: "Loss" = "squared_error",
    huber_delta: float = 1.0,
    z: npt.ArrayLike | None = None,
) -> np.floating[Any]:
    """Compute S, the mean over rows of the sum of their cells' costs; by default 1/(2m) * sum((xhat - x)^2).

    The cost of a cell, with r = xhat - x:

        squared_error    r^2 / 2
        huber            r^2 / 2 where |r| <= d = huber_delta, else d (|r| - d / 2)
        bernoulli        -(x log xhat + (1 - x) log(1 - xhat)) = max(z, 0) - x z + log(1 + exp(-|z|)),
                         where xhat = 1 / (1 + exp(-z))

    Parameters
    ----------
    x : array-like of shape (m, n)
        Target: the input, unless there are others.
    xhat : array-like of shape (m, n)
        The network's output.
    sample_weight : array-like of shape (m,), optional
        Weight w_i >= 0 of each row: S = 1/(2 sum(w)) * sum_i w_i ||xhat_i - x_i||^2. Default: 1.
    loss : "squared_error", "huber" or "bernoulli", default "squared_error"
        The cost of a cell.
    huber_delta : float, default 1.0
        Residual at which "huber" turns linear.
    z : array-like of shape (m, n), optional
        For "bernoulli", the last layer's pre-activation, which keeps the cost accurate where xhat rounds to 0 or 1.
        Default: log(xhat / (1 - xhat)), with xhat at least the smallest normal number, and at most eps / 2 below 1.

    Returns
    -------
    NumPy scalar of the arrays' dtype
        The cost S.

    Raises
    ------
    ValueError
        The shapes differ, or a weight is negative or not finite, or all weights are zero.
    TypeError
        An array does not hold real numbers.
    """
    x, xhat = _floats({"x": x, "xhat": xhat}).values()
    _check_rows(x)
    if x.shape != xhat.shape:
        raise ValueError(f"xhat has shape {xhat.shape}, but x has shape {x.shape}")
    w, total = _weights(sample_weight, x)
    _check_loss(loss, huber_delta)
    if loss == "bernoulli":
        if z is None:
            info = np.finfo(xhat.dtype)
            h = np.clip(xhat, info.tiny, 1 - info.epsneg)
            z = np.log(h) - np.log1p(-h)
        z = np.asarray(z)
        twice = 2 * (np.maximum(z, 0) - x * z + np.log1p(np.exp(-np.abs(z))))
    else:
        r = xhat - x
        c = r if loss == "squared_error" else np.clip(r, -huber_delta, huber_delta)
        twice = c * (2 * r - c)  # r^2 where c = r, else 2 d |r| - d^2
    if sample_weight is not None:
        twice = w * np.where(w > 0, twice, 0)  # a row of weight 0 does not count, whatever it holds
    S: np.floating[Any] = np.sum(twice) / (2 * total)
    return S


def backward(
    x: npt.ArrayLike,
    params: Mapping[str, Any],
    activations: "Sequence[Activation] | None" = None,
    sample_weight: npt.ArrayLike | None = None,
    *,
    Y: npt.ArrayLike | None = None,
    loss: "Loss" = "squared_error",
    huber_delta: float = 1.0,
) -> dict[str, Array]:
    """Compute the derivatives of the cost S with respect to every intermediate and every parameter.

    Parameters
    ----------
    x : array-like of shape (m, n)
        Input, one sample per row.
    params : mapping of str to array-like
        "W1" of shape (n, n1), "b1" of shape (n1,), "W2" of shape (n1, n2), and so on for L layers. The last layer has
        as many units as the target has columns.
    activations : sequence of "sigmoid", "tanh", "relu" or "identity", optional
        One activation per layer. Default: ``params.network.activations`` if `params` has it, otherwise sigmoid in
        every layer but the last, which is linear.
    sample_weight : array-like of shape (m,), optional
        Weight of each row, as for `cost`. Default: 1.
    Y : array-like of shape (m, q), optional
        Target. Default: `x`.
    loss : "squared_error", "huber" or "bernoulli", default "squared_error"
        As for `cost`. "bernoulli" needs a last activation of "sigmoid"; its dz{L} is (xhat - x) / m, whatever xhat is,
        where dxhat is infinite or NaN once xhat is 0 or 1.
    huber_delta : float, default 1.0
        As for `cost`.

    Returns
    -------
    dict of str to ndarray
        dxhat, dz{L}, dW{L}, db{L}, dh{L-1}, dz{L-1}, ..., dz1, dW1, db1. Each is the derivative of S with respect
        to the array named after the d, and has its shape.

    Raises
    ------
    ValueError, TypeError
        As `forward` and `cost`.
    """
    x, params, activations = _check(x, params, activations)
    last = len(activations)
    w, total = _weights(sample_weight, x)
    target, name = (x, "x") if Y is None else (_floats({"x": x, "Y": Y})["Y"], "Y")
    if sample_weight is not None:  # a row of weight 0 does not count, whatever it holds
        x, target = np.where(w > 0, x, 0), np.where(w > 0, target, 0)
    t = forward(x, params, activations)
    xhat = t["xhat"]
    if target.ndim != 2 or len(target) != len(x):
        raise ValueError(f"Y has shape {target.shape}, but x has {len(x)} rows")
    if xhat.shape != target.shape:
        raise ValueError(f"W{last} gives {xhat.shape[1]} features, but {name} has {target.shape[1]}")
    _check_loss(loss, huber_delta)
    r = xhat - target
    if loss == "bernoulli":
        if activations[-1] != "sigmoid":
            raise ValueError(
                f"loss 'bernoulli' needs a last activation of 'sigmoid', but it is {activations[-1]!r}"
            )
        # The sigmoid's derivative, xhat (1 - xhat), cancels that of the logarithms.
        dz = w * r / total
        with np.errstate(divide="ignore", invalid="ignore"):
            dxhat = dz / (xhat * (1 - xhat))
        return {"dxhat": dxhat, **_chain(x, params, activations, t, dz)}
    dxhat = w * (r if loss == "squared_error" else np.clip(r, -huber_delta, huber_delta)) / total
    return {
        "dxhat": dxhat,
        **_chain(x, params, activations, t, _times_derivative(dxhat, xhat, activations[-1])),
    }


def vjp(
    x: npt.ArrayLike,
    params: Mapping[str, Any],
    dxhat: npt.ArrayLike,
    dcode: npt.ArrayLike | None = None,
    *,
    code_layer: int | None = None,
    activations: "Sequence[Activation] | None" = None,
) -> dict[str, Array]:
    """Compute the derivatives of any cost S from those with respect to the output and, optionally, the code.

    Parameters
    ----------
    x : array-like of shape (m, n)
        Input, one sample per row.
    params : mapping of str to array-like
        As for `backward`.
    dxhat : array-like of shape (m, q)
        dS/dxhat, where S is taken as a function of xhat and code.
    dcode : array-like of shape (m, k), optional
        dS/dcode. Default: 0.
    code_layer : int, optional
        The layer whose output is the code, counted from 1. Default: ``params.network.code_layer``. Only for `dcode`.
    activations : sequence of str, optional
        As for `forward`.

    Returns
    -------
    dict of str to ndarray
        dz{L}, dW{L}, db{L}, dh{L-1}, ..., dz1, dW1, db1, and dx of shape (m, n).

    Raises
    ------
    ValueError, TypeError
        As `forward`, or a derivative does not have the shape of its array.
    """
    if code_layer is None:
        code_layer = getattr(getattr(params, "network", None), "code_layer", None)
    x, params, activations = _check(x, params, activations)
    t = forward(x, params, activations)
    given = _floats({"x": x, "dxhat": dxhat})["dxhat"]
    if given.shape != t["xhat"].shape:
        raise ValueError(f"dxhat has shape {given.shape}, but xhat has {t['xhat'].shape}")
    added: dict[int, Array] = {}
    if dcode is not None:
        if code_layer is None or not 0 < code_layer < len(activations):
            raise ValueError(f"code_layer must be a layer below the last one, got {code_layer!r}")
        code = t[f"h{code_layer}"]
        added[code_layer] = _floats({"x": x, "dcode": dcode})["dcode"]
        if added[code_layer].shape != code.shape:
            raise ValueError(f"dcode has shape {added[code_layer].shape}, but the code has {code.shape}")
    d = _chain(x, params, activations, t, _times_derivative(given, t["xhat"], activations[-1]), added)
    return {**d, "dx": d["dz1"] @ params["W1"].T}


def _times_derivative(dh: Array, h: Array, activation: "Activation") -> Array:
    """dz, from dh and h = g(z).

    g acts on each entry alone, so its Jacobian is diagonal and the chain rule an elementwise product.
    """
    _, derivative = ACTIVATIONS[activation]
    return dh * derivative(h)


def _chain(
    x: Array,
    params: Mapping[str, Any],
    activations: "Sequence[Activation]",
    t: Mapping[str, Array],
    dz: Array,
    added: Mapping[int, Array] | None = None,
) -> dict[str, Array]:
    """All derivatives below dz{L}, which is `dz`; `added` holds what else the derivative of a layer's output has."""
    last = len(activations)
    h = [x, *(t[f"h{layer}"] for layer in range(1, last))]  # h[l - 1] goes into layer l
    d: dict[str, Array] = {}
    for layer in range(last, 0, -1):
        d[f"dz{layer}"] = dz
        d[f"dW{layer}"] = h[layer - 1].T @ dz
        # Every row adds the same b, so every row counts in full: a sum. The 1/m is in dxhat already.
        d[f"db{layer}"] = dz.sum(axis=0)
        if layer > 1:
            dh = dz @ params[f"W{layer}"].T
            if added and layer - 1 in added:
                dh = dh + added[layer - 1]
            d[f"dh{layer - 1}"] = dh
            dz = _times_derivative(dh, h[layer - 1], activations[layer - 2])
    return d


def _check_loss(loss: str, huber_delta: float) -> None:
    if loss not in ("squared_error", "huber", "bernoulli"):
        raise ValueError(f"loss must be among squared_error, huber, bernoulli, got {loss!r}")
    if not (huber_delta > 0 and math.isfinite(huber_delta)):
        raise ValueError(f"huber_delta must be finite and positive, got {huber_delta!r}")


def step(
    params: Mapping[str, Any], gradient: Mapping[str, Any], moments: dict[str, Any], t: int, optimizer: Any
) -> dict[str, Array]:
    """Take one step of an optimizer.

    Parameters
    ----------
    params : mapping of str to ndarray
        "W1", "b1", ...; not changed.
    gradient : mapping of str to ndarray
        "dW1", "db1", ..., as `backward` returns them.
    moments : dict
        The optimizer's moments, by name; empty before the first step, and changed in place.
    t : int
        Number of the step, counted from 1.
    optimizer : fastae.SGD, fastae.Adam or fastae.AdamW
        Supplies the settings; its schedule is called with step number t - 1.

    Returns
    -------
    dict of str to ndarray
        The parameters after the step, by the names of `params` and in their dtype.
    """
    o, after = optimizer, {}
    factors = {name: float((o.rate_factors or {}).get(name, 1)) for name in params}
    g = {name: gradient[f"d{name}"] for name in params}
    base_rate = float(o.rates(t - 1, 1)[0])
    if o.clip_norm is not None:
        norm = math.sqrt(sum(float(np.sum(np.square(g[name]))) for name in g if factors[name]))
        g = {name: min(1.0, o.clip_norm / norm) * g[name] if norm else g[name] for name in g}
    for name, p in params.items():
        rate = base_rate * factors[name]
        if not factors[name]:  # frozen
            after[name] = p
            continue
        if hasattr(o, "beta_1"):
            u, s = moments.get(name, (0, 0))
            u, s = moments[name] = (
                o.beta_1 * u + (1 - o.beta_1) * g[name],
                o.beta_2 * s + (1 - o.beta_2) * g[name] ** 2,
            )
            # math, not np: a NumPy scalar would turn float32 into float64
            correction = math.sqrt(1 - o.beta_2**t) / (1 - o.beta_1**t)
            move = -rate * correction * u / (np.sqrt(s) + o.epsilon)
        else:
            v = moments[name] = o.momentum * moments.get(name, 0) - rate * g[name]
            move = o.momentum * v - rate * g[name] if o.nesterov else v
        after[name] = (1 - rate * o.weight_decay) * p + move
    return after


def train(
    params: Mapping[str, Any],
    x: npt.ArrayLike,
    *,
    optimizer: Any,
    epochs: int = 100,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    alpha: float = 0.0,
    activations: "Sequence[Activation] | None" = None,
) -> tuple[dict[str, Array], list[float]]:
    """Take the steps of `fastae.train` on the same batches, one by one, to check it and to time it against NumPy.

    Parameters
    ----------
    params : mapping of str to array-like
        "W1" of shape (n, n1), "b1" of shape (n1,), "W2" of shape (n1, n2), and so on for L layers. Not changed.
    x : array-like of shape (m, n)
        Training data, one sample per row.
    optimizer : fastae.SGD, fastae.Adam or fastae.AdamW
        Supplies the settings.
    epochs : int, default 100
        Number of times to process all rows.
    batch_size : int, optional
        Rows per step. Default: all rows.
    shuffle : bool, default True
        Draw the rows of each batch at random, in a new order each epoch.
    seed : int, default 0
        Seed of the shuffling.
    alpha : float, default 0.0
        Weight of the L2 penalty, as in ``fastae.Objective``.
    activations : sequence of "sigmoid", "tanh", "relu" or "identity", optional
        One activation per layer. Default: ``params.network.activations`` if `params` has it, otherwise sigmoid in
        every layer but the last, which is linear.

    Returns
    -------
    params : dict of str to ndarray
        The trained parameters.
    losses : list of float
        Loss of each epoch, as in ``fastae.History.loss``.
    """
    x, arrays, activations = _check(x, params, activations)
    m, generator, moments = x.shape[0], np.random.default_rng(seed), dict[str, Any]()
    batch = min(batch_size or m, m)
    losses, t = [], 0
    for _ in range(epochs):
        order = generator.permutation(m) if shuffle and batch < m else None
        total = 0.0
        for start in range(0, m, batch):
            rows = x[start : start + batch] if order is None else x[order[start : start + batch]]
            d = backward(rows, arrays, activations)
            # dxhat is (xhat - x) / m: its squares, times m^2, are those of the cost
            total += len(rows) ** 2 * float(np.sum(d["dxhat"] ** 2)) / 2
            for name, W in arrays.items():
                if alpha and name.startswith("W"):
                    d[f"d{name}"] = d[f"d{name}"] + alpha / len(rows) * W
                    total += alpha / 2 * float(np.sum(W**2))
            t += 1
            arrays = step(arrays, d, moments, t, optimizer)
        losses.append(total / m)
    return arrays, losses


def _check(
    x: npt.ArrayLike, params: Mapping[str, Any], activations: "Sequence[Activation] | None"
) -> "tuple[Array, dict[str, Array], tuple[Activation, ...]]":
    """x and params as arrays of one dtype, and one activation per layer, where all of it fits together."""
    last = sum(name.startswith("W") for name in params)
    names = [f"{kind}{layer}" for layer in range(1, last + 1) for kind in "Wb"]
    if missing := set(names or ["W1", "b1"]) - set(params):
        raise ValueError(f"params lacks {', '.join(sorted(missing))}")
    if unknown := set(params) - set(names):
        raise ValueError(
            f"params has {', '.join(sorted(unknown))}, but {last} layers have W1, b1, ..., b{last}"
        )

    arrays = _floats({"x": x, **{name: params[name] for name in names}})
    x = arrays.pop("x")
    _check_rows(x)
    width, source = x.shape[1], "x has"
    for layer in range(1, last + 1):
        W, b = arrays[f"W{layer}"], arrays[f"b{layer}"]
        if W.ndim != 2:
            raise ValueError(f"W{layer} has {W.ndim} dimensions, but 2 are needed")
        if W.shape[0] != width:
            raise ValueError(f"{source} {width} features, but W{layer} takes {W.shape[0]}")
        if b.shape != W.shape[1:]:
            raise ValueError(f"b{layer} has shape {b.shape}, but W{layer} wants {W.shape[1:]}")
        width, source = W.shape[1], f"W{layer} gives"

    if activations is None:
        default: Any = ("sigmoid",) * (last - 1) + ("identity",)
        activations = getattr(getattr(params, "network", None), "activations", default)
    if len(activations) != last:
        raise ValueError(f"activations has {len(activations)} names, but params has {last} layers")
    for name in activations:
        if name not in ACTIVATIONS:
            raise ValueError(f"activations has {name!r}, but {', '.join(ACTIVATIONS)} are known")
    return x, arrays, tuple(activations)


def _check_rows(x: Array) -> None:
    if x.ndim != 2:
        raise ValueError(f"x has {x.ndim} dimensions, but 2 are needed: rows and features")
    if x.shape[0] == 0:
        raise ValueError("x has 0 rows, but at least 1 is needed")


def _floats(arrays: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
    """The same arrays in the one dtype, float32 or larger, that NumPy promotes them to."""
    converted = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in converted.items():
        check_real(array.dtype, name)
    dtype = np.result_type(np.float32, *(array.dtype for array in converted.values()))
    return {name: array.astype(dtype, copy=False) for name, array in converted.items()}


def _weights(sample_weight: npt.ArrayLike | None, x: Array) -> tuple[Any, Any]:
    """The rows' weights as a column, in a unit of their largest, and their sum; 1 and m without `sample_weight`."""
    m = x.shape[0]
    if sample_weight is None:
        return 1, m
    w = np.asarray(sample_weight, np.float64)
    if w.shape != (m,):
        raise ValueError(f"sample_weight has shape {w.shape}, but x has {m} rows")
    if not (np.all(np.isfinite(w)) and np.all(w >= 0) and np.any(w > 0)):
        raise ValueError(
            "sample_weight has a negative or not finite entry or is all zero, but w >= 0 is needed"
        )
    w = (w / w.max()).astype(x.dtype)
    return w[:, np.newaxis], w.sum()
