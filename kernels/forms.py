"""The forms of products that there are, and the choice among them. What a form promises is in products.py.

amx.AMX is listed, imported and compiled only where AMX may be used: ``forms_of`` adds it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.kernels import fork
from fastae.kernels.bfloat16 import BFLOAT16
from fastae.kernels.gemm import COLUMN_BLOCKS
from fastae.kernels.products import Form, Widths
from fastae.kernels.rowlanes import ROW_LANES
from fastae.kernels.target import TARGET

FORMS = COLUMN_BLOCKS, ROW_LANES, BFLOAT16


def forms_of(dtype: str) -> list[Form]:
    """The forms of an engine's dtype. The first of them supports every job."""
    found = [form for form in FORMS if dtype in form.dtypes and form.available]
    if dtype == "bfloat16" and TARGET.amx:
        with fork.importing:
            from fastae.kernels import tile_unit

            if tile_unit.granted():
                from fastae.kernels.amx import AMX

                found.append(AMX)
    return found


def choose_for_inference(forms: list[Form], widths: Widths, rows: int, dtype: np.dtype[Any]) -> Form:
    """The form, of ``forms_of`` a dtype, in which `rows` rows pass fastest through the layers between `widths`."""
    return next((form for form in forms[1:] if form.pays_in_inference(widths, rows, dtype)), forms[0])


def choose(
    forms: list[Form],
    widths: Widths,
    batch: int,
    n_parameters: int,
    dtype: npt.DTypeLike,
    *,
    linear: bool,
    codes: bool,
) -> Form:
    """The form, of ``forms_of`` a dtype, in which steps on `batch` rows are fastest, of those that support them.

    `linear`: the last layer is linear. `codes`: the code has a delta of its own. Flat buffers are (n_parameters,).
    """
    for form in forms[1:]:
        if form.supports(linear=linear, codes=codes) and form.pays(
            widths, batch, n_parameters, np.dtype(dtype)
        ):
            return form
    return forms[0]
