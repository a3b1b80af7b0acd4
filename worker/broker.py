"""How the broker is trusted, and what it says when it does not trust us."""

import ssl
from typing import TYPE_CHECKING, Any

import redis

if TYPE_CHECKING:
    from worker.settings import Settings


class BrokerRefused(Exception):  # noqa: N818 - a state that only an operator can change
    """The broker and these settings do not trust one another; `str()` is a sentence that says what to set."""


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
    """Raise `BrokerRefused` when the broker's certificate, or the user in the URL, is not accepted.

    A broker that cannot be reached at all may come up later: that is no fault.
    """
    from worker.results import connect

    with connect(settings, timeout_seconds=5, retries=0) as client:
        try:
            client.ping()
        except redis.RedisError as error:
            if sentence := distrust(error):
                raise BrokerRefused(sentence) from error


def distrust(error: BaseException) -> str | None:
    """Return what an operator must mend for a connection to be trusted, or None for any other error."""
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return (
                    f"The broker's certificate is not trusted: {cause.verify_message.rstrip('.')}."
                    " DNF_REDIS_CA_FILE names the authority that must have signed it, and DNF_REDIS_URL the"
                    " host that it must be for."
                )
            case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
                continue  # the other end went away in the midst of it, as it does when it restarts
            case ssl.SSLError():
                return (
                    f"There is no encrypted connection to the broker: {cause.reason or cause}. It may want a"
                    " certificate of ours (DNF_REDIS_CERTIFICATE_FILE, DNF_REDIS_KEY_FILE), or no encryption."
                )
            case redis.exceptions.NoPermissionError():
                return f"The broker's user in DNF_REDIS_URL has too few rights: {cause}."
            case redis.AuthenticationError():
                return f"The broker does not accept the user or password in DNF_REDIS_URL: {cause}."
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
