"""Signatures of Standard Webhooks, by its own library."""

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

# Bytes of a new secret; the specification asks for 24 to 64.
_SECRET_BYTES = 32


def new_secret() -> str:
    """Return a new secret in the specification's form, `whsec_` and base64."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"


def signed_headers(
    event_id: str, body: str, whsecs: Sequence[str], *, now: datetime | None = None
) -> dict[str, str]:
    """Return the headers that identify a message and sign it with each secret, newest first.

    The id is the event's, the same at every attempt; time and signatures are those of the attempt.
    """
    moment = now or datetime.now(UTC)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(Webhook(whsec).sign(event_id, moment, body) for whsec in whsecs),
    }
