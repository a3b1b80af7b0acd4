"""The broker for asyncio: every question has an answer or an error in time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker.broker.connection import tls_options
from worker.client.errors import QueueUnreachableError, unreachable
from worker.settings import Settings

_PAUSE_SECONDS = 0.2


class AsyncBroker:
    """Connections to the broker that the settings name, at most `max_connections`."""

    def __init__(self, settings: Settings, *, timeout_seconds: float, max_connections: int) -> None:
        self.settings = settings
        # Three quarters for the answer, the last one to find out why there is none.
        self._limit_seconds = timeout_seconds * 3 / 4
        self._diagnosis_seconds = timeout_seconds / 4
        #: For how long a command may wait on the server.
        self.block_seconds = min(1.0, timeout_seconds / 8)
        # A task waits for a free connection: without a limit a thousand tasks would open a thousand.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.broker.url.get_secret_value(),
            max_connections=max_connections,
            timeout=None,
            socket_timeout=timeout_seconds / 4,
            socket_connect_timeout=min(5, timeout_seconds / 4),
            health_check_interval=5,
            retry=Retry(NoBackoff(), 0),
            **tls_options(settings.broker),
        )
        #: Its commands are called through `ask`.
        self.redis = redis.asyncio.Redis.from_pool(pool)

    async def ask(self, command: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
        """Return the answer to a command, asked again in the first half of the limit if a connection is lost.

        Raises redis.ResponseError for a group that does not exist, or does already, and
        `QueueUnreachableError`.
        """
        retried_until = time.monotonic() + self._limit_seconds / 2
        failure: BaseException | None = None
        try:
            async with asyncio.timeout(self._limit_seconds):
                while True:
                    try:
                        return await command(*arguments, **options)
                    except redis.AuthenticationError:
                        raise
                    except (redis.ConnectionError, redis.TimeoutError) as error:
                        failure = error
                        if time.monotonic() > retried_until:
                            raise
                    await asyncio.sleep(_PAUSE_SECONDS)
        except (redis.RedisError, TimeoutError) as error:
            if isinstance(error, redis.ResponseError) and str(error).startswith(("NOGROUP", "BUSYGROUP")):
                raise
            raise await self._unreachable(failure or error) from error

    async def ask_together(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Return the answers to commands that are sent together. Raises `QueueUnreachableError`."""
        answers: list[Any] = await self.ask(self._executed, commands)
        return answers

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()

    async def _executed(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        pipeline = self.redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return await pipeline.execute()

    async def _unreachable(self, error: BaseException) -> QueueUnreachableError:
        seconds = self._diagnosis_seconds
        return await asyncio.to_thread(unreachable, error, self.settings.broker, seconds=seconds)
