"""The rules of the house as functions from source text to findings.

A finding is one line naming the file, the line and the rule, so that the reader of a failed test
knows where to go. The rooms are a table: a new door between two of them is a change here, in sight.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODULE_LINES_MAX = 600
REFUSED_NAMES = frozenset({"utils", "util", "helpers", "helper", "manager", "common", "misc"})


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, and whether it is a package's `__init__`."""

    name: str
    source: str
    is_package: bool = False

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Import:
    """`from a import b` counts as `a.b`: whether b is a module or a name is not known here."""

    target: str
    line: int


@dataclass(frozen=True)
class Room:
    """What the modules of one room may import; prefixes of dotted names throughout.

    `third_party` None means anything installed. `refused` goes before the standard library and
    before `third_party`; `exceptions` go before everything, by module.
    """

    first_party: frozenset[str]
    third_party: frozenset[str] | None
    refused: frozenset[str] = frozenset()
    exceptions: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])


ROOM_NAMES = ("runtime", "actors", "projections", "gateway")

ROOMS: Mapping[str, Room] = {
    "runtime": Room(
        first_party=frozenset({"runtime"}),
        third_party=frozenset(
            {
                "eventsourcing.domain",
                "eventsourcing.utils",
                "jinja2",
                "jmespath",
                "jsonschema_rs",
                "markupsafe",
                "msgspec",
                "typing_extensions",
                "yaml",
            }
        ),
        # The clock, randomness, the environment, files, sockets, processes, threads.
        refused=frozenset(
            {
                "asyncio",
                "concurrent",
                "ftplib",
                "getpass",
                "glob",
                "http",
                "multiprocessing",
                "os",
                "pathlib",
                "platform",
                "random",
                "secrets",
                "select",
                "selectors",
                "shutil",
                "signal",
                "smtplib",
                "socket",
                "socketserver",
                "sqlite3",
                "ssl",
                "subprocess",
                "tempfile",
                "threading",
                "time",
                "urllib.request",
                "uuid",
            }
        ),
        exceptions={
            # The one door to the store. It blocks, and waits between its tries: that is its work.
            "runtime.event_log": frozenset(
                {"eventsourcing.application", "eventsourcing.persistence", "tenacity"}
            ),
            # The blob store's files: fsspec for all of them, and what makes a local one durable.
            "runtime.blob_store": frozenset({"fsspec", "os"}),
            # Secrets at rest: the cipher, its random bytes, and files that only their owner may read.
            "runtime.vault": frozenset({"cryptography", "fsspec", "os"}),
            # Values and types only.
            "runtime": frozenset({"pathlib.PurePath", "pathlib.PurePosixPath", "uuid.UUID"}),
        },
    ),
    "actors": Room(
        first_party=frozenset({"runtime", "actors"}),
        third_party=frozenset(
            {
                "aiohttp",
                "anyio",
                "fsspec",
                "httpcore",
                "httpcore2",
                "httpx",
                "httpx2",
                "httpx_sse",
                "jsonschema_rs",
                "mcp",
                "mcp_types",
                "msgspec",
                "openai",
                "opentelemetry",
                "prometheus_client",
                "psutil",
                "pydantic",
                "pydantic_ai",
                "pydantic_core",
                "pydantic_graph",
                "ray",
                "structlog",
                "tenacity",
                "uuid_utils",
                "yaml",
            }
        ),
        refused=frozenset({"sqlite3"}),
    ),
    "projections": Room(
        first_party=frozenset({"runtime", "projections"}),
        third_party=frozenset(
            {
                "eventsourcing",
                "msgspec",
                "opentelemetry",
                "prometheus_client",
                "psycopg",
                "psycopg_pool",
                "structlog",
                "tenacity",
            }
        ),
    ),
    "gateway": Room(
        # The egress guard stands with the effects it guards; callbacks are the gateway's one effect.
        first_party=frozenset(
            {
                "runtime",
                "projections",
                "gateway",
                "actors.client",
                "actors.egress",
                "actors.egress_transport",
                # A batch's file is read as the hosts will read it.
                "actors.optional_libraries",
                "actors.record_formats",
                "actors.source_files",
            }
        ),
        third_party=None,
        refused=frozenset({"ray", "sqlite3", "psycopg", "psycopg_pool"}),
        exceptions={
            # The composition root of the hosts: the one place that starts what the client talks to.
            "gateway.telemetry": frozenset({"actors.structured_logs", "actors.trace_provider"}),
            "gateway.hosts": frozenset(
                {
                    "actors.agents.home",
                    "actors.heap",
                    "actors.host_config",
                    "actors.ray_cluster",
                    "actors.ray_settings",
                    "actors.step_call",
                    "actors.supervision",
                    "actors.worker_pool",
                }
            ),
        },
    ),
}


def within(name: str, prefixes: frozenset[str]) -> bool:
    """Whether a dotted name is one of the prefixes or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def imports(module: Module) -> Iterator[Import]:
    """Every import of a module: at its top, in functions, for type checkers, and by name."""
    for node in ast.walk(ast.parse(module.source)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno)
            case ast.ImportFrom():
                origin = _absolute(module, node)
                for alias in node.names:
                    yield Import(origin if alias.name == "*" else f"{origin}.{alias.name}", node.lineno)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if _last_name(node.func) in (
                "import_module",
                "__import__",
            ):
                yield Import(name, node.lineno)
            case _:
                continue


def refused_imports(module: Module) -> list[str]:
    """Imports that cross a wall between rooms, or leave a room for what it may not touch."""
    room = ROOMS[module.room]
    findings: list[str] = []
    for imported in imports(module):
        reason = _refusal(module, room, imported.target)
        if reason:
            findings.append(f"{module.name}:{imported.line} imports {imported.target}: {reason}")
    return findings


def refused_calls(module: Module) -> list[str]:
    """Calls by which pure code would look at the clock or at files without importing anything new."""
    findings: list[str] = []
    for node in ast.walk(ast.parse(module.source)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id="open" | "input" | "breakpoint" as name):
                findings.append(f"{module.name}:{node.lineno} calls {name}()")
            case ast.Attribute(attr="now" | "utcnow" | "today" as name, value=owner) if _last_name(owner) in (
                "datetime",
                "date",
            ):
                findings.append(f"{module.name}:{node.lineno} reads the clock by {name}()")
            case _:
                continue
    return findings


def oversize(module: Module) -> list[str]:
    """A module past the size at which it has a second reason to change."""
    lines = module.source.count("\n")
    return (
        [f"{module.name} has {lines} lines, at most {MODULE_LINES_MAX}"] if lines > MODULE_LINES_MAX else []
    )


def refused_name(path: Path) -> list[str]:
    """A module or package whose name says nothing about what is in it."""
    names = {path.stem, *path.parent.parts}
    return [f"{path}: no module is called {name}" for name in sorted(names & REFUSED_NAMES)]


_MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:work|farm|root)/[a-z.]"
    r"|/(?:home|Users)/[a-z]\w*/"
    r"|/tmp/(?:venv|plan)\b"
    r"|/opt/(?:wheels|pypi)"
)
_REGISTRY_URL = re.compile(
    r"https?://\S*(?:pypi\.org|pythonhosted\.org|registry\.npmjs|/simple/)"
    r"|--(?:extra-)?index-url[ =]|--find-links[ =]| @[ ]file:"
)


def machine_traces(path: Path, text: str) -> list[str]:
    """Lines that hold only on one machine: its folders, or where it fetches packages."""
    findings: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if _MACHINE_PATH.search(line):
            findings.append(f"{path}:{number} names a folder of one machine: {line.strip()[:80]}")
        if _REGISTRY_URL.search(line):
            findings.append(f"{path}:{number} names a package registry: {line.strip()[:80]}")
    return findings


def loose_constraints(path: Path, text: str) -> list[str]:
    """Lines of a constraints file that are not `name==version`."""
    return [
        f"{path}:{number} is not name==version: {line[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)
    ]


def _refusal(module: Module, room: Room, target: str) -> str | None:
    if within(target, room.exceptions.get(module.name, frozenset())):
        return None
    if within(target, room.exceptions.get(module.room, frozenset())):
        return None
    if other := _other_dialect(module, target):
        return f"a dialect does not import another ({other})"
    if within(target, room.refused):
        return f"refused in {module.room}"
    top = target.partition(".")[0]
    if top in ROOM_NAMES:
        return None if within(target, room.first_party) else f"{module.room} may not import {top}"
    if top in sys.stdlib_module_names or room.third_party is None:
        return None
    return None if within(target, room.third_party) else f"not among the libraries of {module.room}"


def _other_dialect(module: Module, target: str) -> str | None:
    """The other dialect `target` belongs to, when `module` is part of a dialect."""
    root = "gateway.dialects."
    if not module.name.startswith(root) or not target.startswith(root):
        return None
    own, other = module.name.split(".")[2], target.split(".")[2]
    return other if other != own else None


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    base = package[: len(package) - (node.level - 1)]
    return ".".join([*base, node.module] if node.module else base)


def _last_name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return None
