"""pyarrow's arrays to and from NumPy: as pyarrow itself converts them, but without pandas."""

import numpy as np
import pyarrow
import pytest
from processes import run_python

from fastae.data.arrow import arrow, floats


@pytest.mark.parametrize("kind", [pyarrow.float32(), pyarrow.float64()])
@pytest.mark.parametrize("values", [[], [1.5], [1.0, None, -2.0, float("nan"), None] * 9, [None] * 20])
@pytest.mark.parametrize("start", [0, 3, 11])
def test_floats_are_pyarrows_own_with_nan_for_null(kind, values, start):
    array = pyarrow.array(values, kind)[start:]
    wanted = array.to_numpy(zero_copy_only=False)
    assert floats(array).dtype == kind.to_pandas_dtype()
    np.testing.assert_array_equal(floats(array), wanted)


@pytest.mark.parametrize(
    "column",
    [
        np.array([True, False, True] * 7),
        np.arange(5, dtype=np.int64),
        np.array([1.5, np.nan, -np.inf]),
        np.arange(12, dtype="f4").reshape(6, 2)[:, 1],
        np.array(["width", "", "größe", "幅"], object),
        np.array([], object),
        np.zeros(0),
    ],
    ids=lambda column: f"{column.dtype}-{len(column)}",
)
def test_columns_are_pyarrows_own(column):
    wanted = (
        pyarrow.array(column.tolist(), pyarrow.string()) if column.dtype == object else pyarrow.array(column)
    )
    made = arrow(column)
    made.validate(full=True)
    assert made.type == wanted.type
    assert made.equals(wanted) or np.isnan(column).any()
    np.testing.assert_array_equal(made.to_pylist(), wanted.to_pylist())


def test_neither_imports_pandas():
    out = run_python(
        """
        import sys, numpy as np, pyarrow
        from fastae.data.arrow import arrow, floats
        floats(pyarrow.nulls(2, pyarrow.float64()))
        floats(arrow(np.ones(2)))
        pyarrow.table({"a": arrow(np.ones(2)), "b": arrow(np.array(["x", "y"], object))})
        print("pandas" in sys.modules)
        """
    )
    assert out.strip() == "False"
