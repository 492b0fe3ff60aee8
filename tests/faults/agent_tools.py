"""The tools of the conversations that are interrupted: each call leaves a line with its idempotency key."""

from __future__ import annotations

import time
from pathlib import Path

from actors import step_context

WAIT_SECONDS_MAX = 60.0
LOOK_SECONDS = 0.01


def take_note(file: str, text: str) -> str:
    """Write the text down."""
    _leave_line(Path(file), text)
    return f"noted {text}"


def take_note_when_told(file: str, text: str) -> str:
    """Write the text down, then wait until there is a file beside it that is called ``go``."""
    _leave_line(Path(file), text)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not Path(file).with_name("go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody said go within {WAIT_SECONDS_MAX:g} s")
        time.sleep(LOOK_SECONDS)
    return f"noted {text}"


def _leave_line(file: Path, text: str) -> None:
    with file.open("a") as notes:
        notes.write(f"{step_context.current().idempotency_key} {text}\n")
