"""The shells: executions as actors on Ray, and everything done to the outside world.

Here live mailboxes, recovery, passivation, supervision, placement and effects. What should happen
next is decided in `runtime`; this room performs it and reports the outcome back as a command.

May import: `runtime`, `ray`, and client libraries for effects. Never `projections` (the two meet
only in the event log) and never `gateway`.

Start reading at `execution_actor`, then `execution_host` (many of them in one Ray actor) and
`client` (the only module of this room the gateway sees).
"""
