"""Today's ratios against the stored ones: ``pytest bench -m baseline``, minutes on an idle machine."""

import pytest

from fastae.bench import baseline
from fastae.bench.cases import CASES


@pytest.mark.baseline
def test_no_ratio_fell():
    fallen = baseline.check(CASES)
    if fallen is None:
        pytest.skip(f"no baseline for {baseline.key()}")
    assert not fallen
