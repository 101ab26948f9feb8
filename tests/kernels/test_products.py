"""What the contract of products says of every form, as far as it can be seen without computing a product."""

import numpy as np
import pytest

from fastae.kernels import bfloat16, gemm, products, rowlanes
from fastae.kernels.dense_layer import ROW_MULTIPLE

FORMS = {
    "column blocks": gemm.COLUMN_BLOCKS,
    "rows in lanes": rowlanes.ROW_LANES,
    "bfloat16": bfloat16.PAIRS,
}
WIDTHS = [(1, 1), (10, 3, 10), (16, 16, 16), (30, 8, 30, 30), (784, 64, 784, 784), (5000, 300, 5000)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_a_tile_is_whole_register_tiles_high(name, widths, dtype):
    form = FORMS[name]
    multiple, height = form.row_multiple(widths, dtype), form.height(widths, dtype)
    assert 0 < multiple <= height
    assert height % multiple == 0
    if name == "bfloat16":
        assert multiple % 2 == 0, "rows are stored in pairs"


def test_a_layer_alone_is_computed_in_the_multiple_of_any_network():
    for widths in WIDTHS:
        assert ROW_MULTIPLE % gemm.row_multiple(widths, "float32") == 0


@pytest.mark.parametrize("name", ["column blocks", "rows in lanes"])
def test_a_job_gets_0_for_the_functions_that_a_form_lacks(name):
    form = FORMS[name]
    addresses = products.addresses(form, np.dtype("float32"))
    assert len(addresses) == len(products.FUNCTIONS)
    for function in products.FUNCTIONS:
        assert (addresses[f"{function}_at"] == 0) == (getattr(form, function) is None)
