"""Optimizers: their settings, and the state that they keep between steps. The arithmetic is in kernels/optimizer.py.

``Custom`` is the base class of an optimizer of your own, which is written in Python.

A learning rate is a number or a schedule: a function that takes an int64 array of step numbers, counted from 0, and
returns the rate of each step. ``cosine`` and ``inverse_scaling`` make schedules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastae.checks import check_number
from fastae.network import Network, Parameters

Schedule = Callable[[npt.NDArray[np.int64]], npt.ArrayLike]


@dataclass
class State:
    """What an optimizer remembers between steps.

    Parameters
    ----------
    steps : int
        Number of steps taken so far.
    moments : ndarray of shape (2, size of ``Parameters.flat``), the parameters' dtype
        Momentum, or Adam's first and second moments, in the layout of ``Parameters.flat``.
    epochs : int, default 0
        Number of epochs completed so far.
    """

    steps: int
    moments: np.ndarray = field(repr=False)
    epochs: int = 0

    @classmethod
    def zeros(cls, params: Parameters) -> "State":
        """Make the state before the first step.

        Parameters
        ----------
        params : Parameters
            Parameters to be trained.

        Returns
        -------
        State
            No steps taken, and moments of zero.
        """
        return cls(0, np.zeros((2, params.flat.size), params.dtype))

    def copy(self) -> "State":
        """Copy the state.

        Returns
        -------
        State
            The same numbers, with moments of their own.
        """
        return State(self.steps, self.moments.copy(), self.epochs)

    def check(self, params: Parameters) -> None:
        """Raise an error unless the moments are those of such parameters, contiguous and writeable."""
        for name in ("steps", "epochs"):
            if not isinstance(getattr(self, name), (int, np.integer)) or getattr(self, name) < 0:
                raise ValueError(
                    f"state.{name} must be an integer of at least 0, got {getattr(self, name)!r}"
                )
        if not isinstance(self.moments, np.ndarray):
            raise TypeError(f"state.moments must be an array, got {type(self.moments).__name__}")
        if self.moments.shape != (2, params.flat.size) or self.moments.dtype != params.dtype:
            raise ValueError(
                f"state holds moments of shape {self.moments.shape} and dtype {self.moments.dtype}, but params "
                f"need {(2, params.flat.size)} and {params.dtype}"
            )
        if not (self.moments.flags.c_contiguous and self.moments.flags.writeable):
            raise ValueError("state holds moments that are read-only or not C-contiguous")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers have: a learning rate."""

    learning_rate: float | Schedule

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            _check("learning_rate", self.learning_rate, lambda x: x > 0, "positive")

    def rates(self, first: int, count: int) -> npt.NDArray[np.float64]:
        """The learning rates of `count` steps from step `first` on.

        Raises
        ------
        ValueError
            The schedule gives another number of rates, or one that is negative or not finite.
        """
        if not callable(self.learning_rate):
            return np.full(count, float(self.learning_rate))
        rates = np.array(self.learning_rate(np.arange(first, first + count)), np.float64)
        if rates.shape != (count,):
            raise ValueError(
                f"learning_rate gave rates of shape {rates.shape}, but {count} steps need ({count},)"
            )
        if not (np.isfinite(rates) & (rates >= 0)).all():
            raise ValueError(f"learning_rate gave a negative or non-finite rate: {rates.min()}")
        return rates


class Custom(Optimizer):
    """Base class of an optimizer of your own: a subclass defines ``update``.

    ``update`` is Python code, called once per step, and so are the calls of the engine around it: small steps take
    several times as long as those of SGD and Adam, which the kernels apply.

    Parameters
    ----------
    learning_rate : float or schedule
        Rate of every step, or a function that takes an int64 array of step numbers and returns a rate for each.

    Notes
    -----
    A subclass with an ``__init__`` calls ``super().__init__(learning_rate=...)``; as a dataclass, it is frozen. Other
    attributes are its own. Numbers that change from step to step belong in ``state.moments``: they are what is restored
    after a divergence, written to a checkpoint and read when it is resumed. A run is resumed only with the attributes
    that it began with.
    """

    def update(self, params: Parameters, gradient: Parameters, state: State, rate: float) -> None:
        """Take one step: change `params` in place.

        Parameters
        ----------
        params : Parameters
            Parameters to update: all at once in ``params.flat``, or by name, as in ``params["W1"] = array``. The
            padding of ``flat`` must stay zero: after an operation that changes it, call ``params.clear_padding()``.
        gradient : Parameters
            Gradient of the loss, with its penalties. It may be changed; the next step overwrites it.
        state : State
            ``state.steps`` is the number of steps taken before this one; ``state.moments``, of shape (2, size of
            ``params.flat``), is for the optimizer to change in place, and zero before the first step.
        rate : float
            Learning rate of this step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update(params, gradient, state, rate)")


@dataclass(frozen=True, kw_only=True)
class InKernels(Optimizer):
    """An optimizer that the kernels apply. It also has decoupled weight decay, factors of the rate, and clipping.

    Each step also takes rate * weight_decay * p off every parameter p (Loshchilov and Hutter, ICLR 2019).
    """

    weight_decay: float = 0.0
    rate_factors: Mapping[str, float] | None = field(default=None, hash=False)
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("weight_decay", self.weight_decay, lambda x: x >= 0, "not negative")
        if self.rate_factors is not None:
            if not isinstance(self.rate_factors, Mapping):
                raise TypeError(
                    f"rate_factors must map names of parameters to factors, got {self.rate_factors!r}"
                )
            for name, factor in self.rate_factors.items():
                _check(f"rate_factors[{name!r}]", factor, lambda x: x >= 0, "not negative")
            object.__setattr__(self, "rate_factors", dict(self.rate_factors))
        if self.clip_norm is not None:
            _check("clip_norm", self.clip_norm, lambda x: x > 0, "positive")

    def factors(self, network: Network) -> npt.NDArray[np.float64] | None:
        """The factors of the rates of each layer's W and b, (layers, 2); None if all are 1.

        Raises
        ------
        ValueError
            A name in `rate_factors` is none of the network's.
        """
        if not self.rate_factors:
            return None
        names = list(network.shapes())
        for name in self.rate_factors:
            if name not in names:
                raise ValueError(f"rate_factors names {name!r}, but the parameters are {', '.join(names)}")
        return np.array([self.rate_factors.get(name, 1.0) for name in names], np.float64).reshape(-1, 2)


@dataclass(frozen=True, kw_only=True)
class SGD(InKernels):
    """Gradient descent: v = momentum v - rate g, then p += v, or with `nesterov` p += momentum v - rate g.

    Parameters
    ----------
    learning_rate : float or schedule, default 0.1
        Rate of every step, or a function that takes an int64 array of step numbers and returns a rate for each.
    momentum : float, default 0.0
        Share of the last move that is kept, in [0, 1).
    nesterov : bool, default False
        Use Nesterov's momentum (Nesterov, 1983, in the form of Sutskever et al., ICML 2013).
    weight_decay : float, default 0.0
        Decoupled weight decay: each step also subtracts rate * weight_decay * p from every parameter p.
    rate_factors : mapping of str to float, optional
        What the learning rate of a parameter is multiplied with, by its name: {"W1": 0.1}. Parameters with a factor of
        0 are frozen: they and their moments keep their bits. Default: 1 for every parameter.
    clip_norm : float, optional
        Largest norm of the gradient: a longer one is scaled down to this norm. The norm is taken over all parameters
        that are not frozen, with the penalties' share in it. Default: gradients are not clipped.
    """

    learning_rate: float | Schedule = 0.1
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("momentum", self.momentum, lambda x: 0 <= x < 1, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Adam(InKernels):
    """Adam: with u and s the running means of g and g^2, p -= rate c u / (sqrt(s) + epsilon).

    c = sqrt(1 - beta_2^t) / (1 - beta_1^t) corrects for means that start at zero. This is the form at the end of
    section 2 of Kingma and Ba, ICLR 2015, which scikit-learn also uses.

    Parameters
    ----------
    learning_rate : float or schedule, default 0.001
        Rate of every step, or a function that takes an int64 array of step numbers and returns a rate for each.
    beta_1 : float, default 0.9
        Decay rate of the mean of g, in [0, 1).
    beta_2 : float, default 0.999
        Decay rate of the mean of g^2, in [0, 1).
    epsilon : float, default 1e-8
        Added to the denominator; positive.
    weight_decay : float, default 0.0
        Decoupled weight decay: each step also subtracts rate * weight_decay * p from every parameter p.
    rate_factors : mapping of str to float, optional
        What the learning rate of a parameter is multiplied with, by its name: {"W1": 0.1}. Parameters with a factor of
        0 are frozen: they and their moments keep their bits. Default: 1 for every parameter.
    clip_norm : float, optional
        Largest norm of the gradient: a longer one is scaled down to this norm. The norm is taken over all parameters
        that are not frozen, with the penalties' share in it. Default: gradients are not clipped.
    """

    learning_rate: float | Schedule = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("beta_1", self.beta_1, lambda x: 0 <= x < 1, "in [0, 1)")
        _check("beta_2", self.beta_2, lambda x: 0 <= x < 1, "in [0, 1)")
        _check("epsilon", self.epsilon, lambda x: x > 0, "positive")


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay by default (Loshchilov and Hutter, ICLR 2019).

    Parameters
    ----------
    learning_rate : float or schedule, default 0.001
        Rate of every step, or a function that takes an int64 array of step numbers and returns a rate for each.
    beta_1 : float, default 0.9
        Decay rate of the mean of g, in [0, 1).
    beta_2 : float, default 0.999
        Decay rate of the mean of g^2, in [0, 1).
    epsilon : float, default 1e-8
        Added to the denominator; positive.
    weight_decay : float, default 0.01
        Each step also subtracts rate * weight_decay * p from every parameter p.
    rate_factors : mapping of str to float, optional
        What the learning rate of a parameter is multiplied with, by its name: {"W1": 0.1}. Parameters with a factor of
        0 are frozen: they and their moments keep their bits. Default: 1 for every parameter.
    clip_norm : float, optional
        Largest norm of the gradient: a longer one is scaled down to this norm. The norm is taken over all parameters
        that are not frozen, with the penalties' share in it. Default: gradients are not clipped.
    """

    weight_decay: float = 0.01


def cosine(rate: float, steps: int, *, warmup: int = 0) -> Schedule:
    """Make a schedule that rises linearly from 0 over `warmup` steps, then falls to 0 along half a cosine.

    Source: Loshchilov and Hutter, SGDR, ICLR 2017.

    Parameters
    ----------
    rate : float
        Highest learning rate.
    steps : int
        Step at which the rate reaches 0.
    warmup : int, default 0
        Number of steps over which the rate rises.

    Returns
    -------
    schedule
        A function of an int64 array of step numbers, for `learning_rate`.

    Raises
    ------
    ValueError
        `warmup` is negative or not less than `steps`.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be less than steps, {steps}, and not negative, got {warmup}")

    def schedule(step: npt.NDArray[np.int64]) -> npt.ArrayLike:
        up = (step + 1) / max(warmup, 1)
        down = 0.5 + 0.5 * np.cos(np.pi * np.clip((step - warmup) / (steps - warmup), 0, 1))
        return rate * np.where(step < warmup, up, down)

    return schedule


def inverse_scaling(rate: float, power: float = 0.5) -> Schedule:
    """Make a schedule of rate / (step + 1)^power.

    Parameters
    ----------
    rate : float
        Learning rate of the first step.
    power : float, default 0.5
        Exponent of the decay.

    Returns
    -------
    schedule
        A function of an int64 array of step numbers, for `learning_rate`.
    """
    return lambda step: rate / (step + 1.0) ** power


def _check(name: str, value: float, is_good: Callable[[float], bool], wanted: str) -> None:
    """Raise a TypeError or ValueError that names `name` unless the value is a good and finite number."""
    check_number(value, name)
    if not is_good(value) or not np.isfinite(value):
        raise ValueError(f"{name} must be {wanted} and finite, got {value!r}")
