"""The README's code runs as it stands, and its commands are those that the checks run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_block_runs(block, capsys):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def test_there_are_code_blocks_and_both_commands():
    assert len(BLOCKS) >= 2
    assert "pip install . && fastae demo\n" in README
    assert 'pip install -e ".[test]" && pytest\n' in README
    assert 'pip install -e ".[test]" && pytest\n' in (ROOT / ".ci" / "run").read_text()
