"""What every store answers about executions, by the one SQL dialect of the read models."""

from collections.abc import Sequence

from projections import execution_summary, queues
from projections.store import Row
from runtime.event_log import Recorded
from runtime.ids import HostName, Micros
from runtime.queues import QueueId, QueueUse

_EVENTS = "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"


class Queries:
    """Mixed into a recorder, which brings ``query``."""

    def query(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        raise NotImplementedError

    def select_recorded(self, originator_id: str, gt: int, limit: int) -> list[Recorded]:
        where = " WHERE originator_id = ? AND originator_version > ? ORDER BY originator_version LIMIT ?"
        return [Recorded(*values) for values in self.query(_EVENTS + where, (originator_id, gt, limit))]

    def select_feed(self, after: int, limit: int, topics: Sequence[str]) -> list[Recorded]:
        chosen = f" AND topic IN ({', '.join('?' * len(topics))})" if topics else ""
        sql = f"{_EVENTS} WHERE notification_id > ?{chosen} ORDER BY notification_id LIMIT ?"
        return [Recorded(*values) for values in self.query(sql, (after, *topics, limit))]

    def max_notification_id(self) -> int:
        return self.query("SELECT MAX(notification_id) FROM stored_events")[0][0] or 0

    def open_executions(self, owner: HostName, after: str, limit: int, *, waiting: bool) -> list[str]:
        return execution_summary.open_executions(self, owner, after, limit, waiting=waiting)

    def owner_of(self, execution_id: str) -> HostName | None:
        return execution_summary.owner_of(self, execution_id)

    def is_open(self, execution_id: str) -> bool:
        return execution_summary.is_open(self, execution_id)

    def owners(self) -> dict[HostName, int]:
        return execution_summary.owners(self)

    def due(self, owner: HostName, now: Micros, limit: int) -> list[str]:
        return execution_summary.due(self, owner, now, limit)

    def next_wake(self, owner: HostName) -> Micros | None:
        return execution_summary.next_wake(self, owner)

    def queue_use(
        self, queue: QueueId, host: HostName, since: Micros, starts_max: int, *, holders: bool
    ) -> QueueUse:
        return queues.use(self, queue, host, since, starts_max, holders=holders)
