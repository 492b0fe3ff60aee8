"""How many connections to PostgreSQL all processes together may come to hold.

Every process has one pool, which grows to its maximum under load and keeps at least one connection as long as
the process lives. Each connection's ``application_name`` says how large its pool may become, so the sum over
the living processes can be read from the server at any time; nothing is counted apart, nothing is left behind
by a killed process. Whoever would bring the sum above the bound is refused when it opens the log, rather than
somebody else under load.
"""

import re
import uuid

from eventsourcing.persistence import OperationalError

from projections.store import Reader

PREFIX = "heliograph"

_NAME = re.compile(rf"{PREFIX}:(?P<largest>[0-9]+):[0-9a-f]+")

_OPENERS = (
    "SELECT application_name, COUNT(*) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' GROUP BY application_name"
)
_LIMITS = (
    "SELECT name, setting FROM pg_settings"
    " WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
)


def name_of_opener(largest: int) -> str:
    """What the connections of one pool call themselves."""
    return f"{PREFIX}:{largest}:{uuid.uuid4().hex[:12]}"


def check(reader: Reader, largest: int, connections_max: int) -> None:
    """Refuse a pool that could bring all pools together above the bound. It is open already.

    ``connections_max``: 0 for what the server lets its clients have, less what others hold now.

    Raises: eventsourcing's OperationalError with the arithmetic.
    """
    pools, connected_others = 0, 0
    count = 0
    for name, connections in reader.query(_OPENERS):
        matched = _NAME.fullmatch(name or "")
        if matched is None:
            connected_others += connections
        else:
            count += 1
            pools += int(matched["largest"])
    limits = {name: int(setting) for name, setting in reader.query(_LIMITS)}
    reserved = sum(value for name, value in limits.items() if name != "max_connections")
    free = limits["max_connections"] - reserved - connected_others
    bound = min(connections_max, free) if connections_max else free
    if pools <= bound:
        return
    offered = (
        f"the server lets them have {free} (max_connections {limits['max_connections']}, {reserved} reserved,"
        f" {connected_others} held by others)"
    )
    allowed = f"HELIOGRAPH_STORE_CONNECTIONS_MAX is {connections_max} and " if connections_max else ""
    raise OperationalError(
        f"with this one, whose pool may hold {largest}, the pools of {count} processes may hold {pools}"
        f" connections, but {allowed}{offered}; raise max_connections, lower HELIOGRAPH_STORE_POOL, or run"
        " fewer processes"
    )
