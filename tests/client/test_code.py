"""Which code travels with a flow: the user's own modules, and what of theirs those import."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client.code import functions_of, own_modules, package_of


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Modules of a user: a flow's, a package it imports, one of no use to it, and an installed one."""
    (tmp_path / "p_flow.py").write_text(
        "import json, httpx\nfrom p_shop.prices import price\nimport p_gone\n"
    )
    shop = tmp_path / "p_shop"
    (shop / "__pycache__").mkdir(parents=True)
    (shop / "__pycache__" / "prices.pyc").write_bytes(b"x")
    (shop / "__init__.py").write_text("")
    (shop / "prices.py").write_text("from . import data\nimport p_money\ndef price(): ...\n")
    (shop / "table.csv").write_text("a,b\n")
    (shop / ".env").write_text("SECRET=1\n")
    (tmp_path / "p_money.py").write_text("this is no Python\n")
    (tmp_path / "p_other.py").write_text("")
    installed = tmp_path / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "p_installed.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(installed))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("p_")]:
        del sys.modules[name]


def names_in(package: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        return archive.namelist()


def test_functions_are_found_in_nodes_and_in_maps() -> None:
    nodes = [
        {"id": "a", "kind": "python", "function": "m:f"},
        {"id": "b", "kind": "map", "each": {"kind": "python", "function": "p.n:g"}},
        {"id": "c", "kind": "template", "template": "x"},
        {"id": "d", "kind": "python", "function": "m:f"},
    ]
    assert functions_of({"nodes": nodes}) == ["m:f", "p.n:g"]


def test_own_modules_travel_with_what_they_import_of_the_users_own(project: Path) -> None:
    assert own_modules(["p_flow:run"]) == ["p_flow", "p_money", "p_shop"]


def test_what_is_installed_or_the_workers_own_stays(project: Path) -> None:
    assert own_modules(["p_installed:f", "json:dumps", "httpx:get", "flows.stdlib_report:f"]) == []


def test_a_package_holds_modules_with_their_files_but_nothing_hidden(project: Path) -> None:
    package = package_of(["p_flow", "p_shop"])
    assert names_in(package) == ["p_flow.py", "p_shop/__init__.py", "p_shop/prices.py", "p_shop/table.csv"]
    assert package == package_of(["p_shop", "p_flow"])


def test_a_module_that_is_not_there_is_named(project: Path) -> None:
    with pytest.raises(ValueError, match="no module 'p_nowhere'"):
        package_of(["p_nowhere"])
    with pytest.raises(ValueError, match="no module 'json'"):
        package_of(["json"])


def test_a_users_package_may_be_called_as_our_examples_are(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "flows").mkdir()
    (project / "flows" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "flows", raising=False)
    assert own_modules(["flows.orders:price"]) == ["flows"]
