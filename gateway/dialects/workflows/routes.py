"""The routes of `/api/workflows` (contract section 3). Literal segments win: `export` is never an id."""

from __future__ import annotations

from gateway.dialects.workflows import bundles, docs, prompts, stream, workflows
from gateway.dialects.workflows.wire import SOURCE, envelope
from gateway.keys import READ, RUN
from gateway.routes import Dialect, Operation, Resource
from gateway.settings import Settings

PREFIX = "/api/workflows"


def dialect(settings: Settings) -> Dialect:
    one = f"{PREFIX}/{{workflow_id}}"
    return Dialect(
        SOURCE,
        envelope(PREFIX),
        (
            Resource(
                PREFIX,
                {
                    "POST": Operation(handler=workflows.create, scope=RUN, doc=docs.CREATE),
                    "GET": Operation(handler=workflows.list_all, scope=READ, doc=docs.LIST),
                },
            ),
            Resource(
                f"{PREFIX}/export",
                {"GET": Operation(handler=bundles.export_all, scope=READ, doc=docs.EXPORT_ALL)},
            ),
            Resource(
                f"{PREFIX}/import",
                {"POST": Operation(handler=bundles.import_all, scope=RUN, doc=docs.IMPORT)},
            ),
            Resource(
                one,
                {
                    "GET": Operation(handler=workflows.get, scope=READ, doc=docs.GET),
                    "PUT": Operation(handler=workflows.update, scope=RUN, doc=docs.UPDATE),
                    "DELETE": Operation(handler=workflows.delete, scope=RUN, doc=docs.DELETE),
                },
            ),
            Resource(
                f"{one}/prompt", {"POST": Operation(handler=prompts.prompt, scope=RUN, doc=docs.PROMPT)}
            ),
            Resource(f"{one}/halt", {"POST": Operation(handler=prompts.halt, scope=RUN, doc=docs.HALT)}),
            # Its key may be a ticket, so the handler checks it.
            Resource(
                f"{one}/stream",
                {"GET": Operation(handler=stream.follow, scope="", doc=docs.STREAM, streams=True)},
            ),
            Resource(
                f"{one}/export", {"GET": Operation(handler=bundles.export_one, scope=READ, doc=docs.EXPORT)}
            ),
            Resource(
                f"{one}/skills/{{skill_id}}",
                {
                    "POST": Operation(handler=workflows.install_skill, scope=RUN, doc=docs.INSTALL),
                    "DELETE": Operation(handler=workflows.remove_skill, scope=RUN, doc=docs.REMOVE),
                },
            ),
        ),
    )
