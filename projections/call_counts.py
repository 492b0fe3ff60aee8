"""What agents' calls add to the counters: by model and by tool, whatever flow they belong to.

model_calls_total          model               answered calls
model_unpriced_calls_total model               those of them that no price was known for
model_tokens_total         model, kind         ``input``, ``output``, ``cache_read``, ``cache_write``
model_cost_nanos           model               billionths of a US dollar
model_retries_total        model               calls made again, for whatever reason
model_errors_total         model, error        tries that failed, whether made again or given up
model_seconds              model, le           from an answered call's last try to its answer
tool_calls_total           outcome, tool       ``ok`` or ``error``, as the model was told
tool_retries_total         tool                calls made again
tool_seconds               tool, le            as for models
*_micros_sum               model or tool       sums of the two histograms, in microseconds
*_first_seen               model or tool       position of the first event that names it

Names come from users and from models, so ``capped`` shows the first of them by name and the rest as one.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from projections.store import Reader
from runtime import codec, events
from runtime.events import Event
from runtime.ids import SECOND

BUCKETS_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)

BOUNDS = (*map(str, BUCKETS_SECONDS), "+Inf")

SHOWN_MAX = 100
"""Models, and tools, that are shown by name: those that came first."""

OTHER = "other"

NAME_CHARACTERS_MAX = 100

LOOKUP_MAX = 50
"""Executions of one look-up of steps."""

MODEL_ERRORS = frozenset(
    (
        "ModelAuthenticationError",
        "ModelConnectionError",
        "ModelError",
        "ModelHTTPError",
        "RateLimited",
        "TimeoutError",
    )
)
"""Types that a failed model call ends its node with. A retried one may have others, counted as one."""

COUNTED = frozenset[type[Event]](
    (events.StepRetried, events.MessageRecorded, events.UsageRecorded, events.NodeFailed)
)

_INTERRUPTED = "Interrupted"

Labels = tuple[tuple[str, str], ...]
"""Names and values, sorted by name."""

NANOS = 1_000_000_000


class Calls(NamedTuple):
    """``sums`` are added to what is there; ``first_seen`` stands only where nothing is."""

    sums: Counter[tuple[str, Labels]]
    first_seen: dict[tuple[str, Labels], int]


class _Called(NamedTuple):
    """Which model or tool a step calls."""

    kind: str
    name: str


_Attempt = tuple[str, str, int]
"""Execution, node, attempt."""


class _Steps:
    """What began, of the attempts that a batch tells failures of."""

    def __init__(self) -> None:
        self._steps: dict[tuple[_Attempt, str], _Called] = {}
        self._last_model: dict[_Attempt, tuple[int, _Called]] = {}

    def add(self, event: events.StepStarted) -> None:
        attempt = _attempt(event)
        called = _Called(event.kind, event.name)
        self._steps[attempt, event.step] = called
        version, _ = self._last_model.get(attempt, (0, called))
        if event.kind == "model" and event.originator_version > version:
            self._last_model[attempt] = (event.originator_version, called)

    def of(self, event: events.StepRetried) -> _Called:
        return self._steps.get((_attempt(event), event.step), _Called("model", "unknown"))

    def failed(self, event: events.NodeFailed) -> _Called | None:
        """The model whose failure ended the attempt; an attempt's last call to one is what ended it."""
        if event.error.type not in MODEL_ERRORS:
            return None
        found = self._last_model.get(_attempt(event))
        return None if found is None else found[1]


def _attempt(event: events.StepStarted | events.StepRetried | events.NodeFailed) -> _Attempt:
    return (event.originator_id, event.node_id, event.attempt)


def tally(batch: Iterable[tuple[int, Event]], reader: Reader) -> Calls:
    """Count the calls that these events, with their positions, tell of."""
    told = [(position, event) for position, event in batch if type(event) in COUNTED]
    steps = _steps([event for _, event in told], reader)
    calls = Calls(Counter(), {})
    for position, event in told:
        match event:
            case events.UsageRecorded():
                _count_usage(calls, event, position)
            case events.MessageRecorded(role="tool"):
                tool = _named(calls, "tool", event.name, position)
                outcome = "error" if event.is_error else "ok"
                calls.sums["tool_calls_total", (("outcome", outcome), *tool)] += 1
                _count_time(calls, "tool", tool, event.duration_ms)
            case events.StepRetried():
                called = steps.of(event)
                label = _named(calls, called.kind, called.name, position)
                calls.sums[f"{called.kind}_retries_total", label] += 1
                if called.kind == "model" and event.error.type != _INTERRUPTED:
                    _count_error(calls, label, event.error.type)
            case events.NodeFailed():
                ended_by = steps.failed(event)
                if ended_by is not None:
                    _count_error(calls, _named(calls, "model", ended_by.name, position), event.error.type)
            case _:
                continue
    return calls


def _steps(told: Sequence[Event], reader: Reader) -> _Steps:
    """The steps of every execution that tells of a failed call. They never change, so the log is asked."""
    failed: dict[str, None] = {}
    for event in told:
        is_failure = isinstance(event, events.NodeFailed) and event.error.type in MODEL_ERRORS
        if is_failure or isinstance(event, events.StepRetried):
            failed[event.originator_id] = None
    ids = list(failed)
    steps = _Steps()
    for start in range(0, len(ids), LOOKUP_MAX):
        asked = ids[start : start + LOOKUP_MAX]
        marks = ", ".join("?" * len(asked))
        found = reader.query(
            f"SELECT topic, state FROM stored_events WHERE topic = ? AND originator_id IN ({marks})",
            (events.StepStarted.TOPIC, *asked),
        )
        for topic, data in found:
            event = codec.decode(topic, bytes(data))
            if isinstance(event, events.StepStarted):
                steps.add(event)
    return steps


def _count_usage(calls: Calls, event: events.UsageRecorded, position: int) -> None:
    model = _named(calls, "model", event.model, position)
    calls.sums["model_calls_total", model] += 1
    calls.sums["model_unpriced_calls_total", model] += not event.cost_known
    calls.sums["model_cost_nanos", model] += round(event.cost * NANOS)
    for kind, tokens in (
        ("input", event.input_tokens),
        ("output", event.output_tokens),
        ("cache_read", event.cache_read_tokens),
        ("cache_write", event.cache_write_tokens),
    ):
        calls.sums["model_tokens_total", (("kind", kind), *model)] += tokens
    _count_time(calls, "model", model, event.duration_ms)


def _count_time(calls: Calls, kind: str, label: Labels, milliseconds: float) -> None:
    micros = max(0, round(milliseconds * 1_000))
    bucket = BOUNDS[bisect_left(BUCKETS_SECONDS, micros / SECOND)]
    calls.sums[f"{kind}_micros_sum", label] += micros
    calls.sums[f"{kind}_seconds", tuple(sorted((("le", bucket), *label)))] += 1


def _count_error(calls: Calls, model: Labels, error: str) -> None:
    known = error if error in MODEL_ERRORS else OTHER
    calls.sums["model_errors_total", (("error", known), *model)] += 1


def _named(calls: Calls, kind: str, name: str, position: int) -> Labels:
    label = ((kind, name[:NAME_CHARACTERS_MAX]),)
    calls.first_seen.setdefault((f"{kind}_first_seen", label), position)
    return label


# --- what is shown ----------------------------------------------------------------------------------------

Counted = tuple[str, Mapping[str, str], int]
"""Name, labels, value."""


def capped(found: Iterable[Counted]) -> list[Counted]:
    """The counts of models and tools, those beyond the first ``SHOWN_MAX`` of each kind summed as ``other``.

    Which came first never changes, so no count falls; ``*_first_seen`` are left out.
    """
    counted = list(found)
    shown = {kind: _first(counted, kind) for kind in ("model", "tool")}
    sums: Counter[tuple[str, Labels]] = Counter()
    for name, labels, value in counted:
        kind = next((kind for kind in shown if kind in labels), None)
        if kind is None or name == f"{kind}_first_seen":
            continue
        kept = labels if labels[kind] in shown[kind] else {**labels, kind: OTHER}
        sums[name, tuple(sorted(kept.items()))] += value
    return [(name, dict(labels), value) for (name, labels), value in sorted(sums.items())]


def _first(counted: Iterable[Counted], kind: str) -> frozenset[str]:
    seen = sorted((value, labels[kind]) for name, labels, value in counted if name == f"{kind}_first_seen")
    return frozenset(name for _, name in seen[:SHOWN_MAX])


class CallDurations(NamedTuple):
    """``buckets``: pairs of an upper bound and the count of durations up to it, as Prometheus wants them."""

    name: str
    buckets: tuple[tuple[str, int], ...]
    sum_seconds: float


def durations(counted: Iterable[Counted], kind: str) -> list[CallDurations]:
    """The histograms of one kind's calls, ``model`` or ``tool``, among ``counted``, by name."""
    singles: dict[str, dict[str, int]] = {}
    sums: dict[str, int] = {}
    for name, labels, value in counted:
        if name == f"{kind}_seconds":
            singles.setdefault(labels[kind], {})[labels["le"]] = value
        elif name == f"{kind}_micros_sum":
            sums[labels[kind]] = value
    found: list[CallDurations] = []
    for called, by_bound in sorted(singles.items()):
        cumulative = accumulate(by_bound.get(bound, 0) for bound in BOUNDS)
        buckets = tuple(zip(BOUNDS, cumulative, strict=True))
        found.append(CallDurations(called, buckets, sums.get(called, 0) / SECOND))
    return found
