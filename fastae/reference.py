"""The equations in pure NumPy, every intermediate by name: the oracle of every test, and not built for speed.

Rows are samples: m rows, n features. Layer l has weights W{l} and a bias vector b{l}, added to every row. The default
machine has three layers and the activations (sigmoid, sigmoid, identity):

    z1 = x W1 + b1      h1 = g(z1)          g(z) = 1 / (1 + exp(-z)),  g'(z) = h (1 - h)
    z2 = h1 W2 + b2     h2 = g(z2)
    xhat = h2 W3 + b3                       S = 1/(2m) * sum((xhat - x)^2)

    dxhat = (xhat - x) / m
    dW3 = h2' dxhat     db3 = sum_rows dxhat     dh2 = dxhat W3'     dz2 = dh2 * h2 (1 - h2)
    dW2 = h1' dz2       db2 = sum_rows dz2       dh1 = dz2 W2'       dz1 = dh1 * h1 (1 - h1)
    dW1 = x' dz1        db1 = sum_rows dz1

Any stack of dense layers follows the same two steps. Its last layer L gives z{L}, xhat = g(z{L}) and
dz{L} = dxhat * g'(z{L}). Results are float32 where x and all parameters are, and otherwise NumPy's promotion of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ACTIVATIONS", "backward", "cost", "forward", "sigmoid"]

Array = npt.NDArray[np.floating[Any]]


def sigmoid(z: Array) -> Array:
    """g(z) = 1 / (1 + exp(-z)), elementwise.

    Parameters
    ----------
    z : ndarray of any shape, float32 or float64

    Returns
    -------
    ndarray of z's shape and dtype
        In [0, 1]: exactly 0, 0.5 and 1 at -inf, 0 and inf; NaN stays NaN.
    """
    e = np.exp(-np.abs(z))  # at most 1, where exp(-z) overflows for z << 0
    return np.where(z < 0, e, np.ones_like(e)) / (1 + e)


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "sigmoid": (sigmoid, lambda h: h * (1 - h)),
    "tanh": (np.tanh, lambda h: 1 - h * h),
    "relu": (lambda z: np.maximum(z, 0), lambda h: (h > 0).astype(h.dtype)),
    "identity": (lambda z: z, lambda h: np.ones_like(h)),
}
"""By name: h = g(z), and g'(z) as a function of h."""


def forward(
    x: npt.ArrayLike, params: Mapping[str, Any], activations: Sequence[str] | None = None
) -> dict[str, Array]:
    """Run the rows of x through all layers.

    Parameters
    ----------
    x : array-like of shape (m, n)
        The input, one sample per row; real numbers.
    params : mapping
        "W1" of shape (n, n1), "b1" of shape (n1,), "W2" of shape (n1, n2), and so on for L layers.
    activations : sequence of L names, optional
        Out of "sigmoid", "tanh", "relu" and "identity". Default: ``params.network.activations`` where `params` has
        it, else sigmoid in every layer but the last, which is linear.

    Returns
    -------
    dict of ndarray
        z1, h1, z2, h2, ..., z{L}, xhat, each of shape (m, the layer's width).

    Raises
    ------
    ValueError
        If names or shapes do not fit together; the message names the array.
    """
    x, params, activations = _check(x, params, activations)
    t: dict[str, Array] = {}
    h = x
    for layer, activation in enumerate(activations, start=1):
        g, _ = ACTIVATIONS[activation]
        z = t[f"z{layer}"] = h @ params[f"W{layer}"] + params[f"b{layer}"]
        h = t[f"h{layer}" if layer < len(activations) else "xhat"] = g(z)
    return t


def cost(x: npt.ArrayLike, xhat: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> np.floating[Any]:
    """S, the mean over rows of half the squared error: 1/(2m) * sum((xhat - x)^2).

    Parameters
    ----------
    x, xhat : array-like of shape (m, n)
        The input and its reconstruction.
    sample_weight : array-like of shape (m,), optional
        w >= 0, one per row: S = 1/(2 sum(w)) * sum_i w_i ||xhat_i - x_i||^2. Default: every w_i is 1.

    Returns
    -------
    NumPy scalar of the arrays' dtype

    Raises
    ------
    ValueError
        If the shapes differ, or the weights are negative, not finite or all zero.
    """
    x, xhat = _floats({"x": x, "xhat": xhat}).values()
    _check_rows(x)
    if x.shape != xhat.shape:
        raise ValueError(f"xhat has shape {xhat.shape}, but x has shape {x.shape}")
    w, total = _weights(sample_weight, x)
    return np.sum(w * (xhat - x) ** 2) / (2 * total)


def backward(
    x: npt.ArrayLike,
    params: Mapping[str, Any],
    activations: Sequence[str] | None = None,
    sample_weight: npt.ArrayLike | None = None,
) -> dict[str, Array]:
    """Derivatives of the cost S(x, xhat) with respect to every intermediate and every parameter.

    Parameters
    ----------
    x : array-like of shape (m, n)
        The input, one sample per row; also the target.
    params, activations
        As for `forward`; the last layer has n units.
    sample_weight : array-like of shape (m,), optional
        As for `cost`.

    Returns
    -------
    dict of ndarray
        dxhat, dz{L}, dW{L}, db{L}, dh{L-1}, dz{L-1}, ..., dz1, dW1, db1: dS by what stands after the d, and of its
        shape.

    Raises
    ------
    ValueError
        As `forward` and `cost` do.
    """
    x, params, activations = _check(x, params, activations)
    last = len(activations)
    h = {0: x}  # h[l] is the input of layer l + 1
    for layer, activation in enumerate(activations, start=1):
        g, _ = ACTIVATIONS[activation]
        h[layer] = g(h[layer - 1] @ params[f"W{layer}"] + params[f"b{layer}"])
    return {}
