"""Who is told of a workflow run's end, and how its failure is worded (workflows contract 3.12)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from gateway.context import Gateway
from gateway.dialects.workflows.webhooks import both_urls, error_fields, webhook_of
from projections.execution_summary import ExecutionRow
from runtime.blob_store import BlobStore

OK, FAILED = "https://ok.example/", "https://failed.example/"


def row(status: str, urls: str = both_urls(OK, FAILED), **fields: Any) -> ExecutionRow:
    values: dict[str, Any] = dict.fromkeys(ExecutionRow.__struct_fields__)
    values |= {"status": status, "callback_url": urls} | fields
    return ExecutionRow(**values)


def gateway(folder: Path) -> Gateway:
    return cast("Gateway", SimpleNamespace(blobs=BlobStore(str(folder))))


@pytest.mark.parametrize(
    ("status", "url"),
    [("completed", OK), ("failed", FAILED), ("timed_out", FAILED), ("cancelled", "")],
)
def test_each_end_has_its_url(tmp_path: Path, status: str, url: str) -> None:
    assert webhook_of(gateway(tmp_path), row(status, output='{"output": "x"}')) == url


def test_a_url_that_was_not_given_is_nobodys(tmp_path: Path) -> None:
    assert both_urls(None, None) == ""
    assert webhook_of(gateway(tmp_path), row("completed", both_urls(None, FAILED))) == ""
    assert webhook_of(gateway(tmp_path), row("failed", both_urls(OK, None))) == ""


def test_a_run_that_used_up_its_turns_tells_nobody_however_large_its_output_is(tmp_path: Path) -> None:
    opened = gateway(tmp_path)
    output: dict[str, Any] = {"output": "", "messages": [], "turns": 2, "stop_reason": "max_turns"}
    text = msgspec.json.encode(output)
    ref = opened.blobs.put_bytes(text)
    assert webhook_of(opened, row("completed", output=text.decode())) == ""
    assert webhook_of(opened, row("completed", output_ref=msgspec.json.encode(ref).decode())) == ""


@pytest.mark.parametrize(
    ("kind", "message", "error_type", "code"),
    [
        ("RateLimited", "slow down (HTTP 429)", "rate_limit_exceeded", 429),
        ("ModelAuthenticationError", "bad key (HTTP 401)", "authentication_error", 401),
        ("ModelConnectionError", "no route", "connection_error", None),
        ("TimeoutError", "late", "timeout_error", None),
        ("ModelHTTPError", "what? (HTTP 400)", "http_error", 400),
        ("ModelError", "odd answer", "api_error", None),
        ("ModelNotConfigured", "set HELIOGRAPH_MODEL", "internal_error", None),
    ],
)
def test_a_failure_is_worded_by_its_type(kind: str, message: str, error_type: str, code: int | None) -> None:
    told = error_fields(row("failed", error_type=kind, error_message=message))
    assert told == {"error_type": error_type, "error_message": message, "error_code": code}
