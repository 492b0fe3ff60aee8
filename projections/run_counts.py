"""How many runs the resources have: a query over the executions, for lists that show the number."""

from collections.abc import Sequence

from projections.store import Reader

SUBJECTS_MAX = 500
"""Subjects of one statement."""


def counts(store: Reader, tenant: str, subjects: Sequence[str]) -> dict[str, int]:
    """Runs by subject; those without any are left out."""
    found: dict[str, int] = {}
    for start in range(0, len(subjects), SUBJECTS_MAX):
        batch = list(subjects[start : start + SUBJECTS_MAX])
        # Padded to a power of two, so that a handful of statements stay prepared.
        size = 1 << (len(batch) - 1).bit_length()
        batch += [batch[-1]] * (size - len(batch))
        sql = (
            # The last condition is the partial index's own.
            "SELECT subject, COUNT(*) FROM executions"
            f" WHERE tenant = ? AND subject IN ({', '.join('?' * size)}) AND subject <> '' GROUP BY subject"
        )
        for subject, count in store.query(sql, (tenant, *batch)):
            found[subject] = int(count)
    return found
