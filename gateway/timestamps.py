"""Times as text; each contract adds its own fractions and zone."""

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=1_024)
def utc_second(seconds: int) -> str:
    """``2025-09-14T04:33:48`` of seconds since the epoch.

    Kept: most times of one moment's answers lie in few seconds, and strftime is slow.
    """
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
