"""A real git repository behind a real HTTP server on loopback: git's own CGI, and a token if wanted."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "T",
    "GIT_AUTHOR_EMAIL": "t@example.test",
    "GIT_COMMITTER_NAME": "T",
    "GIT_COMMITTER_EMAIL": "t@example.test",
    "GIT_ALLOW_PROTOCOL": "file",
}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


class Remote:
    """``source``: a work tree whose ``push`` shows on the server at ``url``."""

    def __init__(self, root: Path) -> None:
        self.bare = root / "served" / "project.git"
        self.source = root / "source"
        self.bare.mkdir(parents=True)
        self.source.mkdir()
        git(self.bare, "init", "--quiet", "--bare", "--initial-branch", "main")
        git(self.source, "init", "--quiet", "--initial-branch", "main")
        self.url = ""
        self.requests: list[tuple[str, str | None]] = []
        self.hold: threading.Event | None = None
        self.arrived = threading.Event()

    def push(self, files: dict[str, str | bytes], branch: str = "main") -> str:
        """Commit ``files`` and publish them; the commit."""
        for name, content in files.items():
            place = self.source / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
        git(self.source, "add", "--all", "--force")
        git(self.source, "commit", "--quiet", "--message", "a change")
        git(self.source, "push", "--quiet", "--force", str(self.bare), f"HEAD:refs/heads/{branch}")
        git(self.bare, "update-server-info")
        return git(self.source, "rev-parse", "HEAD")

    def reset(self, commit: str, branch: str = "main") -> None:
        """Publish an older commit again."""
        git(self.source, "reset", "--quiet", "--hard", commit)
        git(self.source, "push", "--quiet", "--force", str(self.bare), f"HEAD:refs/heads/{branch}")


@contextmanager
def served(root: Path, token: str = "", *, plain_files: bool = False) -> Generator[Remote]:
    """``plain_files``: the repository's files as they are, without git's protocol."""
    remote = Remote(root)
    expected = "Basic " + base64.b64encode(f"x-access-token:{token}".encode()).decode() if token else None

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            given = self.headers.get("Authorization")
            remote.requests.append((self.path, given))
            remote.arrived.set()
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            if remote.hold is not None:
                remote.hold.wait(60)
            if expected is not None and given != expected:
                self.answer(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"")
            elif plain_files:
                place = root / "served" / urlsplit(self.path).path.lstrip("/")
                found = place.is_file()
                self.answer(200 if found else 404, {}, place.read_bytes() if found else b"")
            else:
                self.answer(*self.run_git(body))

        def run_git(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            url = urlsplit(self.path)
            environment = {
                **ENVIRONMENT,
                "GIT_PROJECT_ROOT": str(root / "served"),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": url.path,
                "QUERY_STRING": url.query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            }
            done = subprocess.run(
                ["git", "http-backend"],
                input=body,
                env=environment,
                capture_output=True,
                timeout=60,
                check=False,
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
            status = int(fields.pop("Status", "200").split()[0])
            return status, fields, content

        def answer(self, status: int, fields: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in {**fields, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_any  # noqa: N815  # http.server's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's name
            """Nothing: a test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    remote.url = f"http://127.0.0.1:{server.server_address[1]}/project.git"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield remote
    finally:
        if remote.hold is not None:
            remote.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
