"""Keeps what user code prints and logs, up to a bound; the rest is counted and forgotten.

Three sources: Python's ``sys.stdout`` / ``sys.stderr``, the ``logging`` module, and (in a process of our
own) the file descriptors 1 and 2, which C code and child processes write to. The head is kept, because
the first error is the one that explains the others. Between steps everything goes where it went before.

``install`` once, then ``begin`` and ``end`` around each step. Threads may write at any time.
"""

import fcntl
import io
import logging
import os
import selectors
import struct
import sys
import termios
import threading
from typing import TextIO

from runtime.events import StepLogs

PIPE_READ_BYTES = 65_536
RECORDS_MAX = 1_000


class BoundedText:
    """The first ``limit`` bytes (as UTF-8) of what is added; ``dropped`` counts the bytes after them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._parts = io.StringIO()
        self._lock = threading.Lock()
        self.dropped = 0

    def add(self, text: str) -> None:
        with self._lock:
            room = self._limit - self._size
            # A lone surrogate can't be stored as UTF-8, hence "replace".
            if len(text) <= room:
                size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
                if size <= room:
                    self._size += size
                    self._parts.write(text)
                    return
            # Never encode all of a giant string at once: its writer's memory is bounded, too.
            kept = text[:room].encode("utf-8", "replace")[:room]
            self._parts.write(kept.decode("utf-8", "ignore"))
            self._size = self._limit
            self.dropped += _utf8_size(text) - len(kept)

    def text(self) -> str:
        with self._lock:
            text = self._parts.getvalue()
        return text.encode("utf-8", "replace").decode("utf-8")


def _utf8_size(text: str) -> int:
    if text.isascii():
        return len(text)
    step = PIPE_READ_BYTES
    return sum(len(text[at : at + step].encode("utf-8", "replace")) for at in range(0, len(text), step))


class _Recording:
    """What one step has written so far."""

    def __init__(self, limit: int) -> None:
        self.stdout = BoundedText(limit)
        self.stderr = BoundedText(limit)
        self._limit = limit
        self._lock = threading.Lock()
        self._records: list[str] = []
        self._records_size = 0
        self._records_dropped = 0

    def add_record(self, line: str) -> None:
        with self._lock:
            room = self._limit - self._records_size
            if room <= 0 or len(self._records) >= RECORDS_MAX:
                self._records_dropped += _utf8_size(line)
                return
            bounded = BoundedText(room)
            bounded.add(line)
            kept = bounded.text()
            self._records.append(kept)
            self._records_size += len(kept.encode())
            self._records_dropped += bounded.dropped

    def logs(self) -> StepLogs | None:
        with self._lock:
            records, dropped = tuple(self._records), self._records_dropped
        logs = StepLogs(
            stdout=self.stdout.text(),
            stderr=self.stderr.text(),
            records=records,
            dropped=dropped + self.stdout.dropped + self.stderr.dropped,
        )
        return logs if logs.stdout or logs.stderr or logs.records or logs.dropped else None


class _TextStream(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr``; ``fileno`` is real, so child processes inherit it."""

    def __init__(self, fd: int, original: TextIO) -> None:
        self._fd = fd
        self._original = original
        self.target: BoundedText | None = None
        self.buffer = _ByteStream(self)

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only here
        return "utf-8"

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, s: str, /) -> int:
        if not isinstance(s, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # user code calls it
            raise TypeError(f"write() argument must be str, not {type(s).__name__}")
        target = self.target
        if target is None:
            return self._original.write(s)
        target.add(s)
        return len(s)

    def flush(self) -> None:
        if self.target is None:
            self._original.flush()

    def close(self) -> None:
        """Nothing: the stream outlives the step that tries to close it."""


class _ByteStream(io.RawIOBase):
    """``sys.stdout.buffer``, for code that writes bytes."""

    def __init__(self, text: _TextStream) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: "bytes | bytearray | memoryview", /) -> int:  # type: ignore[override]
        self._text.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    def close(self) -> None:
        """Nothing, as above."""


class _RecordHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.recording: _Recording | None = None
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        recording = self.recording
        if recording is None:
            return
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # a record's arguments may raise anything when formatted
            self.handleError(record)
            return
        recording.add_record(line)


class _Descriptors:
    """Points fds 1 and 2 at pipes and reads them, so that a chatty child process neither blocks nor grows."""

    def __init__(self, streams: "dict[int, _TextStream]") -> None:
        self._streams = streams
        self._lock = threading.Lock()
        self._readers: dict[int, int] = {}
        self._originals: dict[int, int] = {}

    def redirect(self) -> None:
        for fd in self._streams:
            self._originals[fd] = os.dup(fd)
            reader, writer = os.pipe()
            os.dup2(writer, fd)
            os.close(writer)
            os.set_blocking(reader, False)
            self._readers[fd] = reader
        threading.Thread(target=self._pump, name="step-output", daemon=True).start()

    def restore(self) -> None:
        """Point the descriptors back; the pump ends when no child process holds the pipes any more."""
        for fd, original in self._originals.items():
            os.dup2(original, fd)

    def drain(self) -> None:
        """Take over what is in the pipes now: everything written before this call."""
        with self._lock:
            for fd, reader in self._readers.items():
                # Bounded by what was there on arrival: a background writer must not keep us here.
                (waiting,) = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4))
                while waiting > 0:
                    waiting -= self._read(fd, reader) or waiting

    def _pump(self) -> None:
        with selectors.DefaultSelector() as selector:
            for fd, reader in self._readers.items():
                selector.register(reader, selectors.EVENT_READ, fd)
            while selector.get_map():
                for key, _ in selector.select():
                    with self._lock:
                        if self._read(key.data, key.fd) == 0:
                            selector.unregister(key.fd)
                            os.close(key.fd)
                            del self._readers[key.data]

    def _read(self, fd: int, reader: int) -> int | None:
        """Bytes read; 0 at the end of the pipe, None when nothing is there (``drain`` was faster)."""
        try:
            data = os.read(reader, PIPE_READ_BYTES)
        except BlockingIOError:
            return None
        target = self._streams[fd].target
        if target is not None:
            target.add(data.decode("utf-8", "replace"))
        elif data:
            os.write(self._originals[fd], data)
        return len(data)


class StepCapture:
    """Owner of the process's output while a step runs.

    ``own_process``: also take the file descriptors 1 and 2; only where nobody else needs them.
    """

    def __init__(self, limit: int, *, own_process: bool = False) -> None:
        self._limit = limit
        self._stdout = _TextStream(1, sys.stdout)
        self._stderr = _TextStream(2, sys.stderr)
        self._handler = _RecordHandler()
        self._before: tuple[TextIO, TextIO, TextIO, int] | None = None
        self._empty: TextIO | None = None
        self._recording: _Recording | None = None
        self._descriptors = _Descriptors({1: self._stdout, 2: self._stderr}) if own_process else None

    def install(self) -> None:
        root = logging.getLogger()
        self._before = (sys.stdin, sys.stdout, sys.stderr, root.level)
        if self._descriptors is not None:
            self._descriptors.redirect()

    def uninstall(self) -> None:
        if self._before is None:
            return
        if self._descriptors is not None:
            self._descriptors.restore()
        sys.stdin, sys.stdout, sys.stderr, level = self._before
        logging.getLogger().setLevel(level)
        logging.getLogger().removeHandler(self._handler)
        if self._empty is not None:
            self._empty.close()

    def begin(self) -> None:
        """Start a new recording; whatever an earlier step did to the streams is put right first."""
        root = logging.getLogger()
        if self._handler not in root.handlers:
            root.addHandler(self._handler)
        if root.level == logging.WARNING:  # the default; operators expect to see INFO, too
            root.setLevel(logging.INFO)
        if self._empty is None or self._empty.closed:
            self._empty = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # lives as long as we do
        self._drain()
        recording = _Recording(self._limit)
        self._recording = self._handler.recording = recording
        self._stdout.target, self._stderr.target = recording.stdout, recording.stderr
        sys.stdin = self._empty
        sys.stdout = self._stdout
        sys.stderr = self._stderr

    def so_far(self) -> StepLogs | None:
        """What the running step has written until now; callable from any thread."""
        recording = self._recording
        if recording is None:
            return None
        self._drain()
        return recording.logs()

    def end(self) -> StepLogs | None:
        logs = self.so_far()
        self._recording = self._handler.recording = None
        self._stdout.target = self._stderr.target = None
        return logs

    def _drain(self) -> None:
        if self._descriptors is not None:
            self._descriptors.drain()
