"""The client is light: a program that only talks to a server loads nothing of one."""

from __future__ import annotations

import subprocess
import sys

from tests.sandbox import REPOSITORY

SERVER = ("ray", "fastapi", "starlette", "uvicorn", "eventsourcing", "actors", "projections", "gateway.app")
HEAVY = ("pandas", "pyarrow", "numpy", "jinja2", "jsonschema_rs", "pydantic", "fsspec", "IPython")

SCRIPT = """
import sys
from gateway.client import AsyncClient, Client
with Client("http://127.0.0.1:9", "hg_x") as client:
    assert repr(client) == "Client('http://127.0.0.1:9')"
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_importing_the_client_loads_neither_ray_nor_the_server() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *SERVER, *HEAVY],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_type_checkers_are_told_that_the_client_has_types() -> None:
    assert (REPOSITORY / "gateway" / "py.typed").is_file()
