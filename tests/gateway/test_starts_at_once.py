"""Several gateways on one new PostgreSQL log: its tables are made once, one of them makes the first key."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.app import create_app
from gateway.context import Gateway
from gateway.keys import NewKey
from gateway.settings import Settings
from tests.gateway.inline_host import connect_inline

pytestmark = pytest.mark.postgres

GATEWAYS = 4


def test_gateways_that_start_at_once_share_one_log(postgres_url: str, tmp_path: Path) -> None:
    opened: list[NewKey | None] = []

    def on_open(_: Gateway, first_key: NewKey | None) -> None:
        opened.append(first_key)

    async def start_all() -> None:
        async with AsyncExitStack() as stack:
            apps = [
                create_app(
                    Settings(store=postgres_url, blobs=str(tmp_path), data_dir=str(tmp_path / str(number))),
                    connect=connect_inline,
                    on_open=on_open,
                )
                for number in range(GATEWAYS)
            ]
            await asyncio.gather(
                *(stack.enter_async_context(app.router.lifespan_context(app)) for app in apps)
            )

    asyncio.run(start_all())
    assert len(opened) == GATEWAYS
    assert len([key for key in opened if key is not None]) == 1
