"""A Ray that the tests of this folder join as drivers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import cast

import psutil
import pytest

from tests.sandbox import PROCESS_END_SECONDS, Sandbox, wait_until_gone

RAY_CPUS = 2
RAY_OBJECT_STORE_BYTES = 128 * 1024 * 1024
RAY_NAMESPACE = "heliograph-tests"


@pytest.fixture(scope="package")
def ray_cluster(sandbox: Sandbox) -> Iterator[str]:
    """The address of a local Ray with 2 CPUs on loopback; this process is connected as a driver."""
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        raise RuntimeError("a test connected to Ray by itself and did not disconnect")
    folder = sandbox.ray_folder / "suite"
    with pytest.MonkeyPatch.context() as patch:
        # Ray replaces a loopback address by one others can reach, unless its clusters are switched
        # off. Only here: processes under test must choose their own addresses.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        ray.init(
            address="local",
            num_cpus=RAY_CPUS,
            object_store_memory=RAY_OBJECT_STORE_BYTES,
            namespace=RAY_NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
        )
    processes = psutil.Process().children(recursive=True)
    try:
        yield cast(str, ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()
        wait_until_gone(processes, PROCESS_END_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
