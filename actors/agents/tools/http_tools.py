"""HTTP requests as tools: the author decides where to and with which credentials, the model gives arguments.

Each ``{argument}`` in the path or query of the URL is replaced, percent-encoded; what no place names goes to
the query (GET) or the JSON body. No argument can change the host or climb out of the path. Redirects are not
followed. The answer is read up to the tool's bound and no further.
"""

import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from actors.agents.home import AgentHome
from actors.agents.tools.bound_tool import Arguments, BoundTool, ToolFailed, object_schema
from actors.agents.tools.credentials import Credentials
from actors.agents.tools.interface import ToolDefinition, ToolResult, ToolsUnavailable
from actors.egress import EgressRefused
from actors.step_journal import StepJournal
from runtime.agent_spec import HttpTool
from runtime.events import Json

_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
_TEXTUAL = ("text/", "application/json", "application/xml", "application/javascript", "application/yaml")


def bind_http(spec: HttpTool, home: AgentHome, credentials: Credentials) -> BoundTool:
    """Raises: ToolsUnavailable when an argument could choose the host, or for a schema that is none."""
    places = frozenset(_PLACE.findall(spec.url))
    try:
        fixed = urlsplit(spec.url)
        if _PLACE.search(fixed.scheme + fixed.netloc) or not fixed.netloc:
            raise ValueError
    except ValueError:
        message = f"tool {spec.name}: its URL must name scheme and host; arguments may stand behind them"
        raise ToolsUnavailable("InvalidTool", message) from None
    definition = ToolDefinition(
        name=spec.name,
        description=spec.description or f"{spec.method} {spec.url}",
        parameters=object_schema(spec.schema or _schema_of(places), spec.name),
        timeout_seconds=spec.timeout_seconds,
        result_bytes_max=spec.result_bytes_max,
    )

    async def call(arguments: Arguments, step: str, journal: StepJournal) -> ToolResult:
        headers = {"Idempotency-Key": journal.key(step), **await credentials.fill_all(spec.headers)}
        url = _PLACE.sub(lambda place: _placed(arguments, place.group(1)), spec.url)
        rest = {name: value for name, value in arguments.items() if name not in places}
        return await _send(spec, home.http, url, rest, headers)

    return BoundTool(definition=definition, call=call)


async def _send(
    spec: HttpTool, client: httpx.AsyncClient, url: str, rest: Arguments, headers: dict[str, str]
) -> ToolResult:
    content = None
    if spec.method == "GET":
        url = str(httpx.URL(url).copy_merge_params(_query(rest))) if rest else url
    else:
        content = msgspec.json.encode(rest)
        headers = {"Content-Type": "application/json", **headers}
    try:
        async with client.stream(spec.method, url, headers=headers, content=content) as response:
            body, is_whole = await _read(response, spec.result_bytes_max)
            return _result(response, body, is_whole, spec.result_bytes_max)
    except EgressRefused as error:
        raise ToolFailed(f"the request was not sent: {error.reason}") from None
    except httpx.TimeoutException:
        raise ToolFailed("the server took too long") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ValueError) as error:
        raise ToolFailed(f"the request failed: {type(error).__name__}: {error}"[:1_000]) from None


async def _read(response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    """The body up to ``limit`` bytes, and whether that was all of it."""
    body = bytearray()
    async for chunk in response.aiter_bytes(64 * 1024):
        body += chunk
        if len(body) > limit:
            return bytes(body[:limit]), False
    return bytes(body), True


def _result(response: httpx.Response, body: bytes, is_whole: bool, limit: int) -> ToolResult:
    content = _content(response, body, is_whole)
    if not is_whole and isinstance(content, str):
        content += f"\n... cut: the answer is longer than {limit} bytes"
    if response.is_success:
        return ToolResult(content=content)
    answer: dict[str, Json] = {"status": response.status_code, "body": content}
    if response.is_redirect:
        answer["location"] = response.headers.get("location", "")
        answer["note"] = "redirects are not followed"
    return ToolResult(content=answer, is_error=True)


def _content(response: httpx.Response, body: bytes, is_whole: bool) -> Json:
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "json" in media_type and is_whole and body:
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError:
            return body.decode(errors="replace")
    if media_type and not media_type.startswith(_TEXTUAL) and not media_type.endswith(("+json", "+xml")):
        size = response.headers.get("content-length") or (len(body) if is_whole else f"more than {len(body)}")
        return f"[{media_type}, {size} bytes]"
    try:
        return body.decode(response.encoding or "utf-8", errors="replace")
    except LookupError:  # Python knows it, but not as an encoding of text
        return body.decode(errors="replace")


def _placed(arguments: Arguments, name: str) -> str:
    value: Any = arguments.get(name)
    if value is None or isinstance(value, (dict, list)):
        raise ToolFailed(f"The tool was not called. arguments.{name}: a text or a number is needed")
    text = _plain(value)
    if text in ("", ".", ".."):
        # As a part of a path these would name another resource than the author meant.
        raise ToolFailed(f"The tool was not called. arguments.{name}: {text!r} can't stand in the URL")
    return quote(text, safe="")


def _query(rest: Arguments) -> dict[str, str | list[str]]:
    query: dict[str, str | list[str]] = {}
    for name, value in rest.items():
        if isinstance(value, list):
            query[name] = [_plain(inner) for inner in cast("list[Any]", value)]
        elif value is not None:
            query[name] = _plain(value)
    return query


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _schema_of(places: frozenset[str]) -> Mapping[str, Json]:
    names = sorted(places)
    return {"properties": {name: {"type": "string"} for name in names}, "required": names} if names else {}
