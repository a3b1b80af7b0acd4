"""For platforms in Python: submit checks and consume events, without torch and without a model.

`Client` blocks, `AsyncClient` is for asyncio; both make the same promises.
"""

from worker.client.async_client import AsyncClient, AsyncConsumedDecision, AsyncConsumedEvent
from worker.client.client import Client, ConsumedDecision, ConsumedEvent
from worker.client.errors import (
    NoVerdictError,
    QueueFullError,
    QueueUnreachableError,
    Retry,
    UnknownQueueError,
)

__all__ = [
    "AsyncClient",
    "AsyncConsumedDecision",
    "AsyncConsumedEvent",
    "Client",
    "ConsumedDecision",
    "ConsumedEvent",
    "NoVerdictError",
    "QueueFullError",
    "QueueUnreachableError",
    "Retry",
    "UnknownQueueError",
]
