"""A command at a terminal of its own, with somebody at its keyboard."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.cli.command import environment

READ_SECONDS = 60.0
CTRL_C, CTRL_D = "\x03", "\x04"

_MAIN = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches this process
from gateway.cli import run_feed
run_feed.LEAVE_SECONDS = float(sys.argv.pop(1))
from gateway.cli.main import main
main()
"""


class Terminal:
    """``leave_seconds``: how long after a Ctrl-C a second one leaves."""

    def __init__(self, folder: Path, *arguments: str, leave_seconds: float) -> None:
        self._keyboard, inside = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(leave_seconds), *arguments],
            env=environment(folder, {"NO_COLOR": "1", "TERM": "dumb"}),
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        self.shown = ""
        self._found = 0

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def until(self, text: str) -> None:
        """Wait until the screen shows ``text``, behind what was found before."""
        deadline = time.monotonic() + READ_SECONDS
        while (at := self.shown.find(text, self._found)) < 0:
            assert time.monotonic() < deadline, self.shown
            assert self._read(), f"it ended without showing {text!r}:\n{self.shown}"
        self._found = at + len(text)

    def end(self) -> int:
        """The exit code, once everything was shown."""
        deadline = time.monotonic() + READ_SECONDS
        while self._read():
            assert time.monotonic() < deadline, self.shown
        return self._process.wait(READ_SECONDS)

    def _read(self) -> bool:
        """Whether there may be more."""
        ready, _, _ = select.select([self._keyboard], [], [], 1.0)
        if not ready:
            return True
        try:
            data = os.read(self._keyboard, 65_536)
        except OSError:  # how Linux says that nobody has the terminal open any more
            return False
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(READ_SECONDS)
        os.close(self._keyboard)
