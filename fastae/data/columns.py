"""Columns by name: which are kept, which are not numeric, and how two lists of names differ, in words."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


def kept_columns(columns: Sequence[str], drop: Sequence[str], name: str) -> list[str]:
    """The columns but those to drop; an error: one to drop is not there, or one kept has no name or is there twice."""
    missing = [column for column in drop if column not in columns]
    if missing:
        raise ValueError(f"{name} has no column {missing[0]!r} to drop")
    kept = [column for column in columns if column not in drop]
    if "" in kept:
        raise ValueError(
            f"{name}: column {columns.index('') + 1} has no name, like an index: leave it out by drop ''"
        )
    twice = [column for column, count in Counter(kept).items() if count > 1]
    if twice:
        raise ValueError(f"{name} has more than one column {twice[0]!r}")
    return kept


def index_columns(schema: Any) -> list[str]:
    """The columns of a pyarrow schema that are the index of the pandas frame it was made from."""
    made_by_pandas = getattr(schema, "pandas_metadata", None) or {}
    return [column for column in made_by_pandas.get("index_columns", ()) if isinstance(column, str)]


def refuse(columns: dict[str, str], name: str) -> None:
    """Raise a TypeError for columns that are not numeric; each is given with what it is instead."""
    if columns:
        listed = ", ".join(f"{column!r} ({kind})" for column, kind in columns.items())
        raise TypeError(f"{name}: not numeric: column{'s' * (len(columns) > 1)} {listed}")


def check_same_columns(columns: Sequence[str], wanted: Sequence[str], name: str, where: str) -> None:
    """Raise a ValueError unless both have the same columns, in whatever order."""
    difference = difference_of_names(columns, wanted)
    if difference and sorted(columns) != sorted(wanted):
        raise ValueError(f"{name} has other columns than {where}: {difference}")


def difference_of_names(names: Sequence[str], wanted: Sequence[str]) -> str:
    """In words, what `names` lack, have besides or have in another order than `wanted`; empty where they are equal."""
    if list(names) == list(wanted):
        return ""
    has, needs = set(names), set(wanted)
    lacking, besides = (
        [name for name in wanted if name not in has],
        [name for name in names if name not in needs],
    )
    said = [
        f"{what} {', '.join(map(repr, listed[:5]))}{', ...' if len(listed) > 5 else ''}"
        for what, listed in (("it lacks", lacking), ("it has besides", besides))
        if listed
    ]
    if not said:
        first = next(i for i, name in enumerate(names) if name != wanted[i])
        said = [f"column {first + 1} is {names[first]!r}, not {wanted[first]!r}"]
    return "; ".join(said)


def refuse_columns(frame: Any, name: str = "X") -> None:
    """Raise a TypeError that names the columns of a frame that are not numeric; anything else passes."""
    if isinstance(frame, np.ndarray) or not is_frame(frame):
        return
    import narwhals as nw

    table = nw.from_native(frame, eager_only=True, pass_through=True)
    if isinstance(table, nw.DataFrame):
        refuse_types(table, name)


def is_frame(source: Any) -> bool:
    """Whether it has named columns, as pandas, polars and pyarrow tables do."""
    return hasattr(source, "columns") or hasattr(source, "column_names")


def refuse_types(table: Any, name: str) -> None:
    """Raise a TypeError that names the columns of a narwhals DataFrame that are not numeric."""
    import narwhals as nw

    types = table.schema.items()
    refuse({name: str(kind) for name, kind in types if not (kind.is_numeric() or kind == nw.Boolean)}, name)
