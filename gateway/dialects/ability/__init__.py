"""Ability API, `/api/ability` (ability contract).

Start reading at `routes`; `wire` holds the contract's words, `intake` turns a form into a command, `stream`
turns recorded events into the two framings.
"""

from gateway.dialects.ability.routes import dialect, render_callback
from gateway.dialects.ability.wire import SOURCE

__all__ = ["SOURCE", "dialect", "render_callback"]
