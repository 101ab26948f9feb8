"""Epochs of Adam in fastae and in other libraries, on the same batches and from the same weights.

Each maker takes (case, thread count) and returns a ``Work`` that trains for ``case.epochs`` epochs more. Rows are not
shuffled and there is no penalty.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

import fastae
from fastae.bench.cases import RATE, Case
from fastae.bench.peer import Peer, Work
from fastae.bench.step_peers import InPlace, compiled, jax_cost, sklearn_model, torch_cost

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def by_fastae(case: Case, threads: int) -> Work:
    """Ours: one call of ``fastae.train``."""
    params = fastae.Parameters.from_arrays(case.network, case.dense)
    engine = fastae.Engine(case.network, threads, case.dtype)
    adam, state = fastae.Adam(learning_rate=RATE), fastae.optimizers.State.zeros(params)

    def run(times: int) -> fastae.Parameters:
        fastae.train(
            params, case.X, engine=engine, optimizer=adam, epochs=case.epochs * times, batch_size=case.batch,
            shuffle=False, state=state,
        )  # fmt: skip
        return params

    return Work(run, dict)


def by_numpy(case: Case, threads: int) -> Work:
    """NumPy, written in place."""
    step = InPlace(case)
    u, s, spare = (np.zeros_like(step.flat) for _ in range(3))
    t = 0

    def run(times: int) -> dict[str, np.ndarray]:
        nonlocal t
        for first in list(range(0, case.m, case.batch)) * (case.epochs * times):
            step(case.X[first : first + case.batch])
            t += 1
            for moment, beta in ((u, BETA_1), (s, BETA_2)):
                np.multiply(step.gradient, 1 - beta, out=spare)
                if moment is s:
                    np.multiply(spare, step.gradient, out=spare)
                np.multiply(moment, beta, out=moment)
                np.add(moment, spare, out=moment)
            np.sqrt(s, out=spare)
            np.add(spare, EPSILON, out=spare)
            np.divide(u, spare, out=spare)
            np.multiply(spare, RATE * (1 - BETA_2**t) ** 0.5 / (1 - BETA_1**t), out=spare)
            np.subtract(step.flat, spare, out=step.flat)
        return step.p

    return Work(run, lambda p: p)


def by_sklearn(case: Case, threads: int) -> Work:
    """scikit-learn's MLPRegressor, one partial_fit per epoch."""
    model = sklearn_model(case, solver="adam", learning_rate_init=1e-30)
    model._optimizer.t, model._optimizer.learning_rate_init = 0, RATE
    for moments in (model._optimizer.ms, model._optimizer.vs):
        moments[:] = [np.zeros_like(moment) for moment in moments]

    def run(times: int) -> None:
        for _ in range(case.epochs * times):
            model.partial_fit(case.X, case.X)

    def answer(done: None) -> dict[str, Any]:
        weights = {f"W{i + 1}": value for i, value in enumerate(model.coefs_)}
        return weights | {f"b{i + 1}": value for i, value in enumerate(model.intercepts_)}

    return Work(run, answer)


def by_torch(case: Case, threads: int) -> Work:
    """A torch loop with fused Adam."""
    import torch

    cost = torch_cost(case)
    p = {name: torch.tensor(array, requires_grad=True) for name, array in case.dense.items()}
    batches = torch.from_numpy(case.X).split(case.batch)
    adam = torch.optim.Adam(p.values(), lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON, fused=True)

    def run(times: int) -> None:
        for x in batches * (case.epochs * times):
            adam.zero_grad()
            cost(p, x).backward()
            adam.step()

    return Work(run, lambda done: {name: tensor.detach().numpy() for name, tensor in p.items()})


def by_torch_compile(case: Case, threads: int) -> Work:
    """torch: each step, with the update by Adam, in one compiled graph."""
    import torch

    cost = torch_cost(case)
    p, u, s = ({name: torch.tensor(fill * array) for name, array in case.dense.items()} for fill in (1, 0, 0))
    batches = torch.from_numpy(case.X).split(case.batch)
    t = 0

    def step(p: Any, u: Any, s: Any, x: Any, rate: Any) -> None:
        for name, g in torch.func.grad(cost)(p, x).items():
            u[name].mul_(BETA_1).add_(g * (1 - BETA_1))
            s[name].mul_(BETA_2).add_(g * g * (1 - BETA_2))
            p[name].sub_(rate * u[name] / (s[name].sqrt() + EPSILON))

    step = compiled(step)

    def run(times: int) -> None:
        nonlocal t
        steps = np.arange(t + 1, t + 1 + case.steps * times)
        rates = torch.from_numpy(
            (RATE * np.sqrt(1 - BETA_2**steps) / (1 - BETA_1**steps)).astype(case.array_dtype)
        )
        with torch.no_grad():
            for x, rate in zip(batches * (case.epochs * times), rates, strict=True):
                step(p, u, s, x, rate)
        t += len(steps)

    return Work(run, lambda done: {name: tensor.numpy() for name, tensor in p.items()})


def step_of_adam(state: Any, gradient: Any, rates: Any, beta_2: Any) -> Any:
    """In JAX: (parameters, both moments, steps) after one more step; each array of parameters has a rate."""
    import jax
    import jax.numpy as jnp

    p, u, s, t = state
    t = t + 1
    u = jax.tree.map(lambda a, b: BETA_1 * a + (1 - BETA_1) * b, u, gradient)
    s = jax.tree.map(lambda a, b: beta_2 * a + (1 - beta_2) * b * b, s, gradient)
    correction = jnp.sqrt(1 - beta_2**t) / (1 - BETA_1**t)
    p = jax.tree.map(lambda a, b, c, r: a - r * correction * b / (jnp.sqrt(c) + EPSILON), p, u, s, rates)
    return p, u, s, t


def jax_work(case: Case, start: dict[str, np.ndarray], gradient: Callable[[Any, Any], Any]) -> Work:
    """A jitted scan over the batches; `gradient` is that of all parameters in `start`."""
    import jax
    import jax.numpy as jnp

    batches = jnp.asarray(case.X.reshape(-1, case.batch, case.n))

    def step(state: Any, x: Any) -> Any:
        rates = jax.tree.map(lambda array: RATE, state[0])
        return step_of_adam(state, gradient(state[0], x), rates, BETA_2), None

    epoch = jax.jit(lambda state: jax.lax.scan(step, state, batches)[0])
    first = {name: jnp.asarray(array) for name, array in start.items()}
    zeros = jax.tree.map(jnp.zeros_like, first)
    state = (first, zeros, zeros, jnp.zeros((), case.array_dtype))

    def run(times: int) -> None:
        nonlocal state
        for _ in range(case.epochs * times):
            state = epoch(state)
        jax.block_until_ready(state)

    return Work(run, lambda done: {name: np.asarray(array) for name, array in state[0].items()})


def by_jax(case: Case, threads: int) -> Work:
    """JAX."""
    import jax

    return jax_work(case, case.dense, jax.grad(jax_cost(case)))


def by_keras(case: Case, threads: int) -> Work:
    """Keras on JAX: ``Model.fit``."""
    import keras

    layers = [
        keras.layers.Dense(width, activation=name, dtype=case.array_dtype)
        for width, name in zip(
            case.widths[1:], (*(case.activation for _ in case.hidden), "linear"), strict=True
        )
    ]
    model = keras.Sequential([keras.Input((case.n,), dtype=case.array_dtype), *layers])
    model.compile(
        optimizer=keras.optimizers.Adam(RATE, BETA_1, BETA_2, EPSILON),
        loss=lambda wanted, given: keras.ops.sum((given - wanted) ** 2, axis=-1) / 2,
        jit_compile=True,
    )
    model.set_weights([case.dense[f"{kind}{i}"] for i in range(1, len(case.widths)) for kind in "Wb"])

    def run(times: int) -> None:
        model.fit(case.X, case.X, batch_size=case.batch, epochs=case.epochs * times, shuffle=False, verbose=0)

    def answer(done: None) -> dict[str, Any]:
        names = [f"{kind}{i}" for i in range(1, len(case.widths)) for kind in "Wb"]
        return dict(zip(names, model.get_weights(), strict=True))

    return Work(run, answer)


def _no_keras_on_jax() -> str:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    return "" if keras.backend.backend() == "jax" else f"keras runs on {keras.backend.backend()}"


PEERS = {
    "fastae": Peer("numpy", {"": by_fastae}),
    "numpy": Peer("numpy", {"": by_numpy}),
    "sklearn": Peer("sklearn", {"": by_sklearn}),
    "torch": Peer("torch", {"": by_torch}),
    "torch.compile": Peer("torch", {"": by_torch_compile}),
    "jax": Peer("jax", {"": by_jax}, sized=False),
    "keras": Peer("keras", {"": by_keras}, sized=False, needs=_no_keras_on_jax),
}
"""By name; fastae comes first."""
