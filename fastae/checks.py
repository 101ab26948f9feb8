"""Checks of arguments: each returns an array that the kernels can read, or raises an error that names the argument."""

import os
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.kernels.job import DTYPE_IDS

REAL = "fiub"  # kinds of dtype that hold real numbers


def check_integer(value: Any, name: str) -> None:
    """Raise a TypeError unless `value` is an integer; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")


def check_count(value: int, name: str) -> None:
    """Raise a TypeError or ValueError unless `value` is an integer of at least 1."""
    check_integer(value, name)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_ordinal(value: int, name: str) -> None:
    """Raise a TypeError or ValueError unless `value`, the number of an epoch or of a row, is an integer from 0 on."""
    check_integer(value, name)
    if not 0 <= value < 1 << 62:
        raise ValueError(f"{name} must be at least 0 and less than 2^62, got {value}")


def check_number(value: Any, name: str) -> None:
    """Raise a TypeError unless `value` is a real number."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_flag(value: Any, name: str) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_seed(seed: int | np.random.Generator, most: int | None = None) -> None:
    """Raise a TypeError or ValueError unless `seed` is a Generator or an integer of at least 0 and at most `most`."""
    if isinstance(seed, np.random.Generator) and most is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer{' or a Generator' * (most is None)}, got {seed!r}")
    if seed < 0 or (most is not None and seed > most):
        raise ValueError(
            f"seed must be at least 0{'' if most is None else f' and at most {most}'}, got {seed}"
        )


def refuse_paths(X: Any, name: str) -> None:
    """Raise a TypeError if `X` is the name of a file, or several."""
    paths = X if isinstance(X, (list, tuple)) else [X]
    if paths and all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise TypeError(f"{name} is the name of a file: pass fastae.open_rows({X!r})")


def is_masked(X: Any) -> bool:
    """Whether `X` is a masked array. For others, this does not import ``numpy.ma``."""
    other = isinstance(X, np.ndarray) and type(X) is not np.ndarray
    return other and np.ma.isMaskedArray(X)


def check_matrix(
    X: npt.ArrayLike, columns: int, name: str, needed_by: str = "the network takes"
) -> np.ndarray:
    """`X` as an array (rows, columns) of a dtype that the kernels read; not copied if it is an array.

    A message says "X has 3 features, but the network takes 4"; `needed_by` are its words before the second number.
    """
    refuse_paths(X, name)
    if is_masked(X):
        raise TypeError(f"{name} is a masked array, but its mask would be ignored: fill it with NaN")
    if hasattr(X, "toarray"):
        raise TypeError(f"{name} is a sparse matrix, but dense rows are needed: pass {name}.toarray()")
    array = np.asarray(X)
    if array.ndim != 2:
        raise ValueError(f"{name} must be two-dimensional (rows, features), got {array.ndim} dimensions")
    if array.dtype not in DTYPE_IDS:
        raise TypeError(
            f"{name} has dtype {array.dtype}, but floats or integers of native byte order are needed"
        )
    if array.shape[0] == 0:
        raise ValueError(f"{name} has no rows")
    if array.shape[1] != columns:
        raise ValueError(f"{name} has {array.shape[1]} features, but {needed_by} {columns}")
    return array


def check_target(
    Y: npt.ArrayLike, X: np.ndarray, columns: int, name: str = "Y", needed_by: str = "the network puts out"
) -> np.ndarray:
    """`Y` as ``check_matrix`` returns it, with as many rows as `X`."""
    array = check_matrix(Y, columns, name, needed_by)
    if len(array) != len(X):
        raise ValueError(f"{name} has {len(array)} rows, but X has {len(X)}")
    return array


def check_real(dtype: "np.dtype[Any]", name: str) -> None:
    """Raise a TypeError unless arrays of this dtype hold real numbers."""
    if dtype.kind not in REAL:
        raise TypeError(f"{name} has dtype {dtype}, but real numbers are needed")


def refuse_target_scale(target_shift: Any, target_scale: Any) -> None:
    """Raise a ValueError if either is given, where there is no `Y` to be shifted and scaled."""
    if target_shift is not None or target_scale is not None:
        raise ValueError("target_shift and target_scale are of Y, which is not given")


def check_vector(value: npt.ArrayLike, size: int, name: str) -> np.ndarray:
    """`value` as a contiguous float64 array (size,)."""
    array = np.asarray(value)
    check_real(array.dtype, name)
    if array.shape != (size,):
        raise ValueError(f"{name} has shape {array.shape}, but ({size},) is needed")
    return np.ascontiguousarray(array, np.float64)


def check_finite_vector(value: npt.ArrayLike, size: int, name: str) -> np.ndarray:
    """`value` as ``check_vector`` returns it, without NaN and infinity."""
    vector = check_vector(value, size, name)
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    return vector


def check_weights(sample_weight: npt.ArrayLike, rows: int) -> np.ndarray:
    """`sample_weight` as a contiguous float64 array (rows,), finite and not negative."""
    weights = check_vector(sample_weight, rows, "sample_weight")
    if not (weights >= 0).all() or not np.isfinite(weights).all():
        raise ValueError("sample_weight must be finite and not negative")
    return weights


def in_units(weights: np.ndarray, index: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Weights of rows divided by a unit, so that those of the rows in `index` have a finite sum; and the unit.

    The unit is a power of two, and 1 for ordinary weights: quotients of weights keep their bits.
    """
    largest = (weights if index is None else weights[index]).max(initial=0.0)
    if not largest > 0:
        raise ValueError("sample_weight is zero in every row")
    if 2.0**-30 < largest < 2.0**30:
        return weights, 1.0
    unit = float(2.0 ** np.floor(np.log2(largest)))
    with np.errstate(over="ignore"):  # of rows that are not in `index`
        return weights / unit, unit


def check_index(index: npt.ArrayLike, rows: int, *, by_epoch: bool = False) -> npt.NDArray[np.int64]:
    """`index` as a contiguous int64 array: numbers of rows of a matrix that has `rows` rows.

    With `by_epoch`, it may be two-dimensional: one line of numbers for each epoch.
    """
    array = np.asarray(index)
    if array.size == 0:
        raise ValueError("index is empty")
    if array.ndim not in ((1, 2) if by_epoch else (1,)) or array.dtype.kind not in "iu":
        raise TypeError(
            f"index must be a one-dimensional array of integers, got {array.ndim}-d {array.dtype}"
        )
    # A copy, because another thread may change the caller's array during a call; line by line, as kernels read it
    array = np.array(array, np.int64, order="C")
    if array.min() < 0 or array.max() >= rows:
        raise ValueError(f"index must lie within 0 .. {rows - 1}, got {array.min()} .. {array.max()}")
    return array


def check_orders(orders: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    """`orders` itself: an order for each epoch, of numbers of rows of a matrix that has `rows` rows."""
    kind = getattr(orders, "dtype", None)
    if kind != np.int64:
        raise TypeError(f"orders must be an array of int64, got {kind or type(orders).__name__}")
    if orders.ndim != 2 or orders.size == 0 or not orders.flags.c_contiguous:
        raise ValueError(f"orders must be C-contiguous, of shape (epochs, rows), got shape {orders.shape}")
    if orders.min() < 0 or orders.max() >= rows:
        raise ValueError(f"orders must lie within 0 .. {rows - 1}, got {orders.min()} .. {orders.max()}")
    return orders


def check_out(
    out: Any, shape: tuple[int, ...], dtype: "np.dtype[Any]", inputs: dict[str, np.ndarray]
) -> None:
    """Raise an error unless the kernels may write results of this shape and dtype to `out` while they read `inputs`."""
    if not isinstance(out, np.ndarray) or is_masked(out):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"out has dtype {out.dtype}, but {dtype} is needed")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, but {shape} is needed")
    if not out.flags.c_contiguous or not out.flags.aligned:
        raise ValueError("out must be C-contiguous and aligned to its items")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    for name, array in inputs.items():
        if np.may_share_memory(out, array):
            raise ValueError(f"out and {name} overlap")
