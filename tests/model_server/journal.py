"""What was asked and what was answered, for whoever counts afterwards."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Literal

import msgspec

from tests.model_server.script import Asked

WAIT_SECONDS = 60.0

Outcome = Literal["open", "answered", "fault", "cut", "dropped"]
"""``answered``: sent whole, to a client that was there to the end. ``dropped``: the client left first."""


class Exchange(msgspec.Struct, kw_only=True):
    """One request. Times in seconds since the epoch. ``hangs``: the gate its answer waits at."""

    number: int
    at: float
    model: str
    idempotency_key: str
    tries: int
    turn: int
    body: dict[str, Any]
    headers: dict[str, str]
    outcome: Outcome = "open"
    status: int = 200
    ended_at: float = 0.0
    hangs: str = ""
    text: str = ""
    tool_calls: list[str] = []
    """Ids of the tool calls asked for, in their order."""


class Journal:
    """Every exchange since the server's start (or the last ``clear``). Safe to read from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exchanges: list[Exchange] = []
        self._seen: Counter[str] = Counter()
        self._numbers = 0

    # --- the server's side -----------------------------------------------------------------------------

    def received(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[Asked, Exchange]:
        key = headers.get("idempotency-key", "")
        same = key or sha256(msgspec.json.encode([body.get("model"), body.get("messages")])).hexdigest()
        with self._changed:
            self._numbers += 1
            asked = Asked(body, self._numbers, self._seen[same], headers)
            self._seen[same] += 1
            exchange = Exchange(
                number=asked.number,
                at=time.time(),
                model=asked.model,
                idempotency_key=key,
                tries=asked.tries,
                turn=asked.turn,
                body=body,
                headers=headers,
            )
            self._exchanges.append(exchange)
            self._changed.notify_all()
        return asked, exchange

    def hangs(self, exchange: Exchange, gate: str) -> None:
        with self._changed:
            exchange.hangs = gate
            self._changed.notify_all()

    def ended(self, exchange: Exchange, outcome: Outcome, status: int = 200) -> None:
        with self._changed:
            exchange.outcome, exchange.status, exchange.ended_at = outcome, status, time.time()
            exchange.hangs = ""
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._exchanges.clear()
            self._seen.clear()

    # --- the test's side -------------------------------------------------------------------------------

    @property
    def exchanges(self) -> list[Exchange]:
        """In the order of their arrival."""
        with self._changed:
            return list(self._exchanges)

    @property
    def counted(self) -> Counter[str]:
        """Answers sent whole, by the Idempotency-Key of their request (empty: it had none)."""
        return counted(self.exchanges)

    def until(
        self, holds: Callable[[list[Exchange]], bool], what: str, seconds: float = WAIT_SECONDS
    ) -> list[Exchange]:
        """Wait until it holds for the exchanges so far. Raises: AssertionError saying ``what`` did not."""
        with self._changed:
            if not self._changed.wait_for(lambda: holds(self._exchanges), seconds):
                state = [(each.number, each.outcome, each.hangs) for each in self._exchanges]
                raise AssertionError(f"{what}, after {seconds:g} s: {state[-20:]}")
            return list(self._exchanges)

    def until_requests(self, number: int) -> list[Exchange]:
        return self.until(lambda seen: len(seen) >= number, f"fewer than {number} requests came")

    def until_hanging(self, gate: str, number: int = 1) -> list[Exchange]:
        """Wait until ``number`` answers wait at the gate; those that do."""

        def waiting(seen: list[Exchange]) -> list[Exchange]:
            return [each for each in seen if each.hangs == gate]

        return waiting(
            self.until(lambda seen: len(waiting(seen)) >= number, f"fewer than {number} wait at {gate}")
        )

    def until_settled(self) -> list[Exchange]:
        """Wait until every request has had its end."""
        return self.until(lambda seen: all(each.outcome != "open" for each in seen), "answers are open")


def counted(exchanges: Sequence[Exchange]) -> Counter[str]:
    return Counter(each.idempotency_key for each in exchanges if each.outcome == "answered")
