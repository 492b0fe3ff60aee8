"""Flow definitions: reading, normalising and naming them by content.

A definition is immutable. Its version is a hash of its normalised document, in which fields that have
their default value are left out, so spelling a default out changes nothing.

Reading refuses only what is no definition at all; every other rule is ``graph.compile_flow``'s, which
reports all problems at once. A part that breaks a rule is kept as it was written.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, cast

import msgspec

from runtime.events import Json
from runtime.flow_fields import Report, field_names, plain_fields, read_struct, report_unknown_keys
from runtime.flow_text import canonical_json, read_document
from runtime.ids import FlowId, FlowVersion
from runtime.kinds import KINDS, SETTINGS, Kind
from runtime.kinds.child_flow import SLUG
from runtime.kinds.sleep import SECONDS_MAX
from runtime.packages import Code, code_problems
from runtime.placement import Resources, problems
from runtime.plan import PLACEMENT, RetryPolicy
from runtime.queues import QueueFields

FORMAT = 1
NODES_MAX = 2_000
NODE_ID = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"

NodeName = Annotated[str, msgspec.Meta(pattern=NODE_ID)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=SECONDS_MAX)]
Title = Annotated[str, msgspec.Meta(max_length=200)]


class FlowFields(msgspec.Struct, frozen=True, kw_only=True):
    """The flow's own fields. ``output`` unset: the outputs of the nodes without dependents."""

    heliograph: Literal[1]
    id: Annotated[str, msgspec.Meta(pattern=SLUG)]
    name: Title = ""
    description: str = ""
    inputs: dict[str, Json] | None = None
    timeout_seconds: Seconds | None = None
    placement: PLACEMENT = "pooled"
    queue: QueueFields | None = None
    resources: Resources | None = None
    code: Code | None = None
    nodes: Annotated[list[Json], msgspec.Meta(min_length=1, max_length=NODES_MAX)]
    output: Json | msgspec.UnsetType = msgspec.UNSET


class NodeFields(msgspec.Struct, frozen=True, kw_only=True):
    """What every node has beside its kind's own fields and its settings."""

    id: NodeName
    name: Title = ""
    kind: str
    needs: tuple[str, ...] = ()
    when: str | None = None


class EachFields(msgspec.Struct, frozen=True, kw_only=True):
    """What the node inside a map has instead of ``NodeFields``."""

    kind: str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    retry: RetryPolicy = RetryPolicy()
    timeout_seconds: Seconds | None = None
    resources: Resources | None = None


class NodeParts(NamedTuple):
    """A node, read. ``fields`` is None inside a map, and when a problem was reported."""

    fields: NodeFields | None
    kind: Kind
    config: msgspec.Struct
    settings: Settings


class FlowDefinition(msgspec.Struct, frozen=True, eq=False):
    """``document``: the normalised definition as plain JSON; nobody may change it.

    ``inputs_text``: the input schema as canonical JSON, empty when there is none.
    """

    id: FlowId
    version: FlowVersion
    document: Mapping[str, Json]
    inputs_text: str = ""

    @classmethod
    def from_document(cls, document: Mapping[str, Json]) -> "FlowDefinition":
        """The definition stored as ``document``, which is trusted to be normalised."""
        digest = hashlib.sha256(canonical_json(document).encode()).hexdigest()
        inputs = document.get("inputs")
        identity = document.get("id")
        return cls(
            FlowId(identity if isinstance(identity, str) else ""),
            FlowVersion(digest[:16]),
            document,
            "" if inputs is None else canonical_json(inputs),
        )

    @property
    def name(self) -> str:
        """What people call it; the id when it has no name."""
        return str(self.document.get("name") or self.id)

    @property
    def description(self) -> str:
        return str(self.document.get("description") or "")

    @property
    def inputs(self) -> Mapping[str, Json] | None:
        """The JSON Schema of the input object, if there is one."""
        return self.document.get("inputs")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlowDefinition) and self.document == other.document

    def __hash__(self) -> int:
        return hash(self.version)


def parse_flow(document: str | bytes | Mapping[str, Any]) -> FlowDefinition:
    """The definition that a text (YAML or JSON) or a mapping describes, normalised but not yet checked.

    Raises: InvalidGraph when it is no readable object; ``graph.compile_flow`` finds everything else.
    """
    return FlowDefinition.from_document(_normal_flow(read_document(document)))


def read_flow(document: Mapping[str, Json], report: Report) -> FlowFields | None:
    """The flow's own fields, or None after the problems were reported."""
    report_unknown_keys(document, field_names(FlowFields), report)
    fields = read_struct(document, FlowFields, report)
    if fields is not None and fields.code is not None:
        for field, rule in code_problems(fields.code):
            report(f"code.{field}".rstrip("."), rule)
    _check_resources(None if fields is None else fields.resources, report)
    return fields


def read_node(raw: Mapping[str, Json], report: Report, *, in_map: bool = False) -> NodeParts | None:
    """The node's parts, some of them defaults after their problems were reported.

    None: without its configuration nothing more can be said about it.
    """
    common = EachFields if in_map else NodeFields
    fields = read_struct(raw, common, report)
    name = raw.get("kind")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        if isinstance(name, str):
            report("kind", f"unknown kind '{name[:100]}'; there are {', '.join(KINDS)}")
        return None
    own = field_names(kind.config)
    shared = [setting for setting in SETTINGS if setting not in own and setting not in kind.without]
    for setting, rule in kind.without.items():
        if setting in raw and setting not in own:
            report(setting, rule)
    known = (*field_names(common), *own, *shared, *kind.without)
    report_unknown_keys(raw, known, report)
    config = read_struct(raw, kind.config, report)
    settings = read_struct({name: raw[name] for name in shared if name in raw}, Settings, report)
    _check_resources(settings and settings.resources, report)
    if config is None:
        return None
    # With a problem elsewhere the texts of the configuration can still be checked.
    return NodeParts(fields if isinstance(fields, NodeFields) else None, kind, config, settings or Settings())


def _check_resources(resources: Resources | None, report: Report) -> None:
    for field, rule in problems(resources) if resources is not None else ():
        report(f"resources.{field}", rule)


def _normal_flow(document: dict[str, Json]) -> dict[str, Json]:
    normal = _unless_problems(document, lambda report: _plain_or_none(read_flow(document, report)))
    nodes = document.get("nodes")
    if isinstance(nodes, list) and len(cast("list[Json]", nodes)) <= NODES_MAX:
        normal["nodes"] = [_normal_node(node, in_map=False) for node in cast("list[Json]", nodes)]
    return normal


def _normal_node(raw: Json, *, in_map: bool) -> Json:
    if not isinstance(raw, dict):
        return raw
    node = cast("dict[str, Json]", raw)

    def plain(report: Report) -> dict[str, Json] | None:
        parts = read_node(node, report, in_map=in_map)
        if parts is None:
            return None
        fields = plain_fields(parts.fields) if parts.fields else {"kind": node["kind"]}
        config = plain_fields(parts.config)
        for name in parts.kind.nested:
            config[name] = _normal_node(config[name], in_map=True)
        return {**fields, **plain_fields(parts.settings), **config}

    return _unless_problems(node, plain)


def _plain_or_none(struct: msgspec.Struct | None) -> dict[str, Json] | None:
    return None if struct is None else plain_fields(struct)


def _unless_problems(
    raw: dict[str, Json], normalise: Callable[[Report], dict[str, Json] | None]
) -> dict[str, Json]:
    problems: list[str] = []
    normal = normalise(lambda field, _rule: problems.append(field))
    return raw if normal is None or problems else normal
