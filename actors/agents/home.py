"""What agent nodes need of the host they run in, and what an operator may set about them."""

from typing import Protocol

import httpx
import msgspec

from actors.step_call import StepCall, StepOutcome
from runtime.blob_store import BlobStore
from runtime.events import BlobRef, Json
from runtime.ids import NodeId
from runtime.state import ExecutionState


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Travels as JSON in the host's configuration, so it holds no secret.

    The key of the model endpoint comes from the host's environment: ``HELIOGRAPH_MODEL_KEY``, else
    ``OPENAI_API_KEY``; that of the secrets from ``HELIOGRAPH_SECRET_KEY``, else ``secret_key_file``.
    ``model``: the default; empty = none. ``model_url``: an OpenAI-compatible endpoint; empty = the
    provider's own. ``models_file``: prices and context sizes of the operator's own (see ``prices``).
    ``checkouts``: folder for the copies of repositories. ``tool_allow``: private networks and hosts that
    tools, MCP servers and repositories may be at, as ``EgressRules.parse`` reads it.
    """

    model: str = ""
    model_url: str = ""
    models_file: str = ""
    secret_key_file: str = ""
    checkouts: str = ""
    tool_allow: str = ""
    model_calls_max: int = 512
    """Model calls in flight in one host; more wait."""
    mcp_processes_max: int = 32
    """MCP servers one host runs as processes; more wait."""
    checkout_bytes_max: int = 512 * 1024 * 1024
    checkout_seconds_max: float = 120.0


class AgentHome(Protocol):
    """The host, as the agent loop sees it."""

    @property
    def where(self) -> str:
        """Names the host's process, for ``StepOutcome.where``."""
        ...

    @property
    def blobs(self) -> BlobStore: ...

    @property
    def http(self) -> httpx.AsyncClient:
        """The client of ``http_request`` nodes: every address it dials is vetted."""
        ...

    async def call_function(self, call: StepCall) -> StepOutcome:
        """Call a Python function in a worker process. Raises: CancelledError only."""
        ...

    async def run_child_flow(
        self, parent: ExecutionState, node_id: NodeId, child_id: str, flow_id: str, arguments: Json
    ) -> StepOutcome:
        """Start (or find) the child execution and wait for its end. Raises: CancelledError only."""
        ...

    def child_id(self, parent: ExecutionState, node_id: NodeId, attempt: int) -> str:
        """The id of a child, derived from whose it is; a step's name may stand in for the node's id."""
        ...

    async def load(self, ref: BlobRef) -> Json: ...

    async def store_if_large(self, value: Json) -> BlobRef | None:
        """Where ``value`` was put, or None when it is small enough to stand in an event."""
        ...
