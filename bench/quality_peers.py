"""Whole trainings in fastae and other libraries, for ``fastae bench --quality``.

A contender is called as start(task, seed, steps, compiled) and returns advance(steps), which takes so many more steps
and returns a function that reconstructs rows. `steps` is how many there will be; schedules need it. Everything from
`start` on is timed, but not reconstruction.

"same recipe": the network, the start at PCA, batch size, steps, learning rates, cosine schedule and decay rates of
fastae's defaults. "defaults": the same network from the library's random weights, and Adam at a constant 0.001.
fastae's L2 penalty of 1e-4/m is left out for torch and JAX, where it would only cost them time.
"""

import types
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

import fastae
from fastae import reference
from fastae.bench.epoch_peers import BETA_1, EPSILON, step_of_adam
from fastae.bench.quality_cases import Task
from fastae.optimizers import cosine
from fastae.training.pca import PrincipalComponents, start_at_pca

Reconstruct = Callable[[np.ndarray], np.ndarray]
Advance = Callable[[int], Reconstruct]
BETA_2, DEFAULT_BETA_2 = fastae.Autoencoder().beta_2, 0.999
DEFAULT_RATE = 0.001


# -- what the recipes have in common ----------------------------------------------------------------------------------


def falling(rate: float, steps: int) -> np.ndarray:
    """The learning rate of each step of a cosine schedule."""
    return np.asarray(cosine(rate, steps)(np.arange(steps)))


def adam_of(task: Task, steps: int, *, same: bool) -> tuple[np.ndarray, list[float], float]:
    """Adam of the same recipe or of the defaults: the rate of each step, its factor for each array, and beta_2."""
    if same:
        return falling(task.rate(steps), steps), task.factors, BETA_2
    return np.full(steps, DEFAULT_RATE), [1.0] * len(task.factors), DEFAULT_BETA_2


def batches(generator: np.random.Generator, rows: int, batch: int, steps: int) -> np.ndarray:
    """The rows of each step, of shape (steps, batch): one random order after another, cut into batches of one size."""
    orders = [generator.permutation(rows) for _ in range(-(-steps * batch // rows))]
    return np.concatenate(orders)[: steps * batch].reshape(steps, batch)


def start_of(task: Task, seed: int) -> list[np.ndarray]:
    """The parameters of PCA, W1, b1, W2, ..., computed with NumPy."""
    X = task.train
    mean = X.mean(axis=0, dtype=np.float64)
    centred = X - mean.astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(X)
    variances, directions = np.linalg.eigh(covariance)
    rank = int((variances > 1e-6 * variances[-1]).sum())
    variances, directions = variances[::-1][:rank], directions[:, ::-1][:, :rank]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(rank)])
    components = PrincipalComponents(mean, np.sqrt(np.diagonal(covariance)), directions, variances)
    drawn, *_ = np.random.RandomState(seed).randint(np.iinfo(np.int32).max, size=3)  # as ``Autoencoder.fit``
    return _arrays(start_at_pca(task.network, components, int(drawn), "float32"))


def _arrays(params: fastae.Parameters) -> list[np.ndarray]:
    dense = dict(params)
    return [dense[name] for name in _names(params.network)]


def _names(network: fastae.Network) -> list[str]:
    return [f"{kind}{layer}" for layer in range(1, network.n_layers + 1) for kind in "Wb"]


def forward(task: Task, arrays: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The reconstruction of rows by these parameters, in NumPy."""
    params = dict(zip(_names(task.network), arrays, strict=True))
    return reference.forward(rows.astype(np.float64), params, task.network.activations)["xhat"]


# -- the libraries ----------------------------------------------------------------------------------------------------


def by_fastae(task: Task, seed: int, steps: int, compiled: bool) -> Advance:
    """``fastae.Autoencoder`` with its defaults; whole epochs come close to the steps."""

    def advance(steps: int) -> Reconstruct:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # short runs are not finished
            model = task.model(max(1, round(steps / task.steps_per_epoch)), seed)
            return model.fit(task.train).reconstruct

    return advance


def _multiply_updates(adam: Any, factors: list[float]) -> None:
    """Give each array of scikit-learn's network a rate of its own."""
    updates_of = adam._get_updates

    def updates(gradients: Any) -> Any:
        return [update * factor for update, factor in zip(updates_of(gradients), factors, strict=True)]

    adam._get_updates = updates


def by_sklearn(task: Task, seed: int, steps: int, compiled: bool, *, same: bool) -> Advance:
    """scikit-learn's MLPRegressor, one partial_fit per epoch; the rate of the same recipe falls from epoch to epoch."""
    from sklearn.neural_network import MLPRegressor

    X, batch, epoch = task.train, task.budget.batch_size, task.steps_per_epoch
    name = task.network.activations[0]
    model = MLPRegressor(
        hidden_layer_sizes=task.network.widths[1:-1], activation="logistic" if name == "sigmoid" else name,
        batch_size=batch, random_state=seed, learning_rate_init=1e-30 if same else DEFAULT_RATE,
        beta_2=BETA_2 if same else DEFAULT_BETA_2,
    )  # fmt: skip
    if same:
        model.partial_fit(X[:batch], X[:batch])  # creates its arrays
        model._optimizer.t = 0
        for moments in (model._optimizer.ms, model._optimizer.vs):
            moments[:] = [np.zeros_like(moment) for moment in moments]
        start = start_of(task, seed)
        for theirs, ours in zip(model.coefs_ + model.intercepts_, start[::2] + start[1::2], strict=True):
            theirs[...] = ours
    rates = falling(task.rate(steps), max(1, round(steps / epoch)))
    if same:
        _multiply_updates(model._optimizer, task.factors[::2] + task.factors[1::2])

    def advance(steps: int) -> Reconstruct:
        for number in range(max(1, round(steps / epoch))):
            if same:
                model._optimizer.learning_rate_init = float(rates[number])
            model.partial_fit(X, X)
        return partial(
            forward, task, [a for pair in zip(model.coefs_, model.intercepts_, strict=True) for a in pair]
        )

    return advance


def _torch_cost(activations: tuple[str, ...], p: Any, x: Any) -> Any:
    import torch

    h = x
    for layer, name in enumerate(activations):
        h = torch.addmm(p[2 * layer + 1], h, p[2 * layer])
        if name != "identity":
            h = getattr(torch, name)(h)
    residual = h - x
    return (residual * residual).sum() / (2 * len(x))


@cache
def _torch_step(network: fastae.Network, batch: int, threads: int) -> Callable[..., None]:
    """A whole step in one compiled graph: on small networks faster than a compiled cost and torch.optim.Adam."""
    import torch

    activations = network.activations

    def step(p: Any, u: Any, s: Any, x: Any, rates: Any, root: Any, beta_2: Any) -> None:
        gradient = torch.func.grad(lambda p: _torch_cost(activations, p, x))(p)
        for a, b, c, g, rate in zip(p, u, s, gradient, rates, strict=True):
            b.mul_(BETA_1).add_(g * (1 - BETA_1))
            c.mul_(beta_2).add_(g * g * (1 - beta_2))
            a.sub_(rate * b / (c.sqrt() * root + EPSILON))

    # A new code object: torch.compile gives up on one that it has compiled eight times.
    new = types.FunctionType(step.__code__.replace(), globals(), closure=step.__closure__)
    return torch.compile(new, dynamic=False)


def by_torch(task: Task, seed: int, steps: int, compiled: bool, *, same: bool) -> Advance:
    """torch: each step in one compiled graph or, not compiled, with its fused Adam."""
    import torch

    generator = np.random.default_rng(seed)
    if same:
        arrays = start_of(task, seed)
    else:  # as torch.nn.Linear draws them
        arrays = []
        for rows, units in pairwise(task.network.widths):
            for shape in ((rows, units), (units,)):
                arrays.append(generator.uniform(-(rows**-0.5), rows**-0.5, shape).astype(np.float32))
    p = [torch.tensor(array, requires_grad=not compiled) for array in arrays]
    data, batch, activations = torch.from_numpy(task.train), task.budget.batch_size, task.network.activations
    rates, factors, beta_2 = adam_of(task, steps, same=same)
    t = 0
    if compiled:
        step = _torch_step(task.network, batch, torch.get_num_threads())
        u, s = ([torch.zeros_like(array) for array in p] for _ in range(2))
        decay = torch.tensor(beta_2)
    else:
        groups = [{"params": [array]} for array in p]
        adam = torch.optim.Adam(groups, lr=DEFAULT_RATE, betas=(BETA_1, beta_2), eps=EPSILON, fused=True)

    def advance(steps: int) -> Reconstruct:
        nonlocal t
        order = torch.from_numpy(batches(generator, len(data), batch, steps))
        if compiled:
            number = np.arange(t + 1, t + steps + 1)
            # Adam of torch: epsilon is added to the corrected root
            heights = torch.from_numpy((rates[t : t + steps] / (1 - BETA_1**number)).astype(np.float32))
            heights = heights[:, None] * torch.tensor(factors)
            roots = torch.from_numpy((1 / np.sqrt(1 - beta_2**number)).astype(np.float32))
            with torch.no_grad():
                for rows, height, root in zip(order, heights, roots, strict=True):
                    step(p, u, s, data[rows], height, root, decay)
        else:
            for rows, rate in zip(order, rates[t : t + steps].tolist(), strict=True):
                for group, factor in zip(adam.param_groups, factors, strict=True):
                    group["lr"] = rate * factor
                adam.zero_grad()
                _torch_cost(activations, p, data[rows]).backward()
                adam.step()
        t += steps
        return partial(forward, task, [array.detach().numpy() for array in p])

    return advance


@cache
def _jax_steps(activations: tuple[str, ...], widths: tuple[int, ...], m: int, steps: int, batch: int) -> Any:
    """The compiled scan over so many steps."""
    import jax
    import jax.numpy as jnp

    functions = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}

    def cost(p: Any, x: Any) -> Any:
        h = x
        for layer, name in enumerate(activations):
            h = functions[name](h @ p[2 * layer] + p[2 * layer + 1])
        return jnp.sum((h - x) ** 2) / (2 * x.shape[0])

    def run(state: Any, X: Any, order: Any, rates: Any, factors: Any, beta_2: Any) -> Any:
        def step(state: Any, of_step: Any) -> Any:
            rows, rate = of_step
            of_arrays = [rate * factor for factor in factors]
            return step_of_adam(state, jax.grad(cost)(state[0], X[rows]), of_arrays, beta_2), None

        return jax.lax.scan(step, state, (order, rates))[0]

    def of(*shape: int, dtype: str = "float32") -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    arrays = [of(*shape) for rows, units in pairwise(widths) for shape in ((rows, units), (units,))]
    state = (arrays, arrays, arrays, of())
    order = of(steps, batch, dtype="int32")
    return jax.jit(run).lower(state, of(m, widths[0]), order, of(steps), [of()] * len(arrays), of()).compile()


def by_jax(task: Task, seed: int, steps: int, compiled: bool, *, same: bool) -> Advance:
    """JAX: one jitted scan over all steps; "defaults" starts at Glorot-uniform weights."""
    import jax
    import jax.numpy as jnp

    generator = np.random.default_rng(seed)
    arrays = start_of(task, seed) if same else _arrays(fastae.Parameters.random(task.network, seed))
    p = [jnp.asarray(array) for array in arrays]
    zeros = [jnp.zeros_like(array) for array in p]
    state: Any = (p, zeros, zeros, jnp.float32(0))
    data, batch = jnp.asarray(task.train), task.budget.batch_size
    rates, factors, beta_2 = adam_of(task, steps, same=same)
    of_arrays = [np.float32(factor) for factor in factors]
    t = 0

    def advance(steps: int) -> Reconstruct:
        nonlocal state, t
        run = _jax_steps(task.network.activations, task.network.widths, len(data), steps, batch)
        order = batches(generator, len(data), batch, steps).astype(np.int32)
        state = jax.block_until_ready(
            run(state, data, order, rates[t : t + steps].astype(np.float32), of_arrays, np.float32(beta_2))
        )
        t += steps
        return partial(forward, task, [np.asarray(array) for array in state[0]])

    return advance


def by_pyod(task: Task, seed: int, steps: int, compiled: bool) -> Advance:
    """PyOD's AutoEncoder: batches of 32, batch normalisation, dropout; its two hidden layers have n and k units.

    Its own scaling is off, because it would divide columns without spread by 0, and the rows are scaled already.
    """
    from pyod.models.auto_encoder import AutoEncoder

    def advance(steps: int) -> Reconstruct:
        import torch

        hidden = [task.train.shape[1], *task.hidden] if len(task.hidden) == 1 else list(task.hidden)
        model = AutoEncoder(
            hidden_neuron_list=hidden, epoch_num=max(1, round(steps / (len(task.train) // 32))), device="cpu",
            random_state=seed, preprocessing=False, verbose=0,
        )  # fmt: skip
        model.fit(task.train)

        def reconstruct(rows: np.ndarray) -> np.ndarray:
            model.model.eval()
            with torch.no_grad():
                return model.model(torch.from_numpy(rows)).numpy()

        return reconstruct

    return advance


class Contender(NamedTuple):
    """A way to train: the required module, what it is, and limits of the comparison.

    Attributes
    ----------
    imports : str
        What a program imports before the call.
    continues : bool
        The rate is constant: a longer run goes on from a shorter one.
    sized : bool
        Its thread count can be set.
    compiles : bool
        It can run compiled or not, and is tried both ways where compilation counts.
    ahead : callable or None
        Compiles for so many steps of a task, where their number matters.
    """

    module: str
    imports: str
    start: Callable[[Task, int, int, bool], Advance]
    continues: bool = False
    sized: bool = True
    compiles: bool = False
    ahead: Callable[[Task, int], Any] | None = None


def _ahead(task: Task, steps: int) -> None:
    network = task.network
    _jax_steps(network.activations, network.widths, len(task.train), steps, task.budget.batch_size)


CONTENDERS = {
    "fastae": Contender("fastae", "fastae", by_fastae, sized=False),
    "sklearn, same recipe": Contender("sklearn", "sklearn.neural_network", partial(by_sklearn, same=True)),
    "sklearn, defaults": Contender(
        "sklearn", "sklearn.neural_network", partial(by_sklearn, same=False), continues=True
    ),
    "torch, same recipe": Contender("torch", "torch", partial(by_torch, same=True), compiles=True),
    "torch, defaults": Contender(
        "torch", "torch", partial(by_torch, same=False), continues=True, compiles=True
    ),
    "jax, same recipe": Contender("jax", "jax.numpy", partial(by_jax, same=True), sized=False, ahead=_ahead),
    "jax, defaults": Contender(
        "jax", "jax.numpy", partial(by_jax, same=False), continues=True, sized=False, ahead=_ahead
    ),
    "pyod, defaults": Contender("pyod", "pyod.models.auto_encoder", by_pyod),
}
LIBRARIES = list(dict.fromkeys(contender.module for contender in CONTENDERS.values()))[1:]


def _why_missing(library: str) -> str | None:
    """Why a library cannot be used; None if it can. PyOD asks for packages that it does not install."""
    if not find_spec(library):
        return f"{library} is not installed"
    try:
        for contender in CONTENDERS.values():
            if contender.module == library:
                import_module(contender.imports)
    except ImportError as error:
        return f"{library} cannot be imported: {error}"
    return None


def installed(libraries: Sequence[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The contenders of `libraries` (by default all) that are installed, and why other libraries are not available."""
    chosen = LIBRARIES if libraries is None else libraries
    missing = {name: why for name in chosen if (why := _why_missing(name))}
    return [
        name
        for name, contender in CONTENDERS.items()
        if name == "fastae" or (contender.module in chosen and contender.module not in missing)
    ], missing
