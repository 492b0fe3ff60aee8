"""The code that travels with a flow: the modules of its functions, and what of the user's own those import.

A module travels as a whole, a package with all its files. What is installed stays: name that as requirements.
So do the standard library and the modules that workers have anyway.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from runtime.packages import FILES_MAX, OURS, UNPACKED_BYTES_MAX, build_package

_EXAMPLES = Path(__file__).parents[2] / "flows"
"""Of the distribution; a user's package of that name is another."""

_INSTALLED_FOLDERS = frozenset({"site-packages", "dist-packages"})


def functions_of(document: Mapping[str, Any]) -> list[str]:
    """``module:qualname`` of every Python function among the nodes of a definition."""
    found: dict[str, None] = {}
    nodes = cast("list[dict[str, Any]]", document.get("nodes") or [])
    for node in nodes:
        for part in (node, node.get("each") or {}):
            if isinstance(part.get("function"), str):
                found[part["function"]] = None
    return list(found)


def package_of(modules: Iterable[str]) -> bytes:
    """The zip file of these top-level modules. Raises: ValueError naming one that can't travel."""
    files: dict[str, bytes] = {}
    size = 0
    for module in modules:
        place = _place(module)
        if place is None:
            raise ValueError(f"there is no module '{module}' whose code could travel")
        for name, path in _files(place):
            content = path.read_bytes()
            size += len(content)
            files[name] = content
            if len(files) > FILES_MAX or size > UNPACKED_BYTES_MAX:
                raise ValueError(
                    f"the code of '{module}' is too much to travel: at most {FILES_MAX} files and"
                    f" {UNPACKED_BYTES_MAX} bytes; install it on the workers instead"
                )
    return build_package(files)


def own_modules(functions: Iterable[str]) -> list[str]:
    """Top-level modules of the user's own that these functions need, in order of name."""
    waiting = [function.partition(":")[0].partition(".")[0] for function in functions]
    found: dict[str, None] = {}
    while waiting:
        module = waiting.pop()
        if module in found or module in OURS:
            continue
        place = _place(module)
        if place is None or place == _EXAMPLES or _is_installed(place):
            continue
        found[module] = None
        for name, path in _files(place):
            if name.endswith(".py"):
                waiting += _imported(path)
    return sorted(found)


def _place(module: str) -> Path | None:
    """The file or the folder of a top-level module; None for one that has neither."""
    if module in sys.stdlib_module_names or module == "__main__":
        return None
    try:
        spec = find_spec(module)
    except ValueError:
        return None  # made at run time: it has no file
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    if folders:
        return Path(folders[0])
    path = Path(spec.origin or "")
    return path if path.suffix == ".py" and path.is_file() else None


def _is_installed(place: Path) -> bool:
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return bool(_INSTALLED_FOLDERS & set(place.parts)) or any(
        place.is_relative_to(folder) for folder in own if folder
    )


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    """Name in the package and path of each file; caches and hidden files stay."""
    if place.is_file():
        yield place.name, place
        return
    for path in sorted(place.rglob("*")):
        inside = path.relative_to(place)
        if "__pycache__" in inside.parts or any(part.startswith(".") for part in inside.parts):
            continue
        if path.is_file() and path.suffix != ".pyc":
            yield f"{place.name}/{inside.as_posix()}", path


def _imported(path: Path) -> list[str]:
    """Top-level names that a file imports; none for one that is no Python of this version."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
    return [name.partition(".")[0] for name in found if name]
