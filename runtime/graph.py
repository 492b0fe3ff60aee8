"""From a definition to the plan that runs: every rule of the graph is checked here.

All problems are collected, each with its node, field and rule, before ``InvalidGraph`` is raised. What a
node's texts mention and what a branch decides become edges, so the plan's ``needs`` are complete.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, cast

import msgspec

from runtime.errors import InvalidGraph
from runtime.events import Json
from runtime.flow import NODES_MAX, FlowDefinition, FlowFields, NodeParts, read_flow, read_node
from runtime.flow_fields import Report
from runtime.ids import NodeId
from runtime.inputs import check_input, check_schema, known_inputs
from runtime.kinds import KINDS, TextBinder
from runtime.ordering import cycles, in_order
from runtime.plan import Evaluate, Plan, Scope, Step
from runtime.queue_keys import compile_queue
from runtime.queues import QueueRule

__all__ = ["check_input", "compile_flow"]

PROBLEMS_MAX = 200
CYCLES_MAX = 20


def compile_flow(definition: FlowDefinition) -> Plan:
    """The plan of a definition. Costly (0.1 ms a node, 1 ms a template): callers keep it by version.

    Raises: InvalidGraph with every problem of the definition (at most ``PROBLEMS_MAX``).
    """
    problems: list[tuple[str, str, str]] = []
    plan = _Compiler(definition, problems).plan()
    if problems or plan is None:
        unique = tuple(dict.fromkeys(problems))
        if len(unique) > PROBLEMS_MAX:
            rest = ("", "", f"and {len(unique) - PROBLEMS_MAX} more problems")
            unique = (*unique[:PROBLEMS_MAX], rest)
        raise InvalidGraph(unique)
    return plan


def compile_each(document: Mapping[str, Json]) -> Step:
    """The node inside a map by itself, for a process that works on its items. Costly: keep it.

    Raises: InvalidGraph; not for what ``compile_flow`` accepted.
    """
    problems: list[tuple[str, str, str]] = []
    step = _NodeBinder(lambda field, rule: problems.append(("", field, rule))).nested("each", document)
    if problems:
        raise InvalidGraph(tuple(problems))
    return step


class _Decision(NamedTuple):
    """A branch's case: the nodes it names, and whether it can ever be taken."""

    field: str
    node_ids: tuple[str, ...]
    possible: bool


class _NodeBinder(TextBinder):
    """What a kind sees of its node; implements ``runtime.kinds.kind.Binder``."""

    def __init__(self, report: Report, *, in_map: bool = False) -> None:
        super().__init__(report, in_map=in_map)
        self.decisions: list[_Decision] = []
        self.streamed_fields: set[str] = set()
        self.each: Step | None = None

    def streamed(self, field: str) -> None:
        self.streamed_fields.add(field)

    def decides(self, field: str, node_ids: Iterable[str], *, possible: bool) -> None:
        self.decisions.append(_Decision(field, tuple(node_ids), possible))

    def nested(self, field: str, raw: Mapping[str, Json]) -> Step:
        binder = _NodeBinder(lambda path, rule: self.problem(f"{field}.{path}", rule), in_map=True)
        parts = read_node(raw, binder.problem, in_map=True)
        step = _unfinished(parts)
        if parts is None:
            return step
        if not parts.kind.in_map:
            allowed = ", ".join(name for name, kind in KINDS.items() if kind.in_map)
            binder.problem("kind", f"'{raw['kind']}' can't stand in a map; only {allowed}")
            return step
        act = parts.kind.bind(parts.config, binder)
        self.node_reads += [(f"{field}.{path}", node_id) for path, node_id in binder.node_reads]
        self.input_reads += [(f"{field}.{path}", name) for path, name in binder.input_reads]
        reads = dict.fromkeys(NodeId(node_id) for _, node_id in binder.node_reads)
        self.each = msgspec.structs.replace(step, kind=str(raw["kind"]), act=act, reads=tuple(reads))
        return self.each


class _Node:
    """A node on its way into the plan."""

    def __init__(self, node_id: str, raw: Mapping[str, Json], report: Report) -> None:
        self.id = node_id
        self.report = report
        self.binder = _NodeBinder(report)
        self.step = _unfinished(None)
        self.never = ""
        """Why it can never run, if so."""
        needs = raw.get("needs")
        names = cast("list[Json]", needs) if isinstance(needs, list) else []
        self.needs: dict[str, str] = {name: "needs" for name in names if isinstance(name, str)}
        """Predecessor to the field that makes it one. Read apart, so that a broken node keeps its edges."""
        parts = read_node(raw, report)
        if parts is not None:
            self._bind(parts)

    def _bind(self, parts: NodeParts) -> None:
        fields = parts.fields
        condition: Evaluate | None = None
        if fields is not None and fields.when is not None:
            condition, always = self.binder.condition("when", fields.when)
            if always is False:
                self.never = "its condition is always false"
                self.report("when", "is always false, so the node can never run")
        self.step = msgspec.structs.replace(
            _unfinished(parts),
            node_id=NodeId(self.id),
            name=(fields.name if fields else "") or self.id,
            kind=fields.kind if fields else "",
            act=parts.kind.bind(parts.config, self.binder),
            each=self.binder.each,
            condition=condition,
        )

    def finished(self, dependents: tuple[NodeId, ...]) -> Step:
        reads = tuple(dict.fromkeys(NodeId(name) for _, name in self.binder.node_reads))
        loaded = {name for field, name in self.binder.node_reads if field not in self.binder.streamed_fields}
        return msgspec.structs.replace(
            self.step,
            needs=tuple(NodeId(name) for name in self.needs),
            reads=reads,
            streams=tuple(node_id for node_id in reads if node_id not in loaded),
            dependents=dependents,
        )


def _unfinished(parts: NodeParts | None) -> Step:
    step = Step(node_id=NodeId(""), name="", kind="", act=_no_act)
    if parts is None:
        return step
    return msgspec.structs.replace(
        step,
        retry=parts.settings.retry,
        timeout_seconds=parts.settings.timeout_seconds,
        resources=parts.settings.resources,
    )


def _no_act(_scope: Scope) -> Json:
    raise TypeError("a flow with problems can't run")


class _Compiler:
    def __init__(self, definition: FlowDefinition, problems: list[tuple[str, str, str]]) -> None:
        self._definition = definition
        self._problems = problems
        self._inputs = known_inputs(definition)
        self._nodes: dict[str, _Node] = {}

    def plan(self) -> Plan | None:
        """None, or a plan of no use, when problems were reported."""
        report = self._report_of("")
        fields = read_flow(self._definition.document, report)
        check_schema(self._definition, report)
        raw_nodes = self._definition.document.get("nodes")
        self._read_nodes(cast("list[Json]", raw_nodes) if isinstance(raw_nodes, list) else [])
        for node in self._nodes.values():
            self._check_reads(node, node.binder, node.report)
        self._add_edges()
        needs = {node.id: tuple(node.needs) for node in self._nodes.values()}
        ordered = [self._nodes[name] for name in in_order(needs)]
        if len(ordered) < len(needs):
            for cycle in cycles(needs, at_most=CYCLES_MAX):
                path = " -> ".join((*cycle, cycle[0]))
                self._report_of(cycle[0])("needs", f"the nodes form a cycle: {path}")
        self._check_reachable(ordered)
        self._check_exclusive()
        output, output_reads = self._output(report)
        queue: QueueRule | None = None
        if fields is not None and fields.queue is not None:
            queue = compile_queue(fields.queue, fields.placement, self._inputs, report)
        if fields is None or self._problems:
            return None
        plan = self._build(fields, ordered, output, output_reads)
        return plan if queue is None else msgspec.structs.replace(plan, queue=queue)

    def _report_of(self, node_id: str) -> Report:
        return lambda field, rule: self._problems.append((node_id, field, rule))

    def _read_nodes(self, raw_nodes: list[Json]) -> None:
        # Were there more, that alone is the problem to report.
        for index, raw in enumerate(raw_nodes if len(raw_nodes) <= NODES_MAX else []):
            if not isinstance(raw, dict):
                self._report_of("")(f"nodes[{index}]", "must be an object")
                continue
            document = cast("dict[str, Json]", raw)
            node_id = document.get("id")
            if not isinstance(node_id, str):
                # It has no name to report under, so its place in the list stands in.
                read_node(
                    document, lambda field, rule, i=index: self._report_of("")(f"nodes[{i}].{field}", rule)
                )
            elif node_id in self._nodes:
                self._report_of(node_id)("id", "this id stands twice")
            else:
                self._nodes[node_id] = _Node(node_id, document, self._report_of(node_id))

    def _check_reads(self, node: _Node | None, texts: TextBinder, report: Report) -> None:
        """Reads become edges of ``node``; None: the flow's output, which comes after all nodes anyway."""
        for field, name in texts.input_reads:
            if self._inputs is not None and name not in self._inputs:
                report(field, f"unknown input '{name}': the flow's inputs don't have it")
        for field, name in texts.node_reads:
            if name not in self._nodes:
                report(field, f"unknown node '{name}'")
            elif node is not None and name == node.id:
                report(field, "mentions its own output, which can't exist yet")
            elif node is not None:
                node.needs.setdefault(name, field)

    def _add_edges(self) -> None:
        for node in self._nodes.values():
            for need in [need for need in node.needs if need not in self._nodes]:
                node.report(node.needs.pop(need), f"unknown node '{need}'")
            for field, targets, _ in node.binder.decisions:
                for target in targets:
                    if target not in self._nodes:
                        node.report(field, f"unknown node '{target}'")
                    else:
                        self._nodes[target].needs.setdefault(node.id, f"{field} of {node.id}")

    def _check_reachable(self, ordered: list[_Node]) -> None:
        for node in self._nodes.values():
            possible = {t for _, targets, possible in node.binder.decisions for t in targets if possible}
            for target in (t for _, targets, _ in node.binder.decisions for t in targets):
                if target in self._nodes and target not in possible:
                    self._nodes[target].never = f"branch {node.id} can never decide for it"
                    self._nodes[target].report("id", f"the node can never run: {self._nodes[target].never}")
        for node in ordered:
            needed = [self._nodes[need] for need in node.needs]
            if needed and not node.never and all(need.never for need in needed):
                node.never = "none of those it needs can run"
                node.report("needs", f"the node can never run: {node.never}")
            for field, name in node.binder.node_reads:
                if name in self._nodes and self._nodes[name].never:
                    node.report(field, f"node '{name}' can never run, so its output can't exist")

    def _check_exclusive(self) -> None:
        """A node can't read another that is skipped whenever it runs itself."""
        for branch in self._nodes.values():
            cases: dict[str, set[str]] = {}
            for field, targets, _ in branch.binder.decisions:
                for target in targets:
                    cases.setdefault(target, set()).add(field)
            for target in (target for target in cases if target in self._nodes):
                node = self._nodes[target]
                for field, name in node.binder.node_reads:
                    if name in cases and cases[name].isdisjoint(cases[target]):
                        rule = f"node '{name}' is in another case of branch {branch.id}"
                        node.report(field, f"{rule}, so its output can't exist here")

    def _output(self, report: Report) -> tuple[Evaluate, tuple[NodeId, ...]]:
        document = self._definition.document
        texts = TextBinder(report)
        if "output" in document:
            output = texts.value("output", document["output"])
            self._check_reads(None, texts, report)
            for field, name in texts.node_reads:
                if name in self._nodes and self._nodes[name].never:
                    report(field, f"node '{name}' can never run, so its output can't exist")
        else:
            needed = {need for node in self._nodes.values() for need in node.needs}
            last = [name for name in self._nodes if name not in needed]
            last_values = {name: f"${{nodes.{name}}}" for name in last}
            whole = last_values[last[0]] if len(last) == 1 else last_values
            # With a cycle there may be no last node, and a broken id is reported elsewhere.
            output = texts.value("output", whole) if not self._problems else _no_act
        return output, tuple(dict.fromkeys(NodeId(name) for _, name in texts.node_reads))

    def _build(
        self, fields: FlowFields, ordered: list[_Node], output: Evaluate, output_reads: tuple[NodeId, ...]
    ) -> Plan:
        dependents: dict[str, list[NodeId]] = {node.id: [] for node in ordered}
        for node, need in _edges(ordered):
            dependents[need].append(NodeId(node.id))
        return Plan(
            flow_id=self._definition.id,
            flow_version=self._definition.version,
            name=self._definition.name,
            steps={NodeId(node.id): node.finished(tuple(dependents[node.id])) for node in ordered},
            output=output,
            output_reads=output_reads,
            timeout_seconds=fields.timeout_seconds,
            placement=fields.placement,
            resources=fields.resources,
            code=fields.code,
        )


def _edges(nodes: Iterable[_Node]) -> Iterator[tuple[_Node, str]]:
    return ((node, need) for node in nodes for need in node.needs)
