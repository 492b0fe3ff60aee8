"""What the flows of the tests call: a server that answers a path at once, unless a test holds it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HELD_SECONDS_MAX = 90.0


class Gate:
    """Counts the calls of each idempotency key."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: Counter[str] = Counter()
        self._held: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def hold(self, path: str) -> None:
        self._held[path] = threading.Event()

    def release(self, path: str) -> None:
        self._held.pop(path).set()

    def called(self, path: str) -> int:
        """How many calls of this path have come."""
        with self._lock:
            return sum(count for key, count in self.calls.items() if key.startswith(f"{path} "))

    def repeated(self, path: str) -> list[str]:
        """Keys that came more than once."""
        with self._lock:
            return [key for key, count in self.calls.items() if count > 1 and key.startswith(f"{path} ")]

    def pass_through(self, path: str, key: str) -> None:
        with self._lock:
            self.calls[f"{path} {key}"] += 1
        held = self._held.get(path)
        if held is not None:
            held.wait(HELD_SECONDS_MAX)


@contextmanager
def open_gate() -> Generator[Gate]:
    gate = Gate()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gate.pass_through(self.path, self.headers.get("Idempotency-Key", ""))
            try:
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")
            except ConnectionError:
                return  # the host that asked is gone; that is what the tests are about

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """The tests say what went wrong."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    gate.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
