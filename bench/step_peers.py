"""One loss and gradient in fastae and in other libraries.

Each maker takes (case, thread count) and returns a ``Work``. Data and parameters are in the library's own arrays before
the clock starts, and the gradient stays there.
"""

import types
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import fastae
from fastae.bench import libtorch, mkl
from fastae.bench.cases import Case
from fastae.bench.peer import Peer, Work, no_bfloat16


def repeat(step: Callable[[], Any]) -> Callable[[int], Any]:
    """run(times) of a step."""

    def run(times: int) -> Any:
        for _ in range(times):
            result = step()
        return result

    return run


# -- fastae -----------------------------------------------------------------------------------------------------------


def by_fastae(case: Case, threads: int, bfloat16: bool = False, prepared: bool = False) -> Work:
    """Ours."""
    engine = fastae.Engine(case.network, threads, "bfloat16" if bfloat16 else case.dtype)
    params, X = case.parameters, case.X
    if prepared:
        call = engine.prepare_loss_and_gradient(params, X)
        return Work(repeat(call), lambda loss: {"loss": loss, **call.gradient})
    return Work(
        repeat(lambda: engine.loss_and_gradient(params, X)), lambda result: {"loss": result[0], **result[1]}
    )


# -- NumPy ------------------------------------------------------------------------------------------------------------


class InPlace:
    """Loss and gradient in NumPy, written into arrays that are allocated once.

    `rows` go through all layers together, so that their activations stay in the caches; by default all rows do.
    """

    def __init__(
        self, case: Case, rows: int = 0, matmul: Callable[..., Any] = np.matmul, start: Any = None
    ) -> None:
        self.rows, self.matmul, self.activation = rows or case.batch or case.m, matmul, case.activation
        self.depth, dense, dtype = len(case.widths) - 1, start or case.dense, case.array_dtype
        self.flat = np.concatenate([value.ravel() for value in dense.values()])
        self.gradient, self.part = np.empty_like(self.flat), np.empty_like(self.flat)
        self.p, self.g, self.of_part = (
            self._views(flat, dense) for flat in (self.flat, self.gradient, self.part)
        )
        self.h, self.delta = (
            [np.empty((self.rows, width), dtype) for width in case.widths[1:]] for _ in range(2)
        )
        self.ones = np.ones(self.rows, dtype)

    @staticmethod
    def _views(flat: np.ndarray, dense: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ends = np.cumsum([value.size for value in dense.values()])
        return {
            name: flat[end - value.size : end].reshape(value.shape)
            for (name, value), end in zip(dense.items(), ends, strict=True)
        }

    def __call__(self, X: np.ndarray) -> float:
        """Write the gradient; return the loss."""
        loss = self._of(X[: self.rows], self.g, len(X))
        for first in range(self.rows, len(X), self.rows):
            loss += self._of(X[first : first + self.rows], self.of_part, len(X))
            self.gradient += self.part
        return loss

    def _of(self, x: np.ndarray, g: dict[str, np.ndarray], m: int) -> float:
        outputs = [h[: len(x)] for h in self.h]
        below = x
        for layer, h in enumerate(outputs, 1):
            self.matmul(below, self.p[f"W{layer}"], out=h)
            h += self.p[f"b{layer}"]
            if layer < self.depth:
                self._activate(h)
            below = h
        outputs[-1] -= x
        delta = outputs[-1]
        loss = float(np.vdot(delta, delta)) / (2 * m)
        delta *= delta.dtype.type(1 / m)
        for layer in range(self.depth, 0, -1):
            h = outputs[layer - 2] if layer > 1 else x
            self.matmul(h.T, delta, out=g[f"W{layer}"])
            np.dot(self.ones[: len(x)], delta, out=g[f"b{layer}"])
            if layer > 1:
                deltas = self.delta[layer - 2][: len(x)]
                self.matmul(delta, self.p[f"W{layer}"].T, out=deltas)
                self._times_derivative(deltas, h)
                delta = deltas
        return loss

    def _activate(self, z: np.ndarray) -> None:
        if self.activation == "sigmoid":
            np.negative(z, out=z)
            np.exp(z, out=z)
            z += 1
            np.reciprocal(z, out=z)
        elif self.activation == "tanh":
            np.tanh(z, out=z)
        else:
            np.maximum(z, 0, out=z)

    def _times_derivative(self, delta: np.ndarray, h: np.ndarray) -> None:
        """Multiply `delta` by g'(z); `h` is overwritten."""
        if self.activation == "sigmoid":
            delta *= h
            np.subtract(1, h, out=h)
            delta *= h
        elif self.activation == "tanh":
            h *= h
            np.subtract(1, h, out=h)
            delta *= h
        else:
            delta *= h > 0


def by_numpy(case: Case, threads: int, rows: int = 0, with_mkl: bool = False) -> Work | None:
    """NumPy, written in place; optionally so many rows at a time, and with the products of MKL."""
    if rows >= case.m:
        return None
    step = InPlace(case, rows, mkl.matmul_on(threads) if with_mkl else np.matmul)
    return Work(repeat(lambda: step(case.X)), lambda loss: {"loss": loss, **step.g})


# -- scikit-learn -----------------------------------------------------------------------------------------------------


def sklearn_model(case: Case, **settings: Any) -> Any:
    """An MLPRegressor of the case's network that does not shuffle, with its parameters."""
    from sklearn.neural_network import MLPRegressor

    activation = "logistic" if case.activation == "sigmoid" else case.activation
    model = MLPRegressor(
        hidden_layer_sizes=case.hidden, activation=activation, alpha=0, batch_size=case.batch or case.m,
        shuffle=False, **settings,
    )  # fmt: skip
    warnings.filterwarnings("ignore", module="sklearn.neural_network")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the random weights of its first step, which are replaced
        model.partial_fit(case.X[: model.batch_size], case.X[: model.batch_size])  # creates its arrays
    for i in range(len(model.coefs_)):
        model.coefs_[i][...], model.intercepts_[i][...] = case.dense[f"W{i + 1}"], case.dense[f"b{i + 1}"]
    return model


def by_sklearn(case: Case, threads: int) -> Work:
    """scikit-learn's MLPRegressor: one partial_fit on all rows as one batch, by plain gradient descent.

    Its time also contains what partial_fit does around the gradient: it checks the rows and updates the weights.
    """
    X, dense, sgd = case.X, case.dense, {"solver": "sgd", "momentum": 0}
    still = sklearn_model(case, learning_rate_init=1e-30, **sgd)  # its weights stay: every step is the same

    def answer(loss: float) -> dict[str, Any]:
        rate = 1e4  # so large that rounding the new weights to float32 loses nothing of the gradient
        moved = sklearn_model(case, learning_rate_init=rate, **sgd).partial_fit(X, X)
        ends = {f"W{i + 1}": end for i, end in enumerate(moved.coefs_)}
        ends |= {f"b{i + 1}": end for i, end in enumerate(moved.intercepts_)}
        return {"loss": loss, **{name: (dense[name] - end) / rate for name, end in ends.items()}}

    return Work(repeat(lambda: still.partial_fit(X, X).loss_ * case.n), answer)


# -- torch ------------------------------------------------------------------------------------------------------------


def torch_cost(case: Case) -> Callable[[Any, Any], Any]:
    """cost(p, x) for parameters by name."""
    import torch

    layers = len(case.widths) - 1
    activate = getattr(torch, case.activation)

    def cost(p: Any, x: Any) -> Any:
        h = x
        for layer in range(1, layers + 1):
            h = torch.addmm(p[f"b{layer}"], h, p[f"W{layer}"])
            if layer < layers:
                h = activate(h)
        residual = h - x
        return (residual * residual).sum() / (2 * x.shape[0])

    return cost


def compiled(function: Any) -> Any:
    """torch.compile of a new code object: torch.compile gives up on one that it has compiled eight times."""
    import torch

    new = types.FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)
    return torch.compile(new, dynamic=False)


def _torch_step(case: Case, cost: Callable[..., Any]) -> Work:
    import torch

    p = {name: torch.tensor(array, requires_grad=True) for name, array in case.dense.items()}
    x = torch.from_numpy(case.X)

    def step() -> Any:
        for tensor in p.values():
            tensor.grad = None
        loss = cost(p, x)
        loss.backward()
        return loss

    def answer(loss: Any) -> dict[str, Any]:
        return {"loss": float(loss.detach()), **{name: tensor.grad.numpy() for name, tensor in p.items()}}

    return Work(repeat(step), answer)


def by_torch(case: Case, threads: int) -> Work:
    """Eager torch."""
    return _torch_step(case, torch_cost(case))


def by_torch_compile(case: Case, threads: int) -> Work:
    """torch.compile for this shape and thread count."""
    return _torch_step(case, compiled(torch_cost(case)))


def by_torch_bf16(case: Case, threads: int) -> Work:
    """Torch with products in bfloat16 (autocast): 8 bits of precision instead of 24."""
    import torch

    exact = torch_cost(case)

    def cost(p: Any, x: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return exact(p, x)

    return _torch_step(case, cost)


# -- JAX --------------------------------------------------------------------------------------------------------------


def jax_cost(case: Case) -> Callable[[Any, Any], Any]:
    """cost(p, x) for parameters by name."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    layers = len(case.widths) - 1
    activate = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu}[case.activation]

    def cost(p: Any, x: Any) -> Any:
        h = x
        for layer in range(1, layers + 1):
            h = h @ p[f"W{layer}"] + p[f"b{layer}"]
            if layer < layers:
                h = activate(h)
        return jnp.sum((h - x) ** 2) / (2 * x.shape[0])

    return cost


def by_jax(case: Case, threads: int, rows: int = 0) -> Work | None:
    """A jitted value_and_grad of all rows or, with `rows`, a scan that adds up those of so many rows at a time."""
    import jax
    import jax.numpy as jnp

    whole = jax.value_and_grad(jax_cost(case))
    if rows >= case.m:
        return None

    def by_scan(p: Any, x: Any) -> Any:
        scanned = len(x) // rows * rows

        def weighted(chunk: Any) -> Any:
            return jax.tree.map(lambda a: a * (len(chunk) / len(x)), whole(p, chunk))

        def add(total: Any, chunk: Any) -> Any:
            return jax.tree.map(jnp.add, total, weighted(chunk)), None

        start = (
            weighted(x[scanned:])
            if scanned < len(x)
            else (jnp.zeros((), x.dtype), jax.tree.map(jnp.zeros_like, p))
        )
        return jax.lax.scan(add, start, x[:scanned].reshape(-1, rows, x.shape[1]))[0]

    step = jax.jit(by_scan if rows else whole)
    p = {name: jnp.asarray(array) for name, array in case.dense.items()}
    x = jnp.asarray(case.X)
    return Work(
        repeat(lambda: jax.block_until_ready(step(p, x))),
        lambda result: {
            "loss": float(result[0]),
            **{name: np.asarray(array) for name, array in result[1].items()},
        },
    )


PEERS = {
    "fastae": Peer("numpy", {"": by_fastae, "prepared": partial(by_fastae, prepared=True)}, bfloat16=None),
    "numpy": Peer("numpy", {"": by_numpy, "blocks": partial(by_numpy, rows=1024)}),
    "numpy MKL": Peer(
        "numpy",
        {
            "": partial(by_numpy, with_mkl=True),
            "blocks": partial(by_numpy, rows=1024, with_mkl=True),
        },
        needs=mkl.why_not,
    ),
    "sklearn": Peer("sklearn", {"": by_sklearn}),
    "torch": Peer("torch", {"": by_torch}),
    "torch.compile": Peer("torch", {"": by_torch_compile}),
    "libtorch": Peer("torch", {"": libtorch.by_libtorch}, needs=libtorch.why_not),
    "jax": Peer(
        "jax",
        {"": by_jax, "scan 256": partial(by_jax, rows=256), "scan 1024": partial(by_jax, rows=1024)},
        sized=False,
    ),
    "fastae bf16": Peer(
        "numpy",
        {
            "": partial(by_fastae, bfloat16=True),
            "prepared": partial(by_fastae, bfloat16=True, prepared=True),
        },
        bfloat16=True,
        sized=False,
        needs=no_bfloat16,
    ),
    "torch bf16": Peer("torch", {"": by_torch_bf16}, True),
}
"""By name; fastae comes first."""
