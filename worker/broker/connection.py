"""Connections to the broker: time limits, retries and TLS in one place."""

import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis
from redis._parsers import Encoder
from redis.backoff import ExponentialBackoff
from redis.connection import PythonRespSerializer
from redis.retry import Retry

if TYPE_CHECKING:
    from worker.settings import BrokerSettings


# An event and its thumbnail are sent in one call; redis-py's own six kB would make it three.
_PIECE_BYTES = 1 << 17


class _OutermostRetry(Retry):
    """Retries the outermost call of a thread, and none of the calls inside it.

    redis-py retries a command, the connection that it opens for the command, and the health check of that
    connection: six attempts of each would last a minute. After `seconds` no attempt is made.
    """

    _thread = threading.local()

    def __init__(self, *args: Any, seconds: float = float("inf"), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = seconds

    def call_with_retry(
        self, do: Callable[[], Any], fail: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return what `do` returns; the error of an inner call fails the outermost one."""
        if getattr(self._thread, "retrying", False):
            return do()
        ends = time.monotonic() + self._seconds

        def fail_in_time(error: Exception, *counted: int) -> None:
            fail(error, *counted)
            if time.monotonic() >= ends:
                raise error

        self._thread.retrying = True
        try:
            return super().call_with_retry(do, fail_in_time, *args, **kwargs)
        finally:
            self._thread.retrying = False


def connect(
    broker: "BrokerSettings",
    *,
    timeout_seconds: float = 10,
    retries: int = 6,
    within_seconds: float | None = None,
) -> redis.Redis:
    """Return a client that waits `timeout_seconds` for a reply and retries a lost connection.

    With `within_seconds` a command succeeds or fails within them: the connection and the command each have
    half, in which a retry follows a failure in the first half of it.
    """
    retry_seconds = float("inf")
    if within_seconds is not None:
        timeout_seconds = min(timeout_seconds, within_seconds / 4)
        retry_seconds = within_seconds / 4
    encoder = Encoder("utf-8", "strict", decode_responses=False)  # type: ignore[no-untyped-call]
    return redis.Redis.from_url(
        broker.url.get_secret_value(),
        socket_timeout=timeout_seconds,
        socket_connect_timeout=min(5, timeout_seconds),
        health_check_interval=5,
        retry=_OutermostRetry(ExponentialBackoff(cap=2, base=0.1), retries=retries, seconds=retry_seconds),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        command_packer=PythonRespSerializer(_PIECE_BYTES, encoder.encode),
        **tls_options(broker),
    )


def tls_options(broker: "BrokerSettings") -> dict[str, Any]:
    """Return redis-py's options for a rediss:// URL, none for redis://.

    The broker's certificate must be signed by a known authority and name the host.
    """
    if not broker.url.get_secret_value().startswith("rediss:"):
        return {}
    files = {
        "ssl_ca_certs": broker.ca_file,
        "ssl_certfile": broker.certificate_file,
        "ssl_keyfile": broker.key_file,
    }
    return {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        **{name: str(path) for name, path in files.items() if path},
    }
