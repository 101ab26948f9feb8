"""Training an ensemble: which rows each network leaves out, all networks side by side, and out-of-bag errors.

The rows are dealt into folds at random, anew for every round of networks; each network of a round leaves one fold out.
An error is out of bag if it is that of networks that left the row out, and the row is not among its own neighbours.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from fastae import optimizers
from fastae.data.row_source import ArrayRows, RowSource
from fastae.engine.engine import Engine
from fastae.estimator.automatic import ENSEMBLE_UNITS_MOST, Budget, ensemble_budget_of
from fastae.estimator.ensemble import CHUNK, EnsembleModel, moments_shape
from fastae.estimator.neighbours import FLOOR, out_of_range
from fastae.network import Parameters
from fastae.training import lbfgs
from fastae.training.gradient_descent import train
from fastae.training.history import History
from fastae.training.many import train_many
from fastae.training.options import TrainingOptions
from fastae.training.pca import principal_components, start_at_pca

FOLDS = 5
SAMPLE_BYTES = 1 << 27  # of rows that are not in the memory of this process: as many are trained on
KEPT_MOST = 4096
LENGTHS_AT_ONCE = 1 << 22  # numbers that residuals of some rows are held in, where each is left out in turn
FAR = 1e300  # for products that are infinite


@dataclass
class Bags:
    """Which rows each network leaves out.

    Attributes
    ----------
    folds : ndarray of shape (rounds, m), int8
        The fold of each row, anew in each round of networks.
    count : int
        The number of folds.
    """

    folds: np.ndarray
    count: int

    @classmethod
    def drawn(cls, networks: int, rows: int, seed: list[int]) -> "Bags":
        """Folds of equal size; two at least, so that a network that is alone in its round leaves rows out, too."""
        count = min(FOLDS, max(networks, 2), rows)
        dealt = (np.arange(rows) * count // rows).astype(np.int8)
        folds = np.empty((-(-networks // count), rows), np.int8)
        for number, round_ in enumerate(folds):
            round_[np.random.default_rng([*seed, number]).permutation(rows)] = dealt
        return cls(folds, count)

    def left_out(self, network: int) -> np.ndarray:
        """(m,), bool: the rows that a network is not trained on."""
        return np.asarray(self.folds[network // self.count] == network % self.count)


@dataclass
class Trainee:
    """One network: what it is trained on, and what came of it."""

    params: Parameters
    state: optimizers.State
    index: np.ndarray  # of rows of the array that all networks are trained on
    seed: int
    budget: Budget
    history: History | None = None


def ensemble_widths(model: Any, columns: int) -> list[int]:
    """The encoder's layers: the user's, those of a warm start, or one that is wider than the rows."""
    if not isinstance(model.hidden_layer_sizes, str):
        return cast(list[int], np.atleast_1d(model.hidden_layer_sizes).tolist())
    return [min(2 * columns, max(ENSEMBLE_UNITS_MOST, columns // 2))]


def training_array(rows: RowSource, seed: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """An array to train on, and the numbers of its rows: of an array, all (None); else of at most SAMPLE_BYTES."""
    if isinstance(rows, ArrayRows) and rows.index is None:
        return rows.array, None
    most = max(2, SAMPLE_BYTES // (rows.shape[1] * rows.dtype.itemsize))
    numbers = np.arange(len(rows))
    if most < len(rows):
        numbers = np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))
    return np.asarray(cast(Any, rows).take(numbers).resident()), numbers


def can_start_from(before: tuple[Parameters, ...], model: Any, array: np.ndarray) -> bool:
    """Whether parameters of an earlier fit are those of the networks that `model` asks for."""
    network = model._network(array.shape[1], ensemble_widths(model, array.shape[1]))
    wanted = network, model._dtype(ArrayRows(array))
    return len(before) == model.n_estimators and (before[0].network, before[0].dtype) == wanted


def start_networks(
    model: Any,
    array: np.ndarray,
    numbers: np.ndarray | None,
    bags: Bags,
    seed: list[int],
    before: Any,
    *,
    ends: bool = True,
) -> list[Trainee]:
    """The networks before training, each with the rows of the array that it is trained on."""
    columns = array.shape[1]
    network = model._network(columns, ensemble_widths(model, columns))
    dtype = model._dtype(ArrayRows(array))
    seeds = np.random.default_rng([*seed, 1]).integers(np.iinfo(np.int32).max, size=(model.n_estimators, 2))
    components = None
    if model._value("init") == "pca" and before is None:
        components = principal_components(
            ArrayRows(array),
            max(network.widths[1 : network.code_layer + 1]),
            dtype,
            n_threads=model.n_threads,
            shift=model.shift_,
            scale=model.scale_,
            missing=model.missing is not None,
        )
    trainees = []
    for i, (weight_seed, step_seed) in enumerate(seeds.tolist()):
        if before is not None:
            params = before[i].copy()
        elif components is None:
            params = Parameters.random(network, weight_seed, dtype)
        else:
            params = start_at_pca(network, components, weight_seed, dtype)
        left_out = bags.left_out(i)
        index = np.flatnonzero(~(left_out if numbers is None else left_out[numbers]))
        budget = ensemble_budget_of(model, max(len(index), 1), columns, ends=ends)
        if budget.rows < len(index):
            index = np.sort(np.random.default_rng([*seed, 2, i]).choice(index, budget.rows, replace=False))
        trainees.append(Trainee(params, optimizers.State.zeros(params), index, step_seed, budget))
    return trainees


def options_of(
    model: Any, trainee: Trainee, validate: Any, patience: int | None, tol: float, *, ends: bool = True
) -> dict[str, Any]:
    """What ``train`` is asked for one network."""
    return {
        "optimizer": model._optimizer(trainee.budget, ends=ends),
        "epochs": trainee.budget.epochs,
        "batch_size": min(trainee.budget.batch_size, len(trainee.index)),
        "index": trainee.index,
        "shuffle": model.shuffle,
        "seed": trainee.seed,
        "validate": validate,
        "patience": patience,
        "tol": tol,
        "adaptive": model.learning_rate == "adaptive",
        "state": trainee.state,
    }


def train_here(
    model: Any,
    trainees: list[Trainee],
    array: np.ndarray,
    data: dict[str, Any],
    options: list[dict[str, Any]],
) -> None:
    """Train the networks on this machine, side by side; L-BFGS and bfloat16, one after another on all threads."""
    if model.solver != "lbfgs" and not model._in_bfloat16:
        each: dict[str, Any] = {name: [option[name] for option in options] for name in options[0]}
        histories = train_many(
            [trainee.params for trainee in trainees], array, n_threads=model.n_threads, **data, **each
        )
        for trainee, history in zip(trainees, histories, strict=True):
            trainee.history = history
        return
    engine = Engine(
        trainees[0].params.network,
        model.n_threads,
        "bfloat16" if model._in_bfloat16 else trainees[0].params.dtype,
    )
    for trainee, option in zip(trainees, options, strict=True):
        if model.solver != "lbfgs":
            trainee.history = train(trainee.params, array, engine=engine, **data, **option)
            continue
        asked = TrainingOptions(
            epochs=option["epochs"],
            validate=option["validate"],
            patience=option["patience"],
            tol=option["tol"],
        )
        rows = ArrayRows(array, index=trainee.index)
        trainee.history = lbfgs.minimize(
            trainee.params, rows, trainee.state, asked, engine=engine, max_slope=model.tol, **data
        )


def train_alone(
    params: Parameters,
    state: optimizers.State,
    array: np.ndarray,
    data: dict[str, Any],
    option: dict[str, Any],
) -> tuple[Parameters, History]:
    """Train one network on one thread, where this is called; returns copies, for another machine."""
    params = params.copy()
    engine = Engine(params.network, 1, params.dtype)
    history = train(params, array, engine=engine, **data, **{**option, "state": state.copy()})
    return params, history


# -- after training ---------------------------------------------------------------------------------------------------


def typical_errors(errors: np.ndarray, bags: Bags) -> np.ndarray:
    """(T,): the median, of the rows that each network left out, of its errors."""
    return np.array([np.median(errors[bags.left_out(i), i]) for i in range(errors.shape[1])], np.float64)


def out_of_bag_mean(errors: np.ndarray, bags: Bags, factors: np.ndarray) -> np.ndarray:
    """(m,): the mean of each row's errors, times `factors`, over the networks that left it out; NaN if none did."""
    total, count = np.zeros(len(errors)), np.zeros(len(errors), np.int64)
    for i, factor in enumerate(factors):
        left_out = bags.left_out(i)
        total[left_out] += errors[left_out, i].astype(np.float64) * factor
        count += left_out
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def residual_moments(
    model: EnsembleModel, X: np.ndarray, left_out: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The second moments of residuals out of bag, and what share of their weight one residual of each row has.

    Parameters
    ----------
    X : ndarray of shape (rows, n)
        Training rows, of which those with missing cells do not count.
    left_out : ndarray of shape (rows, T), bool
        Which networks left a row out.
    weight : ndarray of shape (rows,) or None

    Returns
    -------
    moments : ndarray of shape (n, n), or (n,) if there are more than WHITENED_MOST features
    share : ndarray of shape (rows,)
    """
    moments, total = np.zeros(moments_shape(X.shape[1])), 0.0
    weights = np.ones(len(X)) if weight is None else weight / weight.max(initial=0)
    whole = ~np.isnan(X).any(axis=1)
    for first in range(0, len(X), CHUNK):
        here = slice(first, first + CHUNK)
        with out_of_range():
            for i, residual in enumerate(model.residuals(X, here)):
                known = left_out[here, i] & whole[here] & np.isfinite(residual).all(axis=1)
                r, w = residual[known].astype(np.float64), weights[here][known]
                moments += (r * w[:, None]).T @ r if moments.ndim == 2 else np.square(r).T @ w
                total += w.sum()
    total = total or 1.0
    return moments / total, weights / total


def lengths_without(
    model: EnsembleModel, X: np.ndarray, left_out: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """(rows,): the mean over the networks that left it out of a row's |r A|^2 / n, with A from the other rows.

    With Y the row's residuals times A, (networks, n), of which each has a share w of the second moments that A is made
    of, and G = Y Y': tr((I - w G)^-1 G) / n / networks (Woodbury). The ridge is that of all rows.
    """
    result, columns = np.empty(len(X)), X.shape[1]
    networks = max(int(left_out.sum(axis=1).max(initial=0)), 1)
    size = max(1, LENGTHS_AT_ONCE // (networks * columns))
    for first in range(0, len(X), size):
        here = slice(first, first + size)
        those = left_out[here]
        place = np.cumsum(those, axis=1) - 1
        y = np.zeros((len(those), networks, columns))
        with out_of_range():
            for i, residual in enumerate(model.residuals(X, here)):
                out = those[:, i]
                y[out, place[out, i]] = model.whitened(residual)[out]
            products = np.nan_to_num(y @ y.transpose(0, 2, 1), posinf=FAR, neginf=-FAR)
        values = np.maximum(np.linalg.eigvalsh(products), 0)
        values /= np.maximum(1 - share[here, None] * values, FLOOR)
        result[here] = values.sum(axis=1) / columns / np.maximum(those.sum(axis=1), 1)
    return result


def ratio_of_quantiles(
    first: np.ndarray, second: np.ndarray, level: float, weight: np.ndarray | None
) -> float:
    """What makes the quantile of `second`, times it, that of `first`, where both are positive; 1 where none is."""
    known = np.isfinite(first) & np.isfinite(second) & (second > 0)
    if weight is not None:
        known &= weight > 0
    if not known.any():
        return 1.0
    shares = None if weight is None else weight[known]
    wanted, has = (quantile(values[known], level, shares) for values in (first, second))
    return float(wanted / has)


def quantile(values: np.ndarray, level: float, weight: np.ndarray | None) -> float:
    """The quantile of values, each of which counts by its weight."""
    if weight is None:
        return float(np.quantile(values, level))
    order = np.argsort(values)
    reached = np.cumsum(weight[order] / weight.max())
    return float(values[order][np.searchsorted(reached, level * reached[-1])])


def rows_to_keep(known: np.ndarray, weight: np.ndarray | None, most: int, seed: list[int]) -> np.ndarray:
    """The numbers of the rows to measure distances from, in order: drawn, of those `known`, by their weights."""
    counts = known if weight is None else known & (weight > 0)
    chosen = np.flatnonzero(counts)
    if len(chosen) > most:
        share = None if weight is None else weight[chosen] / weight[chosen].max()
        share = None if share is None or np.count_nonzero(share) < most else share / share.sum()
        chosen = np.random.default_rng([*seed, 3]).choice(chosen, most, replace=False, p=share)
    return np.sort(chosen)
