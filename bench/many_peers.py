"""Adam on many networks at once in other libraries, on the same batches and from the same weights as ours.

Each function takes (X, dense parameters of each network, batch size) and returns epochs(times), which takes `times`
more epochs and returns the parameters of all networks, stacked, by name. Rows are not shuffled, and `batch` divides
their number. ``vmap`` turns the products of one network into batched products of all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastae.bench.epoch_peers import BETA_1, BETA_2, EPSILON, RATE, Epochs, by_jax


def stacked(networks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Parameters by name, with the network as the first dimension."""
    return {name: np.stack([dense[name] for dense in networks]) for name in networks[0]}


def by_fastae(X: np.ndarray, networks: list[dict[str, np.ndarray]], batch: int) -> Epochs:
    """Ours."""
    import fastae

    network = fastae.Network.autoencoder(*networks[0]["W1"].shape)
    params = [fastae.Parameters.from_arrays(network, dense) for dense in networks]
    adam, states = fastae.Adam(learning_rate=RATE), [fastae.optimizers.State.zeros(each) for each in params]

    def epochs(times: int) -> dict[str, np.ndarray]:
        fastae.train_many(
            params, X, optimizer=adam, epochs=times, batch_size=batch, shuffle=False, state=states
        )
        return stacked([dict(each) for each in params])

    return epochs


def by_torch_vmap(X: np.ndarray, networks: list[dict[str, np.ndarray]], batch: int) -> Epochs:
    """The gradients by torch.func.vmap, then torch's fused Adam on the stacked parameters."""
    import torch

    p = {name: torch.tensor(array) for name, array in stacked(networks).items()}
    adam = torch.optim.Adam(p.values(), lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON, fused=True)
    batches = torch.from_numpy(X).split(batch)

    def cost(p: Any, x: Any) -> Any:
        h1 = torch.sigmoid(torch.addmm(p["b1"], x, p["W1"]))
        h2 = torch.sigmoid(torch.addmm(p["b2"], h1, p["W2"]))
        residual = torch.addmm(p["b3"], h2, p["W3"]) - x
        return (residual * residual).sum() / (2 * x.shape[0])

    gradients = torch.func.vmap(torch.func.grad(cost), in_dims=(0, None))

    def epochs(times: int) -> dict[str, np.ndarray]:
        for x in batches * times:
            for name, gradient in gradients(p, x).items():
                p[name].grad = gradient
            adam.step()
        return {name: tensor.numpy().copy() for name, tensor in p.items()}

    return epochs


def by_jax_vmap(X: np.ndarray, networks: list[dict[str, np.ndarray]], batch: int) -> Epochs:
    """A jitted scan over the batches, whose gradients are by jax.vmap."""
    import jax

    return by_jax(X, stacked(networks), batch, lambda gradient: jax.vmap(gradient, in_axes=(0, None)))


PEERS: dict[str, tuple[str, Callable[..., Epochs]]] = {
    "torch.func.vmap": ("torch", by_torch_vmap),
    "jax.vmap": ("jax", by_jax_vmap),
}
"""By name: the required module and the function."""
