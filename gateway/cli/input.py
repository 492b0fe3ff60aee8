"""The input of an execution, from the options of a command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from gateway.cli.failures import usage


def execution_input(pairs: list[str] | None, text: str | None, file: Path | None) -> dict[str, Any]:
    """One object of all three; a ``--input`` wins over the same key elsewhere.

    Raises: CliFailure naming the option.
    """
    if text is not None and file is not None:
        raise usage("--input-json and --input-file exclude each other")
    value: dict[str, Any] = {}
    if text is not None:
        value = _object("--input-json", text)
    elif file is not None:
        value = _object(f"--input-file {file}", _read(file))
    for pair in pairs or ():
        name, equals, raw = pair.partition("=")
        if not equals or not name:
            raise usage(f"--input {pair!r}: expected NAME=VALUE", "For example: --input query='What is X?'")
        value[name] = _value(raw)
    return value


def _value(raw: str) -> Any:
    """JSON where it is JSON (numbers, true, lists, objects, quoted strings), else the text itself."""
    try:
        return json.loads(raw)
    except json.JSONDecodeError:
        return raw


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"--input-file {file}: {_reason(error)}") from None


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise usage(f"{option}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise usage(f"{option}: expected a JSON object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)


def read_definition(file: Path) -> bytes:
    """The bytes of a flow file. Raises: CliFailure naming the file."""
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise usage(f"{file}: {_reason(error)}") from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "not UTF-8 text"
