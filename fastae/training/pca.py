"""Principal components of the rows, and the parameters at which a network reconstructs each row as PCA does.

The second moments need no code of their own: the gradient of a linear network n -> n, at zero weights, is minus the
mean of z z' over the rows z that the network sees, and that of its bias is minus their mean. Of a linear network
n -> r -> n with W1 = Q and W2 = 0, the gradient in W2 is minus Q' times the second moments: where few components of
many columns are needed, a few such products are enough, and no matrix of n x n is computed. So the engine that trains
computes them, on all cores, with the same bits for any number of threads and machines, chunk by chunk where rows are in
files, and with the same weights and missing cells.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from typing import Any, NamedTuple

import numpy as np

from fastae.checks import in_units
from fastae.data.row_source import Rows, RowSource
from fastae.data.weighted import counted, weighted_moments
from fastae.engine.engine import Engine
from fastae.network import Activation, DType, Network, Parameters
from fastae.objective import Objective
from fastae.training.streaming import loss_and_gradient

COLUMNS_MOST = 4096  # up to which a matrix of n x n numbers is computed, and decomposed
ROWS_MOST = 1024  # that stand for all where there are more columns
ALL_COMPONENTS_MOST = 1024  # columns up to which all components are computed, otherwise the first ones only
PASSES, MORE = 4, 10  # over the rows, for the first components; columns of Q in addition to those components
RANK_TOLERANCE = 1e-6  # a component of less than this share of the first one's variance is rounding


class _Range(NamedTuple):
    """Where an activation is nearly linear."""

    mean: float  # of the pre-activations
    spread: float  # their standard deviation
    value: float  # of the activation, at their mean
    slope: float


_RANGES: dict[Activation, _Range] = {
    "sigmoid": _Range(0.0, 0.5, 0.5, 0.25),
    "tanh": _Range(0.0, 0.25, 0.0, 1.0),
    "relu": _Range(3.0, 1.0, 3.0, 1.0),
    "identity": _Range(0.0, 1.0, 0.0, 1.0),
}


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of rows z of n columns, as a network sees them: shifted and scaled.

    Attributes
    ----------
    mean : ndarray of shape (n,), float64
    deviation : ndarray of shape (n,), float64
        Standard deviation of each column; where only the first components were computed, with the variance beyond them
        in equal shares.
    directions : ndarray of shape (n, r), float64
        Orthonormal columns, by falling variance.
    variances : ndarray of shape (r,), float64
        Of the rows along each direction.
    of_all_rows : bool
        False where some rows stand for all. ``error`` is then that of these rows, and that of the others is larger.
    """

    mean: np.ndarray
    deviation: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    of_all_rows: bool = True

    @property
    def total(self) -> float:
        """The variance of all columns: the mean squared distance of a row from the mean."""
        return float(np.square(self.deviation).sum())

    def error(self, components: int) -> float:
        """The mean squared distance of a row from its reconstruction by so many components, r at most."""
        return max(self.total - float(self.variances[:components].sum()), 0.0)

    def components_for(self, share: float) -> int:
        """The least number of components that hold this share of the variance, or r."""
        held = np.cumsum(self.variances)
        return min(int(np.searchsorted(held, share * self.total)) + 1, max(len(held), 1))


@singledispatch
def loss_and_gradient_of(
    source: Any,
    params: Parameters,
    *,
    n_threads: int | None,
    shift: np.ndarray | None,
    scale: np.ndarray | None,
    objective: Objective,
    sample_weight: np.ndarray | None = None,
) -> tuple[float, Parameters]:
    """``Engine.loss_and_gradient`` over any kind of ``RowSource``, as ``train_on`` trains on it."""
    rows: Rows = source.loaded()
    engine = Engine(params.network, n_threads, params.dtype)
    return loss_and_gradient(
        engine, params, rows, shift=shift, scale=scale, objective=objective, sample_weight=sample_weight
    )


def principal_components(
    source: RowSource,
    most: int,
    dtype: DType,
    *,
    shift: np.ndarray | None,
    scale: np.ndarray | None,
    missing: bool,
    n_threads: int | None,
    sample_weight: np.ndarray | None = None,
    centred: bool = False,
) -> PrincipalComponents | None:
    """The principal components of the rows; None where values are too large for `dtype`.

    Those of more than `COLUMNS_MOST` columns are computed from `ROWS_MOST` of the rows, or not at all (None) where rows
    are on several machines.

    Parameters
    ----------
    source : RowSource
    most : int
        Components that are needed; more may be returned.
    dtype : dtype
        Type of the arithmetic, up to the covariance matrix.
    missing : bool
        Whether cells that are NaN are missing; they count as the mean.
    centred : bool, default False
        Whether `shift` is the mean of each column of these rows.
    shift, scale, n_threads, sample_weight
        As for ``loss_and_gradient_of``.
    """
    columns = source.shape[1]
    centre = np.zeros(columns)  # of z, about which the moments are computed
    # A large mean would swallow the spread, and a missing cell counts as the mean
    if shift is None or (missing and not centred):
        mean = _column_means(source, sample_weight)
        centre = (mean - (0.0 if shift is None else shift)) * (1.0 if scale is None else scale)
        shift = mean
    if columns > COLUMNS_MOST:
        return (
            _of_few_rows(source, most, dtype, centre, shift, scale, sample_weight)
            if source.is_local
            else None
        )
    at = partial(
        loss_and_gradient_of,
        source,
        n_threads=n_threads,
        shift=shift,
        scale=scale,
        objective=Objective(missing=missing),
        **({} if sample_weight is None else {"sample_weight": sample_weight}),
    )
    # Operations per row: 4 n^2 for all second moments, 10 n r for a product
    if columns > max(ALL_COMPONENTS_MOST, PASSES * 10 / 4 * (most + MORE)):
        return _first(at, columns, most, dtype, centre)
    _, gradient = at(Parameters(Network((columns, columns), ("identity",), 1), dtype))
    if not np.isfinite(gradient.flat).all():
        return None
    mean = -gradient["b1"].astype(np.float64)
    wide = columns > ALL_COMPONENTS_MOST
    covariance: np.ndarray = gradient["W1"].astype(np.float32 if wide else np.float64)
    del gradient  # up to several copies of this matrix exist at a time
    covariance += covariance.T
    covariance /= -2
    covariance -= np.outer(mean, mean).astype(covariance.dtype, copy=False)
    if not wide:
        variances, directions = np.linalg.eigh(covariance)
        variances, directions = variances[::-1], directions[:, ::-1]
    else:
        directions, variances, _ = _svd(covariance, most)
    return _described(centre + mean, np.diagonal(covariance), directions, variances, dtype)


def _first(
    at: Callable[[Parameters], tuple[float, Parameters]],
    columns: int,
    most: int,
    dtype: DType,
    centre: np.ndarray,
) -> PrincipalComponents | None:
    """The first principal components, by subspace iteration (Halko, Martinsson and Tropp, 2011).

    `at` gives loss and gradient of a network at given parameters. The variances are lower bounds.
    """
    linear = Parameters(Network((columns, most + MORE, columns), ("identity", "identity"), 1), dtype)
    product = np.random.default_rng(0).normal(size=(columns, most + MORE))
    mean = total = np.zeros(())
    for _ in range(PASSES):
        basis, _ = np.linalg.qr(product)
        linear["W1"] = basis
        loss, gradient = at(linear)
        if not (np.isfinite(gradient.flat).all() and np.isfinite(loss)):
            return None
        mean = -gradient["b2"].astype(np.float64)
        total = 2 * loss - mean @ mean
        product = -gradient["W2"].T.astype(np.float64) - np.outer(mean, mean @ basis)
    directions, variances, _ = np.linalg.svd(product, full_matrices=False)
    directions, variances = directions[:, :most], variances[:most]
    beyond = max(float(total) - float(variances.sum()), 0.0) / columns
    return _described(centre + mean, np.square(directions) @ variances + beyond, directions, variances, dtype)


def error_of_observed_cells(
    source: RowSource,
    components: PrincipalComponents,
    most: int,
    dtype: DType,
    *,
    shift: np.ndarray | None,
    scale: np.ndarray | None,
    n_threads: int | None,
    sample_weight: np.ndarray | None = None,
) -> float:
    """As ``PrincipalComponents.error``, but over the cells that are not missing; those that are enter as the mean."""
    directions = components.directions[:, :most]
    if not directions.size:
        return components.total
    network = Network((*directions.shape, len(directions)), ("identity", "identity"), 1)
    linear = Parameters(network, dtype)
    linear["W1"], linear["W2"] = directions, directions.T
    mean = components.mean if scale is None else components.mean / scale
    loss, _ = loss_and_gradient_of(
        source,
        linear,
        n_threads=n_threads,
        shift=mean if shift is None else shift + mean,
        scale=scale,
        objective=Objective(missing=True),
        **({} if sample_weight is None else {"sample_weight": sample_weight}),
    )
    return 2 * loss


def _column_means(source: Any, sample_weight: np.ndarray | None) -> np.ndarray:
    """The weighted mean of each column over its cells that are not NaN; rows of weight 0 may hold anything."""
    if sample_weight is None:
        mean = source.column_statistics().mean
    else:
        rows, weight = counted(source, sample_weight)
        mean, _ = weighted_moments(rows, weight, rows.column_statistics())
    return np.asarray(np.nan_to_num(mean))


def _of_few_rows(
    source: Any,
    most: int,
    dtype: DType,
    centre: np.ndarray,
    shift: np.ndarray,
    scale: np.ndarray | None,
    sample_weight: np.ndarray | None,
) -> PrincipalComponents | None:
    """Principal components from at most `ROWS_MOST` rows, evenly spread over all."""
    numbers = np.unique(np.linspace(0, len(source) - 1, min(len(source), ROWS_MOST)).astype(np.int64))
    rows = np.nan_to_num((np.asarray(source.take(numbers)) - shift) * (1.0 if scale is None else scale))
    weight = np.ones(len(rows))
    if sample_weight is not None:
        weight, _ = in_units(source.of_array(sample_weight)[numbers])
    weight = weight / weight.sum()
    mean = weight @ rows
    rows = (rows - mean) * np.sqrt(weight)[:, np.newaxis]
    if not np.isfinite(rows).all():
        return None
    _, singular, directions = _svd(rows, min(most, len(rows)))
    variances = np.square(singular)
    components = _described(centre + mean, np.square(rows).sum(axis=0), directions.T, variances, dtype)
    return replace(components, of_all_rows=len(numbers) == len(source))


def _svd(matrix: np.ndarray, most: int) -> Any:
    """The first singular vectors and values, by a randomised method (Halko, Martinsson and Tropp, 2011)."""
    from sklearn.utils.extmath import randomized_svd

    return randomized_svd(matrix, most, random_state=0)


def _described(
    mean: np.ndarray, variance: np.ndarray, directions: np.ndarray, variances: np.ndarray, dtype: DType
) -> PrincipalComponents:
    """Principal components without those that are rounding, and with signs that are the same everywhere."""
    least = float(np.finfo(dtype).tiny / np.finfo(dtype).eps)  # below, squares underflow in `dtype`
    rank = int((variances > max(RANK_TOLERANCE * variances[0], least)).sum())
    directions = directions[:, :rank]
    largest = np.abs(directions).argmax(axis=0)
    signs = np.sign(directions[largest, np.arange(rank)])
    return PrincipalComponents(mean, np.sqrt(np.maximum(variance, 0)), directions * signs, variances[:rank])


def start_at_pca(
    network: Network, components: PrincipalComponents, seed: int | np.random.Generator, dtype: DType
) -> Parameters:
    """Parameters at which the network reconstructs rows as PCA with as many components as code units does.

    Units carry principal components or, in layers of n units and more beyond the code, columns of the reconstruction,
    in a range in which the activation is nearly linear. Units that have nothing to carry get random weights, as
    ``Parameters.random`` draws them, and lead nowhere at first. A last layer of sigmoid units puts out g(4 (x - 1/2))
    instead of that reconstruction x, which is near x for x in [0, 1].
    """
    if network.activations[-1] not in ("identity", "sigmoid"):
        raise ValueError(f"PCA needs a last layer that is linear or sigmoid, got {network.activations[-1]!r}")
    params = Parameters.random(network, seed, dtype)
    n, last, kept = network.widths[0], network.n_layers, components.directions.shape[1]
    # Units of the layer below are offset + slope * (carried, times factor), where the first `kept` principal components
    # of z are carried or, `of_columns`, the columns of z - mean that they reconstruct
    of_columns, factor, slope = True, np.ones(n), 1.0
    offset = components.mean
    for layer in range(1, last + 1):
        width, used = network.widths[layer], offset.size
        mean, spread, value, next_slope = _RANGES[network.activations[layer - 1]]
        kept = min(kept, width)
        directions, below = components.directions[:, :kept], factor
        to_columns = layer == last or (layer > network.code_layer and width >= n)
        if to_columns:
            largest = components.deviation.max() if kept else 1.0
            factor = np.full(n, 1.0 if layer == last else spread / largest)
        else:
            factor = spread / np.sqrt(components.variances[:kept])
        block = np.zeros((used, factor.size), params.dtype)
        if of_columns == to_columns:
            np.fill_diagonal(block, factor / below[: factor.size])
        elif to_columns:
            block[:kept] = (directions * (factor[:, np.newaxis] / below[:kept])).T
        else:
            block[:] = directions * (factor / below[:, np.newaxis])
        block /= slope
        weights, bias = params[f"W{layer}"], np.zeros(width)
        weights[used:] = 0
        weights[:used, : factor.size] = block
        bias[: factor.size] = (components.mean if layer == last else mean) - offset @ block
        if layer == last and network.activations[-1] == "sigmoid":
            weights, bias = 4 * weights, 4 * (bias - 0.5)
        params[f"W{layer}"], params[f"b{layer}"] = weights, bias
        of_columns, slope, offset = to_columns, next_slope, np.full(factor.size, value)
    return params
