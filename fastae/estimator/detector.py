"""AutoencoderDetector: outliers are the rows that autoencoders reconstruct poorly, far from the rows they know."""

import os
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from fastae.checks import check_number, in_units
from fastae.data.row_source import RowSource
from fastae.estimator.alarms import false_discoveries_limited, percentile_of_repeated
from fastae.estimator.autoencoder import Autoencoder, goes_by_steps
from fastae.estimator.dask_methods import also_lazily
from fastae.estimator.ensemble_fit import EnsembleFit
from fastae.estimator.inputs import check, check_here, check_weight, in_partitions
from fastae.estimator.settings import suggests_names
from fastae.estimator.sklearn_types import OutlierMixin, available_if
from fastae.network import Parameters
from fastae.objective import Noise


def _has_several(model: "AutoencoderDetector") -> bool:
    """True, or an AttributeError that names `n_estimators`, as ``available_if`` expects."""
    several = model.n_estimators > 1 if not hasattr(model, "params_") else model._ensemble is not None
    if not several:
        raise AttributeError("p_values need out-of-bag errors, and so n_estimators of at least 2")
    return True


@suggests_names
@dataclass(eq=False, repr=False)
class AutoencoderDetector(OutlierMixin, EnsembleFit):
    """Flags outliers: rows that an ensemble of denoising autoencoders reconstructs poorly, far from the training rows.

    Each of `n_estimators` networks is trained on four fifths of the rows, with a part of the input set to 0. A row's
    error is the larger of (E D R)^(1/3) and M. E is the mean over the networks of the row's mean squared error over the
    features, each network's divided by what is typical of rows that it left out. D is the squared distance to the
    nearest of up to 4096 training rows, as the ensemble reconstructs them, divided by n. R, the remoteness, is the
    geometric mean, over 64 random groups of four of these rows, of the squared distance to the nearest of the group,
    divided by n. M is the squared Mahalanobis length of the residuals, by those of rows that networks left out: a
    relation between features that the training rows keep to counts much, however little it is broken. All are in the
    network's scale, so that all features count alike. The score is minus the error. docs/detection.md says how all this
    was chosen, and how well it works.

    With ``n_estimators=1``, there is one network, which is trained on all rows as ``Autoencoder`` is, and the error
    is its mean squared error over the features.

    Parameters and attributes that are not listed here are those of ``Autoencoder``; settings apply to each network.

    Parameters
    ----------
    contamination : float, default 0.1
        Share of rows to flag as outliers, in (0, 0.5]: of new rows like those of the training; for ``n_estimators=1``,
        of the training rows.
    n_estimators : int, default 15
        Number of networks. MPI needs 1.
    hidden_layer_sizes : int, sequence of int or "auto", default "auto"
        "auto": one layer of 2n units, 1024 at most; for ``n_estimators=1``, as for ``Autoencoder``.
    output_layer : bool or "auto", default "auto"
        "auto": True, except for several networks of "auto" widths.
    init : "pca", "random" or "auto", default "auto"
        "auto": "random", or "pca" for ``n_estimators=1``.
    noise : "gaussian", "mask", "swap", None or "auto", default "auto"
        "auto": "mask", or None for ``n_estimators=1``.
    noise_level : float or "auto", default "auto"
        "auto": 0.3 for the noise of "auto", otherwise 0.1.
    batch_size : int or "auto", default "auto"
        "auto": 200 for several networks.
    learning_rate_init : float or "auto", default "auto"
        "auto": 0.03 for several networks, or 0.01 for "sgd".
    max_iter : int or "auto", default "auto"
        Maximum number of epochs of each network. "auto", for several networks: as many as make up
        3000 min(1, 40 / n) steps, 200 at least. A network is trained on the rows of so many steps at most, drawn at
        random.
    dtype : "float32", "float64", "bfloat16" or None, default None
        None, for several networks: float32, unless `scale` is None or `solver` is "lbfgs".
    callback : callable or None, default None
        With several networks, it is called after each network is trained, not after each epoch; `number` of the
        ``Epoch`` counts networks. Where it returns True, no more networks are trained.

    Attributes
    ----------
    offset_ : float
        Threshold: rows that score below it are outliers.
    threshold_ : float
        The same in units of error: minus `offset_`.
    oob_scores_ : ndarray of shape (m,)
        Score of each training row by the networks that left it out; NaN where there is none. Only for several networks.
    params_ : Parameters
        Weights and biases; of several networks, those of the first.
    all_params_ : tuple of Parameters
        Those of all networks.
    error_over_mean_ : float or None
        As for ``Autoencoder``; for several networks, by out-of-bag errors.
    error_over_pca_ : float or None
        As for ``Autoencoder``; None for several networks.
    loss_curve_ : list of float
        Loss of each epoch; of several networks, the mean.
    """

    contamination: float = field(default=0.1, kw_only=True)
    n_estimators: int = field(default=15, kw_only=True)
    output_layer: bool | Literal["auto"] = field(default="auto", kw_only=True)  # type: ignore[assignment]
    init: Literal["pca", "random", "auto"] = field(default="auto", kw_only=True)  # type: ignore[assignment]
    noise: Noise | Literal["auto"] | None = field(default="auto", kw_only=True)  # type: ignore[assignment]
    noise_level: float | Literal["auto"] = field(default="auto", kw_only=True)  # type: ignore[assignment]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Autoencoder._parameter_constraints,
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        **{
            name: [*Autoencoder._parameter_constraints[name], StrOptions({"auto"})]
            for name in ("output_layer", "init", "noise", "noise_level")
        },
    }

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> Self:
        """Train on the rows of `X`, then set the threshold so that a share `contamination` of such rows is flagged.

        The threshold is that share's quantile of the out-of-bag errors, so that it holds for rows that were not trained
        on. Of the training rows themselves, ``predict`` flags fewer, and ``fit_predict`` that share. For
        ``n_estimators=1``, it is the quantile of the training rows' errors.

        After an error or Ctrl-C, the detector is what it was before the call, as for ``Autoencoder.fit``.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Training data, as for ``Autoencoder.fit``.
        y : None, optional
            Ignored.
        sample_weight : array-like of shape (m,), optional
            Weight of each row, as for ``Autoencoder.fit``; for the threshold, a row of weight 2 counts like two
            (weights with a mean below 1 are multiplied so that it is 1).
        X_val : array-like of shape (m', n) or Rows, optional
            Validation rows, as for ``Autoencoder.fit``.
        checkpoint : path, optional
            File from which an interrupted fit can resume, as for ``Autoencoder.fit``. Of several networks, it holds
            those that are trained, and `max_iter` must be the same.
        resume : bool, default False
            Resume from `checkpoint`, as for ``Autoencoder.fit``.

        Returns
        -------
        AutoencoderDetector
            The fitted estimator itself.

        Raises
        ------
        ValueError, OSError, DivergenceError
            As ``Autoencoder.fit``.
        """
        return super().fit(X, y, sample_weight, X_val=X_val, checkpoint=checkpoint, resume=resume)

    @property
    def threshold_(self) -> float:
        """The error above which a row is an outlier: minus `offset_`."""
        return -self.offset_

    @property
    def novelty(self) -> bool:
        """Scikit-learn's mark of detectors whose threshold is for rows that were not trained on."""
        return _has_several(self)

    @property
    def all_params_(self) -> tuple[Parameters, ...]:
        """The parameters of all networks."""
        return self._all_params

    def _error_of(self, rows: RowSource, whole: RowSource, weight: np.ndarray | None) -> float:
        """As for ``Autoencoder``; the threshold is set in the same pass over the rows."""
        errors, cells = whole.map_rows(self._model_for(whole)._errors_and_cells).T
        self._set_threshold(self.contamination, -(errors / cells), weight)
        of_rows = None if weight is None else in_units(rows.of_array(weight))[0]
        return float(np.average(rows.of_array(errors), weights=of_rows))

    @available_if(goes_by_steps)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on the rows of `X`, then set the threshold by their scores.

        Of several networks, each leaves out a fifth of these rows, anew in each call; out-of-bag errors are those of
        this call's rows. The rows that distances are measured from are drawn from those of all calls.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Training data of this epoch, as for ``Autoencoder.partial_fit``.
        y : None, optional
            Ignored.
        sample_weight : array-like of shape (m,), optional
            Weight of each row, as for ``fit``.

        Returns
        -------
        AutoencoderDetector
            The estimator itself.

        Raises
        ------
        AttributeError, ValueError, DivergenceError
            As ``Autoencoder.partial_fit``.
        """
        return super().partial_fit(X, y, sample_weight)

    def _partial_fit(self, X: Any, sample_weight: Any) -> None:
        if self.n_estimators > 1:
            self._partial_fit_ensemble(X, sample_weight)
            return
        if self._ensemble is not None:
            raise ValueError(
                f"n_estimators is 1, but the detector has {len(self._all_params)} networks: fit it anew"
            )
        X = in_partitions(X)  # here, so that a Dask collection is computed once
        super()._partial_fit(X, sample_weight)
        rows = check(self, X)
        self._set_threshold(self.contamination, self._scores_of(rows), check_weight(rows, sample_weight))

    def set_threshold(
        self,
        error: float | None = None,
        *,
        contamination: float | None = None,
        X: Any | None = None,
    ) -> Self:
        """Set the threshold anew: at a given error, or so that a given share of the rows of `X` is flagged.

        Parameters
        ----------
        error : float, optional
            Error above which a row is an outlier: minus a score.
        contamination : float, optional
            Share to flag, in (0, 0.5]: of the rows of `X`, or without `X`, of new rows, by the out-of-bag errors.
            Excludes `error`; for ``n_estimators=1``, needs `X`.
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame, optional
            Rows whose scores determine the threshold. Needs `contamination`.

        Returns
        -------
        AutoencoderDetector
            The estimator itself.

        Raises
        ------
        NotFittedError
            The detector has not been fitted.
        TypeError, ValueError
            An argument has the wrong type or is out of range, or the arguments do not go together.
        """
        check_is_fitted(self)
        if (error is None) == (contamination is None):
            wanted = "contamination with X" if self._ensemble is None else "contamination, with or without X"
            raise ValueError(f"set_threshold needs either error, or {wanted}")
        name, given = ("error", error) if contamination is None else ("contamination", contamination)
        if not isinstance(given, (int, float, np.number)):
            raise TypeError(f"{name} must be a number, got {given!r}")
        if error is not None:
            if not error >= 0 or X is not None:
                raise ValueError(f"error must not be negative, and cannot be combined with X, got {error!r}")
            self.offset_ = -float(error)
            return self
        if not 0 < given <= 0.5:
            raise ValueError(f"contamination must be in (0, 0.5], got {contamination!r}")
        if X is None and self._ensemble is None:
            raise ValueError("contamination needs X, because one network has no out-of-bag errors")
        if X is None:
            self.offset_ = -self._calibration().threshold(float(given))
            return self
        self._set_threshold(float(given), self._scores_of(check(self, X)))
        return self

    def _scores_of(self, rows: RowSource) -> np.ndarray:
        """``score_samples`` of rows anywhere."""
        return -rows.map_rows(self._model_for(rows)._detection_errors)

    def _set_threshold(
        self, contamination: float, scores: np.ndarray, weight: np.ndarray | None = None
    ) -> None:
        if weight is None:
            self.offset_ = float(np.percentile(scores, 100.0 * contamination))
        else:
            self.offset_ = percentile_of_repeated(scores, weight, contamination)

    @also_lazily
    def score_samples(self, X: Any) -> np.ndarray:
        """Score each row: minus its error, in the network's scale.

        Rows that were trained on have smaller errors than new rows; `oob_scores_` holds comparable ones.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.

        Returns
        -------
        ndarray of shape (m,), float64
            Scores, at most 0; the lower, the more unusual the row. For a Dask collection, a lazy Dask array.
        """
        return -check_here(self, X).map_rows(self._detection_errors)

    @available_if(_has_several)
    @also_lazily
    def p_values(self, X: Any) -> np.ndarray:
        """Compute for each row how rare such a large error is among rows like those of the training.

        The p-value is conformal: (1 + the number of out-of-bag errors that are as large) / (1 + m). A new row that is
        drawn as the training rows were has a p-value of at most p with a probability of about p.

        Parameters
        ----------
        X : array-like of shape (m', n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data, that were not trained on.

        Returns
        -------
        ndarray of shape (m',), float64
            P-values, in (0, 1]; 1 / (1 + m) at least. For a Dask collection, a lazy Dask array.

        Raises
        ------
        AttributeError
            There is one network: `n_estimators` is 1.
        """
        return self._calibration().p_values(check_here(self, X).map_rows(self._detection_errors))

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute ``score_samples(X) - offset_``.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.

        Returns
        -------
        ndarray of shape (m,), float64
            Negative for outliers.
        """
        check_is_fitted(self, "offset_")
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any, *, fdr: float | None = None) -> np.ndarray:
        """Flag each row as an outlier or not.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Rows in the scale of the data.
        fdr : float, optional
            Instead of comparing with the threshold, flag as many rows of `X` as possible so that at most this share of
            the flagged rows, in expectation, are ordinary rows: the procedure of Benjamini and Hochberg on
            ``p_values``, in (0, 1). Of m training rows, none is flagged where fewer than 1 / (fdr (1 + m)) of the rows
            of `X` stand out. Needs several networks.

        Returns
        -------
        ndarray of shape (m,), int
            -1 for outliers, 1 for all other rows.

        Raises
        ------
        TypeError, ValueError
            `fdr` is not a number in (0, 1), or `n_estimators` is 1.
        """
        if fdr is None:
            return np.where(self.decision_function(X) < 0, -1, 1)
        check_is_fitted(self)
        check_number(fdr, "fdr")
        if not 0 < fdr < 1:
            raise ValueError(f"fdr must be in (0, 1), got {fdr!r}")
        if self._ensemble is None:
            raise ValueError("fdr needs out-of-bag errors, and so n_estimators of at least 2")
        return np.where(false_discoveries_limited(np.asarray(self.p_values(X)), float(fdr)), -1, 1)

    def fit_predict(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Train on the rows of `X` and flag those of them that are outliers, by their out-of-bag scores.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame, Rows, or Dask array or DataFrame
            Training data, as for ``fit``.
        y : None, optional
            Ignored.
        fit_params : dict
            Other arguments of ``fit``.

        Returns
        -------
        ndarray of shape (m,), int
            -1 for outliers, 1 for all other rows.
        """
        self.fit(X, **fit_params)
        if self._ensemble is None:
            return self.predict(X)
        return np.where(self.oob_scores_ < self.offset_, -1, 1)

    def explain(self, X: Any, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Report which features cause each row's error, the worst first.

        Of several networks, the shares are those of (E D R)^(1/3) and those of M, each counted by its size. Of the
        former, a third is of the networks' squared residuals, a third of the squared distance to the nearest kept row,
        and a third of the distances that the remoteness is averaged over. A feature's share of M is what M would fall
        by if its residual were what the others lead to expect. All n shares of a row add up to 1.

        Parameters
        ----------
        X : array-like of shape (m, n), data frame or Rows
            Rows in the scale of the data.
        top : int, default 5
            Number of features to report per row; at most n are.

        Returns
        -------
        features : ndarray of shape (m, top)
            Names of the features where the model was fitted with names, otherwise their column numbers.
        shares : ndarray of shape (m, top), float64
            Each feature's share of the row's error, in [0, 1].

        Raises
        ------
        TypeError, ValueError
            `top` is not an integer of at least 1.
        """
        _, features, shares = self._explain(check_here(self, X), top)
        return features, shares
