"""For platforms in Python: submit checks and consume events, without torch and without a model.

`Client` blocks, `AsyncClient` is for asyncio; both make the same promises.
"""

from worker.client.async_client import AsyncClient, AsyncConsumedEvent
from worker.client.client import Client, ConsumedEvent
from worker.client.errors import (
    NoVerdictError,
    QueueFullError,
    QueueUnreachableError,
    Retry,
    UnknownQueueError,
)

__all__ = [
    "AsyncClient",
    "AsyncConsumedEvent",
    "Client",
    "ConsumedEvent",
    "NoVerdictError",
    "QueueFullError",
    "QueueUnreachableError",
    "Retry",
    "UnknownQueueError",
]
