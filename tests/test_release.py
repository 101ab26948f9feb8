"""What a release uploads: an sdist that is the checkout, a wheel of packages only, and facts that agree."""

import datetime
import os
import re
import shutil
import sys
import tarfile
import textwrap
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
        "objects",
        "dist",
        "site",
    )
)


def built(kind, source, place, *, kernels=False, **environment):
    """The path of the sdist or wheel that setuptools makes of `source`, and what it printed."""
    pytest.importorskip("setuptools", minversion="77")
    script = f"import setuptools.build_meta as backend; backend.build_{kind}({str(place)!r})"
    env = {**os.environ, **environment} if kernels else {**os.environ, "FASTAE_BUILD_KERNELS": "0"}
    done = run([sys.executable, "-c", script], cwd=source, env=env, timeout=1200)
    assert done.returncode == 0, done.stderr
    (path,) = place.glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[kind])
    return path, done.stderr


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder that the sdist contains."""
    place = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, place / "checkout", symlinks=True, ignore=JUNK)
    path, _ = built("sdist", place / "checkout", place)
    with tarfile.open(path) as archive:
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
    path, _ = built("wheel", unpacked, tmp_path)
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as wheel:
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


def test_where_kernels_cannot_be_compiled_the_wheel_has_none(unpacked, tmp_path):
    source = shutil.copytree(unpacked, tmp_path / "source", ignore=shutil.ignore_patterns("build"))
    for folder in ("kernels", "fastae/kernels"):
        (source / folder / "build.py").write_text("raise RuntimeError('LLVM is out of order')\n")
    path, printed = built("wheel", source, tmp_path, kernels=True)
    assert path.name.endswith("-py3-none-any.whl")
    assert (
        "fastae: kernels were not compiled, and will be at first use: RuntimeError: LLVM is out of order"
        in printed
    )
    with zipfile.ZipFile(path) as wheel:
        assert "fastae/kernels/build.py" in wheel.namelist()
        assert not [name for name in wheel.namelist() if "objects" in name]


def test_kernels_are_compiled_with_the_packages_that_pip_installs_for_the_build_alone(unpacked, tmp_path):
    """Pip puts them on the path of modules, by PYTHONPATH, and not where the interpreter's own packages are."""
    source = shutil.copytree(unpacked, tmp_path / "source", ignore=shutil.ignore_patterns("build"))
    for folder in ("kernels", "fastae/kernels"):
        (source / folder / "build.py").write_text(
            "import pathlib, for_the_build_alone\n"
            "pathlib.Path('fastae/kernels/objects').mkdir()\n"
            "pathlib.Path('fastae/kernels/objects/isa.group').write_text('compiled')\n"
        )
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "for_the_build_alone.py").touch()
    path, printed = built("wheel", source, tmp_path, kernels=True, PYTHONPATH=str(tmp_path / "overlay"))
    with zipfile.ZipFile(path) as wheel:
        assert "fastae/kernels/objects/isa.group" in wheel.namelist(), printed
    assert not path.name.endswith("-any.whl")
    (tmp_path / "second").mkdir()
    path, _ = built("wheel", source, tmp_path / "second")
    assert path.name.endswith("-any.whl"), "a wheel that shall have no kernels has those of an earlier build"


@pytest.mark.exhaustive
def test_a_wheel_with_kernels_needs_no_compiler_and_its_objects_are_reproducible(unpacked, tmp_path):
    """Objects are the same bytes from another copy of the sources, by `python -m fastae.kernels.build`."""
    path, _ = built("wheel", unpacked, tmp_path, kernels=True)
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", path.name)
    assert path.stat().st_size < 4_000_000
    home = tmp_path / "installed"
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(home)
    assert not list(home.rglob("__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    code = """
        import sys, numpy as np, fastae
        for dtype in ("float32", "float64"):
            network = fastae.Network.autoencoder(30, 8)
            params = fastae.Parameters.random(network, dtype=dtype)
            fastae.Engine(network, dtype=dtype).loss_and_gradient(params, np.ones((99, 30)))
        print(fastae.__file__, "numba" in sys.modules)
    """
    done = run([sys.executable, "-c", textwrap.dedent(code)], env=env, cwd=home)
    assert done.stdout.split() == [str(home / "fastae" / "__init__.py"), "False"], done.stderr
    again = tmp_path / "again"
    command = [sys.executable, "-m", "fastae.kernels.build", again]
    done = run(command, env={**env, "PYTHONPATH": str(unpacked)}, cwd=unpacked, timeout=1200)
    assert done.returncode == 0, done.stderr
    objects = home / "fastae" / "kernels" / "objects"
    assert sorted(file.name for file in again.iterdir()) == sorted(file.name for file in objects.iterdir())
    for file in again.iterdir():
        assert file.read_bytes() == (objects / file.name).read_bytes(), file.name


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
