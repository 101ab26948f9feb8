"""The import graph of fastae: a module imports only what the map in fastae/__init__.py lists before it; no cycle."""

import ast
import graphlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from processes import run

import fastae

ROOT = Path(fastae.__file__).parent
LAYERS = (
    {"kernels", "_moved"},
    {"storage", "checks"},
    {"reference"},
    {"network", "objective", "optimizers"},
    {"engine"},
    {"gradient_check"},
    {"data"},
    {"training"},
    {"distributed"},
    {"estimator"},
    {"plots", "bench"},
    {"cli", "__main__"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
ALLOWED = {"fastae"}  # the package itself holds __version__ and loads the rest on demand
HOMES = {
    f"fastae.{name}": home for name, home in fastae._HOME.items()
}  # module of each name loaded on demand


def modules(root=ROOT):
    """Path of every module below `root`, by name, including kernels and bench, which may be links."""
    paths = {}
    for folder, _, files in os.walk(root, followlinks=True):
        for path in (Path(folder, file) for file in files if file.endswith(".py")):
            parts = path.relative_to(root).with_suffix("").parts
            paths[".".join(("fastae", *parts)).removesuffix(".__init__")] = path
    return paths


def imports(source, names):
    """The modules out of `names` that a module imports, also inside functions, but not for type checkers alone."""
    imported = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.orelse:
                visit(statement)
            return
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                imported.add(path if path in names else HOMES.get(path, node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return {name for name in imported if name in names} - ALLOWED


def graph():
    paths = modules()
    return {name: imports(path.read_text(encoding="utf-8"), paths) for name, path in paths.items()}


def from_later_layers(edges):
    """The imports from a layer that is listed after the module's own."""
    return [
        (name, imported)
        for name, imported_names in edges.items()
        for imported in sorted(imported_names)
        if name != "fastae" and LAYER[imported.split(".")[1]] > LAYER[name.split(".")[1]]
    ]


def test_every_module_has_a_layer():
    assert {name.split(".")[1] for name in modules() if "." in name} <= set(LAYER)


def test_the_map_of_the_package_lists_the_layers_in_this_order():
    lines = [line for line in fastae.__doc__.splitlines() if line.startswith("    ")]
    listed = [re.findall(r"(\w+)(?:\.py|/)", re.split(r" {3,}", line.strip())[0]) for line in lines]
    assert [set(names) for names in listed] == [names - {"_moved"} for names in LAYERS]


@pytest.mark.parametrize("package", [name for name, path in modules().items() if path.stem == "__init__"])
def test_the_map_of_a_package_lists_its_files(package):
    path = modules()[package]
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    files = {file.name for file in path.parent.glob("*.py")} - {"__init__.py"}
    assert files - set(re.findall(r"\w+\.py\b", text)) == set(), "not in the map"
    assert set(re.findall(r"^ *(\w+\.py)\b", text, re.MULTILINE)) - files == set(), "no such file"


def test_what_dir_lists_is_there_and_is_of_the_package():
    listed = {"__version__", "estimator", "distributed", "objective", *fastae._HOME, *fastae._MODULES}
    assert set(dir(fastae)) == listed
    assert all(hasattr(fastae, name) for name in listed)


def test_no_module_imports_from_a_later_layer():
    assert from_later_layers(graph()) == []


def test_no_import_is_part_of_a_cycle():
    edges = graph()
    assert len(edges) > 100
    graphlib.TopologicalSorter(edges).prepare()  # a CycleError names the modules


def test_kernels_import_nothing_but_kernels():
    kernels = {name: imported for name, imported in graph().items() if name.startswith("fastae.kernels")}
    assert len(kernels) > 20
    for name, imported in kernels.items():
        assert {other.split(".")[1] for other in imported} <= {"kernels"}, name


def test_a_checkout_with_files_in_place_of_links_says_what_to_do(tmp_path):
    """As git makes it on Windows unless core.symlinks is set."""
    shutil.copytree(ROOT, tmp_path / "fastae", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kernels", "bench"):
        (tmp_path / "fastae" / name).unlink()
        (tmp_path / "fastae" / name).write_text(f"../{name}")
    command = [sys.executable, "-c", "import fastae"]
    done = run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "git config --global core.symlinks true" in done.stderr


def test_an_import_from_a_later_layer_and_a_cycle_would_be_seen():
    names = {"fastae.data.open", "fastae.training.loop", "fastae.engine.engine", "fastae.estimator"}
    source = """
from typing import TYPE_CHECKING
from fastae import __version__, Autoencoder
from fastae.engine import engine
if TYPE_CHECKING:
    from fastae.distributed import mpi
def load():
    from fastae.training.loop import descend
"""
    imported = imports(source, names)
    assert imported == {"fastae.engine.engine", "fastae.estimator", "fastae.training.loop"}
    assert from_later_layers({"fastae.data.open": imported}) == [
        ("fastae.data.open", "fastae.estimator"),
        ("fastae.data.open", "fastae.training.loop"),
    ]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(
            {"fastae.data.open": {"fastae.training.loop"}, "fastae.training.loop": {"fastae.data.open"}}
        ).prepare()
