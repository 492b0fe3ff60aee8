"""The way in: contracts over HTTP and SSE, the command line, the Python client, and the composition root.

A dialect translates one published contract into commands and queries, and events back into its
wire format; it holds no state beyond the open response. `app.create_app(settings)` and the command
line are the only places where parts are put together. Importing any module opens nothing.

May import: `actors.client`, `projections`, `runtime`, `fastapi`. Nothing imports this room; a
dialect imports neither another dialect nor Ray.

Start reading at `app`, then one file under `dialects/`.
"""
