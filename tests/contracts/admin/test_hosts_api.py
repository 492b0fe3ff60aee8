"""/api/admin/hosts over real sockets, on a machine of its own; tests/cluster has it on several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contracts.live_server import LiveServer, poll

HOSTS = "/api/admin/hosts"


@pytest.fixture(scope="module")
def admin(live_server: LiveServer) -> Iterator[httpx.Client]:
    with live_server.client() as client:
        yield client


def test_the_machine_and_its_hosts_are_listed(admin: httpx.Client) -> None:
    def has_looked(found: dict[str, Any]) -> bool:
        return all(host["state"] == "running" for host in found["hosts"])

    found = poll(admin, HOSTS, has_looked)
    [node] = found["nodes"]
    assert node["is_alive"]
    assert node["is_head"]
    assert node["resources"]["CPU"] >= 1
    assert found["hosts_min"] == found["hosts_max"] == len(found["hosts"]) >= 1
    for host in found["hosts"]:
        assert host["name"].startswith("host-")
        assert host["node"] == node["id"]
        assert host["running_max"] == 1_000
        assert host["busy"] >= 0


def test_hosts_show_in_the_metrics(admin: httpx.Client) -> None:
    shown = admin.get("/metrics").text
    assert "heliograph_hosts{state=" in shown
    assert 'heliograph_host_admitted{host="host-0"}' in shown


def test_draining_is_for_clusters_and_for_hosts_there_are(
    admin: httpx.Client, live_server: LiveServer
) -> None:
    refused = admin.post(f"{HOSTS}/host-0/drain", json={})
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "conflict"
    assert admin.post(f"{HOSTS}/host-0/drain", json={"now": True}).status_code == 422
    with live_server.client(live_server.make_key("run", "read")) as reader:
        assert reader.get(HOSTS).status_code == 403
