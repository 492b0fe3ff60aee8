"""/api/admin/packages over real sockets: code is uploaded, named in a flow, and run from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from runtime.packages import MEDIA_TYPE, build_package
from tests.contracts.live_server import LiveServer, flow, poll

PACKAGES = "/api/admin/packages"
ZIP = {"Content-Type": MEDIA_TYPE}


@pytest.fixture(scope="module")
def admin(live_server: LiveServer) -> Iterator[httpx.Client]:
    with live_server.client() as client:
        yield client


def coded(flow_id: str, package: str) -> dict[str, Any]:
    node = {"id": "price", "kind": "python", "function": "prices:total", "with": {"net": 100}}
    return flow(flow_id, node, code={"package": package})


def upload(admin: httpx.Client, source: str) -> dict[str, Any]:
    data = build_package({"prices.py": source.encode()})
    answer = admin.post(PACKAGES, content=data, headers=ZIP)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def test_a_package_is_uploaded_once_and_shown_by_its_hash(admin: httpx.Client) -> None:
    data = build_package({"prices.py": b"VAT = 19\n", "shop/__init__.py": b""})
    first = admin.post(PACKAGES, content=data, headers=ZIP)
    again = admin.post(PACKAGES, content=data, headers=ZIP)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert first.json()["modules"] == ["prices", "shop"]
    assert admin.get(first.headers["location"]).json() == first.json()
    assert first.json() in admin.get(PACKAGES).json()["packages"]


def test_what_is_no_package_is_refused(admin: httpx.Client) -> None:
    refused = admin.post(PACKAGES, content=b"no zip", headers=ZIP)
    assert refused.status_code == 422
    assert "is no zip file" in refused.json()["error"]["message"]
    assert admin.post(PACKAGES, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert admin.get(f"{PACKAGES}/{'0' * 64}").status_code == 404


def test_a_flow_names_only_packages_of_its_own_tenant(admin: httpx.Client) -> None:
    package = upload(admin, "TENANT = 1\n")["package"]
    refused = admin.post("/api/admin/flows?tenant=other", json=coded("coded", package))
    assert refused.status_code == 422
    assert refused.json()["error"]["details"] == [
        {"node": "", "field": "code.package", "rule": "no package of this hash was uploaded"}
    ]


def test_a_flows_functions_come_from_its_package_and_a_new_one_makes_a_new_version(
    admin: httpx.Client,
) -> None:
    outputs: list[Any] = []
    for vat in (19, 7):
        package = upload(admin, f"def total(net):\n    return net + {vat}\n")["package"]
        assert admin.post("/api/admin/flows", json=coded("coded", package)).status_code == 201
        started = admin.post("/v1/executions/coded/async", json={"input_data": {}}).json()
        url = f"/api/audit/executions/{started['execution_id']}"
        outputs.append(poll(admin, url, has_ended)["output"])
    assert outputs == [119, 107]


def has_ended(shown: dict[str, Any]) -> bool:
    return shown["ended_at"] is not None
