"""Every failure has a wording in every contract (STYLE: one total table a dialect, walked by a test)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway import health
from gateway.dialects import DIALECTS
from gateway.envelopes import CODES, HOUSE, Envelope, Problem, problem_of
from gateway.settings import Settings
from runtime import errors

ENVELOPES = [
    HOUSE,
    *{build(Settings()).envelope.prefix: build(Settings()).envelope for build in DIALECTS}.values(),
]


def _tree(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for cls in root.__subclasses__():
        if cls.__module__ == errors.__name__:
            yield from _tree(cls)


ERRORS = [*_tree(errors.DomainError), errors.InvariantViolated]

ARGUMENTS: dict[type[Exception], tuple[object, ...]] = {
    errors.InvalidInput: ((("field", "secret rule"),),),
    errors.InvalidGraph: ((("node", "field", "rule"),),),
    errors.Conflict: ("our-own stream name", 3),
    errors.Overloaded: ("our-own host name", 7),
}


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: envelope.prefix or "house")
def test_every_contract_words_every_code(envelope: Envelope) -> None:
    assert set(CODES) <= set(envelope.faults)
    for code in CODES:
        status, body = envelope.word(Problem(code))
        assert 400 <= status < 600
        assert body


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: envelope.prefix or "house")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_runtime_error_has_a_status_and_shows_nothing_internal(
    envelope: Envelope, error: type[Exception]
) -> None:
    raised = error(*ARGUMENTS.get(error, ("our-own detail",)))
    problem = problem_of(raised)
    assert problem.code in CODES
    status, body = envelope.word(problem)
    if status >= 500:
        assert b"our-own" not in body
    if isinstance(raised, errors.Unavailable):
        assert status == 503
        assert problem.retry_after is not None


def test_overload_says_when_to_come_back() -> None:
    assert problem_of(errors.Overloaded("queue", 7)).retry_after == 7


def test_contracts_and_operations_claim_no_path_twice() -> None:
    paths = [
        resource.path
        for dialect in (health.dialect(Settings()), *(build(Settings()) for build in DIALECTS))
        for resource in dialect.resources
    ]
    assert len(paths) == len(set(paths))
