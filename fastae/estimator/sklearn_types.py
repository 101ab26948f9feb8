"""The parts of scikit-learn that the estimators are built from, with types: scikit-learn itself has none.

Without them a type checker sees every estimator as Any, and accepts any argument. At run time these names are
scikit-learn's own.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "BaseEstimator",
    "CallbackSupportMixin",
    "ClassNamePrefixFeaturesOutMixin",
    "OutlierMixin",
    "TransformerMixin",
    "available_if",
    "fit_context",
    "with_callbacks",
]

if TYPE_CHECKING:
    _Method = TypeVar("_Method", bound=Callable[..., Any])

    class BaseEstimator:
        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...
        def get_metadata_routing(self) -> Any: ...
        def __getstate__(self) -> dict[str, Any]: ...
        def __sklearn_tags__(self) -> Any: ...

    class TransformerMixin:
        def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray: ...
        def set_output(self, *, transform: str | None = None) -> Self: ...

    class ClassNamePrefixFeaturesOutMixin:
        def get_feature_names_out(self, input_features: npt.ArrayLike | None = None) -> np.ndarray: ...

    class OutlierMixin:
        def fit_predict(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray: ...

    class CallbackSupportMixin:
        def set_callbacks(self, *callbacks: Any) -> Self: ...

    def available_if(check: Callable[[Any], bool]) -> Callable[[_Method], _Method]: ...
    def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[_Method], _Method]: ...
    def with_callbacks(method: _Method) -> _Method: ...
else:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        OutlierMixin,
        TransformerMixin,
    )
    from sklearn.base import _fit_context as fit_context
    from sklearn.utils.metaestimators import available_if

    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:  # before scikit-learn 1.9

        class CallbackSupportMixin:
            """Stands in where scikit-learn has no callbacks."""

        def with_callbacks(method):
            """Stands in where scikit-learn has no callbacks."""
            return method
