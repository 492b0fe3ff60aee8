"""What an operator may set: `HELIOGRAPH_*` in the environment, parsed once, faults named by key and value.

Every field of `Settings` is one setting; its key is `HELIOGRAPH_` and the field's name in capitals. The
text beside each field is its documentation (`describe` prints it, the README repeats it).

Secrets are no settings: `SECRETS` names them, and whoever needs one takes it from the environment at that
moment, so that no printed, logged or passed-on `Settings` can hold one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

PREFIX = "HELIOGRAPH_"

MIB = 1024 * 1024


class SettingFault(ValueError):
    """One setting can't be used: its key, the value given, and the rule."""

    def __init__(self, key: str, value: str, rule: str) -> None:
        super().__init__(f"{key}={value!r}: {rule}")
        self.key = key
        self.value = value
        self.rule = rule


def _setting(default: Any, doc: str, *, least: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"doc": doc, "least": least, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Settings:
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8080, "port to listen on; 0 takes a free one", least=0)
    data_dir: str = _setting("heliograph-data", "folder of the embedded store and blobs")
    store: str = _setting("", "event store: sqlite:///path, postgresql://..., memory://; empty: in data_dir")
    blobs: str = _setting("", "blob store as an fsspec URL; empty: a folder in data_dir")
    ray_address: str = _setting("", "a running Ray cluster; empty: Ray is started here")
    hosts: int = _setting(
        0, "execution hosts; 0: one for every two CPUs of a Ray started here, by load on a cluster", least=0
    )
    hosts_min: int = _setting(
        0, "execution hosts of a cluster at least; 0: two, one if only one node has CPUs", least=0
    )
    hosts_max: int = _setting(
        0, "execution hosts of a cluster at most; 0: one for every two CPUs of its nodes", least=0
    )
    drain_seconds: float = _setting(
        60.0, "what running attempts get to end in when a host of a cluster is taken away", least=0
    )
    cpus: int = _setting(0, "CPUs of a Ray started here; 0: what this process may use", least=0)
    ray_temp_dir: str = _setting("", "folder for the files of a Ray started here; empty: Ray's own choice")
    app_dir: str = _setting(".", "folder whose modules the Python functions of flows may come from")
    files_root: str = _setting("", "folder that nodes and maps may read files below; empty: none")
    sources_allow: tuple[str, ...] = _setting(
        (), "URL prefixes that maps may read below by fsspec, e.g. s3://bucket/data, comma-separated"
    )
    public_base_url: str = _setting(
        "", "scheme and host that URLs in answers begin with; empty: the request's"
    )
    trusted_proxies: tuple[str, ...] = _setting(
        (), "addresses whose X-Forwarded-* headers count, comma-separated"
    )
    cors_origins: tuple[str, ...] = _setting((), "origins browsers may call from, comma-separated; * = any")
    retention_seconds: float | None = _setting(
        None, "how long a finished execution stays visible, and in the log; empty: for good", least=0
    )
    store_pool: int = _setting(
        4, "connections to PostgreSQL of one gateway or host; a dedicated host has 2", least=1
    )
    store_connections_max: int = _setting(
        0,
        "connections to PostgreSQL that all processes of the cluster may come to hold; 0: what it offers",
        least=0,
    )
    store_partition_days: int = _setting(
        30, "days of executions in one new partition of a PostgreSQL log", least=1
    )

    body_bytes_max: int = _setting(MIB, "size of a JSON body", least=1)
    upload_files_max: int = _setting(10, "files of one request", least=0)
    upload_file_bytes_max: int = _setting(25 * MIB, "size of one uploaded file", least=1)
    upload_bytes_max: int = _setting(100 * MIB, "size of all files of one request", least=1)
    batch_bytes_max: int = _setting(1024 * MIB, "size of the input file of a batch", least=1)
    streams_max: int = _setting(5_000, "open event streams of this process; beyond: 503", least=1)
    starts_max: int = _setting(
        2_000, "start requests of this process waiting for their commit; beyond: 503", least=1
    )
    requests_per_minute: int = _setting(600, "default of a new key: requests in 60 s", least=1)
    open_streams_max: int = _setting(50, "default of a new key: open event streams", least=1)
    unfinished_executions_max: int = _setting(
        1_000, "default of a new key: unfinished executions of its tenant", least=1
    )
    running_max: int = _setting(1_000, "executions one host runs at a time; the others stay queued", least=1)
    tenant_running_max: int = _setting(
        0, "of these, places one tenant may have; 0: all, as long as nobody else waits", least=0
    )
    workers_max: int = _setting(
        0, "worker processes of one host for Python functions; 0: one for each CPU", least=0
    )
    worker_memory_max_mb: int = _setting(
        2048, "what a worker's functions may allocate before they get MemoryError, in MiB", least=64
    )
    object_cache_bytes_max: int = _setting(
        48 * MIB,
        "large values one host keeps in Ray's object store for their next readers; a Ray started here has"
        " 128 MiB",
        least=0,
    )
    queued_max: int = _setting(20_000, "executions that may wait in one host's queue; beyond: 503", least=1)

    keep_alive_seconds: float = _setting(15.0, "interval of the keep-alive comments of a stream", least=0.01)
    send_timeout_seconds: float = _setting(
        30.0, "a stream's reader that takes nothing for so long is cut off", least=0.01
    )
    shutdown_seconds: float = _setting(
        10.0, "what open requests get to end in when the server stops", least=0
    )
    idempotency_hours: float = _setting(24.0, "how long an Idempotency-Key is remembered", least=0.001)

    ability_auth_failure_status: int = _setting(401, "status of a bad key under /api/ability: 401 or 403")
    http_allow: tuple[str, ...] = _setting(
        (),
        "networks or hosts http_request nodes and sources of maps may reach though private, comma-separated",
    )
    callback_allow: tuple[str, ...] = _setting(
        (), "networks or hosts callbacks may reach though private, comma-separated"
    )
    webhook_secrets: tuple[str, ...] = _setting(
        (), "whsec_... secrets that sign callbacks, comma-separated; empty: one is made in data_dir"
    )

    model: str = _setting(
        "",
        "default model of agents: a name at the endpoint below, provider:name, or offline; empty: runs"
        " must name theirs",
    )
    model_url: str = _setting(
        "",
        "OpenAI-compatible endpoint, e.g. http://host:11434/v1; empty: OPENAI_BASE_URL, else the provider's",
    )
    models_file: str = _setting("", "YAML file of model prices and context sizes of your own")
    model_calls_max: int = _setting(512, "model calls one host makes at a time; more wait", least=1)
    tool_allow: tuple[str, ...] = _setting(
        (),
        "networks or hosts that tools, MCP servers and repositories may be at though private,"
        " comma-separated",
    )
    mcp_processes_max: int = _setting(32, "MCP servers one host runs as processes; more wait", least=1)
    checkout_bytes_max: int = _setting(512 * MIB, "size of an agent's copy of a repository", least=1)
    checkout_seconds_max: float = _setting(
        120.0, "what copying a repository may take before the run fails", least=0.01
    )

    log_level: str = _setting("info", "what is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = _setting("json", "one JSON object a line, or text", choices=("json", "text"))
    log_requests: bool = _setting(False, "log every request, not only those that failed here")

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{Path(self.data_dir).absolute() / 'heliograph.db'}"

    @property
    def store_env(self) -> dict[str, str]:
        """What every opener of the log is given. Raises: ValueError for a ``store`` that is no URL of one."""
        from runtime.event_log import store_env  # takes long; most commands don't need it

        return store_env(
            self.store_url,
            self.store_pool,
            connections_max=self.store_connections_max,
            partition_days=self.store_partition_days,
        )

    def kept_until(self, ended_at: int | None) -> int | None:
        """When what ended at ``ended_at`` is shown no more and may be archived, both in microseconds.

        None: never, or it has not ended.
        """
        if ended_at is None or self.retention_seconds is None:
            return None
        return ended_at + int(self.retention_seconds * 1_000_000)

    @property
    def is_on_postgres(self) -> bool:
        """Whether the store is a server, which others reach too and which may leave a question unanswered."""
        return self.store_url.startswith(("postgresql:", "postgres:"))

    @property
    def blobs_url(self) -> str:
        return self.blobs or str(Path(self.data_dir).absolute() / "blobs")

    @property
    def agents_file(self) -> str:
        """Where a Ray started here notes the processes that would outlive a killed server."""
        return str(Path(self.data_dir).absolute() / "ray-agents.json")

    @property
    def secret_key_file(self) -> str:
        """Where the key that encrypts named secrets is made, when the environment has none."""
        return str(Path(self.data_dir).absolute() / "secret.key")

    @property
    def checkouts(self) -> str:
        """The folder of agents' copies of repositories."""
        return str(Path(self.data_dir).absolute() / "checkouts")

    @property
    def models_path(self) -> str:
        """`models_file` as a process with another working folder finds it; empty when there is none."""
        return str(Path(self.models_file).absolute()) if self.models_file else ""

    @property
    def host_logs(self) -> str:
        """The folder hosts write their logs into; on a cluster ``-``, for Ray keeps them on each machine."""
        return "-" if self.ray_address else str(Path(self.data_dir).absolute() / "logs")

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Settings from `HELIOGRAPH_*`; a key that is absent or empty keeps its default.

        Raises: SettingFault.
        """
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for each in dataclasses.fields(cls):
            key = PREFIX + each.name.upper()
            text = env.get(key, "").strip()
            if text:
                values[each.name] = _parse(key, text, hints[each.name], each.metadata)
        if not values.get("model_url") and env.get("OPENAI_BASE_URL", "").strip():
            values["model_url"] = env["OPENAI_BASE_URL"].strip()
        settings = cls(**values)
        if settings.ability_auth_failure_status not in (401, 403):
            raise SettingFault(
                f"{PREFIX}ABILITY_AUTH_FAILURE_STATUS",
                str(settings.ability_auth_failure_status),
                "401 or 403",
            )
        if 0 < settings.hosts_max < settings.hosts_min:
            least = f"at least HELIOGRAPH_HOSTS_MIN, {settings.hosts_min}"
            raise SettingFault(f"{PREFIX}HOSTS_MAX", str(settings.hosts_max), least)
        if settings.model_url and not settings.model_url.startswith(("http://", "https://")):
            key = f"{PREFIX}MODEL_URL" if env.get(f"{PREFIX}MODEL_URL", "").strip() else "OPENAI_BASE_URL"
            raise SettingFault(key, settings.model_url, "an http or https address")
        return settings


SECRETS: tuple[tuple[str, str], ...] = (
    (
        f"{PREFIX}SECRET_KEY",
        "encrypts the named secrets of agents: 32 bytes in base64; empty: a key is made in data_dir, readable"
        " by its owner alone",
    ),
    (f"{PREFIX}MODEL_KEY", "API key of the model endpoint; empty: OPENAI_API_KEY"),
)
"""Variables that hold secrets, and their meaning. Read where they are used, shown nowhere."""


def describe() -> list[tuple[str, str, str]]:
    """Key, default and meaning of every setting, in order."""
    rows: list[tuple[str, str, str]] = []
    for each in dataclasses.fields(Settings):
        default = each.default
        if isinstance(default, tuple) or default is None:
            shown = ""
        else:
            shown = str(default).lower() if isinstance(default, bool) else str(default)
        rows.append((PREFIX + each.name.upper(), shown, each.metadata["doc"]))
    return rows


_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _parse(key: str, text: str, kind: Any, rules: Mapping[str, Any]) -> Any:
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise SettingFault(key, text, "true or false")
        return text.lower() in _TRUE
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is str:
        if rules["choices"] and text not in rules["choices"]:
            raise SettingFault(key, text, "one of " + ", ".join(rules["choices"]))
        return text
    whole = kind is int
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        raise SettingFault(key, text, "a whole number" if whole else "a number") from None
    if rules["least"] is not None and not number >= rules["least"]:
        raise SettingFault(key, text, f"at least {rules['least']:g}")
    return number
