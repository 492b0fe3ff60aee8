"""Ray alone, with the server's own settings: what it costs when nothing of ours runs.

`python -m bench.bare_ray OPTIONS`, a JSON object of `ray.init`; prints a line when it is up and ends when
its standard input does.
"""

from __future__ import annotations

import json
import sys

from actors.ray_settings import RaySettings, prepare_environment


def main() -> None:
    prepare_environment(RaySettings())
    import ray

    ray.init(**json.loads(sys.argv[1]))
    print("up", flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
