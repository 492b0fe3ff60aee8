"""Heliograph from Python: `Client` blocks, `AsyncClient` awaits; both do the same.

    with Client() as client:
        client.publish(my_flow)
        print(client.run("my-flow", {"who": "Ada"}))

Importing this starts nothing and needs neither Ray nor the server's libraries. Of the other rooms it imports
`runtime.events`, for the types of events.

    calls        every request, as data        views       what comes back
    procedures   requests in order, as generators: written once for both clients
    drivers      carry procedures out, blocking or asynchronous: time-outs, repeats, streams
    client, async_client   the names and types that users see
"""

from gateway.client.async_client import AsyncBatch, AsyncClient, AsyncDataset, AsyncExecution
from gateway.client.client import Batch, Client, Dataset, Execution
from gateway.client.errors import (
    BatchNotCompleted,
    Cancelled,
    ClientError,
    Conflict,
    Failed,
    Forbidden,
    Invalid,
    ItemFailed,
    NotCompleted,
    NotFound,
    Overloaded,
    Refused,
    ServerFailed,
    StillRunning,
    TimedOut,
    Unauthenticated,
    Unreachable,
)
from gateway.client.picture import Picture
from gateway.client.views import (
    BatchSnapshot,
    EventRecord,
    FailedItem,
    ItemResult,
    NodeInfo,
    PublishedFlow,
    Sent,
    Snapshot,
)

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "AsyncDataset",
    "AsyncExecution",
    "Batch",
    "BatchNotCompleted",
    "BatchSnapshot",
    "Cancelled",
    "Client",
    "ClientError",
    "Conflict",
    "Dataset",
    "EventRecord",
    "Execution",
    "Failed",
    "FailedItem",
    "Forbidden",
    "Invalid",
    "ItemFailed",
    "ItemResult",
    "NodeInfo",
    "NotCompleted",
    "NotFound",
    "Overloaded",
    "Picture",
    "PublishedFlow",
    "Refused",
    "Sent",
    "ServerFailed",
    "Snapshot",
    "StillRunning",
    "TimedOut",
    "Unauthenticated",
    "Unreachable",
]
