"""What the scenarios say to the server: start, follow, wait."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import msgspec

from tests.contracts.live_server import poll

FINAL = ("COMPLETED", "FAILED", "CANCELLED")


def start(client: httpx.Client, flow_id: str, **input_data: Any) -> str:
    """The id of a new execution."""
    response = client.post(f"/v1/executions/{flow_id}/async", json={"input_data": input_data})
    assert response.status_code == 202, response.text
    return response.json()["execution_id"]


def wait_for(client: httpx.Client, execution_id: str, *statuses: str) -> dict[str, Any]:
    wanted = statuses or FINAL

    def is_there(body: dict[str, Any]) -> bool:
        return body["status"] in wanted

    return poll(client, f"/v1/executions/{execution_id}", is_there)


class Frame(NamedTuple):
    """``lines`` as they came, without the blank one."""

    lines: tuple[str, ...]

    @property
    def id(self) -> int:
        return int(next(line for line in self.lines if line.startswith("id: "))[4:])

    @property
    def data(self) -> dict[str, Any]:
        [text] = [line[6:] for line in self.lines if line.startswith("data: ")]
        return msgspec.json.decode(text)

    @property
    def type(self) -> str:
        return self.data["type"]

    @property
    def is_event(self) -> bool:
        return any(line.startswith("data: ") for line in self.lines)


@contextmanager
def open_stream(
    client: httpx.Client, execution_id: str, headers: dict[str, str] | None = None, **query: str
) -> Generator[Iterator[Frame]]:
    url = f"/v1/executions/{execution_id}/stream"
    with client.stream("GET", url, params=query, headers=headers) as response:
        assert response.status_code == 200
        yield _frames(response)


def _frames(response: httpx.Response) -> Iterator[Frame]:
    lines: list[str] = []
    for line in response.iter_lines():
        if line:
            lines.append(line)
        elif lines:
            yield Frame(tuple(lines))
            lines = []
    assert not lines, "the stream ended within a frame"


def events(
    client: httpx.Client, execution_id: str, headers: dict[str, str] | None = None, **query: str
) -> list[Frame]:
    """All events of a stream, to its end."""
    with open_stream(client, execution_id, headers, **query) as frames:
        return [frame for frame in frames if frame.is_event]
