"""Measures a real server from outside: `python -m bench`, one JSON document with machine facts.

May import `gateway` and `runtime` to lay out an installation before its server starts; what it measures it
reaches over HTTP and through /proc alone. Start reading in `__main__`; the method is in docs/bench.md.
"""
