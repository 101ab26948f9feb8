"""The API reference is complete: every parameter, attribute and result is described, with the default that it has.

What is checked is what the pages under docs/api/ show; docstrings are read as the reference reads them.
"""

import importlib
import inspect
import re
from ast import literal_eval
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fastae
from fastae.objective import PLAIN

PAGES = sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md"))
DIRECTIVE = re.compile(r"^::: (?P<path>[\w.]+)$(?P<options>(?:\n {4}.*)*)", re.MULTILINE)
SECTION = re.compile(r"^([A-Z][a-z]+(?: [a-z]+)*)\n-{3,}\n", re.MULTILINE)
DEFAULT = re.compile(r", default (?P<value>.+)$")


class Entry(NamedTuple):
    """One entry of a section: ``name : kind`` and the text below it."""

    name: str
    kind: str
    text: str


def sections(docstring: str) -> dict[str, list[Entry]]:
    """The entries of each section of a NumPy-style docstring."""
    parts = SECTION.split(inspect.cleandoc(docstring))
    return {title: entries(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def entries(text: str) -> list[Entry]:
    """Entries begin at the margin; what is indented below one is its description."""
    parsed: list[Entry] = []
    for line in text.rstrip().splitlines():
        if line and not line.startswith(" "):
            name, _, kind = line.partition(" : ")
            parsed.append(Entry(name, kind, ""))
        elif parsed:
            parsed[-1] = parsed[-1]._replace(text=f"{parsed[-1].text} {line.strip()}".strip())
    return parsed


def documented() -> dict[str, Any]:
    """Every function, method and class that the reference shows, by its path."""
    shown: dict[str, Any] = {}
    for directive in DIRECTIVE.finditer("".join(page.read_text() for page in PAGES)):
        path = directive["path"]
        module, _, name = path.rpartition(".")
        try:
            documented = getattr(importlib.import_module(module), name)
        except ImportError as missing:
            if (missing.name or "").startswith("fastae"):
                raise
            continue  # an extra that is not installed
        listed = re.search(r"^ *members: (.*)$", directive["options"], re.MULTILINE)
        if inspect.ismodule(documented):
            for member in documented.__all__:
                shown |= with_members(f"{path}.{member}", getattr(documented, member), None)
        else:
            shown |= with_members(
                path, documented, listed and re.findall(r"\w+", listed[1].replace("false", ""))
            )
    return {path: documented for path, documented in shown.items() if callable(documented)}


def with_members(path: str, shown: Any, members: list[str] | None) -> dict[str, Any]:
    """A function, or a class and its members: those listed or, without a list, all public ones of its own."""
    if members is None:
        members = [name for name in vars(shown) if not name.startswith("_")] if inspect.isclass(shown) else []
    return {path: shown} | {f"{path}.{name}": getattr(shown, name) for name in members}


def faults(shown: Any) -> list[str]:
    """What is missing from the docstring of a function or class, or differs from its signature."""
    documentation = sections(shown.__doc__ or "")
    wrong = [] if (shown.__doc__ or "").strip() else ["has no docstring"]
    for title in ("Parameters", "Attributes", "Returns"):
        for entry in documentation.get(title, []):
            wrong += [] if entry.text else [f"{title}: {entry.name} has no description"]
            wrong += [f"{title}: {entry.name} share an entry"] * (title != "Returns" and "," in entry.name)
    if not inspect.isclass(shown):
        told = wrong_parameters(documentation.get("Parameters", []), shown)
        result = inspect.signature(shown).return_annotation
        silent = result in (None, "None", inspect.Signature.empty) or "Returns" in documentation
        return wrong + told + ([] if silent else [f"Returns: describe the {result}"])
    if is_dataclass(shown) and "Parameters" not in documentation:  # users read its fields and do not make one
        missing = {field.name for field in fields(shown)} - {
            entry.name for entry in documentation["Attributes"]
        }
        return wrong + [f"Attributes: {name} is missing" for name in sorted(missing)]
    if inspect.isabstract(shown) or issubclass(shown, Exception):
        return wrong
    return wrong + wrong_parameters(documentation.get("Parameters", []), shown)


def wrong_parameters(told: list[Entry], shown: Any) -> list[str]:
    """How the parameters that a docstring tells of differ from those of the signature.

    A class may leave out parameters that it has from a base class, with the same defaults.
    """
    parameters = own_parameters(shown)
    names = [entry.name for entry in told]
    missing = [name for name in parameters if name not in names]
    for base in shown.__mro__[1:] if inspect.isclass(shown) else ():
        if "Parameters" in sections(vars(base).get("__doc__") or ""):
            inherited = own_parameters(base)
            missing = [name for name in missing if parameters[name] != inherited.get(name)]
    wrong = [f"Parameters: {name} is missing" for name in missing]
    wrong += [f"Parameters: there is no {name}" for name in names if name not in parameters]
    return wrong + [
        fault for entry in told if entry.name in parameters for fault in wrong_default(entry, parameters)
    ]


def own_parameters(shown: Any) -> dict[str, Any]:
    """The default of each parameter of a function or of a class's constructor."""
    parameters = inspect.signature(shown).parameters
    return {name: parameters[name].default for name in parameters if name not in ("self", "cls")}


def wrong_default(entry: Entry, parameters: dict[str, Any]) -> list[str]:
    """How the default that an entry states differs from the parameter's."""
    default, stated = parameters[entry.name], DEFAULT.search(entry.kind)
    if entry.kind.startswith("{"):
        return [f"{entry.name}: the reference takes the first choice in braces for the default"]
    optional = entry.kind.endswith(", optional")
    if default is inspect.Parameter.empty:
        return [f"{entry.name} has no default, but states one"] * bool(stated or optional)
    if optional:
        return [f"{entry.name} is {default!r} by default"] * (default not in (None, PLAIN))
    if stated is None:
        return [f"{entry.name} is {default!r} by default"]
    value = literal_eval(stated["value"])
    same = value == default and isinstance(value, bool) == isinstance(default, bool)
    return [] if same else [f"{entry.name} is {default!r} by default, not {value!r}"]


DOCUMENTED = documented()


@pytest.mark.parametrize("path", DOCUMENTED)
def test_docstring_describes_each_parameter_and_states_its_default(path):
    assert not faults(DOCUMENTED[path])


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text() for page in PAGES)
    for name in fastae._HOME:
        assert f"heading: fastae.{name}\n" in text, name
    for name in fastae.kernels.__all__:
        assert f"heading: fastae.kernels.{name}\n" in text, name


def test_a_docstring_that_differs_from_its_signature_is_found():
    def function(a, b=1, c=None, *, d=0.5):
        """A function.

        Parameters
        ----------
        a : int, default 3
            One.
        b : int, default 2
            Two.
        c, d : float, optional

        """

    assert faults(function) == [
        "Parameters: c, d has no description",
        "Parameters: c, d share an entry",
        "Parameters: c is missing",
        "Parameters: d is missing",
        "Parameters: there is no c, d",
        "a has no default, but states one",
        "b is 1 by default, not 2",
    ]

    def other(c=None, *, d=0.5, e=True) -> int:
        """Another.

        Parameters
        ----------
        c : int
            Three.
        d : float, optional
            Four.
        e : bool, default 1
            Five.
        """

    assert faults(other) == [
        "c is None by default",
        "d is 0.5 by default",
        "e is True by default, not 1",
        "Returns: describe the <class 'int'>",
    ]
