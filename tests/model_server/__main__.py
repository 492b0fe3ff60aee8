"""The model server as a process: `python -m tests.model_server --port 0 --script FILE` prints where it is."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
import uvicorn
import uvloop

from tests.model_server.app import ModelApp
from tests.model_server.script import Rule, read_script
from tests.model_server.server import HOST, READY_LINE, config, listening


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.model_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--script", type=Path, help="JSON list of rules; without one it echoes prompts")
    arguments = parser.parse_args()
    script: tuple[Rule, ...] = ()
    if arguments.script is not None:
        try:
            script = read_script(arguments.script.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            parser.error(f"{arguments.script}: {error}")
    opened = listening(arguments.port)
    sys.stdout.write(f"{READY_LINE}http://{HOST}:{opened.getsockname()[1]}/v1\n")
    sys.stdout.flush()
    app = ModelApp(script)
    server = uvicorn.Server(config(app))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve(sockets=[opened]))


if __name__ == "__main__":
    main()
