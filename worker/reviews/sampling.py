"""Which verdicts come to people: every uncertain one, and a random share of the others."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from worker.contract.messages import ReviewOrigin, VerdictEvent

_STEPS = 1 << 64


@dataclass(frozen=True)
class Sample:
    """A verdict that was chosen."""

    origin: ReviewOrigin
    #: With which such a verdict is chosen, above 0 and at most 1.
    probability: float


def choose(event: VerdictEvent, audit_shares: Mapping[str, float], key: bytes) -> Sample | None:
    """Return why people see this verdict; None for one that they do not see.

    The draw is a keyed digest of the event's id: the same whenever the event is delivered, and unknown to
    whoever submits pictures.
    """
    verdict = event.data.verdict
    if verdict == "review":
        return Sample("uncertain", 1.0)
    share = audit_shares.get(verdict, 0.0)
    drawn = int.from_bytes(hmac.digest(key, event.id.encode(), hashlib.sha256)[:8])
    return Sample("audit", share) if drawn < share * _STEPS else None
