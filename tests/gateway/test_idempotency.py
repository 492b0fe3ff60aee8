"""Idempotency-Key (gateway rule G6): the states of a row, crashes included."""

from __future__ import annotations

import asyncio

from gateway.idempotency import LEASE_SECONDS, Idempotency
from runtime.errors import Overloaded, Unavailable
from runtime.ids import SECOND
from tests.gateway.running_app import Running, running

URL = "/v1/executions/greeting/async"
HEADERS = {"idempotency-key": "k1"}


def _rows(app: Running) -> list[tuple[object, ...]]:
    return app.gateway.store.query("SELECT execution_id, answer FROM idempotency")


def test_a_start_whose_outcome_is_unknown_is_repeated_with_the_same_id() -> None:
    async def scenario() -> None:
        async with running() as app:
            app.host.fault, app.host.fault_before_record = Unavailable("the answer was lost"), False
            lost = await app.client.post(URL, headers=HEADERS)
            assert (lost.status_code, lost.headers["retry-after"]) == (503, "1")
            again = await app.client.post(URL, headers=HEADERS)
            assert again.status_code == 202
            assert app.host.started == [again.json()["execution_id"]] * 2

    asyncio.run(scenario())


def test_a_refused_repeat_does_not_forget_what_an_earlier_one_may_have_started() -> None:
    async def scenario() -> None:
        async with running() as app:
            app.host.fault, app.host.fault_before_record = Unavailable("the answer was lost"), False
            assert (await app.client.post(URL, headers=HEADERS)).status_code == 503
            app.host.fault, app.host.fault_before_record = Overloaded("queue full", 4), True
            assert (await app.client.post(URL, headers=HEADERS)).status_code == 503
            client, app.gateway.client = app.gateway.client, None  # as right after a restart
            assert (await app.client.post(URL, headers=HEADERS)).status_code == 503
            app.gateway.client = client
            accepted = await app.client.post(URL, headers=HEADERS)
            assert accepted.status_code == 202
            assert set(app.host.started) == {accepted.json()["execution_id"]}

    asyncio.run(scenario())


def test_an_overload_keeps_nothing_and_the_retry_is_accepted() -> None:
    async def scenario() -> None:
        async with running() as app:
            app.host.fault = Overloaded("queue full", 4)
            refused = await app.client.post(URL, headers=HEADERS)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "4")
            again = await app.client.post(URL, headers=HEADERS)
            assert again.status_code == 202
            assert "idempotency-replayed" not in again.headers

    asyncio.run(scenario())


def test_a_key_in_progress_is_409_and_a_crashed_holder_is_taken_over() -> None:
    async def scenario() -> None:
        async with running() as app:
            first = await app.client.post(URL, headers=HEADERS)
            execution_id = first.json()["execution_id"]
            store = app.gateway.store
            # As if another gateway had reserved the key and died before its start was answered.
            store.execute("UPDATE idempotency SET answer = NULL, holder = 'other'")
            busy = await app.client.post(URL, headers=HEADERS)
            assert (busy.status_code, busy.headers["retry-after"]) == (409, "1")
            assert busy.json() == {"detail": "Idempotency-Key still in progress."}
            long_ago = app.gateway.clock() - (LEASE_SECONDS + 1) * SECOND
            store.execute("UPDATE idempotency SET reserved_at = ?", (long_ago,))
            repaired = await app.client.post(URL, headers=HEADERS)
            assert repaired.status_code == 202
            assert repaired.json()["execution_id"] == execution_id
            [(kept_id, answer)] = _rows(app)
            assert kept_id == execution_id
            assert answer is not None

    asyncio.run(scenario())


def test_parallel_repeats_start_one_execution() -> None:
    async def scenario() -> None:
        async with running() as app:
            answers = await asyncio.gather(*(app.client.post(URL, headers=HEADERS) for _ in range(8)))
            assert {answer.status_code for answer in answers} <= {202, 409}
            assert len(set(app.host.started)) == 1

    asyncio.run(scenario())


def test_refusals_are_kept_too() -> None:
    async def scenario() -> None:
        async with running() as app:
            headers = {**HEADERS, "content-type": "application/json"}
            first, again = [
                await app.client.post(URL, content=b'{"input_data": 5}', headers=headers) for _ in range(2)
            ]
            assert first.status_code == again.status_code == 422
            assert first.content == again.content
            assert again.headers["idempotency-replayed"] == "true"

    asyncio.run(scenario())


def test_an_expired_key_starts_anew_and_is_purged() -> None:
    async def scenario() -> None:
        async with running() as app:
            first = await app.client.post(URL, headers=HEADERS)
            app.gateway.store.execute("UPDATE idempotency SET expires_at = 1")
            second = await app.client.post(URL, headers=HEADERS)
            assert first.json()["execution_id"] != second.json()["execution_id"]
            app.gateway.store.execute("UPDATE idempotency SET expires_at = 1")
            keeper: Idempotency = app.gateway.idempotency
            assert await asyncio.to_thread(keeper.purge) == 1
            assert _rows(app) == []

    asyncio.run(scenario())
