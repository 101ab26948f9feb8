"""The import graph of fastae: no module imports from above its own layer, and there is no cycle."""

import ast
import graphlib
from pathlib import Path

import pytest

import fastae

ROOT = Path(fastae.__file__).parent
LAYERS = (
    {"kernels", "_moved"},
    {"reference", "network", "objective", "optimizers", "storage", "checks"},
    {"engine"},
    {"data", "gradient_check"},
    {"training"},
    {"distributed"},
    {"estimator"},
    {"plots"},
    {"cli", "__main__"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
ALLOWED = {"fastae"}  # the package itself holds __version__ and loads the rest on demand


def modules(root=ROOT):
    """Path of every module below `root`, by name; bench, which may import all, is left out."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] != "bench":
            found[".".join(("fastae", *parts)).removesuffix(".__init__")] = path
    return found


def imports(source, names):
    """The modules out of `names` that a module imports, also inside functions, but not for type checkers alone."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.orelse:
                visit(statement)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in names else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return {name for name in found if name in names} - ALLOWED


def graph():
    paths = modules()
    return {name: imports(path.read_text(encoding="utf-8"), paths) for name, path in paths.items()}


def upward(edges):
    """The imports from a layer above the module's own."""
    return [
        (name, imported)
        for name, imported_names in edges.items()
        for imported in sorted(imported_names)
        if name != "fastae" and LAYER[imported.split(".")[1]] > LAYER[name.split(".")[1]]
    ]


def test_every_module_has_a_layer():
    assert {name.split(".")[1] for name in modules() if "." in name} <= set(LAYER)


def test_no_module_imports_from_above_its_own_layer():
    assert upward(graph()) == []


def test_no_import_is_part_of_a_cycle():
    edges = graph()
    assert len(edges) > 60
    graphlib.TopologicalSorter(edges).prepare()  # a CycleError names the modules


def test_kernels_import_nothing_but_kernels():
    for name, imported in graph().items():
        if name.split(".")[1:2] == ["kernels"]:
            assert {other.split(".")[1] for other in imported} <= {"kernels"}, name


def test_an_import_upwards_and_a_cycle_would_be_seen():
    names = {"fastae.data.open", "fastae.training.loop", "fastae.engine", "fastae.engine.engine"}
    source = """
from typing import TYPE_CHECKING
from fastae import __version__
from fastae.engine import engine
if TYPE_CHECKING:
    from fastae.distributed import mpi
def load():
    from fastae.training.loop import descend
"""
    found = imports(source, names)
    assert found == {"fastae.engine.engine", "fastae.training.loop"}
    assert upward({"fastae.data.open": found}) == [("fastae.data.open", "fastae.training.loop")]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(
            {"fastae.data.open": {"fastae.training.loop"}, "fastae.training.loop": {"fastae.data.open"}}
        ).prepare()
