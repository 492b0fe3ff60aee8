"""`heliograph flows`: definitions, checked here or published on a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import CliFailure
from gateway.cli.options import ApiKey, AsJson, Tenant, Url

if TYPE_CHECKING:
    from gateway.cli.connection import Server

app = typer.Typer(no_args_is_help=True, help="Check, publish, show and disable flows.")

FlowFiles = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Flow files, YAML or JSON.")]
FlowArgument = Annotated[str, typer.Argument(metavar="FLOW", help="Id of a published flow.")]


@app.command("list")
def list_flows(
    tenant: Tenant = None, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """List the published flows."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        flows = server.get("/api/admin/flows", tenant=tenant)["flows"]
    if as_json:
        print_json(flows)
        return
    print_table(
        ("FLOW", "NAME", "VERSION", "STATE", "UPDATED"),
        [
            (
                f["flow_id"],
                f["name"],
                f["version"],
                "enabled" if f["enabled"] else "disabled",
                f["updated_at"],
            )
            for f in flows
        ],
        "no flow is published yet: `heliograph flows publish FILE`",
    )


@app.command()
def validate(files: FlowFiles, as_json: AsJson = False) -> None:
    """Check flow files against every rule, without a server."""
    from gateway.cli.output import print_json, print_text

    checked = [(file, *_check(file)) for file in files]
    if as_json:
        print_json(
            [
                {"file": str(file), "valid": not problems, "flow_id": flow_id, "problems": problems}
                for file, flow_id, problems in checked
            ]
        )
    for file, flow_id, problems in checked:
        if not problems and not as_json:
            print_text(f"{file}: valid, flow {flow_id}")
    broken = [line for file, _, problems in checked for line in _lines(file, problems)]
    if broken:
        raise CliFailure("\n  ".join(broken))


@app.command()
def publish(
    files: FlowFiles,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Publish flow files; each becomes the latest version of its flow."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_text

    published: list[dict[str, Any]] = []
    # All files are checked before the first is published, so a mistake publishes nothing.
    for file in files:
        refuse_broken(file)
    with connected(url, api_key) as server:
        for file in files:
            answer = publish_file(server, file, tenant)
            published.append(answer)
            if not as_json:
                news = "published" if answer["changed"] else "unchanged"
                print_text(f"{answer['flow_id']}  version {answer['version']}  {news}")
    if as_json:
        print_json(published)


def publish_file(server: Server, file: Path, tenant: str | None = None) -> dict[str, Any]:
    """Publish one file; the server's answer."""
    from gateway.cli.input import read_definition

    media_type = "application/json" if file.suffix == ".json" else "application/yaml"
    return server.post_text("/api/admin/flows", read_definition(file), media_type, tenant=tenant)


def refuse_broken(file: Path) -> None:
    """Raises: CliFailure naming node, field and rule of everything that is wrong in ``file``."""
    _, problems = _check(file)
    if problems:
        raise CliFailure("\n  ".join(_lines(file, problems)))


def _check(file: Path) -> tuple[str, list[dict[str, str]]]:
    """Id of the flow and its problems; ids are empty where they can't be read."""
    from gateway.cli.input import read_definition
    from runtime.errors import InvalidGraph
    from runtime.flow import parse_flow
    from runtime.graph import compile_flow

    try:
        plan = compile_flow(parse_flow(read_definition(file)))
    except InvalidGraph as error:
        return "", [{"node": node, "field": field, "rule": rule} for node, field, rule in error.problems]
    return plan.flow_id, []


def _lines(file: Path, problems: list[dict[str, str]]) -> list[str]:
    from gateway.cli.connection import describe_rule

    return [f"{file}: {describe_rule(problem)}" for problem in problems]


@app.command()
def show(
    flow: FlowArgument,
    version: Annotated[str | None, typer.Option(help="[default: the latest]", show_default=False)] = None,
    tenant: Tenant = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print a flow as JSON: definition, versions and graph."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json

    with connected(url, api_key) as server:
        print_json(server.get(f"/api/admin/flows/{flow}", version=version, tenant=tenant))


@app.command()
def graph(
    flow: Annotated[str, typer.Argument(metavar="FLOW", help="A flow file, or the id of a published flow.")],
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print the graph of a flow as Mermaid text, or nodes and edges as JSON."""
    from gateway.cli.connection import connected
    from gateway.cli.input import read_definition
    from gateway.cli.output import print_json, print_text

    file = Path(flow)
    if is_file_name(flow):
        from gateway.flow_drawing import graph_of, mermaid
        from runtime.flow import parse_flow
        from runtime.graph import compile_flow

        refuse_broken(file)
        plan = compile_flow(parse_flow(read_definition(file)))
        drawn: dict[str, Any] = {"graph": graph_of(plan), "mermaid": mermaid(plan)}
    else:
        with connected(url, api_key) as server:
            drawn = server.get(f"/api/admin/flows/{flow}", tenant=tenant)
    if as_json:
        print_json(drawn["graph"])
    else:
        print_text(drawn["mermaid"])


def is_file_name(flow: str) -> bool:
    """Whether FLOW names a file rather than a published flow: by its ending, or because it is there."""
    return flow.endswith((".yaml", ".yml", ".json")) or Path(flow).is_file()


@app.command()
def disable(
    flow: FlowArgument,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Withdraw a flow: nothing can be started; running executions go on."""
    _switch("disable", flow, tenant, as_json, url, api_key)


@app.command()
def enable(
    flow: FlowArgument,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Offer a disabled flow again."""
    _switch("enable", flow, tenant, as_json, url, api_key)


def _switch(
    verb: str, flow: str, tenant: str | None, as_json: bool, url: str | None, api_key: str | None
) -> None:
    from gateway.cli.connection import connected
    from gateway.cli.output import note, print_json

    with connected(url, api_key) as server:
        answer = server.post(f"/api/admin/flows/{flow}/{verb}", tenant=tenant)
    if as_json:
        print_json(answer)
    else:
        note(f"flow {answer['flow_id']} is {'enabled' if answer['enabled'] else 'disabled'}")
