"""What a release uploads: an sdist that is the checkout, a wheel of packages only, and facts that agree."""

import datetime
import re
import shutil
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from processes import run

import fastae

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOME = PROJECT["urls"]["Homepage"]
JUNK = shutil.ignore_patterns(
    *(
        "__pycache__",
        ".git",
        ".*cache",
        ".hypothesis",
        ".benchmarks",
        ".venv",
        "*.egg-info",
        "build",
        "dist",
        "site",
    )
)


def built(kind, source, place):
    """The path of the sdist or wheel that setuptools makes of `source`."""
    pytest.importorskip("setuptools", minversion="77")
    script = f"import setuptools.build_meta as backend; backend.build_{kind}({str(place)!r})"
    done = run([sys.executable, "-c", script], cwd=source)
    assert done.returncode == 0, done.stderr
    (path,) = place.glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[kind])
    return path


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder that the sdist contains."""
    place = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, place / "checkout", symlinks=True, ignore=JUNK)
    with tarfile.open(built("sdist", place / "checkout", place)) as archive:
        archive.extractall(place, filter="data")
    (folder,) = place.glob("fastae-*/")
    return folder


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of the checkout's files")
def test_the_sdist_holds_every_file_of_the_checkout(unpacked):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    names = run(["git", "-c", "safe.directory=*", "-C", ROOT, "ls-files"]).stdout.splitlines()
    assert len(names) > 200
    missing = [name for name in names if not (unpacked / name).exists()]
    assert missing == []


def test_the_sdist_has_copies_in_place_of_links(unpacked):
    """So that its tests, and those that they start there, import fastae.kernels from it."""
    for name in ("kernels", "bench"):
        assert (unpacked / "fastae" / name / "__init__.py").read_bytes() == (
            unpacked / name / "__init__.py"
        ).read_bytes()
    assert not list(unpacked.rglob("*.py[co]"))


def test_the_wheel_holds_packages_and_no_tests(unpacked, tmp_path):
    with zipfile.ZipFile(built("wheel", unpacked, tmp_path)) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fastae", f"fastae-{fastae.__version__}.dist-info"}
    assert {"fastae/py.typed", "fastae/bench/baseline.json", "fastae/kernels/step.py"} <= set(names)
    assert not [name for name in names if re.search(r"conftest|/test_|/bench_|/suite/", name)]
    packaged = {name for name in names if name.startswith("fastae/") and name.endswith(".py")}
    modules = {
        Path("fastae", path.relative_to(ROOT / folder)).as_posix().replace("fastae/", prefix, 1)
        for folder, prefix in (
            ("fastae", "fastae/"),
            ("kernels", "fastae/kernels/"),
            ("bench", "fastae/bench/"),
        )
        for path in (ROOT / folder).rglob("*.py")
    }
    assert packaged == {name for name in modules if "/suite/" not in name}


def test_version_and_dates_agree():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", changes, re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    version, date = heads[1]
    assert version == fastae.__version__
    dates = [datetime.date.fromisoformat(date) for _, date in heads[1:]]
    assert dates == sorted(dates, reverse=True)
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date}\n" in citation
    for name, _ in heads:
        assert f"\n[{name}]: {HOME}/" in changes


def test_links_of_the_readme_work_on_other_sites():
    """PyPI shows README.md without the files beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = dict(re.findall(r"^\[(.+?)\]: (\S+)$", text, re.MULTILINE))
    assert len(targets) > 5
    assert not re.findall(r"\]\((?!https://)", text)
    used = set(re.findall(r"\]\[(.+?)\]", text))
    assert used == set(targets)
    for target in targets.values():
        pages, pictures = (
            f"{HOME}/blob/main/",
            HOME.replace("github.com", "raw.githubusercontent.com") + "/main/",
        )
        assert target.startswith(pictures if target.endswith(".png") else pages), target


def test_the_hosted_tests_run_on_every_python_and_system_that_is_promised():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    promised = [text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)]
    assert matrix["python"] == [f"3.{minor}" for minor in promised]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    systems = {re.match("[a-z]+", name)[0] for name in matrix["os"]}
    assert systems == {"ubuntu", "macos", "windows"}
    assert any("arm" in name for name in matrix["os"])
    commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines():
        if line.split(" ")[0] in ("ruff", "mypy", "mkdocs"):
            assert any(command.startswith(line.split(" --site-dir")[0]) for command in commands), line
