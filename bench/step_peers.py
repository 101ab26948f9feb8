"""One loss and gradient in other libraries, to compare with ours.

Each function takes (case, thread count) and returns a PeerStep. Data and parameters are in the library's own arrays
before the clock starts, and the gradient stays there.
"""

import types
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

import fastae
from fastae.bench.cases import Case


class PeerStep(NamedTuple):
    """`run` takes one step with a library; `answer` turns its result into (loss, gradient by name), as NumPy arrays."""

    run: Callable[[], Any]
    answer: Callable[[Any], tuple[float, Any]]


def by_fastae(case: Case, threads: int) -> PeerStep:
    """Ours."""
    engine = fastae.Engine(case.network, threads, case.dtype)
    return PeerStep(lambda: engine.loss_and_gradient(case.parameters, case.X), lambda result: result)


def by_numpy(case: Case, threads: int) -> PeerStep:
    """The NumPy reference."""
    return PeerStep(case.numpy_step, lambda result: result)


def by_sklearn(case: Case, threads: int) -> PeerStep:
    """scikit-learn's MLPRegressor: one partial_fit on all rows as one batch, by plain gradient descent."""
    from sklearn.neural_network import MLPRegressor

    X, dense = case.X, case.dense

    def model(rate: float) -> Any:
        regressor = MLPRegressor(
            hidden_layer_sizes=(case.k, case.n), activation="logistic", solver="sgd", momentum=0, alpha=0,
            batch_size=case.m, shuffle=False, learning_rate_init=rate,
        )  # fmt: skip
        warnings.filterwarnings("ignore", module="sklearn.neural_network")
        regressor.partial_fit(X, X)  # creates its arrays
        for i in range(3):
            regressor.coefs_[i][...], regressor.intercepts_[i][...] = dense[f"W{i + 1}"], dense[f"b{i + 1}"]
        return regressor

    still = model(1e-30)  # its weights do not move, so every step is the same

    def answer(loss: float) -> tuple[float, dict[str, np.ndarray]]:
        rate = 1e4  # so large that rounding the new weights to float32 loses nothing of the gradient
        moved = model(rate).partial_fit(X, X)
        ends = {f"W{i + 1}": moved.coefs_[i] for i in range(3)}
        ends |= {f"b{i + 1}": moved.intercepts_[i] for i in range(3)}
        return loss, {name: (dense[name] - end) / rate for name, end in ends.items()}

    return PeerStep(lambda: still.partial_fit(X, X).loss_ * case.n, answer)


def _torch_cost(p: Any, x: Any) -> Any:
    import torch

    h1 = torch.sigmoid(torch.addmm(p["b1"], x, p["W1"]))
    h2 = torch.sigmoid(torch.addmm(p["b2"], h1, p["W2"]))
    residual = torch.addmm(p["b3"], h2, p["W3"]) - x
    return (residual * residual).sum() / (2 * x.shape[0])


def _torch_step(case: Case, cost: Callable[..., Any]) -> PeerStep:
    import torch

    p = {name: torch.tensor(array, requires_grad=True) for name, array in case.dense.items()}
    x = torch.from_numpy(case.X)

    def run() -> Any:
        for tensor in p.values():
            tensor.grad = None
        loss = cost(p, x)
        loss.backward()
        return loss

    return PeerStep(
        run, lambda loss: (float(loss.detach()), {name: tensor.grad.numpy() for name, tensor in p.items()})
    )


def by_torch(case: Case, threads: int) -> PeerStep:
    """Eager torch."""
    return _torch_step(case, _torch_cost)


def by_torch_compile(case: Case, threads: int) -> PeerStep:
    """torch.compile for this shape and thread count."""
    import torch

    # A new code object: torch.compile gives up on one that it has compiled eight times.
    cost = types.FunctionType(_torch_cost.__code__.replace(), globals())
    return _torch_step(case, torch.compile(cost, dynamic=False))


def by_torch_bf16(case: Case, threads: int) -> PeerStep:
    """Torch with products in bfloat16 (autocast): 8 bits of precision instead of our 24."""
    import torch

    def cost(p: Any, x: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return _torch_cost(p, x)

    return _torch_step(case, cost)


def by_jax(case: Case, threads: int) -> PeerStep:
    """A jitted JAX value_and_grad."""
    import jax
    import jax.numpy as jnp

    p = {name: jnp.asarray(array) for name, array in case.dense.items()}
    x = jnp.asarray(case.X)

    def cost(p: Any, x: Any) -> Any:
        h1 = jax.nn.sigmoid(x @ p["W1"] + p["b1"])
        h2 = jax.nn.sigmoid(h1 @ p["W2"] + p["b2"])
        return jnp.sum((h2 @ p["W3"] + p["b3"] - x) ** 2) / (2 * x.shape[0])

    step = jax.jit(jax.value_and_grad(cost))
    return PeerStep(
        lambda: jax.block_until_ready(step(p, x)),
        lambda result: (float(result[0]), {name: np.asarray(array) for name, array in result[1].items()}),
    )


class Peer(NamedTuple):
    """A library's step: the required module, the function that makes it, and limits of the comparison."""

    module: str
    make: Callable[[Case, int], PeerStep]
    exact: bool = True  # computes in float32, as we do
    sized: bool = True  # its thread count can be set


PEERS = {
    "numpy": Peer("numpy", by_numpy),
    "sklearn": Peer("sklearn", by_sklearn),
    "torch": Peer("torch", by_torch),
    "torch.compile": Peer("torch", by_torch_compile),
    "torch bf16": Peer("torch", by_torch_bf16, exact=False),
    "jax": Peer("jax", by_jax, sized=False),
}


def installed(names: list[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The peers among `names` (by default all) that are installed, and for each other one why it is not available."""
    chosen = list(PEERS) if names is None else names
    missing = {
        name: f"{PEERS[name].module} is not installed" for name in chosen if not find_spec(PEERS[name].module)
    }
    return [name for name in chosen if name not in missing], missing
