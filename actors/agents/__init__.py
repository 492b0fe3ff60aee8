"""Agents: the loop that talks to models and tools, one recorded step after the other.

Imported by a host with its first agent node, since the model library takes a second and 70 MB. Start reading
at ``service``; ``home`` says what the loop needs of its host.
"""
