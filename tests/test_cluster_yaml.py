"""`ray_cluster.yaml` is what `ray up` accepts, and starts no node without token authentication."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any, cast

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from gateway.settings import Settings
from tests.sandbox import REPOSITORY


@pytest.fixture
def cluster() -> dict[str, Any]:
    text = (REPOSITORY / "ray_cluster.yaml").read_text(encoding="utf-8")
    return cast(dict[str, Any], yaml.safe_load(text))


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` fills it out, after Ray's own check."""
    config = prepare_config(copy.deepcopy(cluster))
    validate_config(config)
    return config


def start_commands(config: dict[str, Any]) -> list[str]:
    commands: list[str] = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    assert config["head_node_type"] == "head"
    kinds: dict[str, dict[str, Any]] = config["available_node_types"]
    assert sum(kind["max_workers"] for kind in kinds.values()) == config["max_workers"] == 10
    assert config["available_node_types"]["head"]["max_workers"] == 0


def test_ray_refuses_a_key_it_does_not_know(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["cpu_worker"]["cpus"] = 4
    with pytest.raises(jsonschema.ValidationError, match="'cpus' was unexpected"):
        prepared(cluster)


def test_ray_refuses_half_a_cpu(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["cpu_worker"]["resources"] = {"CPU": 0.5}
    with pytest.raises(jsonschema.ValidationError, match=r"0\.5 is not of type 'integer'"):
        prepared(cluster)


def test_every_node_starts_with_token_authentication(cluster: dict[str, Any]) -> None:
    commands = start_commands(prepared(cluster))
    assert len(commands) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in commands)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_head_serves_no_dashboard(cluster: dict[str, Any]) -> None:
    head = [command for command in start_commands(prepared(cluster)) if "--head" in command]
    assert len(head) == 1
    assert "--include-dashboard=false" in head[0]
    assert "--dashboard-host" not in head[0]


def test_nodes_install_this_checkout_at_the_pinned_versions(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    node_types: dict[str, dict[str, Any]] = config["available_node_types"]
    # What Ray would add of its own accord must not replace what the file says.
    assert not any("setup_commands" in key for kind in node_types.values() for key in kind)
    installs = [c for c in config["setup_commands"] + config["head_setup_commands"] if "uv pip install" in c]
    assert len(installs) >= 2
    assert all("-c ~/heliograph/constraints.txt" in command for command in installs)
    assert cluster["file_mounts"]["~/heliograph"] == "."
    assert (REPOSITORY / "constraints.txt").is_file()


def test_no_container_engine_is_needed(cluster: dict[str, Any]) -> None:
    assert "docker" not in cluster
    assert not prepared(cluster)["docker"]


def test_nodes_are_labelled_and_the_head_takes_no_work(cluster: dict[str, Any]) -> None:
    kinds: dict[str, dict[str, Any]] = prepared(cluster)["available_node_types"]
    assert {name: kind["labels"]["role"] for name, kind in kinds.items()} == {
        "head": "head",
        "cpu_worker": "worker",
        "gpu_worker": "worker",
    }
    assert kinds["head"]["resources"]["CPU"] == 0


def test_the_head_keeps_its_state_and_the_gateway_is_supervised(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    (head,) = [command for command in start_commands(config) if "--head" in command]
    assert "RAY_gcs_storage=rocksdb" in head
    assert config["head_start_ray_commands"][-1].endswith("systemctl restart heliograph")
    unit = (REPOSITORY / "docs/cluster/heliograph.service").read_text()
    assert "Restart=always" in unit
    assert "heliograph serve --address 127.0.0.1:6379" in unit


def test_every_node_has_one_python_to_the_patch_release(cluster: dict[str, Any]) -> None:
    setup = "\n".join(prepared(cluster)["setup_commands"])
    (installed,) = set(re.findall(r"python install (\d+\.\d+\.\d+)", setup))
    assert re.findall(r"--python (\d\S*)", setup) == [installed]
    dockerfile = (REPOSITORY / "docs/kubernetes/Dockerfile").read_text()
    assert f"FROM python:{installed}-slim" in dockerfile


def test_the_environments_example_holds_settings_that_exist() -> None:
    text = (REPOSITORY / "docs/cluster/heliograph.env.example").read_text()
    named = set(re.findall(r"^#? ?HELIOGRAPH_(\w+)=", text, flags=re.MULTILINE))
    known = {field.name.upper() for field in dataclasses.fields(Settings)}
    assert named - known == {"SECRET_KEY", "MODEL_KEY"}
    assert {"STORE", "BLOBS"} <= named


def test_the_manifest_gives_every_container_the_same_image_and_secret() -> None:
    text = (REPOSITORY / "docs/kubernetes/heliograph.yaml").read_text()
    ray_cluster, deployment, service = yaml.safe_load_all(text)
    spec = ray_cluster["spec"]
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"], deployment["spec"]]
    containers = [pod["template"]["spec"]["containers"][0] for pod in pods]
    assert len(containers) == 4
    assert len({container["image"] for container in containers}) == 1
    secret = [{"secretRef": {"name": "heliograph"}}]
    assert all(container["envFrom"] == secret for container in [*containers, spec["autoscalerOptions"]])
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pinned = (REPOSITORY / "constraints.txt").read_text()
    assert f"\nray=={spec['rayVersion']}\n" in pinned
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
