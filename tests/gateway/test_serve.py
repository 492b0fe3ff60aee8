"""How the server process refuses to start: one line, exit code 1, before Ray is touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sandbox import REPOSITORY


def _serve(folder: Path, **settings: str) -> tuple[int, str]:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "HELIOGRAPH_DATA_DIR": str(folder)} | settings
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.serve"], env=env, capture_output=True, text=True, timeout=60
    )
    return ended.returncode, ended.stderr


def test_a_port_in_use_ends_it_with_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert _serve(tmp_path, HELIOGRAPH_PORT=port) == (
            1,
            f"error: port {port} on 127.0.0.1 is in use\n",
        )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"HELIOGRAPH_PORT": "x"}, "error: HELIOGRAPH_PORT='x': a whole number\n"),
        ({"HELIOGRAPH_HOST": "256.0.0.1", "HELIOGRAPH_PORT": "0"}, "error: can't listen on 256.0.0.1:0: "),
    ],
)
def test_a_bad_setting_ends_it_with_one_line(tmp_path: Path, settings: dict[str, str], line: str) -> None:
    code, said = _serve(tmp_path, **settings)
    assert code == 1
    assert said.startswith(line)
    assert said.count("\n") == 1
