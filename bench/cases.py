"""The nine benchmark networks, their data, and the operations in one step of each."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np

import fastae
from fastae import reference


@dataclass(frozen=True)
class Case:
    """The autoencoder n -> k -> n -> n on m rows; `target` is the target share of the FMA peak, if there is one."""

    n: int
    k: int
    m: int
    target: float | None = None
    dtype: Literal["float32", "float64"] = "float32"

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
    def id(self) -> str:
        return f"m={self.m}-n={self.n}-k={self.k}-{'f32' if self.dtype == 'float32' else 'f64'}"

    @property
    def flops(self) -> float:
        """Useful floating-point operations of one loss and gradient: three products per layer, but no delta of x."""
        return float(self.m) * (10 * self.n * self.k + 6 * self.n * self.n)

    @property
    def sigmoids(self) -> int:
        """Sigmoids in one step, in the two hidden layers."""
        return self.m * (self.k + self.n)

    @property
    def target_ratio(self) -> float:
        """The target speed of a step, as a multiple of the best peer of the same precision."""
        return 2.0 if self.n <= 200 else 1.35

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
        """Loss and gradient of the same step by the NumPy reference."""
        return _reference_step(self.X, self.dense)

    @cached_property
    def dense(self) -> dict[str, np.ndarray]:
        return dict(self.parameters)

    def check(self, loss: float, gradient: Any) -> None:
        """Raise AssertionError unless loss and gradient equal the float64 reference up to rounding."""
        wanted_loss, wanted = _answer(self)
        tolerance = 5e-5 if self.dtype == "float32" else 1e-11
        errors = {"loss": abs(loss - wanted_loss) / wanted_loss}
        for name, value in wanted.items():
            errors[name] = float(np.abs(gradient[name] - value).max() / np.abs(value).max())
        if not all(error <= tolerance for error in errors.values()):
            raise AssertionError(f"{self.id}: relative errors {errors} exceed {tolerance:g}")

    def check_roughly(self, loss: float, gradient: Any) -> None:
        """The same for lower precision: each gradient only has to point in the same direction."""
        wanted_loss, wanted = _answer(self)
        cosines = {}
        for name, value in wanted.items():
            ours = np.asarray(gradient[name], np.float64)
            cosines[name] = float((ours * value).sum() / (np.linalg.norm(ours) * np.linalg.norm(value)))
        if not (abs(loss - wanted_loss) <= 0.02 * wanted_loss and all(c > 0.999 for c in cosines.values())):
            raise AssertionError(f"{self.id}: loss {loss}, not {wanted_loss}; cosines of gradients {cosines}")


def _reference_step(X: np.ndarray, dense: dict[str, np.ndarray]) -> tuple[float, dict[str, Any]]:
    d = reference.backward(X, dense)
    loss = (
        len(X) / 2 * float(np.vdot(d["dxhat"], d["dxhat"]))
    )  # dxhat = (xhat - x) / m: no second forward pass
    return loss, {name: d[f"d{name}"] for name in dense}


@cache
def _answer(case: Case) -> tuple[float, dict[str, Any]]:
    dense = {name: array.astype(np.float64) for name, array in case.dense.items()}
    return _reference_step(case.X.astype(np.float64), dense)


CASES = [
    Case(10, 3, 200_000),
    Case(30, 8, 65_536, 0.45),
    Case(51, 13, 30_011),
    Case(64, 32, 16_384, 0.65),
    Case(128, 64, 16_384, 0.78),
    Case(200, 20, 10_000),
    Case(784, 64, 4096, 0.85),
    Case(784, 256, 4096, 0.85),
    Case(1000, 100, 3000),
]
