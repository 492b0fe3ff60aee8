"""Packages of a flow's modules: the same bytes for the same code, and nothing in them that reaches out."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest

from runtime.errors import InvalidGraph
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.packages import Code, build_package, check_package


def zipped(*names: str, mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, b"")
    return buffer.getvalue()


def test_the_same_files_make_the_same_bytes() -> None:
    one = build_package({"shop/__init__.py": b"", "prices.py": b"VAT = 19\n"})
    other = build_package({"prices.py": b"VAT = 19\n", "shop/__init__.py": b""})
    assert one == other
    assert check_package(one) == ("prices", "shop")
    assert build_package({"prices.py": b"VAT = 20\n"}) != one


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (("../up.py",), "does not lie inside"),
        (("/etc/up.py",), "does not lie inside"),
        (("a/../../up.py",), "does not lie inside"),
        (("./a.py",), "does not lie inside"),
        (("a\\b.py",), "plain names"),
        (("C:a.py",), "plain names"),
        (("actors/__init__.py",), "workers' own module 'actors'"),
        (("ray.py",), "workers' own module 'ray'"),
        (("README.md",), "has no module"),
        ((), "has no files"),
    ],
)
def test_a_package_that_reaches_outside_or_holds_nothing_is_refused(
    names: tuple[str, ...], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        check_package(zipped(*names))


def test_links_and_what_is_no_zip_file_are_refused() -> None:
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        check_package(zipped("a.py", mode=0o120777))
    with pytest.raises(ValueError, match="is no zip file"):
        check_package(b"PK but not really")


def problems_of(code: dict[str, Any]) -> set[tuple[str, str]]:
    node = {"id": "a", "kind": "python", "function": "m:f"}
    with pytest.raises(InvalidGraph) as refused:
        compile_flow(parse_flow({"heliograph": 1, "id": "f", "code": code, "nodes": [node]}))
    return {(field, rule) for _, field, rule in refused.value.problems}


def test_requirements_have_exact_versions_once_and_leave_the_workers_alone() -> None:
    assert problems_of({"requirements": ["ray==1.0", "six==1.16", "SIX[a]==1.17"]}) == {
        ("code.requirements[0]", "'ray' is a part of the workers: theirs is used"),
        ("code.requirements[2]", "'SIX' stands twice"),
    }
    assert {field for field, _ in problems_of({"requirements": ["six>=1", "--pre", "six==1.*"]})} == {
        "code.requirements[0]"
    }
    assert problems_of({}) == {("code", "needs a package, requirements, or both")}
    assert {field for field, _ in problems_of({"package": "latest"})} == {"code.package"}


def test_an_environment_is_named_by_its_code() -> None:
    one, other = Code(requirements=("six==1.16.0",)), Code(requirements=("six==1.17.0",))
    assert one.environment != other.environment
    assert one.environment == Code(requirements=("six==1.16.0",)).environment
