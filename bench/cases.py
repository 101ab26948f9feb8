"""The five machines whose speed is promised, their data, and the work that one step of each is."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

import fastae
from fastae import reference


@dataclass(frozen=True)
class Case:
    """The autoencoder n -> k -> n -> n on m rows; `target` is the share of the FMA peak it is to reach."""

    n: int
    k: int
    m: int
    target: float
    dtype: str = "float32"

    @property
    def id(self) -> str:
        return f"m={self.m}-n={self.n}-k={self.k}-{'f32' if self.dtype == 'float32' else 'f64'}"

    @property
    def flops(self) -> float:
        """Useful floating-point operations of one loss and gradient: three products a layer less x's own delta."""
        return float(self.m) * (10 * self.n * self.k + 6 * self.n * self.n)

    @property
    def network(self) -> fastae.Network:
        return fastae.Network.autoencoder(self.n, self.k)

    @cached_property
    def parameters(self) -> fastae.Parameters:
        return fastae.Parameters.random(self.network, 0, self.dtype)

    @cached_property
    def X(self) -> np.ndarray:
        return np.random.default_rng(1).normal(size=(self.m, self.n)).astype(self.dtype)

    def numpy_step(self) -> tuple[float, dict[str, Any]]:
        """The same step by the NumPy reference: loss and gradient."""
        dense = self.dense
        xhat = reference.forward(self.X, dense, self.network.activations)["xhat"]
        d = reference.backward(self.X, dense, self.network.activations)
        return float(reference.cost(self.X, xhat)), {name: d[f"d{name}"] for name in dense}

    @cached_property
    def dense(self) -> dict[str, np.ndarray]:
        return dict(self.parameters)

    def check(self, loss: float, gradient: Any) -> None:
        """Loss and gradient against the reference, to what rounding allows."""
        wanted_loss, wanted = _answer(self)
        tolerance = 2e-5 if self.dtype == "float32" else 1e-11
        assert abs(loss - wanted_loss) <= tolerance * wanted_loss, (loss, wanted_loss)
        for name, value in wanted.items():
            assert np.abs(gradient[name] - value).max() <= tolerance * np.abs(value).max(), name


@cache
def _answer(case: Case) -> tuple[float, dict[str, Any]]:
    return case.numpy_step()


CASES = [
    Case(30, 8, 65536, 0.45),
    Case(64, 32, 16384, 0.65),
    Case(128, 64, 16384, 0.78),
    Case(784, 64, 4096, 0.85),
    Case(784, 256, 4096, 0.85),
]
