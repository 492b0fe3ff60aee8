"""`heliograph packages`: the code of flows, packed and uploaded to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.failures import CliFailure
from gateway.cli.options import ApiKey, AsJson, Tenant, Url

app = typer.Typer(no_args_is_help=True, help="Upload the code of flows; list what was uploaded.")


@app.command()
def upload(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder of modules, one module, or a zip file.")
    ],
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Upload code and print its name, for a flow's code.package. The same code has the same name."""
    from gateway.cli.connection import connected
    from gateway.cli.output import note, print_json, print_text
    from runtime.packages import MEDIA_TYPE

    data = packed(path)
    with connected(url, api_key) as server:
        found = server.post_text("/api/admin/packages", data, MEDIA_TYPE, tenant=tenant)
    if as_json:
        print_json(found)
        return
    print_text(found["package"])
    note(f"{found['size']} bytes: {', '.join(found['modules'])}")


@app.command("list")
def list_packages(
    tenant: Tenant = None, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """List uploaded packages, the newest first."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        packages = server.get("/api/admin/packages", tenant=tenant, limit=500)["packages"]
    if as_json:
        print_json(packages)
        return
    print_table(
        ("PACKAGE", "BYTES", "UPLOADED", "MODULES"),
        [(p["package"], p["size"], p["created_at"], ", ".join(p["modules"])) for p in packages],
        "no package is uploaded yet: `heliograph packages upload PATH`",
    )


def packed(path: Path) -> bytes:
    """The zip file of a folder's files, of one module, or as it is. Raises: CliFailure naming the fault."""
    from runtime.packages import build_package, check_package

    try:
        if path.suffix == ".zip":
            data = path.read_bytes()
            check_package(data)
            return data
        if path.is_file():
            return build_package({path.name: path.read_bytes()})
        return build_package({name: file.read_bytes() for name, file in _files(path)})
    except (OSError, ValueError) as error:
        raise CliFailure(f"{path}: {error}") from None


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Name in the package and path of each file; caches and hidden files stay."""
    found: list[tuple[str, Path]] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            found.append((inside.as_posix(), path))
    return found
