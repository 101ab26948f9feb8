"""Numbers of rows, columns and bytes, rounded up to whole blocks: for jitted functions, and for Python."""

from fastae.kernels.compiler import callee


@callee
def round_up(count, multiple):  # type: ignore[no-untyped-def]
    """The least multiple that is not below `count`."""
    return (count + multiple - 1) // multiple * multiple


@callee
def in_blocks(columns, lanes):  # type: ignore[no-untyped-def]
    """The number of blocks, of `lanes` columns each, that hold `columns` columns."""
    return (columns + lanes - 1) // lanes
