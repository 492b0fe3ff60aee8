"""The way to a server: which address and key, and what its refusals mean to a person.

The address and the key come from the options, else HELIOGRAPH_URL and HELIOGRAPH_API_KEY, else the
credentials file that a server on the embedded default keeps in its data directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gateway.cli.failures import CliFailure, usage

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 60.0
STREAM_SILENCE_SECONDS = 60.0
"""The server sends a keep-alive every 15 s; this much silence means that it is gone."""
RECONNECTS_MAX = 10
"""Times in a row that a stream is taken up again without having brought anything."""


Event = dict[str, Any]
"""One recorded event as the audit API shows it."""


class Target(NamedTuple):
    """``was_named``: a person or the environment chose the address, so nothing else may answer instead."""

    url: str
    api_key: str
    was_named: bool


def target(url: str | None, api_key: str | None) -> Target:
    """Where to send requests, and with which key ('' when there is none)."""
    from gateway.cli.settings import load_settings
    from gateway.credentials import read_credentials

    settings = load_settings()
    kept = read_credentials(settings.data_dir)
    address = (url or (kept.url if kept else f"http://{settings.host}:{settings.port}")).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise usage(f"--url: {address!r} is no http or https address", "For example: http://127.0.0.1:8080")
    # A key that was kept for one server is never sent to another.
    kept_key = kept.api_key if kept and kept.url.rstrip("/") == address else ""
    return Target(address, api_key or kept_key, bool(url))


class Server:
    """One server, spoken to over HTTP. Every method raises CliFailure and nothing else."""

    def __init__(self, where: Target, transport: httpx.BaseTransport | None = None) -> None:
        import httpx

        self.url = where.url
        self._has_key = bool(where.api_key)
        headers = {"X-API-Key": where.api_key} if where.api_key else {}
        self._client = httpx.Client(
            base_url=where.url,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=False,
            transport=transport,
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._ask("GET", path, params=_given(query))

    def post(self, path: str, body: Any = None, **query: Any) -> dict[str, Any]:
        return self._ask("POST", path, params=_given(query), json=body)

    def put(self, path: str, body: Any, **query: Any) -> dict[str, Any]:
        return self._ask("PUT", path, params=_given(query), json=body)

    def post_text(self, path: str, text: bytes, media_type: str, **query: Any) -> dict[str, Any]:
        return self._ask(
            "POST", path, params=_given(query), content=text, headers={"Content-Type": media_type}
        )

    def send(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Any other request, by httpx's own names of its parts."""
        return self._ask(method, path, **request)

    def download(self, path: str, **query: Any) -> Iterator[bytes]:
        """The body of an answer, in pieces as they come."""
        import httpx

        try:
            with self._client.stream("GET", path, params=_given(query)) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(response)
                yield from response.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def start(self, flow: str, input_data: dict[str, Any], idempotency_key: str | None) -> dict[str, Any]:
        """Start an execution by the executions contract (3.1)."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = {"input_data": input_data}
        unknown = CliFailure(f"no published flow is called {flow!r}", _HINTS["flow_not_found"])
        path = f"/v1/executions/{segment(flow)}/async"
        return self._ask("POST", path, unknown=unknown, json=body, headers=headers)

    def delete(self, path: str, **query: Any) -> dict[str, Any]:
        return self._ask("DELETE", path, params=_given(query))

    def is_up(self) -> bool:
        """Whether a Heliograph server answers there, ready or not."""
        import httpx

        try:
            return self._client.get("/health", timeout=CONNECT_SECONDS).is_success
        except httpx.HTTPError:
            return False

    def events(
        self, path: str, after: int = 0, is_last: Callable[[Event], bool] | None = None
    ) -> Iterator[Event]:
        """Events of a stream up to the one that ``is_last``; without it the stream has no end.

        A broken connection is taken up where it broke. So is one that the server ended early, because this
        reader fell behind or the server stops; when it brought nothing at all, there was nothing left.
        """
        import httpx
        from httpx_sse import SSEError, connect_sse

        last, idle_attempts = after, 0
        timeout = httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)
        while True:
            headers = {"Last-Event-ID": str(last)} if last else {}
            before = last
            try:
                with connect_sse(self._client, "GET", path, headers=headers, timeout=timeout) as source:
                    if not source.response.is_success:
                        source.response.read()
                        raise self._refusal(source.response)
                    for sent in source.iter_sse():
                        if not sent.data:
                            continue  # the line that says how soon to come back
                        event: Event = sent.json()
                        last, idle_attempts = int(sent.id), 0
                        yield event
                        if is_last is not None and is_last(event):
                            return
                if is_last is not None and last == before:
                    return
                interruption: httpx.TransportError = httpx.RemoteProtocolError("the server ended the stream")
            except SSEError as error:
                raise CliFailure(f"{self.url}{path} sent no event stream: {error}") from None
            except httpx.TransportError as error:
                if isinstance(error, httpx.ConnectError) and not last:
                    raise self._unreachable(error) from None
                interruption = error
            idle_attempts += 1
            if idle_attempts > RECONNECTS_MAX:
                raise self._unreachable(interruption)
            _pause(min(0.1 * 2**idle_attempts, 5.0))

    def _ask(
        self, method: str, path: str, *, unknown: CliFailure | None = None, **request: Any
    ) -> dict[str, Any]:
        """``unknown``: what a 404 means, when it's clearer than the server's own words."""
        import httpx

        try:
            with waiting(f"waiting for {self.url}"):
                response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if response.status_code == 404 and unknown is not None:
            raise unknown
        if not response.is_success:
            raise self._refusal(response)
        if response.status_code == 204:
            return {}
        try:
            return cast("dict[str, Any]", response.json())
        except json.JSONDecodeError:
            raise CliFailure(f"{self.url} did not answer in JSON: is it a Heliograph server?") from None

    def _unreachable(self, error: httpx.TransportError) -> CliFailure:
        import httpx

        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return CliFailure(
                f"no server answers at {self.url}",
                "Start one with `heliograph serve`, or name another with --url or HELIOGRAPH_URL.",
            )
        if isinstance(error, httpx.TimeoutException):
            return CliFailure(f"{self.url} did not answer in time", "Try again; see its logs if it goes on.")
        return CliFailure(f"the connection to {self.url} broke: {error}", "Is the server still running?")

    def _refusal(self, response: httpx.Response) -> CliFailure:
        problem = _problem(response)
        detail = _told(problem.get("message") or problem.get("detail")) or response.reason_phrase
        match response.status_code:
            case 401 if not self._has_key:
                return CliFailure(
                    f"{self.url} asks for an API key",
                    "Pass --api-key or set HELIOGRAPH_API_KEY. A server's first start prints its key; "
                    "`heliograph keys create` makes more.",
                )
            case 401:
                return CliFailure(
                    f"{self.url} refuses this API key: it is unknown, revoked or expired",
                    "Check --api-key or HELIOGRAPH_API_KEY; `heliograph keys create` makes a new one.",
                )
            case 403:
                return CliFailure(
                    f"this API key may not do that: {detail}", "Use a key with the scope it takes."
                )
            case 429 | 503:
                wait = response.headers.get("Retry-After", "")
                hint = f"Try again in {wait} s." if wait else "Try again."
                return CliFailure(f"the server refuses for now: {detail}", hint)
            case 422:
                return CliFailure(*_broken_rules(detail, problem))
            case status if status >= 500:
                correlation = response.headers.get("X-Correlation-Id", "")
                return CliFailure(
                    f"the server failed ({status}): {detail}",
                    f"Its log has more under {correlation}." if correlation else "See its log.",
                )
            case _:
                return CliFailure(detail, _HINTS.get(str(problem.get("code", "")), ""))


_HINTS = {
    "secret_not_found": "`heliograph secrets list` shows what is set.",
    "mcp_server_not_found": "`heliograph mcp list` shows what was added.",
    "batch_not_found": "`heliograph batches list` shows the latest.",
    "flow_not_found": "`heliograph flows list` shows what is published.",
    "execution_not_found": "Is the id complete? `heliograph status` without an id lists the latest.",
}


def _problem(response: httpx.Response) -> dict[str, Any]:
    """The envelope of the gateway's own APIs, or the contract's: ``{"error": {...}}``, ``{"detail": ""}``."""
    try:
        body: Any = response.json()
    except ValueError:
        return {}
    if not isinstance(body, dict):
        return {}
    fields = cast("dict[str, Any]", body)
    error = fields.get("error")
    return cast("dict[str, Any]", error) if isinstance(error, dict) else fields


def _told(detail: Any) -> str:
    """A text; a list of what is wrong where becomes one (workflows contract 2)."""
    if not isinstance(detail, list):
        return str(detail or "")
    faults = cast("list[dict[str, Any]]", detail)
    return "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in faults)


def _broken_rules(detail: str, problem: Mapping[str, Any]) -> tuple[str, str]:
    rules = [describe_rule(rule) for rule in problem.get("details") or ()]
    if not rules:
        return detail, ""
    return rules[0] if len(rules) == 1 else f"{len(rules)} rules are broken:\n  " + "\n  ".join(rules), ""


def describe_rule(rule: Mapping[str, Any]) -> str:
    """``node a, field retry.attempts: must be ...`` of one broken rule."""
    places = [f"{name} {rule[name]}" for name in ("node", "field") if rule.get(name)]
    return f"{', '.join(places) or 'flow'}: {rule.get('rule', '')}"


def segment(text: str) -> str:
    """``text`` as one segment of a path."""
    from urllib.parse import quote

    return quote(text, safe="")


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _pause(seconds: float) -> None:
    import time

    time.sleep(seconds)


@contextmanager
def waiting(text: str) -> Generator[None]:
    """Show ``text`` with a spinner while the block runs, once it has taken a second, on a terminal."""
    import sys
    import threading

    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    status = Console(stderr=True).status(text)
    timer = threading.Timer(1.0, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


@contextmanager
def connected(url: str | None, api_key: str | None) -> Generator[Server]:
    server = Server(target(url, api_key))
    try:
        yield server
    finally:
        server.close()
