"""The way to a server: which address and key, and what its refusals mean to a person.

The address and the key come from the options, else HELIOGRAPH_URL and HELIOGRAPH_API_KEY, else the
credentials file that a server on the embedded default keeps in its data directory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from gateway.cli.failures import CliFailure, usage
from gateway.target import Target, find_target

if TYPE_CHECKING:
    import httpx

    from gateway.client.errors import ClientError, Refused

CONNECT_SECONDS = 3.0

Event = dict[str, Any]
"""One recorded event as the audit API shows it."""


def target(url: str | None, api_key: str | None) -> Target:
    """Where to send requests, and with which key ('' when there is none)."""
    import os

    from gateway.cli.settings import faults_told

    try:
        with faults_told():
            return find_target(url, api_key, os.environ)
    except ValueError as fault:
        raise usage(f"--url: {fault}", "For example: http://127.0.0.1:8080") from None


class Server:
    """One server, spoken to over HTTP. Every method raises CliFailure and nothing else."""

    def __init__(self, where: Target, transport: httpx.BaseTransport | None = None) -> None:
        from gateway.client.drivers import Driver

        self.url = where.url
        self._has_key = bool(where.api_key)
        # A person who waits sees a failure at once, and repeats the command.
        self._driver = Driver(where, patience_seconds=0, transport=transport)

    def close(self) -> None:
        self._driver.close()

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
        from gateway.client.calls import Call
        from gateway.client.procedures import blocks

        with self._told():
            call = Call(method="GET", path=path, read=bytes, query=_given(query))
            yield from self._driver.iterate(blocks(call))

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
        from gateway.client.errors import ClientError

        try:
            self._driver.exchange("GET", "/health", timeout=CONNECT_SECONDS)
        except ClientError:
            return False
        return True

    def events(
        self, path: str, after: int = 0, is_last: Callable[[Event], bool] | None = None
    ) -> Iterator[Event]:
        """Events of a stream up to the one that ``is_last``; without it the stream has no end.

        A broken connection is taken up where it broke. So is one that the server ended early, because this
        reader fell behind or the server stops; when it brought nothing at all, there was nothing left.
        """
        from gateway.client.calls import Call, reader
        from gateway.client.procedures import follow

        with self._told():
            call = Call(method="GET", path=path, read=reader(dict[str, Any]))
            yield from self._driver.iterate(follow(call, after, is_last))

    def _ask(
        self, method: str, path: str, *, unknown: CliFailure | None = None, **request: Any
    ) -> dict[str, Any]:
        """``unknown``: what a 404 means, when it's clearer than the server's own words."""
        import msgspec

        with self._told(unknown), waiting(f"waiting for {self.url}"):
            body = self._driver.exchange(method, path, **request)
        if not body:
            return {}
        try:
            return cast("dict[str, Any]", msgspec.json.decode(body))
        except msgspec.DecodeError:
            raise CliFailure(f"{self.url} did not answer in JSON: is it a Heliograph server?") from None

    @contextmanager
    def _told(self, unknown: CliFailure | None = None) -> Generator[None]:
        """Errors of the client inside, as a person is told them."""
        from gateway.client.errors import ClientError, NotFound

        try:
            yield
        except ClientError as error:
            if unknown is not None and isinstance(error, NotFound):
                raise unknown from None
            raise self._failure(error) from None

    def _failure(self, error: ClientError) -> CliFailure:
        from gateway.client.errors import Refused, Unreachable

        match error:
            case Refused():
                return self._refusal(error)
            case Unreachable() if not error.was_sent:
                return CliFailure(
                    error.message,
                    "Start one with `heliograph serve`, or name another with --url or HELIOGRAPH_URL.",
                )
            case Unreachable():
                return CliFailure(error.message, "Is the server still running? Its log says more.")
            case _:
                return CliFailure(str(error))

    def _refusal(self, refused: Refused) -> CliFailure:
        detail = refused.message
        match refused.status:
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
                wait = refused.retry_after
                hint = f"Try again in {wait:g} s." if wait is not None else "Try again."
                return CliFailure(f"the server refuses for now: {detail}", hint)
            case 422:
                return CliFailure(_broken_rules(refused))
            case status if status >= 500:
                known = refused.correlation_id
                return CliFailure(
                    f"the server failed ({status}): {detail}",
                    f"Its log has more under {known}." if known else "See its log.",
                )
            case _:
                return CliFailure(detail, _HINTS.get(refused.code, ""))


_HINTS = {
    "secret_not_found": "`heliograph secrets list` shows what is set.",
    "mcp_server_not_found": "`heliograph mcp list` shows what was added.",
    "batch_not_found": "`heliograph batches list` shows the latest.",
    "flow_not_found": "`heliograph flows list` shows what is published.",
    "execution_not_found": "Is the id complete? `heliograph status` without an id lists the latest.",
}


def _broken_rules(refused: Refused) -> str:
    rules = [describe_rule(rule) for rule in refused.details]
    if not rules:
        return refused.message
    return rules[0] if len(rules) == 1 else f"{len(rules)} rules are broken:\n  " + "\n  ".join(rules)


def describe_rule(rule: Mapping[str, Any]) -> str:
    """``node a, field retry.attempts: must be ...`` of one broken rule."""
    from gateway.client import errors

    return errors.describe_rule(rule)


def segment(text: str) -> str:
    """``text`` as one segment of a path."""
    from urllib.parse import quote

    return quote(text, safe="")


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


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
