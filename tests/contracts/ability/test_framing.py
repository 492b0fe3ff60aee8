"""The stream's encoder and framings, with no request behind them (ability contract 3.2)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.ability.stream import (
    PLAIN_MESSAGE_BYTES_MAX,
    AbilityEncoder,
    AbilityFrame,
    plain_frame,
    preview,
    standard_frame,
)
from gateway.dialects.ability.wire import STATUSES, envelope, failure_reason, shown_time
from gateway.envelopes import CODES
from gateway.settings import Settings
from runtime import events
from runtime.blob_store import BlobStore
from runtime.events import Event, StepError
from runtime.state import Status

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def made(output: Any, event_type: Any = "node_output", **more: Any) -> AbilityFrame:
    message = {"request_id": "r", "seq": 7, "node_id": "n", "node_name": "N", "output": output, **more}
    return AbilityFrame(7, event_type, message)


def read_plain(frame: bytes) -> tuple[str, Any]:
    """As the seed's client reads one network read."""
    event_line, *message_lines = frame.decode().strip().split("\n")
    return event_line.replace(":", "", 1), msgspec.json.decode("\n".join(message_lines))


@given(JSON)
def test_both_framings_carry_any_output_on_one_line(output: Any) -> None:
    plain, standard = plain_frame(made(output)), standard_frame(made(output))
    event_type, message = read_plain(plain)
    assert (event_type, message["output"]) == ("node_output", output)
    assert plain.count(b"\n") == 3
    assert not plain.replace(b"\n", b"").count(b"\r")
    identity, name, data, *rest = standard.split(b"\n")
    assert (identity, name, rest) == (b"id: 7", b"event: node_output", [b"", b""])
    assert msgspec.json.decode(data.removeprefix(b"data: ")) == message


@given(st.text(min_size=1, max_size=50), st.integers(100, 30_000), st.booleans())
def test_a_long_plain_node_output_fits_its_bound(text: str, times: int, is_list: bool) -> None:
    output: Any = [text] * times if is_list else text * times
    message = msgspec.json.encode(made(output).message)
    _, read = read_plain(plain_frame(made(output)))
    assert len(msgspec.json.encode(read)) <= PLAIN_MESSAGE_BYTES_MAX
    if len(message) > PLAIN_MESSAGE_BYTES_MAX:
        assert read["truncated"] is True
        whole = output if isinstance(output, str) else msgspec.json.encode(output).decode()
        assert whole.startswith(read["output"])


def test_a_long_input_is_cut_too_and_a_short_one_is_kept() -> None:
    _, read = read_plain(plain_frame(made("x" * 50_000, input={"inputs": {"a": "y" * 50_000}})))
    assert read["input"].startswith('{"inputs":{"a":"yyy')
    assert len(msgspec.json.encode(read)) <= PLAIN_MESSAGE_BYTES_MAX
    _, read = read_plain(plain_frame(made("x" * 50_000, input={"inputs": {"a": 1}})))
    assert read["input"] == {"inputs": {"a": 1}}


@pytest.mark.parametrize("event_type", ["final_response", "error"])
def test_what_ends_a_stream_is_never_cut(event_type: str) -> None:
    assert read_plain(plain_frame(made("x" * 50_000, event_type)))[1]["output"] == "x" * 50_000


@given(JSON, st.integers(2, 200))
def test_a_preview_is_a_beginning_within_its_bound(value: Any, bytes_max: int) -> None:
    data = msgspec.json.encode(value)
    short = preview(data, bytes_max)
    assert len(msgspec.json.encode(short)) <= bytes_max
    assert (value if isinstance(value, str) else data.decode()).startswith(short)


# --- from events to frames --------------------------------------------------------------------------------


def encode(folder: Path, *told: Event, debug: bool = False) -> list[AbilityFrame]:
    async def all_of_them() -> list[AbilityFrame]:
        encoder = AbilityEncoder("r", {}, BlobStore(str(folder)), debug=debug)
        return [frame for event in told if (frame := await encoder.encode(event.originator_version, event))]

    return asyncio.run(all_of_them())


def event(kind: type[Event], version: int, **fields: Any) -> Event:
    return kind(originator_id="r", originator_version=version, at=version * 1_000_000, **fields)


def test_a_payload_in_the_blob_store_is_delivered_whole(tmp_path: Path) -> None:
    ref = BlobStore(str(tmp_path)).put_bytes(b'{\n  "a": 1\n}')
    node, final = encode(
        tmp_path,
        event(events.NodeCompleted, 1, node_id="n", output_ref=ref),
        event(events.Completed, 2, output_ref=ref),
    )
    assert standard_frame(node).count(b"\n") == 4
    assert msgspec.json.decode(msgspec.json.encode(final.message))["results"] == {"a": 1}


def test_an_attempt_that_failed_is_no_output(tmp_path: Path) -> None:
    error = StepError(type="E", message="m")
    [frame] = encode(
        tmp_path,
        event(events.NodeStarted, 1, node_id="n"),
        event(events.NodeFailed, 2, node_id="n", error=error, retry_at=3),
        event(events.NodeStarted, 3, node_id="n", attempt=2),
        event(events.NodeCompleted, 5, node_id="n", attempt=2, output="x"),
        debug=True,
    )
    assert (frame.seq, frame.message["attempt"], frame.message["duration_ms"]) == (5, 2, 2_000)


@pytest.mark.parametrize(
    ("told", "status", "code", "reason", "node_id"),
    [
        (
            {"kind": events.Failed, "error": StepError(type="E", message="a\nb"), "node_id": "n"},
            "FAILED",
            "NODE_FAILED",
            "n: a b",
            "n",
        ),
        (
            {"kind": events.Failed, "error": StepError(type="E", message="")},
            "FAILED",
            "INTERNAL_ERROR",
            "E",
            None,
        ),
        (
            {"kind": events.TimedOut, "timeout_seconds": 1.5},
            "FAILED",
            "TIMEOUT",
            "TIMEOUT: Execution timed out after 1.5 s",
            None,
        ),
        (
            {"kind": events.CancellationRequested, "previous_status": "running"},
            "CANCELED",
            "CANCELED",
            None,
            None,
        ),
    ],
)
def test_each_bad_end_has_its_code(
    tmp_path: Path, told: dict[str, Any], status: str, code: str, reason: str | None, node_id: str | None
) -> None:
    [frame] = encode(tmp_path, event(told.pop("kind"), 1, **told))
    assert frame.event_type == "error"
    assert frame.message == {
        "request_id": "r",
        "status": status,
        "code": code,
        "failure_reason": reason,
        "node_id": node_id,
    }


# --- words ------------------------------------------------------------------------------------------------


def test_every_status_has_a_word() -> None:
    assert set(STATUSES) == set(get_args(Status))


def test_the_table_of_errors_is_total_and_each_has_a_code() -> None:
    faults = envelope(Settings()).faults
    assert set(CODES) <= set(faults)
    assert all(fault.code for fault in faults.values())


def test_a_time_has_no_fraction_and_no_zone() -> None:
    assert shown_time(1_768_473_000_999_999) == "2026-01-15T10:30:00"


@given(st.text(max_size=50), st.text(max_size=50), st.booleans())
def test_a_failure_reason_is_one_line(node_id: str, message: str, is_timeout: bool) -> None:
    reason = failure_reason(node_id=node_id.strip() and "n", message=message, is_timeout=is_timeout)
    assert reason
    assert len(reason.splitlines()) == 1
    assert reason.startswith("TIMEOUT") or not is_timeout
