"""The clients printed in the contract's source, `seed.txt` beside this file (its text as it was found).

The page lost its code fences: a language's name stands right before the code, and the continuation signs of
the shell commands are gone.
"""

from __future__ import annotations

import shlex
from pathlib import Path

_TEXT = Path(__file__).with_name("seed.txt").read_text()
_KEY = "your-api-key"


def javascript(host: str, key: str) -> str:
    """The JavaScript client, word for word, with the host and the key filled in."""
    after = _TEXT.split("\njavascript", 1)[1]
    client = after.split("\n3. Check request status", 1)[0]
    return f'const host = "{host}";\n' + client.replace(_KEY, key)


def curl_commands(host: str, key: str) -> list[list[str]]:
    """Every curl example, in the page's order, with the host and the key filled in."""
    commands: list[list[str]] = []
    lines = iter(_TEXT.split("\n"))
    command = ""
    for line in lines:
        if line.startswith("bashcurl "):
            command = line.removeprefix("bash")
        elif command and line.startswith("-"):
            command += f" {line}"
        elif command:
            commands.append(shlex.split(command.replace("{host}", host).replace(_KEY, key)))
            command = ""
    return commands
