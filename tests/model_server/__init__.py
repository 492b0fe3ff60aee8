"""A model provider of our own on loopback: the OpenAI chat-completions protocol, answers by a script.

What is real: the sockets, the protocol, streaming, time, errors, broken connections. What is scripted: the
answers. Every request and every answer sent whole stands in its journal, so a test counts what was paid for.

    model_server.play(tool_loop("add", {"a": 1, "b": 2}, "The sum is {results}."))
    ...
    assert model_server.journal.counted == {...}

Start reading at ``script``; pytest fixtures stand in ``fixture``.
"""

from tests.model_server.journal import Exchange, Journal, counted
from tests.model_server.script import (
    ECHO,
    Answer,
    Asked,
    Fault,
    Reply,
    Rule,
    RuleFunction,
    ToolUse,
    calls,
    endless_tool_loop,
    fails,
    gives,
    says,
    slowly,
    tool_loop,
)
from tests.model_server.server import ModelServer, ModelServerProcess

__all__ = [
    "ECHO",
    "Answer",
    "Asked",
    "Exchange",
    "Fault",
    "Journal",
    "ModelServer",
    "ModelServerProcess",
    "Reply",
    "Rule",
    "RuleFunction",
    "ToolUse",
    "calls",
    "counted",
    "endless_tool_loop",
    "fails",
    "gives",
    "says",
    "slowly",
    "tool_loop",
]
