"""Ability contract, acceptance scenarios 12 and 13, over a real server."""

from __future__ import annotations

import uuid

import httpx
import pytest

from tests.contracts.ability.wire import assert_error, run, status_of, wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]


def delete_many(client: httpx.Client, ability: str, *request_ids: str) -> httpx.Response:
    return client.delete(f"/api/ability/{ability}", params={"request_ids": list(request_ids)})


def test_a_finished_request_cannot_be_cancelled_and_a_cancelled_one_can_again(client: httpx.Client) -> None:
    """Scenario 12."""
    for ability, end in (("other-ability", "COMPLETED"), ("failing", "FAILED")):
        request_id = run(client, ability)
        before = wait_for(client, ability, request_id)
        refused = client.delete(f"/api/ability/{ability}/{request_id}")
        details = assert_error(refused, 409, "CANCEL_FAILED")
        assert details == [{"request_id": request_id, "status": end}]
        assert status_of(client, ability, request_id) == before
    request_id = run(client, "long")
    for _ in range(2):
        response = client.delete(f"/api/ability/long/{request_id}")
        assert (response.status_code, response.text) == (200, "true")
        shown = status_of(client, "long", request_id)
        assert (shown["status"], shown["failure_reason"], shown["results"]) == ("CANCELED", None, None)


def test_several_are_cancelled_together(client: httpx.Client) -> None:
    """Scenario 13, its first part."""
    ids = [run(client, "long"), run(client, "long")]
    response = delete_many(client, "long", *ids, ids[0])
    assert (response.status_code, response.text) == (200, "true")
    assert {status_of(client, "long", each)["status"] for each in ids} == {"CANCELED"}
    assert delete_many(client, "long", *ids).json() is True


def test_an_unknown_id_among_several_cancels_nothing(client: httpx.Client) -> None:
    """Scenario 13, its second part."""
    ids = [run(client, "long"), run(client, "long")]
    unknown = [str(uuid.uuid4()), "odd"]
    details = assert_error(delete_many(client, "long", *ids, *unknown), 404, "REQUEST_NOT_FOUND")
    assert details == [{"request_id": each} for each in unknown]
    assert {status_of(client, "long", each)["status"] for each in ids} <= {"PENDING", "PROCESSING"}
    assert delete_many(client, "long", *ids).json() is True


def test_a_completed_id_among_several_is_told_and_the_others_are_cancelled(client: httpx.Client) -> None:
    """Scenario 13, its third part."""
    completed = run(client, "short-rest")
    wait_for(client, "short-rest", completed)
    running = [run(client, "short-rest"), run(client, "short-rest")]
    response = delete_many(client, "short-rest", running[0], completed, running[1])
    assert assert_error(response, 409, "CANCEL_FAILED") == [
        {"request_id": running[0], "status": "CANCELED"},
        {"request_id": completed, "status": "COMPLETED"},
        {"request_id": running[1], "status": "CANCELED"},
    ]
    assert {status_of(client, "short-rest", each)["status"] for each in running} == {"CANCELED"}


def test_none_an_empty_one_or_too_many_ids_are_refused(client: httpx.Client) -> None:
    for ids in ((), ("",), tuple(str(number) for number in range(101))):
        assert_error(delete_many(client, "long", *ids), 400, "INVALID_REQUEST_IDS")
    assert_error(delete_many(client, "long", *(["same"] * 200)), 404, "REQUEST_NOT_FOUND")
    assert_error(delete_many(client, "nothing-here", "x"), 404, "ABILITY_NOT_FOUND")
    assert_error(delete_many(client, "nothing-here"), 404, "ABILITY_NOT_FOUND")
