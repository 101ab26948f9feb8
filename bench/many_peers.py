"""Adam on many networks at once in fastae and in other libraries, on the same batches and from the same weights.

Each maker takes (case, thread count) and returns a ``Work`` whose answer holds the parameters of all networks, stacked.
``vmap`` turns the products of one network into batched products of all.
"""

from typing import Any

import fastae
from fastae.bench.cases import RATE, Case, stacked
from fastae.bench.epoch_peers import BETA_1, BETA_2, EPSILON, jax_work
from fastae.bench.peer import Peer, Work
from fastae.bench.step_peers import jax_cost, torch_cost


def by_fastae(case: Case, threads: int) -> Work:
    """Ours: one call of ``fastae.train_many``."""
    params = [fastae.Parameters.from_arrays(case.network, dense) for dense in case.all_dense]
    adam, states = fastae.Adam(learning_rate=RATE), [fastae.optimizers.State.zeros(each) for each in params]

    def run(times: int) -> None:
        fastae.train_many(
            params, case.X, optimizer=adam, epochs=case.epochs * times, batch_size=case.batch, shuffle=False,
            state=states, n_threads=threads,
        )  # fmt: skip

    return Work(run, lambda done: stacked([dict(each) for each in params]))


def by_torch_vmap(case: Case, threads: int) -> Work:
    """The gradients by torch.func.vmap, then torch's fused Adam on the stacked parameters."""
    import torch

    p = {name: torch.tensor(array) for name, array in stacked(case.all_dense).items()}
    adam = torch.optim.Adam(p.values(), lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON, fused=True)
    batches = torch.from_numpy(case.X).split(case.batch)
    gradients = torch.func.vmap(torch.func.grad(torch_cost(case)), in_dims=(0, None))

    def run(times: int) -> None:
        for x in batches * (case.epochs * times):
            for name, gradient in gradients(p, x).items():
                p[name].grad = gradient
            adam.step()

    return Work(run, lambda done: {name: tensor.numpy() for name, tensor in p.items()})


def by_jax_vmap(case: Case, threads: int) -> Work:
    """A jitted scan over the batches, whose gradients are by jax.vmap."""
    import jax

    gradients: Any = jax.vmap(jax.grad(jax_cost(case)), in_axes=(0, None))
    return jax_work(case, stacked(case.all_dense), gradients)


PEERS = {
    "fastae": Peer("numpy", {"": by_fastae}),
    "torch.func.vmap": Peer("torch", {"": by_torch_vmap}),
    "jax.vmap": Peer("jax", {"": by_jax_vmap}, sized=False),
}
"""By name; fastae comes first."""
