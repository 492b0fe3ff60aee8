"""Clients that get what they want from a server that keeps dying, and write down what they saw.

Each repeats a request that failed, with the same Idempotency-Key, and follows streams with Last-Event-ID.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import httpx
import httpx_sse
import msgspec

from tests.contracts.ability.wire import form
from tests.faults.flows import SIGNAL, inputs_of
from tests.faults.journal import Journal, Piece, last_position
from tests.faults.server import FaultyServer

PATIENCE_SECONDS = 90.0
PAUSE_SECONDS = 0.05
FINAL = frozenset(("COMPLETED", "FAILED", "CANCELLED", "CANCELED"))

ResultT = TypeVar("ResultT")
Watching = Literal["status", "log", "contract"]


class Customer:
    """One execution's client: starts it, signals it, watches it to its end.

    ``callback_url``: start through the ability contract, else through the executions contract.
    """

    def __init__(
        self, server: FaultyServer, journal: Journal, name: str, watching: Watching, callback_url: str = ""
    ) -> None:
        self._server = server
        self._journal = journal
        self._name = name
        self._watching = watching
        self._callback_url = callback_url
        self._last = ""
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        self._client = httpx.Client(headers={"X-API-Key": server.first_key}, timeout=20.0)

    def visit(self) -> str:
        """The execution's id, once it has ended."""
        with self._client:
            execution_id = self._start()
            self._journal.was_accepted(self._name, execution_id, has_callback=bool(self._callback_url))
            self._signal(execution_id)
            if self._watching == "log":
                url = f"/api/audit/executions/{execution_id}/events/stream"
                self._follow(url, self._journal.records[execution_id])
            elif self._watching == "contract":
                url = f"/v1/executions/{execution_id}/stream"
                self._follow(url, self._journal.pieces[execution_id])
                replay = self._journal.replays[execution_id] = []
                self._follow(url, replay)
            self._wait_for_end(execution_id)
        return execution_id

    def _start(self) -> str:
        headers = {"Idempotency-Key": self._name}
        inputs = inputs_of(self._name)
        if self._callback_url:
            parts = form(inputs, (), {"callback_url": self._callback_url})
            return self._insist("POST", "/api/ability/whole", files=parts, headers=headers).json()
        body = {"input_data": inputs}
        answer = self._insist("POST", "/v1/executions/whole/async", json=body, headers=headers)
        return answer.json()["execution_id"]

    def _signal(self, execution_id: str) -> None:
        body = {"name": SIGNAL, "payload": {"by": self._name}, "signal_id": self._name}
        path = f"/api/admin/executions/{execution_id}/signal"

        def send() -> bool | None:
            is_repeat = bool(self._last)
            response = self._client.post(self._server.url + path, json=body)
            # The answer to the first was lost, and the signal let the execution end.
            if is_repeat and response.status_code == 409 and "already completed" in response.text:
                return True
            return self._is_accepted(response) or None

        self._last = ""
        self._repeat(send)

    def _wait_for_end(self, execution_id: str) -> None:
        contract = f"ability/whole/{execution_id}/status" if self._callback_url else ""
        url = f"/api/{contract}" if contract else f"/v1/executions/{execution_id}"
        while True:
            shown = self._insist("GET", url).json()
            self._journal.saw(execution_id, shown["status"], shown.get("progress"))
            if shown["status"] in FINAL:
                self._journal.outputs[self._name] = shown["results" if contract else "final_output"]
                return
            time.sleep(PAUSE_SECONDS)

    def _insist(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer to a request that is repeated until it gets one; refusals but "later" are failures."""
        return self._repeat(lambda: self._answered(method, path, **request))

    def _answered(self, method: str, path: str, **request: Any) -> httpx.Response | None:
        response = self._client.request(method, self._server.url + path, **request)
        return response if self._is_accepted(response) else None

    def _is_accepted(self, response: httpx.Response) -> bool:
        """Else it says "later"; any other refusal is a failure."""
        if response.is_success:
            return True
        request = response.request
        self._last = f"{request.method} {request.url}: {response.status_code} {response.text}"
        assert "retry-after" in response.headers, self._last
        return False

    def _follow(self, path: str, pieces: list[Piece]) -> None:
        """Add what the stream brings behind the last of ``pieces``, until it ended by itself."""
        self._repeat(lambda: self._read_on(path, pieces))

    def _read_on(self, path: str, pieces: list[Piece]) -> bool | None:
        headers = {"Last-Event-ID": str(last_position(pieces))} if pieces else {}
        url = self._server.url + path
        with httpx_sse.connect_sse(self._client, "GET", url, headers=headers) as source:
            if not source.response.is_success:
                assert "retry-after" in source.response.headers, source.response.status_code
                return None
            for event in source.iter_sse():
                if event.data:  # else it is the line with the time to wait before coming again
                    pieces += (Piece(int(event.id), msgspec.json.decode(event.data)),)
        # A stream that ends without a broken connection is whole only when its server was not going down.
        return (bool(pieces) and self._has_ended(path)) or None

    def _has_ended(self, path: str) -> bool:
        execution_id = next(part for part in path.split("/") if part.count("-") == 4)
        shown = self._insist("GET", f"/api/audit/executions/{execution_id}").json()
        return shown["ended_at"] is not None

    def _repeat(self, attempt: Callable[[], ResultT | None]) -> ResultT:
        while True:
            try:
                result = attempt()
            except httpx.TransportError as error:
                self._last = repr(error)
                result = None
            if result is not None:
                return result
            assert time.monotonic() < self._deadline, f"{self._name}: {self._last}"
            time.sleep(PAUSE_SECONDS)


def serve_all(customers: Sequence[Customer]) -> list[str]:
    """Their executions' ids, once all have ended."""
    with ThreadPoolExecutor(len(customers)) as pool:
        return list(pool.map(Customer.visit, customers))
