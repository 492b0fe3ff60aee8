"""What this process wants of Ray, and the environment that must stand before Ray is imported.

Ray reads its configuration when it is first imported; setting a variable later changes nothing. So
``prepare_environment`` comes before any import of ``actors.ray_cluster`` or ``actors.supervision``.
"""

import ipaddress
import os
import secrets

import msgspec


class RaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """``address`` empty: a cluster of our own on this machine, ended with this process.

    ``hosts`` 0: one for every two CPUs, at least one; on a joined cluster they follow the load, from
    ``hosts_min`` to ``hosts_max`` (0: as ``scaler`` says), and one that is to end gets ``drain_seconds`` for
    what it has begun. ``cpus`` 0: what this process may use.
    ``app_dir``: on the import path of every process of our own cluster. ``agents_file``: where the
    processes are noted that outlive a killed server, for the next start to end them; empty: nowhere.
    """

    address: str = ""
    hosts: int = 0
    hosts_min: int = 0
    hosts_max: int = 0
    drain_seconds: float = 60.0
    cpus: int = 0
    temp_dir: str = ""
    app_dir: str = ""
    agents_file: str = ""


def prepare_environment(settings: RaySettings) -> None:
    """Set what Ray reads at import. A cluster of our own gets a token of its own (DESIGN 5).

    Ray's ports run code for whoever may talk to them. They are kept on loopback, and with the token only
    this process and its children may talk to them.
    """
    if settings.address:
        return
    # The switch that keeps a one-machine Ray on loopback; without it Ray listens on every interface.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [os.path.abspath(settings.app_dir), *inherited] if settings.app_dir else inherited
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(entry for entry in path if entry))
    os.environ.update(
        {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # Prestarted workers would idle at 45 MB each: hosts and workers start when work needs them.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_maximum_gcs_destroyed_actor_cached_count": "1000",
        }
    )


def is_loopback(address: str) -> bool:
    """Whether a Ray address (``host:port``, or ``ray://host:port``) is on this machine only."""
    host = address.rpartition(":")[0].strip("[]").removeprefix("ray://")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
