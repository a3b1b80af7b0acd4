"""How the broker is trusted, and what it says when it does not trust us."""

import socket
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis

if TYPE_CHECKING:
    from worker.settings import Settings

# How long a broker may take to refuse; one that accepts says nothing.
_REFUSAL_SECONDS = 2.0


class BrokerRefusedError(Exception):
    """The broker and these settings do not trust one another; `str()` is text that says what to set."""


def tls_options(settings: "Settings") -> dict[str, Any]:
    """Return the connection options of a rediss:// URL, none for redis://.

    The certificate must be signed by a known authority and name the host.
    """
    if not settings.redis_url.get_secret_value().startswith("rediss:"):
        return {}
    files = {
        "ssl_ca_certs": settings.redis_ca_file,
        "ssl_certfile": settings.redis_certificate_file,
        "ssl_keyfile": settings.redis_key_file,
    }
    return {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        **{name: str(path) for name, path in files.items() if path},
    }


def refuse_distrust(settings: "Settings") -> None:
    """Raise `BrokerRefusedError` when the broker's certificate, or the user in the URL, is not accepted.

    A broker that cannot be reached at all may come up later: that is no fault.
    """
    from worker.broker.verdict_stream import connect

    with connect(settings, timeout_seconds=5, retries=0) as client:
        try:
            client.ping()
        except redis.RedisError as error:
            if detail := distrust(error, settings):
                raise BrokerRefusedError(detail) from error


def distrust(error: BaseException, settings: "Settings") -> str | None:
    """Return what an operator must mend for a connection to be trusted, or None for any other error.

    Behind a connection that was lost there may be a refusal that got lost with it: then the broker is asked.
    """
    causes = _causes(error)
    for cause in causes:
        match cause:
            case redis.exceptions.NoPermissionError():
                return f"The broker's user in DNF_REDIS_URL has too few rights: {cause}."
            case redis.AuthenticationError():
                return f"The broker does not accept the user or password in DNF_REDIS_URL: {cause}."
    lost = any(isinstance(cause, redis.ConnectionError | redis.TimeoutError | OSError) for cause in causes)
    refusal = _late_refusal(settings) if lost else None
    return _mistrust(refusal) if refusal else None


def _mistrust(error: ssl.SSLError) -> str | None:
    reason = (error.reason or "").replace("_", " ").lower()
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"The broker's certificate is not trusted: {error.verify_message.rstrip('.')}."
                " DNF_REDIS_CA_FILE names the authority that must have signed it, and DNF_REDIS_URL the"
                " host that it must be for."
            )
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return None  # the other end went away in the midst of it, as it does when it restarts
    if "alert" in reason and ("certificate" in reason or "unknown ca" in reason):
        return (
            f"The broker does not accept our certificate: {reason.rpartition('alert ')[2]}."
            " DNF_REDIS_CERTIFICATE_FILE and DNF_REDIS_KEY_FILE name one that its authority must have signed"
            " and that must still be valid."
        )
    return (
        f"There is no encrypted connection to the broker: {error.reason or error}. It may want a"
        " certificate of ours (DNF_REDIS_CERTIFICATE_FILE, DNF_REDIS_KEY_FILE), or no encryption."
    )


def _late_refusal(settings: "Settings") -> ssl.SSLError | None:
    """Return how the broker refuses an encrypted connection after it is there.

    In TLS 1.3 a client is done before the server has looked at its certificate. What the client writes then
    makes the server's system reset the connection, and the refusal in it is never read. This one is silent.
    """
    if not (options := tls_options(settings)):
        return None
    url = urlsplit(settings.redis_url.get_secret_value())
    host, port = url.hostname or "localhost", url.port or 6379
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"))
        with (
            socket.create_connection((host, port), _REFUSAL_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            encrypted.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        pass  # it is away, or accepts and says nothing
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
