"""What the scenarios say to the server, and how they read its answers."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx
import httpx_sse
import msgspec

from tests.contracts.live_server import poll

FINAL = ("COMPLETED", "FAILED", "CANCELED")
RECEIVER_ADDRESS = "127.0.0.9"
"""The one private address that the server under test may call."""

Files = Sequence[tuple[str, tuple[str, bytes, str]]]


def form(params: Any, files: Files = (), fields: Mapping[str, str] | None = None) -> list[tuple[str, Any]]:
    """The parts of a multipart form; ``params`` that are no text are encoded."""
    text = params if isinstance(params, str) else msgspec.json.encode(params).decode()
    parts: list[tuple[str, Any]] = [("params_json", (None, text))]
    parts += [(name, (None, value)) for name, value in (fields or {}).items()]
    return [*parts, *files]


def post(
    client: httpx.Client,
    ability: str,
    params: Any,
    files: Files = (),
    headers: Mapping[str, str] | None = None,
    **fields: str,
) -> httpx.Response:
    return client.post(
        f"/api/ability/{ability}", files=form(params, files, fields), headers=dict(headers or {})
    )


def run(client: httpx.Client, ability: str, params: Any = None, files: Files = (), **fields: str) -> str:
    """The id of a new request."""
    response = post(client, ability, {} if params is None else params, files, None, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def status_of(client: httpx.Client, ability: str, request_id: str) -> dict[str, Any]:
    response = client.get(f"/api/ability/{ability}/{request_id}/status")
    assert response.status_code == 200, response.text
    return response.json()


def wait_for(client: httpx.Client, ability: str, request_id: str, *statuses: str) -> dict[str, Any]:
    wanted = statuses or FINAL

    def is_reached(body: dict[str, Any]) -> bool:
        return body["status"] in wanted

    return poll(client, f"/api/ability/{ability}/{request_id}/status", is_reached)


def assert_error(response: httpx.Response, status: int, code: str) -> list[Any]:
    """The details of an error in this contract's envelope."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error_code", "message", "details"]
    assert body["error_code"] == code
    assert isinstance(body["message"], str)
    return body["details"]


# --- streams --------------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """One event of a stream, whatever its framing."""

    type: str
    message: dict[str, Any]
    id: int | None = None


@contextmanager
def open_plain(
    client: httpx.Client, ability: str, params: Any, headers: Mapping[str, str] | None = None, **fields: str
) -> Generator[tuple[httpx.Response, Iterator[Heard]]]:
    url = f"/api/ability/{ability}/sse"
    with client.stream("POST", url, files=form(params, (), fields), headers=dict(headers or {})) as response:
        assert response.status_code == 200
        yield response, parse_plain(response.iter_raw())


def parse_plain(reads: Iterator[bytes]) -> Iterator[Heard]:
    """Framing A as the seed's client reads it: each network read is one frame."""
    for read in reads:
        text = read.decode().strip()
        if not text:
            continue  # a keep-alive
        event_line, *message_lines = text.split("\n")
        assert len(message_lines) == 1, text
        yield Heard(event_line.replace(":", "", 1), msgspec.json.decode(message_lines[0]))


@contextmanager
def open_standard(
    client: httpx.Client, ability: str, params: Any, headers: Mapping[str, str] | None = None, **fields: str
) -> Generator[tuple[httpx.Response, Iterator[Heard]]]:
    with httpx_sse.connect_sse(
        client,
        "POST",
        f"/api/ability/{ability}/sse",
        files=form(params, (), fields),
        headers=dict(headers or {}),
    ) as source:
        assert source.response.status_code == 200

        def heard() -> Iterator[Heard]:
            for event in source.iter_sse():
                if not event.data:
                    continue  # the library hands on the `retry` line; the standard dispatches nothing for it
                yield Heard(event.event, msgspec.json.decode(event.data), int(event.id))

        yield source.response, heard()


def plain(client: httpx.Client, ability: str, params: Any = None, **fields: str) -> list[Heard]:
    with open_plain(client, ability, params or {}, None, **fields) as (_, events):
        return list(events)


def standard(
    client: httpx.Client,
    ability: str,
    params: Any = None,
    headers: Mapping[str, str] | None = None,
    **fields: str,
) -> list[Heard]:
    with open_standard(client, ability, params or {}, headers, **fields) as (_, events):
        return list(events)


# --- a receiver of callbacks ----------------------------------------------------------------------------


class Callback(NamedTuple):
    headers: Mapping[str, str]
    body: bytes


class Receiver:
    """Listens where the server may call; answers the next of ``answers``, the last one from then on."""

    def __init__(self, *answers: int) -> None:
        self._answers = list(answers)
        self._arrived = threading.Condition()
        self._callbacks: list[Callback] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(receiver.take(Callback(dict(self.headers.items()), body)))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                """Keep the test's output clean."""

        self._server = ThreadingHTTPServer((RECEIVER_ADDRESS, 0), Handler)
        self.url = f"http://{RECEIVER_ADDRESS}:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def take(self, callback: Callback) -> int:
        with self._arrived:
            self._callbacks.append(callback)
            self._arrived.notify_all()
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def wait_for(self, count: int, seconds: float = 60.0) -> list[Callback]:
        """The first ``count`` callbacks, once they are there."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self._callbacks) >= count, seconds), self._callbacks
            return self._callbacks[:count]

    @property
    def count(self) -> int:
        return len(self._callbacks)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def receiving(*answers: int) -> Generator[Receiver]:
    receiver = Receiver(*answers)
    try:
        yield receiver
    finally:
        receiver.close()
