"""The code of README.md and docs/ runs as it stands and prints what they say; the commands are those of the checks."""

import re

import pytest
from pages import FENCE, PAGES, ROOT, blocks, run, says

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = r"https://(?:raw\.githubusercontent|github)\.com/fastae/fastae"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    if any("plots" in block.code for block in blocks(page)):
        pytest.importorskip("matplotlib")
    assert run(page) >= sum(block.needs is None for block in blocks(page))
    for picture in tmp_path.glob("*.png"):  # what a page draws, it shows
        assert f"images/{picture.name}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_python_is_kept_from_running(page):
    text = page.read_text(encoding="utf-8")
    openings = FENCE.findall(text)[::2]
    assert set(openings) <= {"python", "sh", "text", ""}
    assert openings.count("python") == sum(not block.shell for block in blocks(page))
    assert text.count("<!-- runs -->") == sum(block.shell for block in blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_pages_linked_to_exist(page):
    for target in links(page):
        assert (page.parent / target).exists(), target


def links(page):
    """The files that a page links to or shows; of absolute links, those into the project (README.md has only such)."""
    text = re.sub(rf"{PROJECT}\S*?/main/", "", page.read_text(encoding="utf-8"))
    return re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(
        r"^\[.+?\]: ([^\s#:]+)", text, re.MULTILINE
    )


def test_a_page_that_says_something_else_fails(tmp_path):
    page = tmp_path / "page.md"
    text = "```python\na = 2\n```\n\n<!-- needs: nothing_of_this_name -->\n```python\na = 3\n```\n\n"
    page.write_text(f"{text}```python\nprint('a is', a)\n```\n\n```text\na is 2\n```\n")
    assert run(page) == 2
    page.write_text(page.read_text(encoding="utf-8").replace("a is 2", "a is 4"))
    with pytest.raises(AssertionError, match=r"page.md:10: this block prints\na is 2\n\nand not\na is 4"):
        run(page)


def test_a_page_whose_command_fails_or_says_something_else_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\nnot run\n```\n\n<!-- runs -->\n```sh\nfastae --version\n```\n")
    assert run(page) == 1
    page.write_text(page.read_text(encoding="utf-8").replace("--version", "--versoin"))
    with pytest.raises(AssertionError, match=r"page.md:6: exit status 2"):
        run(page)
    page.write_text("<!-- runs -->\n```sh\necho a is 4\n```\n\n```text\na is 2\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:2: this block prints\na is 4\n\nand not\na is 2"):
        run(page)


def test_numbers_are_compared_to_the_last_digit():
    assert says("a  0.1234\nb", "a 0.12\nb")
    assert says("0.119", "0.12")
    assert not says("0.10", "0.12")
    assert not says("a 1", "b 1")
    assert not says("1 2", "1")
    assert says("[-0.  1.5e-10]", "[0. 1.6e-10]")


def test_there_are_code_blocks_links_and_both_commands():
    assert len(blocks(ROOT / "README.md")) >= 2
    assert any(target.endswith(".md") for target in links(ROOT / "README.md"))
    assert any(target.endswith(".png") for page in PAGES for target in links(page))
    assert "pip install . && fastae demo\n" in README
    assert 'pip install -e ".[test]" && pytest -n 2\n' in README
    assert 'pip install -e ".[test]"\npytest -n 2\n' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
