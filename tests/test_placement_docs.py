"""docs/placement.md is true: its flows compile, its Python runs, its bounds and names are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from actors.cluster_overview import HostView
from actors.environment_pools import ENVIRONMENTS_MAX
from actors.environments import FAILED_SECONDS, INSTALL_SECONDS_MAX, SITE_BYTES_MAX
from actors.roster import DEDICATED_MAX
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.packages import OURS, PACKAGE_BYTES_MAX, check_package
from runtime.placement import FALLBACKS_MAX, NodeOffer, Resources, missing
from tests.sandbox import REPOSITORY

TEXT = (REPOSITORY / "docs" / "placement.md").read_text()
MIB = 1024 * 1024


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_every_flow_compiles(example: str) -> None:
    assert compile_flow(parse_flow(example)).steps


def test_the_package_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(example, "placement.md", "exec"), {})
    assert check_package((tmp_path / "code.zip").read_bytes()) == ("prices",)


def test_what_is_missing_is_said_in_these_words() -> None:
    (said,) = missing(Resources(gpus=4), [NodeOffer(total={"GPU": 2})])
    assert f"`fit can't be placed; missing: {said}`" in TEXT


def test_the_metric_is_one_that_hosts_have() -> None:
    names = re.findall(r"`heliograph_host_(\w+)`", TEXT)
    assert names == ["unschedulable"]
    assert set(names) <= {field.name for field in msgspec.structs.fields(HostView)}


def test_fields_bounds_and_names_are_those_of_the_code() -> None:
    for field in msgspec.structs.fields(Resources):
        assert f"`{field.name}`" in TEXT
    for module in OURS:
        assert f"`{module}`" in TEXT
    said = [
        f"up to {FALLBACKS_MAX} other sets",
        f"{PACKAGE_BYTES_MAX // MIB} MiB at most",
        f"{INSTALL_SECONDS_MAX:g} s and {SITE_BYTES_MAX // MIB} MiB",
        f"For {FAILED_SECONDS:g} s the same",
        f"functions of {ENVIRONMENTS_MAX} environments",
        f"more than {DEDICATED_MAX} such hosts",
    ]
    assert [text for text in said if text not in TEXT] == []
