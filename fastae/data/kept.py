"""Kept columns: those that are carried along with the rows, as pyarrow tables.

Those of CSV are text, so that CSV that is written from them has the same cells; other formats get them as numbers.
"""

from collections.abc import Sequence
from typing import Any

_NUMBER = (
    r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$"  # not 007 or +1, which are no numbers to their owner
)
_FROM_CSV = {b"fastae": b"text of CSV"}


def kept_text(names: Sequence[str]) -> Any:
    """The schema of a table of these columns from CSV."""
    import pyarrow

    return pyarrow.schema([pyarrow.field(name, pyarrow.string(), metadata=_FROM_CSV) for name in names])


def joined_tables(tables: Sequence[Any]) -> Any:
    """Kept columns of several files, one after another; as text where their types differ. None if there are none."""
    if not tables:
        return None
    import pyarrow

    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException:
        schema = kept_text(tables[0].column_names)
        return pyarrow.concat_tables([table.select(schema.names).cast(schema) for table in tables])


def typed(table: Any) -> Any:
    """The table with columns of CSV as integers or floats where all cells are such, or empty."""
    import pyarrow
    from pyarrow import compute

    for place, field in enumerate(table.schema):
        if field.metadata != _FROM_CSV:
            continue
        cells = table[place]
        cells = compute.if_else(compute.equal(cells, ""), pyarrow.scalar(None, pyarrow.string()), cells)
        is_number = compute.match_substring_regex(cells, _NUMBER)
        if cells.null_count == len(cells) or not compute.all(is_number).as_py():
            continue
        for kind in (pyarrow.int64(), pyarrow.float64()):
            try:
                table = table.set_column(place, field.name, compute.cast(cells, kind))
                break
            except pyarrow.ArrowInvalid:  # a point, or beyond 64 bits
                pass
    return table
