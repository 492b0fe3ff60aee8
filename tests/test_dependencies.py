"""What the rooms import is in the project's own list, and not there by another's chance."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house_rules import ROOM_NAMES
from tests.sandbox import REPOSITORY


def _named(requirements: list[str]) -> set[str]:
    """Distributions asked for whatever extras are wanted."""
    parsed = [Requirement(each) for each in requirements]
    return {canonicalize_name(each.name) for each in parsed if "extra" not in str(each.marker or "")}


def _imported() -> set[str]:
    found: set[str] = set()
    for room in ROOM_NAMES:
        for path in (REPOSITORY / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - set(ROOM_NAMES)


def test_every_library_that_is_imported_is_named_or_always_comes_with_one_that_is() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    always = _named(project["dependencies"])
    extras: dict[str, list[str]] = project["optional-dependencies"]
    wanted = _named([each for name, listed in extras.items() if name != "dev" for each in listed])
    allowed = always | wanted | {part for name in always for part in _named(requires(name) or [])}
    distributions = packages_distributions()
    unnamed = {
        name
        for name in _imported()
        if allowed.isdisjoint(canonicalize_name(each) for each in distributions.get(name, ()))
    }
    # Handed over by PyArrow and pandas, which are optional, and imported only with a value of theirs.
    assert unnamed == {"numpy"}
