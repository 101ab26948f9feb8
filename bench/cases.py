"""What is timed: the networks, their data, the number of operations, and the check of a result."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np

import fastae
from fastae import reference
from fastae.network import Activation

RATE = 0.001  # Adam's learning rate in the cases with batches


@dataclass(frozen=True)
class Case:
    """One loss and gradient of m rows or, with `batch`, so many epochs of Adam in batches of so many rows.

    Attributes
    ----------
    n, k, m : int
        Features, code units, rows. `batch` divides m.
    target : float or None
        The target share of the FMA peak.
    target_ratio : float or None
        The target speed, as a multiple of the best peer of the same precision.
    dtype : "float32", "float64" or "bfloat16"
        The arithmetic of fastae and of the peers that count; rows and parameters are float32 for bfloat16.
    hidden : tuple of int
        The hidden widths; by default (k, n).
    activation : str
        That of the hidden layers. The last layer is linear.
    batch, epochs : int
        0 and 1 for a single loss and gradient.
    networks : int
        How many networks are trained at once.
    """

    n: int
    k: int
    m: int
    target: float | None = None
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    target_ratio: float | None = None
    hidden: tuple[int, ...] = ()
    activation: Activation = "sigmoid"
    batch: int = 0
    epochs: int = 1
    networks: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden) or (self.k, self.n))

    @classmethod
    def parse(cls, words: str) -> "Case":
        """A case from "n,k,m"."""
        try:
            n, k, m = map(int, words.split(","))
        except ValueError:
            raise ValueError(f"{words!r} is not of the form n,k,m") from None
        if min(n, k, m) < 1:
            raise ValueError(f"n, k and m must be at least 1, got {words}")
        return cls(n, k, m)

    @property
    def kind(self) -> Literal["step", "epoch", "many"]:
        """Which table of peers competes."""
        return "many" if self.networks > 1 else "epoch" if self.batch else "step"

    @property
    def usual(self) -> bool:
        """Whether the network is n -> k -> n -> n with sigmoids."""
        return self.hidden == (self.k, self.n) and self.activation == "sigmoid"

    @property
    def label(self) -> str:
        """How tables name the case; ``heads`` says what the numbers are."""
        shape = (
            f"{self.n}, {self.k}" if self.usual else f"{'-'.join(map(str, self.widths))} {self.activation}"
        )
        more = f", {self.batch}" * bool(self.batch) + f", {self.networks}" * (self.networks > 1)
        return f"{shape}, {self.m}{more}"

    @property
    def heads(self) -> str:
        """What the numbers of ``label`` are."""
        return (
            f"{'n, k' if self.usual else 'widths'}, m"
            + ", batch" * bool(self.batch)
            + ", networks" * (self.networks > 1)
        )

    @property
    def id(self) -> str:
        dtype = {"float32": "f32", "float64": "f64", "bfloat16": "bf16"}[self.dtype]
        more = "" if self.usual else f"-{self.activation}-{len(self.hidden)}-hidden"
        more += f"-batch={self.batch}" * bool(self.batch) + f"-networks={self.networks}" * (self.networks > 1)
        return f"m={self.m}-n={self.n}-k={self.k}-{dtype}{more}"

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.n, *self.hidden, self.n)

    @property
    def steps(self) -> int:
        """Gradient steps in one repetition."""
        return self.epochs * (self.m // self.batch) if self.batch else 1

    @property
    def flops(self) -> float:
        """Useful floating-point operations of the products: three per layer, but no delta of x."""
        per_row = 6 * sum(a * b for a, b in pairwise(self.widths)) - 2 * self.n * self.widths[1]
        return float(self.networks * self.epochs * self.m) * per_row

    @property
    def sigmoids(self) -> int:
        """Sigmoids in the hidden layers; other activations are not counted."""
        units = sum(self.hidden) if self.activation == "sigmoid" else 0
        return self.networks * self.epochs * self.m * units

    @property
    def network(self) -> fastae.Network:
        return fastae.Network(self.widths, (*(self.activation for _ in self.hidden), "identity"))

    @property
    def array_dtype(self) -> Literal["float32", "float64"]:
        """The dtype of X and the parameters."""
        return "float64" if self.dtype == "float64" else "float32"

    @cached_property
    def parameters(self) -> fastae.Parameters:
        return fastae.Parameters.random(self.network, 0, self.array_dtype)

    @cached_property
    def dense(self) -> dict[str, np.ndarray]:
        """The parameters by name, as arrays; see ``all_dense`` for those of several networks."""
        return dict(self.parameters)

    @property
    def all_dense(self) -> list[dict[str, np.ndarray]]:
        """The parameters of each network at the start."""
        return [
            dict(fastae.Parameters.random(self.network, i, self.array_dtype)) for i in range(self.networks)
        ]

    @cached_property
    def X(self) -> np.ndarray:
        rng, shape = np.random.default_rng(1), (self.m, self.n)
        return (rng.random(shape) if self.batch else rng.normal(size=shape)).astype(self.array_dtype)

    def check(self, answer: dict[str, Any]) -> None:
        """Raise AssertionError unless a result equals the float64 reference up to rounding.

        `answer` holds "loss" and the gradient by name or, with batches, the parameters by name after one repetition,
        those of several networks stacked.
        """
        wanted = _answer(self)
        if self.batch:
            # Adam takes a rounding error for a step where a gradient is nearly 0.
            furthest = RATE * self.steps  # about the largest distance that Adam can have moved
            errors = {
                name: max(
                    float(np.abs(answer[name] - value).mean() / (1e-3 * furthest)),
                    float(np.abs(answer[name] - value).max() / (0.3 * furthest)),
                )
                for name, value in wanted.items()
            }
            start = np.abs(np.asarray(answer["W1"]) - stacked(self.all_dense)["W1"]).max()
            errors["moved"] = 0.1 * furthest / max(float(start), 1e-30)
        else:
            tolerance = 5e-5 if self.array_dtype == "float32" else 1e-11
            size: Callable[[Any], Any] = np.linalg.norm
            if self.activation == "relu":
                tolerance *= 100  # rounding takes a few pre-activations to the other side of 0
            else:
                size = _largest
            errors = {
                name: float(size(answer[name] - value) / size(value) / tolerance)
                for name, value in wanted.items()
            }
        if not all(error <= 1 for error in errors.values()):
            raise AssertionError(f"{self.id}: errors {errors}, as multiples of what is allowed")

    def check_roughly(self, answer: dict[str, Any]) -> None:
        """The same for bfloat16: each gradient only has to point in the same direction."""
        wanted, cosines = _answer(self), {}
        for name, value in wanted.items():
            given = np.asarray(answer[name], np.float64)
            cosines[name] = float((given * value).sum() / (np.linalg.norm(given) * np.linalg.norm(value)))
        off = abs(answer["loss"] - wanted["loss"]) / wanted["loss"]
        least = 0.999 if len(self.hidden) == 2 else 0.98  # rounding adds up over layers
        if not (off <= 0.02 and all(cosine > least for cosine in cosines.values())):
            raise AssertionError(f"{self.id}: loss off by {off:.1%}; cosines of gradients {cosines}")


def _largest(values: Any) -> Any:
    return np.abs(values).max()


def stacked(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """Parameters by name; those of several networks with the network as the first dimension."""
    if len(networks) == 1:
        return networks[0]
    return {name: np.stack([dense[name] for dense in networks]) for name in networks[0]}


@cache
def _answer(case: Case) -> dict[str, Any]:
    X, activations = case.X.astype(np.float64), case.network.activations
    starts: list[dict[str, Any]] = [
        {name: value.astype(np.float64) for name, value in dense.items()} for dense in case.all_dense
    ]
    if not case.batch:
        d = reference.backward(X, starts[0], activations)
        answer = {name: d[f"d{name}"] for name in starts[0]}
        return answer | {
            "loss": case.m / 2 * float(np.vdot(d["dxhat"], d["dxhat"]))
        }  # dxhat = (xhat - x) / m
    ends = []
    for params in starts:
        moments: dict[str, Any] = {}
        for t in range(case.steps):
            x = X[t * case.batch % case.m :][: case.batch]
            gradient = reference.backward(x, params, activations)
            params = reference.step(params, gradient, moments, t + 1, fastae.Adam(learning_rate=RATE))
        ends.append(params)
    return stacked(ends)


def chosen(cases: list[Case], words: list[str]) -> list[Case]:
    """The cases whose id contains one of the words; all without words. ValueError names a word that no id contains."""
    for word in words:
        if not any(word in case.id for case in cases):
            raise ValueError(
                f"no case {word!r}: an argument is part of one of {', '.join(case.id for case in cases)}"
            )
    return [case for case in cases if not words or any(word in case.id for word in words)]


CASES = [
    Case(10, 3, 200_000, None, target_ratio=2.0),
    Case(30, 8, 65_536, 0.45, target_ratio=2.0),
    Case(51, 13, 30_011, None, target_ratio=2.0),
    Case(64, 32, 16_384, 0.65, target_ratio=2.0),
    Case(128, 64, 16_384, 0.78, target_ratio=2.0),
    Case(200, 20, 10_000, None, target_ratio=2.0),
    Case(784, 64, 4096, 0.85, target_ratio=1.35),
    Case(784, 256, 4096, 0.85, target_ratio=1.35),
    Case(1000, 100, 3000, None, target_ratio=1.35),
]
QUICK = [CASES[i] for i in (1, 4, 6)]
SMALL = [Case(n, k, m) for n, k in ((30, 8), (128, 64), (784, 64)) for m in (32, 64, 128, 256)]


def _deep(activation: str, m: int, *widths: int) -> Case:
    n, *hidden, _ = widths
    return Case(n, min(hidden), m, hidden=tuple(hidden), activation=cast("Activation", activation))


DEEP = [
    _deep("tanh", 16_384, 30, 20, 8, 20, 30),
    _deep("relu", 16_384, 64, 48, 16, 48, 64),
    _deep("tanh", 8192, 128, 96, 32, 96, 128),
    _deep("sigmoid", 2048, 784, 256, 64, 256, 784),
    _deep("relu", 1024, 784, 1000, 500, 250, 30, 250, 500, 1000, 784),
]
EPOCHS = [
    Case(30, 8, 19_968, batch=256, target_ratio=3.0),
    Case(64, 32, 1600, batch=200, target_ratio=3.0),
    Case(784, 64, 19_968, batch=256, target_ratio=1.3),
    Case(30, 8, 98_304, batch=4096, target_ratio=2.0),
]
MANY = [Case(30, 8, 2000, batch=200, epochs=5, networks=100, target_ratio=10.0)]
SETS = {"quick": QUICK, "small": SMALL, "deep": DEEP, "epochs": EPOCHS, "many": MANY}
"""The cases of the options of ``fastae bench``; without one, ``CASES``."""
