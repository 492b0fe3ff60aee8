"""How a command ends badly: one line that says what is wrong, one that says what to do next.

Exit codes: 2 for a mistake in the command's own arguments, 1 for everything else.
"""

import os
import sys
from typing import NoReturn

FAILED = 1
USAGE = 2


class CliFailure(Exception):
    """Ends the command with ``message`` and ``hint`` on stderr; never with a traceback."""

    def __init__(self, message: str, hint: str = "", code: int = FAILED) -> None:
        super().__init__(message, hint, code)
        self.message = message
        self.hint = hint
        self.code = code


def usage(message: str, hint: str = "") -> CliFailure:
    return CliFailure(message, hint, USAGE)


def exit_with(failure: CliFailure) -> NoReturn:
    """Print ``failure`` and leave the process with its code."""
    bold, plain = ("\x1b[1;31m", "\x1b[0m") if _stderr_has_colour() else ("", "")
    print(f"{bold}error:{plain} {failure.message}", file=sys.stderr)
    if failure.hint:
        print(f"  {failure.hint}", file=sys.stderr)
    sys.exit(failure.code)


def _stderr_has_colour() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ
