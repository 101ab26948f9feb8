"""The code of README.md and docs/ runs as it stands and prints what they say; the commands are those that checks run."""

import re

import pytest
from pages import FENCE, PAGES, ROOT, blocks, run, says

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    if any("plots" in block.code for block in blocks(page)):
        pytest.importorskip("matplotlib")
    assert run(page) == len([block for block in blocks(page) if block.needs is None]) or any(
        block.needs for block in blocks(page)
    )
    for picture in tmp_path.glob("*.png"):  # what a page draws, it shows
        assert f"images/{picture.name}" in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_python_is_kept_from_running(page):
    text = page.read_text()
    openings = FENCE.findall(text)[::2]
    assert set(openings) <= {"python", "sh", "text", ""}
    assert openings.count("python") == len(blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_pages_linked_to_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_numbers_are_compared_to_the_last_digit():
    assert says("a  0.1234\nb", "a 0.12\nb")
    assert says("0.119", "0.12")
    assert not says("0.10", "0.12")
    assert not says("a 1", "b 1")
    assert not says("1 2", "1")
    assert says("[-0.  1.5e-10]", "[0. 1.6e-10]")


def test_there_are_code_blocks_and_both_commands():
    assert len(blocks(ROOT / "README.md")) >= 2
    assert "pip install . && fastae demo\n" in README
    assert 'pip install -e ".[test]" && pytest\n' in README
    assert 'pip install -e ".[test]" && pytest\n' in (ROOT / ".ci" / "run").read_text()
