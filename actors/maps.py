"""The maps of one host: which way a map goes, and what it needs for that."""

from functools import partial

from actors.environment_pools import EnvironmentPools
from actors.execution_actor import ExecutionActor
from actors.host_config import HostConfig
from actors.map_items import Hands
from actors.map_run import MapRun
from actors.performer import Performer
from actors.placement_reports import PlacementReports
from actors.step_call import StepOutcome
from actors.wide_map import WideMapRun
from actors.wide_work import Equipment
from runtime.blob_store import BlobStore
from runtime.plan import MapOver, Resources, Step, WideMap

TASK = Resources(cpus=1)
"""What a chunk needs on a joined cluster: that is where it finds more than this machine's CPUs."""


class Maps:
    def __init__(
        self,
        config: HostConfig,
        hands: Hands,
        performer: Performer,
        pool: EnvironmentPools,
        blobs: BlobStore,
        reports: PlacementReports,
    ) -> None:
        self._config = config
        self._hands = hands
        self._performer = performer
        self._lanes = pool.workers_max + 1
        self._blobs = blobs
        self._reports = reports

    async def run(
        self, actor: ExecutionActor, step: Step, attempt: int, action: MapOver | WideMap
    ) -> StepOutcome | None:
        """The outcome of one attempt of a map; None when it stopped half way. Raises: CancelledError only."""
        if isinstance(action, MapOver):
            return await MapRun(actor, self._hands, step, attempt, action).run()
        config = self._config
        # A dedicated host holds its flow's resources itself, and its workers are there for the chunks.
        tasks = actor.plan.resources or (TASK if config.joined else None)
        is_held = config.dedicated and actor.plan.resources is not None
        equipment = Equipment(
            blobs=self._blobs,
            workers=self._performer,
            lanes=self._lanes,
            task_resources=None if is_held else tasks,
            teller=partial(self._reports.teller, actor, step.node_id, attempt),
        )
        return await WideMapRun(actor, self._hands, equipment, step, attempt, action).run()
