"""Networks spread over the workers of a cluster, each trained as a whole by one worker: no exchange per step."""

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import numpy as np


@singledispatch
def train_spread(
    partitions: Any,
    train_alone: Callable[..., Any],
    networks: Sequence[Any],
    array: np.ndarray,
    data: dict[str, Any],
    options: Sequence[dict[str, Any]],
) -> None:
    """Train each of `networks`, on the workers that hold `partitions`, on the rows of `array`.

    Parameters
    ----------
    partitions : Partitions
    train_alone : callable
        train_alone(params, state, array, data, option) returns trained parameters and a History.
    networks : sequence
        Objects with `params` and `state`, which are written to, and `history`, which is set.
    array : ndarray of shape (rows, n)
        Sent to the workers.
    data, options
        Passed on: `data` to all calls, of `options` one to each.
    """
    raise TypeError(f"n_estimators must be 1 where X is {type(partitions).__name__}")
