"""The command line. ``main`` is the table of commands; each module imports what is heavy only when it runs.

It talks to a server over HTTP like any other client, except where it looks at a store itself (``log``,
``doctor``) or starts a server (``server``).
"""
