"""The error tree.

    DomainError
      Refused            caller's fault: tell the caller
        NotFound
        AlreadyExists
        InvalidTransition
        InvalidInput
        InvalidGraph
      Conflict           expected version lost: reload and decide again, bounded
      Unavailable        log or actor unreachable, outcome may be unknown: retry with the same key
        Overloaded       a bound was reached and nothing was created: retry later
      Diverged           replay disagrees with history: stop, never retry
    InvariantViolated    our bug, outside the tree: the actor dies and recovers from the log

Errors cross processes by pickle, hence positional arguments only, all passed to ``super().__init__``.
"""


class DomainError(Exception):
    """Anything the runtime expects to go wrong."""


class Refused(DomainError):
    """The command can't be carried out as given, now or ever; nothing was recorded."""


class NotFound(Refused):
    pass


class AlreadyExists(Refused):
    pass


class InvalidTransition(Refused):
    """The execution's state does not allow the command (e.g. cancel after the end)."""


class InvalidInput(Refused):
    """Input breaks the flow's input schema. ``problems``: pairs of field path and rule."""

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(f"{field}: {rule}" if field else rule for field, rule in self.problems)


class InvalidGraph(Refused):
    """A flow definition breaks a rule. ``problems``: triples of node id ('' = the flow), field, rule."""

    def __init__(self, problems: tuple[tuple[str, str, str], ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(
            f"{f'node {node}' if node else 'flow'}{f', {field}' if field else ''}: {rule}"
            for node, field, rule in self.problems
        )


class Conflict(DomainError):
    """Somebody else wrote the version this writer expected to write."""

    def __init__(self, originator_id: str, version: int) -> None:
        super().__init__(originator_id, version)
        self.originator_id = originator_id
        self.version = version

    def __str__(self) -> str:
        return f"{self.originator_id}: version {self.version} was written by another owner"


class Unavailable(DomainError):
    """The log or an actor can't be reached; whether the command took effect may be unknown."""


class Overloaded(Unavailable):
    """A bound was reached; nothing was created. ``retry_after_seconds`` says when to come back."""

    def __init__(self, what: str, retry_after_seconds: int = 1) -> None:
        super().__init__(what, retry_after_seconds)
        self.what = what
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.what}; retry after {self.retry_after_seconds} s"


class Diverged(DomainError):
    """A stored history can't have been written by this code: stop, never retry."""


class InvariantViolated(Exception):
    """Our bug. ``assert`` vanishes under ``-O``; this does not."""
