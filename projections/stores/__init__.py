"""The stores behind the event log: the library's recorders, plus the inline read models.

``sqlite`` (embedded default), ``postgres`` and ``memory`` are named by ``PERSISTENCE_MODULE``; each has one
``Factory``. One conformance suite holds for all three.
"""
