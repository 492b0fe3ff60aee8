"""/api/admin/hosts: the machines of the cluster, the hosts on them, and what these hold; draining one."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.context import Cluster
from gateway.envelopes import Problem
from gateway.house_api import answer, body_of, json_answer, json_request, refusal
from gateway.keys import ADMIN
from gateway.routes import Doc, Operation, Resource
from runtime.errors import NotFound

PREFIX = "/api/admin/hosts"


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """``resources``: what Ray may give away there in all, by Ray's names."""

    id: str
    address: str
    is_alive: bool
    is_head: bool
    resources: dict[str, float]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """As this gateway sees it. ``executions``: open ones, by the log, waiting ones included.

    ``state``: starting, recovering, running, draining; broken (its process is gone, or on its way back),
    silent (it gives no answer), unknown (it holds executions, and there is no such host). ``busy``: share of
    one CPU. ``queued``: executions that wait for a place on it. ``unschedulable``: nodes of executions that
    no machine can hold.
    """

    name: str
    state: str
    node: str
    executions: int
    in_memory: int
    admitted: int
    queued: int
    running_max: int
    unschedulable: int
    busy: float


class Hosts(msgspec.Struct, frozen=True, kw_only=True):
    """``hosts_min`` and ``hosts_max``: between these the hosts of a joined cluster follow the load."""

    nodes: list[Node]
    hosts: list[Host]
    hosts_min: int
    hosts_max: int


class NoFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


async def list_hosts(call: Call) -> Response:
    return answer(await _hosts(_cluster(call)))


async def drain_host(call: Call) -> Response:
    await body_of(call, NoFields)
    cluster, name = _cluster(call), call.path["name"]
    try:
        cluster.drain(name)
    except NotFound:
        raise Problem("host_not_found") from None
    found = await _hosts(cluster)
    return answer(next(host for host in found.hosts if host.name == name), 202)


def _cluster(call: Call) -> Cluster:
    if call.gateway.cluster is None:
        raise Problem("unavailable", retry_after=1)
    return call.gateway.cluster


async def _hosts(cluster: Cluster) -> Hosts:
    return msgspec.convert(msgspec.to_builtins(await cluster.overview()), Hosts)


_HOST = {
    "name": "host-1",
    "state": "running",
    "node": "ec8633fcd2948873f4641cc06c684f003306ca6c52202f041b1f856b",
    "executions": 1204,
    "in_memory": 310,
    "admitted": 305,
    "queued": 0,
    "running_max": 1000,
    "unschedulable": 0,
    "busy": 0.41,
}
_EXAMPLE = {
    "nodes": [
        {
            "id": "ec8633fcd2948873f4641cc06c684f003306ca6c52202f041b1f856b",
            "address": "10.0.0.12",
            "is_alive": True,
            "is_head": False,
            "resources": {"CPU": 8.0, "memory": 24649420800.0},
        }
    ],
    "hosts": [_HOST],
    "hosts_min": 2,
    "hosts_max": 8,
}

RESOURCES = (
    Resource(
        PREFIX,
        {
            "GET": Operation(
                handler=list_hosts,
                scope=ADMIN,
                doc=Doc(
                    summary="List nodes and execution hosts, and what they hold",
                    answers={200: json_answer("As this gateway sees them", Hosts, _EXAMPLE)},
                ),
            )
        },
    ),
    Resource(
        f"{PREFIX}/{{name}}/drain",
        {
            "POST": Operation(
                handler=drain_host,
                scope=ADMIN,
                doc=Doc(
                    summary="Drain a host: before its node is taken away",
                    description="It takes nothing new, gives what waits to others, ends the attempts that "
                    "run, and then itself. Another one takes its place if there would be too few.",
                    request=json_request(NoFields, {}, required=False),
                    answers={
                        202: json_answer("It has begun", Host, {**_HOST, "state": "draining"}),
                        404: refusal("No such host.", "host_not_found", "Host not found."),
                        409: refusal(
                            "The server started Ray itself.",
                            "conflict",
                            "hosts of a Ray started by the server stay as many as they are",
                        ),
                    },
                ),
            )
        },
    ),
)
