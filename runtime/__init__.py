"""The domain: what an execution is and which decisions it takes. Pure.

May import: the standard library, ``eventsourcing``, and libraries that only compute (msgspec, jinja2,
jmespath, jsonschema-rs, yaml). It never sees Ray, FastAPI, SQL, sockets, the clock, randomness or the
environment; importing it opens nothing. Time, ids and jitter come in with each command.

Start reading at ``events`` (what can happen), then ``execution`` (decide and evolve), ``scheduling``
(what is due), ``flow`` and ``graph`` (what is run), ``kinds`` (what a node does), and ``event_log``
(the one door to the store).
"""
