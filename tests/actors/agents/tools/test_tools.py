"""Functions, flows, HTTP requests and todos as tools, and what no tool may let out."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from actors.agents.tools.interface import ToolResult, ToolsUnavailable
from actors.agents.tools.redaction import Redactor
from actors.step_call import StepOutcome
from runtime.agent_spec import FlowTool, HttpTool, PythonTool
from runtime.events import StepError
from runtime.plan import CallTool
from tests.actors.agents.tools.tool_household import SECRETS, bounded, house, schema

SAMPLES = "tests.actors.agents.tools.sample_tools"


# --- Python functions -----------------------------------------------------------------------------------


def test_a_function_is_described_by_a_worker_once_and_called_with_its_key(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            tool = PythonTool(function=f"{SAMPLES}:multiply")
            for _ in range(2):
                async with home.open(tool) as opened:
                    (definition,) = opened.definitions
                    assert definition.name == "multiply"
                    assert definition.description == "Multiply two numbers."
                    assert definition.parameters["required"] == ["left", "right"]
                    properties: Any = definition.parameters["properties"]
                    assert properties["left"]["description"] == "the first one"
                    assert await home.call(opened, "multiply", left=3, right=4) == ToolResult(content=12)
            described, first, second = home.home.calls
            assert described.function == "actors.agents.tools.describe:describe"
            assert first.function == second.function == f"{SAMPLES}:multiply"
            assert first.key == home.journal.key("tool-1")
            assert first.timeout_seconds == tool.timeout_seconds

    bounded(body())


def test_a_coroutine_function_and_a_large_result_work(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            tools = (PythonTool(function=f"{SAMPLES}:later"), PythonTool(function=f"{SAMPLES}:long_text"))
            async with home.open(*tools) as opened:
                assert (await home.call(opened, "later", text="hello")).content == "hello later"
                large = await home.call(opened, "long_text", size=100_000)
                assert large.content == "y" * 100_000

    bounded(body())


def test_wrong_arguments_are_told_and_the_function_is_not_called(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            async with home.open(PythonTool(function=f"{SAMPLES}:multiply", name="times")) as opened:
                wrong = await home.call(opened, "times", left="x")
                assert wrong.is_error
                assert str(wrong.content).startswith("The tool was not called. ")
                assert '"right" is a required property' in str(wrong.content)
            assert [call.function for call in home.home.calls] == ["actors.agents.tools.describe:describe"]

    bounded(body())


def test_what_a_function_raises_is_told_without_places_in_its_code(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home, home.open(PythonTool(function=f"{SAMPLES}:broken")) as opened:
            failed = await home.call(opened, "broken")
            assert failed == ToolResult(content="RuntimeError: it is broken", is_error=True)

    bounded(body())


def test_a_function_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            with pytest.raises(ToolsUnavailable, match=r"sample_tools:lost: AttributeError") as refused:
                async with home.open(PythonTool(function=f"{SAMPLES}:lost")):
                    pytest.fail("it opened")
            assert refused.value.kind == "InvalidTool"

    bounded(body())


# --- flows ----------------------------------------------------------------------------------------------


def test_a_flow_tool_runs_a_child_of_its_step_and_gives_its_output(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            tool = FlowTool(flow_id="add-up", schema=schema({"items": {"type": "array"}}, "items"))
            async with home.open(tool) as opened:
                (definition,) = opened.definitions
                assert (definition.name, definition.child_flow) == ("add-up", "add-up")
                summed = await home.call(opened, "add-up", items=[1, 2])
                assert summed == ToolResult(content={"total": 3})
                assert home.home.children == [
                    (f"child-of-{home.journal.key('tool-1')}", "add-up", {"items": [1, 2]})
                ]
                assert (await home.call(opened, "add-up")).is_error
                assert len(home.home.children) == 1
                home.home.child_outcome = StepOutcome(error=StepError(type="Cancelled", message="by hand"))
                failed = await home.call(opened, "add-up", items=[])
                assert failed == ToolResult(content="Cancelled: by hand", is_error=True)

    bounded(body())


# --- HTTP -----------------------------------------------------------------------------------------------


class Desk(ThreadingHTTPServer):
    """Answers every request with what it got; remembers all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.requests: list[dict[str, Any]] = []
        self.arrived = threading.Event()
        self.hold = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Any

    def handle_any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size).decode()
        got = {"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body}
        self.server.requests.append(got)
        self.server.arrived.set()
        path = urlsplit(self.path).path
        if path == "/wait":
            self.server.hold.wait(60)
        status = {"/gone": 404, "/elsewhere": 302}.get(path, 200)
        media_type, data = "application/json", json.dumps(got).encode()
        if path == "/binary":
            media_type, data = "image/png", b"\x89PNG" * 10
        if path == "/endless":
            media_type, data = "text/plain", b"z" * 100_000
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        if status == 302:
            self.send_header("Location", "http://169.254.169.254/")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  # http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        """Nothing: a test's output is its own."""


@contextmanager
def desk() -> Generator[Desk]:
    server = Desk()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_arguments_go_to_their_places_in_the_url_the_query_or_the_body(tmp_path: Path) -> None:
    async def body(server: Desk) -> None:
        get = HttpTool(name="get", url=server.url + "/items/{id}", headers={"X-Key": "{secret:api}"})
        post = HttpTool(name="post", url=server.url + "/items/{id}/notes", method="POST")
        async with house(tmp_path) as home, home.open(get, post) as opened:
            await home.call(opened, "get", id="a b/c?d", q="x&y", tags=["1", "2"], none=None)
            await home.call(opened, "post", step="tool-2", id="7", text="hi", deep={"a": [1]})
        got, posted = server.requests
        assert urlsplit(got["path"]).path == "/items/a%20b%2Fc%3Fd"
        assert parse_qs(urlsplit(str(got["path"])).query) == {"q": ["x&y"], "tags": ["1", "2"]}
        assert got["headers"]["X-Key"] == SECRETS["api"]
        assert got["headers"]["Idempotency-Key"] == home.journal.key("tool-1")
        assert posted["path"] == "/items/7/notes"
        assert json.loads(posted["body"]) == {"text": "hi", "deep": {"a": [1]}}
        assert posted["headers"]["Idempotency-Key"] == home.journal.key("tool-2")

    with desk() as server:
        bounded(body(server))


def test_an_answer_that_repeats_the_secret_is_told_without_it(tmp_path: Path) -> None:
    async def body(server: Desk) -> None:
        tool = HttpTool(name="get", url=server.url + "/x", headers={"X-Key": "Bearer {secret:NAME}"})
        async with house(tmp_path) as home, home.open(tool, secrets={"NAME": "other"}) as opened:
            answer: Any = (await home.call(opened, "get")).content
            assert answer["headers"]["X-Key"] == "Bearer ***"
            assert SECRETS["other"] not in str(answer)
        assert server.requests[0]["headers"]["X-Key"] == f"Bearer {SECRETS['other']}"

    with desk() as server:
        bounded(body(server))


@pytest.mark.parametrize("value", ["..", ".", "", None, ["a"]])
def test_no_argument_climbs_out_of_the_path(tmp_path: Path, value: Any) -> None:
    async def body(server: Desk) -> None:
        properties: Any = {"properties": {"id": {}}}
        tool = HttpTool(name="get", url=server.url + "/items/{id}/x", schema=properties)
        async with house(tmp_path) as home, home.open(tool) as opened:
            assert (await home.call(opened, "get", id=value)).is_error
        assert server.requests == []

    with desk() as server:
        bounded(body(server))


def test_errors_redirects_binaries_and_long_answers_are_told_in_bounds(tmp_path: Path) -> None:
    async def body(server: Desk) -> None:
        names = ("gone", "elsewhere", "binary", "endless")
        tools = [HttpTool(name=name, url=f"{server.url}/{name}", result_bytes_max=1_000) for name in names]
        async with house(tmp_path) as home, home.open(*tools) as opened:
            gone, elsewhere, binary, endless = [await home.call(opened, name) for name in names]
            assert (gone.is_error, cast_dict(gone)["status"]) == (True, 404)
            assert elsewhere.is_error
            assert cast_dict(elsewhere)["note"] == "redirects are not followed"
            assert binary == ToolResult(content="[image/png, 40 bytes]")
            assert str(endless.content).startswith("z" * 1_000 + "\n... cut")

    with desk() as server:
        bounded(body(server))


def cast_dict(result: ToolResult) -> dict[str, Any]:
    content: Any = result.content
    return content


def test_an_answer_that_never_comes_is_given_up(tmp_path: Path) -> None:
    async def body(server: Desk) -> None:
        tool = HttpTool(name="wait", url=server.url + "/wait", timeout_seconds=0.3)
        async with house(tmp_path) as home, home.open(tool) as opened:
            assert await home.call(opened, "wait") == ToolResult(
                content="wait took longer than its 0.3 s", is_error=True
            )

    with desk() as server:
        bounded(body(server))


def test_a_private_address_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async def body(server: Desk) -> None:
        tool = HttpTool(name="get", url=server.url)
        async with house(tmp_path, tool_allow="") as home, home.open(tool) as opened:
            refused = await home.call(opened, "get")
            assert refused.is_error
            assert "not public (loopback)" in str(refused.content)
        assert server.requests == []

    with desk() as server:
        bounded(body(server))


@pytest.mark.parametrize("url", ["http://{host}/x", "{url}", "http://a.{zone}/x", "/x"])
def test_no_argument_chooses_the_host(tmp_path: Path, url: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            with pytest.raises(ToolsUnavailable, match="must name scheme and host"):
                async with home.open(HttpTool(name="get", url=url)):
                    pytest.fail("it opened")

    bounded(body())


# --- todos, names, one call -----------------------------------------------------------------------------


def test_todos_are_logged_with_their_share_done(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home, home.open(todos=True) as opened:
            todos = [
                {"id": 1, "title": "Look", "status": "completed"},
                {"id": 2, "title": "Leap", "status": "in-progress"},
            ]
            answer = await home.call(opened, "update_todos", todos=todos)
            assert answer == ToolResult(content="The list is up to date: 1 of 2 completed.")
            wrong = await home.call(opened, "update_todos", todos=[{"id": 3, "title": "x", "status": "late"}])
            assert wrong.is_error
            (logged,) = home.actor.logged("todos")
            assert logged == {
                "todos": [{**todo, "id": str(todo["id"])} for todo in todos],
                "current_step": "Leap",
                "percent_complete": 0.5,
            }

    bounded(body())


def test_every_tool_has_a_name_of_its_own_that_a_model_may_use(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            odd = "a tool: with / every.thing" + "x" * 80
            tools = [PythonTool(function=f"{SAMPLES}:multiply", name=odd) for _ in range(3)]
            async with home.open(*tools) as opened:
                names = [definition.name for definition in opened.definitions]
                assert len(set(names)) == 3
                assert all(len(name) <= 64 and name.replace("_", "").isalnum() for name in names)

    bounded(body())


def test_one_call_without_a_model_gives_result_or_error(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            tool = PythonTool(function=f"{SAMPLES}:multiply")
            good = CallTool(tool, "", {"left": 2, "right": 5})
            assert await home.box.call_once(good, "tool-call", home.journal) == ToolResult(content=10)
            assert home.home.calls[-1].key == home.journal.key("tool-call")
            lost = CallTool(PythonTool(function=f"{SAMPLES}:lost"), "", {})
            with pytest.raises(ToolsUnavailable) as missing:
                await home.box.call_once(lost, "tool-call", home.journal)
            assert missing.value.kind == "InvalidTool"
            broken = CallTool(PythonTool(function=f"{SAMPLES}:broken"), "", {})
            failed = await home.box.call_once(broken, "tool-call", home.journal)
            assert failed == ToolResult(content="RuntimeError: it is broken", is_error=True)

    bounded(body())


def test_a_cancelled_call_leaves_no_task(tmp_path: Path) -> None:
    async def body(server: Desk) -> None:
        async with house(tmp_path) as home, home.open(HttpTool(name="w", url=server.url + "/wait")) as opened:
            calling = asyncio.create_task(home.call(opened, "w"))
            await asyncio.to_thread(server.arrived.wait, 60)
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
            assert calling.cancelled()

    with desk() as server:
        bounded(body(server))


# --- redaction ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["s3cret-value", 'with "quotes" and \\', "a/b+c d=ü", "four"])
def test_a_secret_is_found_in_every_form(value: str) -> None:
    redactor = Redactor()
    redactor.add(value)
    forms = [value, json.dumps(value), quote(value), quote(value, safe="")]
    for form in forms:
        assert redactor.text(f"before {form} after") in ("before *** after", 'before "***" after')
    for lead in ("", "u", "us", "user:"):
        encoded = base64.b64encode(f"{lead}{value}and more".encode()).decode()
        assert "***" in redactor.text(f"Basic {encoded}") or len(value) < 5
    nested = redactor.value({"a": [value, {value: 1}], "b": 7, "c": None})
    assert nested == {"a": ["***", {"***": 1}], "b": 7, "c": None}


def test_text_without_a_secret_and_tiny_secrets_stay_as_they_are() -> None:
    redactor = Redactor()
    assert redactor.text("anything") == "anything"
    redactor.add("7")
    redactor.add("")
    assert redactor.value({"answer": "17 of 77"}) == {"answer": "17 of 77"}
