"""A stream of blocks as a file, for libraries that read from files. In memory is one block."""

import io
from collections.abc import Iterator


class BlockFile(io.RawIOBase):
    """Reads ``blocks`` (none empty) once, from the beginning; closing it closes them."""

    def __init__(self, blocks: Iterator[bytes | memoryview]) -> None:
        self._blocks = blocks
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview", /) -> int:  # type: ignore[override]  # what readers pass
        if not self._held:
            self._held = memoryview(next(self._blocks, b"")).cast("B")
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def close(self) -> None:
        close = getattr(self._blocks, "close", None)
        if close is not None and not self.closed:
            close()
        super().close()
