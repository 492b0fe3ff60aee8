"""What every kind of load needs: connections, requests, and the words to and from the measuring process."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any

import msgspec

from bench import http_client
from bench.generator import Line
from bench.http_client import Answer, Connection

TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
"""Of the executions contract."""


class LoadFault(Exception):
    """An answer that a correct server would not give."""


class Accepted(msgspec.Struct):
    execution_id: str


class Status(msgspec.Struct):
    status: str
    final_output: Any = None
    error_message: str | None = None


accepted_of = msgspec.json.Decoder(Accepted).decode
status_of = msgspec.json.Decoder(Status).decode


class Session:
    """One server, one key."""

    def __init__(
        self, host: str, port: int, key: str, words: asyncio.StreamReader, say: Callable[[Line], None]
    ) -> None:
        self.host = host
        self.port = port
        self._name = f"{host}:{port}"
        self._key = key
        self._words = words
        self._say = say

    def mark(self, name: str) -> None:
        self._say(Line(mark=name))

    async def word(self) -> None:
        """Wait until the measuring process says to go on."""
        await self._words.readline()

    async def connect(self) -> Connection:
        return await http_client.connect(self.host, self.port)

    def start_request(self, flow: str, body: Any) -> bytes:
        return self.request("POST", f"/v1/executions/{flow}/async", msgspec.json.encode(body))

    def status_request(self, execution_id: str) -> bytes:
        return self.request("GET", f"/v1/executions/{execution_id}")

    def request(self, method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
        return http_client.request(method, path, self._name, self._key, body, *headers)


def expect(answer: Answer, status: int) -> bytes:
    """The body of an answer with this status. Raises: LoadFault."""
    if answer.status != status:
        raise LoadFault(f"{answer.status} in place of {status}: {answer.body[:500]!r}")
    return answer.body


def own_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
