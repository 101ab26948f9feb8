"""Columns: which are kept, which are not numeric, how two lists of names differ, and what makes a matrix."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastae.checks import REAL


@dataclass(frozen=True)
class Selection:
    """Which columns of a file to read.

    Attributes
    ----------
    drop : tuple of str
        Columns to leave out.
    keep : tuple of str
        Columns to carry along as they are. They are features only if `only` names them.
    only : sequence of str, or None
        The features of the model that the rows are for, in its order: all other columns are ignored. None: all columns
        are features.
    """

    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    only: Sequence[str] | None = None

    def choose(self, columns: Sequence[str] | None, width: int, name: str) -> "Chosen":
        """What to read of these columns, or of `width` columns without names; a ValueError if one is missing."""
        if columns is None:
            if self.keep:
                raise ValueError(f"{name} has no column names, and so no column {self.keep[0]!r}")
            return Chosen(list(range(width)), [], ())
        for column in self.keep:
            if column not in columns:
                raise ValueError(f"{name} has no column {column!r}")
            if list(columns).count(column) > 1:
                raise ValueError(f"{name} has more than one column {column!r}")
        ignored: tuple[str, ...] = ()
        if self.only is not None:
            check_named(self.only, [column for column in columns if column not in self.drop], name)
            unused = [column for column in columns if column not in (*self.only, *self.drop)]
            ignored = tuple(column for column in unused if column not in self.keep)
            kept_columns(columns, (*self.drop, *unused), name)
            features = list(self.only)  # in the model's order
        else:
            features = kept_columns(columns, (*self.drop, *self.keep), name)
        features_at, kept_at = (
            [columns.index(column) for column in names] for names in (features, self.keep)
        )
        return Chosen(features_at, kept_at, ignored)


def check_named(wanted: Sequence[str], columns: Sequence[str], name: str) -> None:
    """Raise a ValueError unless all of the model's features, `wanted`, are among the columns of a file."""
    if not set(wanted) <= set(columns):
        raise ValueError(
            f"{name} has other columns than the model was fitted with: {difference_of_names(columns, wanted)}"
        )


@dataclass(frozen=True)
class Chosen:
    """Columns to read, by their places in the file, and the names of those that the model does not know."""

    features: list[int]
    kept: list[int]
    ignored: tuple[str, ...]


def kept_columns(columns: Sequence[str], drop: Sequence[str], name: str) -> list[str]:
    """The columns without those in `drop`; a ValueError if one is missing, or a kept one has no unique name."""
    missing = [column for column in drop if column not in columns]
    if missing:
        raise ValueError(f"{name} has no column {missing[0]!r} to drop")
    kept = [column for column in columns if column not in drop]
    if "" in kept:
        raise ValueError(
            f"{name}: column {columns.index('') + 1} has no name, like an index: drop '' to leave it out"
        )
    twice = [column for column, count in Counter(kept).items() if count > 1]
    if twice:
        raise ValueError(f"{name} has more than one column {twice[0]!r}")
    return kept


def index_columns(schema: Any) -> list[str]:
    """The columns of a pyarrow schema that hold the index of the pandas frame it was made from."""
    pandas_metadata = getattr(schema, "pandas_metadata", None) or {}
    return [column for column in pandas_metadata.get("index_columns", ()) if isinstance(column, str)]


def refuse(columns: dict[str, str], name: str) -> None:
    """Raise a TypeError if there are columns that are not numeric; `columns` maps them to the type they have."""
    if columns:
        listed = ", ".join(f"{column!r} ({kind})" for column, kind in columns.items())
        raise TypeError(f"{name}: not numeric: column{'s' * (len(columns) > 1)} {listed}")


def check_same_columns(columns: Sequence[str], wanted: Sequence[str], name: str, where: str) -> None:
    """Raise a ValueError unless both have the same columns, in any order."""
    difference = difference_of_names(columns, wanted)
    if difference and sorted(columns) != sorted(wanted):
        raise ValueError(f"{name} has other columns than {where}: {difference}")


def difference_of_names(names: Sequence[str], wanted: Sequence[str]) -> str:
    """How `names` differ from `wanted`, in words: missing, unexpected or in another order; empty if they are equal."""
    if list(names) == list(wanted):
        return ""
    has, needs = set(names), set(wanted)
    missing = [name for name in wanted if name not in has]
    unexpected = [name for name in names if name not in needs]
    differences = [
        f"{what} column{'s' * (len(listed) > 1)} {', '.join(map(repr, listed[:5]))}{', ...' * (len(listed) > 5)}"
        for what, listed in (("missing", missing), ("unexpected", unexpected))
        if listed
    ]
    if not differences:
        first = next(i for i, name in enumerate(names) if name != wanted[i])
        differences = [f"column {first + 1} is {names[first]!r}, not {wanted[first]!r}"]
    return "; ".join(differences)


def refuse_columns(frame: Any, name: str = "X") -> None:
    """Raise a TypeError that names the columns of a frame that are not numeric; anything else passes."""
    if isinstance(frame, np.ndarray) or not is_frame(frame):
        return
    import narwhals as nw

    table = nw.from_native(frame, eager_only=True, pass_through=True)
    if isinstance(table, nw.DataFrame):
        refuse_types(table, name)


def is_frame(source: Any) -> bool:
    """Whether `source` has columns, as pandas, polars and pyarrow tables do."""
    return hasattr(source, "columns") or hasattr(source, "column_names")


def refuse_types(table: Any, name: str) -> None:
    """Raise a TypeError that names the columns of a narwhals DataFrame that are not numeric."""
    import narwhals as nw

    refused = {}
    for (column, kind), cells in zip(table.schema.items(), table.iter_columns(), strict=True):
        if not (kind.is_numeric() or kind == nw.Boolean):
            native = getattr(cells.to_native(), "dtype", kind)  # such as pandas' Sparse[float64, 0]
            refused[column] = str(native if kind == nw.Unknown else kind)
    refuse(refused, name)


def matrix_shape(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """`shape`, if it is that of a matrix with columns; else a ValueError."""
    if len(shape) != 2:
        raise ValueError(f"{name} must be two-dimensional (rows, features), got shape {shape}")
    if shape[1] == 0:
        raise ValueError(f"{name} has no columns")
    return shape[0], shape[1]


def numeric(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The dtype in native byte order, if the engine can read such numbers; else a TypeError."""
    if dtype.kind not in REAL or dtype.itemsize > 8:
        raise TypeError(f"{name} has dtype {dtype}, but floats, integers or bools are needed")
    return dtype.newbyteorder("=")
