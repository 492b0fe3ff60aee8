"""Which server and which key: arguments before the environment, that before the kept file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.client import AsyncClient, Client
from gateway.credentials import Credentials, write_credentials
from gateway.target import Target, find_target

KEPT = "http://127.0.0.1:4711"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a user in whose data directory a server has run."""
    write_credentials(tmp_path, Credentials(url=KEPT, api_key="hg_kept"))
    return {"HELIOGRAPH_DATA_DIR": str(tmp_path)}


def test_arguments_go_before_the_environment_and_that_before_the_kept_file(
    environment: dict[str, str],
) -> None:
    assert find_target(None, None, environment) == Target(KEPT, "hg_kept", False)
    environment |= {"HELIOGRAPH_URL": "https://far.example/", "HELIOGRAPH_API_KEY": "hg_far"}
    assert find_target(None, None, environment) == Target("https://far.example", "hg_far", True)
    assert find_target("http://given", "hg_given", environment) == Target("http://given", "hg_given", True)


def test_a_kept_key_is_never_sent_to_another_server(environment: dict[str, str]) -> None:
    assert find_target("http://elsewhere", None, environment).api_key == ""
    assert find_target(f"{KEPT}/", None, environment).api_key == "hg_kept"


def test_without_anything_the_default_of_the_settings_is_meant(tmp_path: Path) -> None:
    environment = {"HELIOGRAPH_DATA_DIR": str(tmp_path), "HELIOGRAPH_PORT": "99"}
    assert find_target(None, None, environment) == Target("http://127.0.0.1:99", "", False)


def test_an_address_of_another_kind_is_refused_before_anything_is_sent() -> None:
    for made in (Client, AsyncClient):
        with pytest.raises(ValueError, match="'ftp://x' is no http or https address"):
            made("ftp://x")
