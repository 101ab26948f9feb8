"""An epoch of Adam in other libraries, on the same batches and from the same weights as ours.

Each function takes (X, dense parameters, batch size) and returns epochs(times), which takes `times` more epochs and
returns the parameters by name. Rows are not shuffled and there is no penalty. Rows that do not fill a batch are left
out for all, because JAX's scan needs batches of one size.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Epochs = Callable[[int], dict[str, np.ndarray]]
RATE, BETA_1, BETA_2, EPSILON = 0.001, 0.9, 0.999, 1e-8


def by_numpy(X: np.ndarray, dense: dict[str, np.ndarray], batch: int) -> Epochs:
    """The NumPy reference."""
    import fastae
    from fastae import reference

    state: dict[str, Any] = {"params": dense, "moments": {}, "t": 0}

    def epochs(times: int) -> dict[str, np.ndarray]:
        for first in list(range(0, len(X), batch)) * times:
            gradient = reference.backward(X[first : first + batch], state["params"])
            state["t"] += 1
            state["params"] = reference.step(
                state["params"], gradient, state["moments"], state["t"], fastae.Adam()
            )
        return state["params"]

    return epochs


def by_sklearn(X: np.ndarray, dense: dict[str, np.ndarray], batch: int) -> Epochs:
    """scikit-learn's MLPRegressor, one partial_fit per epoch."""
    from sklearn.neural_network import MLPRegressor

    n, k = dense["W1"].shape
    model = MLPRegressor(
        hidden_layer_sizes=(k, n), activation="logistic", solver="adam", alpha=0, batch_size=batch, shuffle=False,
        learning_rate_init=1e-30,
    )  # fmt: skip
    warnings.filterwarnings("ignore", module="sklearn.neural_network")
    model.partial_fit(X[:batch], X[:batch])  # creates its arrays
    model._optimizer.t, model._optimizer.learning_rate_init = 0, RATE
    model._optimizer.ms = [np.zeros_like(a) for a in model._optimizer.ms]
    model._optimizer.vs = [np.zeros_like(a) for a in model._optimizer.vs]
    for i in range(3):
        model.coefs_[i][...], model.intercepts_[i][...] = dense[f"W{i + 1}"], dense[f"b{i + 1}"]

    def epochs(times: int) -> dict[str, np.ndarray]:
        for _ in range(times):
            model.partial_fit(X, X)
        weights = {f"W{i + 1}": model.coefs_[i] for i in range(3)}
        return weights | {f"b{i + 1}": model.intercepts_[i] for i in range(3)}

    return epochs


def by_torch(X: np.ndarray, dense: dict[str, np.ndarray], batch: int) -> Epochs:
    """A torch loop with fused Adam."""
    import torch

    p = {name: torch.tensor(array, requires_grad=True) for name, array in dense.items()}
    data = torch.from_numpy(X)
    adam = torch.optim.Adam(p.values(), lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON, fused=True)

    def epochs(times: int) -> dict[str, np.ndarray]:
        for first in list(range(0, len(X), batch)) * times:
            x = data[first : first + batch]
            h1 = torch.sigmoid(torch.addmm(p["b1"], x, p["W1"]))
            h2 = torch.sigmoid(torch.addmm(p["b2"], h1, p["W2"]))
            residual = torch.addmm(p["b3"], h2, p["W3"]) - x
            adam.zero_grad()
            ((residual * residual).sum() / (2 * len(x))).backward()
            adam.step()
        return {name: tensor.detach().numpy() for name, tensor in p.items()}

    return epochs


def step_of_adam(state: Any, gradient: Any, rate: Any, beta_2: Any) -> Any:
    """In JAX: (parameters, both moments, steps) after one more step."""
    import jax
    import jax.numpy as jnp

    p, u, s, t = state
    t = t + 1
    u = jax.tree.map(lambda a, b: BETA_1 * a + (1 - BETA_1) * b, u, gradient)
    s = jax.tree.map(lambda a, b: beta_2 * a + (1 - beta_2) * b * b, s, gradient)
    rate = rate * jnp.sqrt(1 - beta_2**t) / (1 - BETA_1**t)
    p = jax.tree.map(lambda a, b, c: a - rate * b / (jnp.sqrt(c) + EPSILON), p, u, s)
    return p, u, s, t


def by_jax(
    X: np.ndarray,
    dense: dict[str, np.ndarray],
    batch: int,
    over: Callable[[Any], Any] = lambda gradient: gradient,
) -> Epochs:
    """A jitted JAX scan over the batches; `over` turns the gradient of one network into that of all in `dense`."""
    import jax
    import jax.numpy as jnp

    batches = jnp.asarray(X.reshape(-1, batch, X.shape[1]))

    def cost(p: Any, x: Any) -> Any:
        h1 = jax.nn.sigmoid(x @ p["W1"] + p["b1"])
        h2 = jax.nn.sigmoid(h1 @ p["W2"] + p["b2"])
        return jnp.sum((h2 @ p["W3"] + p["b3"] - x) ** 2) / (2 * x.shape[0])

    gradient = over(jax.grad(cost))

    def step(state: Any, x: Any) -> Any:
        return step_of_adam(state, gradient(state[0], x), RATE, BETA_2), None

    run = jax.jit(lambda state: jax.lax.scan(step, state, batches)[0])
    first = {name: jnp.asarray(array) for name, array in dense.items()}
    zeros = jax.tree.map(jnp.zeros_like, first)
    state = (first, zeros, zeros, jnp.float32(0))

    def epochs(times: int) -> dict[str, np.ndarray]:
        nonlocal state
        for _ in range(times):
            state = run(state)
        jax.block_until_ready(state)
        return {name: np.asarray(array) for name, array in state[0].items()}

    return epochs


PEERS: dict[str, tuple[str, Callable[..., Epochs]]] = {
    "numpy": ("numpy", by_numpy),
    "sklearn": ("sklearn", by_sklearn),
    "torch": ("torch", by_torch),
    "jax": ("jax", by_jax),
}
"""By name: the required module and the function."""
