"""Read models: folded from the event log, queried by the gateway, rebuilt at any time.

One file holds one read model: its rows, the folding code and its queries. Inline models are written
in the transaction of the append; tracked ones commit their rows together with their position.
The stores behind the event log live in `projections.stores`, because the inline models ride on them.

May import: `runtime`, the eventsourcing library's persistence, SQL drivers. Never `actors` or
`gateway`.
"""
