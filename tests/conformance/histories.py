"""Small real histories for the stores' suites: folded by the same code that hosts run."""

from collections.abc import Sequence

from runtime import events
from runtime.event_log import Append, Chain
from runtime.events import Event
from runtime.evolution import begin, evolve
from runtime.state import ExecutionState

START = 1_700_000_000_000_000


def execution_id(number: int) -> str:
    return f"0190aaaa-bbbb-7ccc-8ddd-{number:012d}"


class Story:
    """One execution told event by event; remembers its state and its chain."""

    def __init__(self, number: int, owner: str = "host-1", tenant: str = "acme", nodes: int = 2) -> None:
        self.id = execution_id(number)
        self.owner = owner
        self.tenant = tenant
        self.nodes = nodes
        self.state: ExecutionState | None = None
        self.chain = Chain()
        self.told: list[Event] = []

    @property
    def version(self) -> int:
        return 0 if self.state is None else self.state.version

    def tell(self, *told: Event) -> Append:
        """An append of these events, which must follow what was told before."""
        for event in told:
            self.state = begin(event) if self.state is None else evolve(self.state, event)
        self.told += told
        return Append(self.id, told, self.state, self.chain)

    def fork(self) -> "Story":
        """Another writer that knows the same history."""
        other = Story(0, self.owner, self.tenant, self.nodes)
        other.id, other.state, other.told = self.id, self.state, list(self.told)
        other.chain = Chain(self.chain.head)
        return other

    def queued(self, timeout_seconds: float | None = None, **more: object) -> Event:
        fields: dict[str, object] = {
            "originator_id": self.id,
            "originator_version": 1,
            "at": START + 1,
            "by": "key_1",
            "tenant": self.tenant,
            "flow_id": "greeting",
            "flow_version": "0123456789abcdef",
            "source": "executions",
            "input": {"name": "Wörld", "n": [1, 2.5, None]},
            "total_nodes": self.nodes,
            "owner": self.owner,
            "timeout_seconds": timeout_seconds,
        }
        return events.Queued(**(fields | more))  # type: ignore[arg-type]

    def next(self, kind: type[Event], /, offset: int = 0, **fields: object) -> Event:
        """An event of the next version (``offset``: further on)."""
        version = self.version + 1 + offset
        return kind(originator_id=self.id, originator_version=version, at=START + version, **fields)  # type: ignore[call-arg]

    def begun(self) -> Append:
        """Queued and started."""
        first = self.tell(self.queued()).events
        return self._joined(first, self.tell(self.next(events.Started)).events)

    def whole(self, output: object = "done") -> Append:
        """A complete short life: queued, started, each node, completed."""
        parts: list[Event] = list(self.begun().events)
        for number in range(self.nodes):
            node = f"n{number}"
            parts += self.tell(self.next(events.NodeStarted, node_id=node, where=self.owner)).events
            parts += self.tell(self.next(events.NodeCompleted, node_id=node, output={"n": number})).events
        parts += self.tell(self.next(events.Completed, output=output)).events
        return self._joined(parts)

    def _joined(self, *parts: Sequence[Event]) -> Append:
        return Append(self.id, [event for part in parts for event in part], self.state, self.chain)
