"""The doctor's line about the model endpoint, against endpoints of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gateway.cli.model_check import check_model
from gateway.settings import Settings
from tests.cli.command import heliograph

KEY = "sk-very-secret"


@contextmanager
def endpoint(status: int) -> Generator[tuple[str, list[tuple[str, str]]]]:
    """An endpoint that answers every GET with ``status``; its URL, and path and key of what it was asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HELIOGRAPH_MODEL_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_without_a_model_the_variables_are_named() -> None:
    verdict = check_model(Settings())
    assert "HELIOGRAPH_MODEL," in verdict.fix
    assert "HELIOGRAPH_MODEL=offline" in verdict.fix


def test_the_offline_model_and_a_providers_own_need_no_endpoint() -> None:
    assert check_model(Settings(model="offline")).fix == ""
    theirs = check_model(Settings(model="anthropic:claude", model_url="http://127.0.0.1:9/v1"))
    assert "anthropic's own variables" in theirs.found
    assert theirs.fix == ""


def test_openai_itself_is_not_asked_without_a_key() -> None:
    assert "HELIOGRAPH_MODEL_KEY" in check_model(Settings(model="gpt-5")).fix


@pytest.mark.parametrize("variable", ["HELIOGRAPH_MODEL_KEY", "OPENAI_API_KEY"])
def test_an_endpoint_that_answers_is_fine(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, KEY)
    for status in (200, 404):
        with endpoint(status) as (url, asked):
            verdict = check_model(Settings(model="small", model_url=url))
        assert verdict == (f"small at {url} answers", "")
        assert asked == [("/v1/models", f"Bearer {KEY}")]


@pytest.mark.parametrize("variable", ["HELIOGRAPH_MODEL_KEY", "OPENAI_API_KEY"])
def test_a_refused_key_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, KEY)
    with endpoint(401) as (url, _):
        verdict = check_model(Settings(model="small", model_url=url))
    assert verdict == (f"small at {url}: refuses the key", f"Correct {variable}.")


def test_a_colon_in_a_name_makes_no_provider() -> None:
    with endpoint(200) as (url, asked):
        assert (
            check_model(Settings(model="qwen2.5:7b", model_url=url)).found == f"qwen2.5:7b at {url} answers"
        )
    assert len(asked) == 1


def test_a_missing_key_is_asked_for() -> None:
    with endpoint(401) as (url, asked):
        assert check_model(Settings(model="small", model_url=url)).fix == "Set HELIOGRAPH_MODEL_KEY."
    assert asked == [("/v1/models", "")]


def test_a_key_no_header_can_carry_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOGRAPH_MODEL_KEY", "sk-sécret\nx")
    verdict = check_model(Settings(model="small", model_url="http://127.0.0.1:9/v1"))
    assert verdict.fix == "Correct HELIOGRAPH_MODEL_KEY."
    assert "cret" not in verdict.found


def test_an_endpoint_in_trouble_is_told_from_a_wrong_address() -> None:
    with endpoint(503) as (url, _):
        assert check_model(Settings(model="small", model_url=url)).found.endswith("answers with 503")
    gone = check_model(Settings(model="small", model_url=url))
    assert "HELIOGRAPH_MODEL_URL" in gone.fix


def test_the_doctor_warns_and_shows_no_key(folder: Path) -> None:
    with endpoint(403) as (url, _):
        env = {
            "HELIOGRAPH_PORT": "0",
            "HELIOGRAPH_MODEL": "small",
            "HELIOGRAPH_MODEL_URL": url,
            "HELIOGRAPH_MODEL_KEY": KEY,
            "HELIOGRAPH_SECRET_KEY": KEY,
        }
        ended = heliograph(folder, "doctor", env=env)
    assert ended.code == 0, ended
    assert f"warn  Model          small at {url}: refuses the key" in ended.out
    assert KEY not in ended.out + ended.err
