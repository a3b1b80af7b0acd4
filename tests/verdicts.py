"""Events of the verdict stream, for tests of what reads it."""

import hashlib
from datetime import UTC, datetime
from uuid import uuid4

from detector.bundle.thresholds import Thresholds
from detector.policy import decide
from worker.contract.messages import (
    Model,
    PictureFacts,
    Rejection,
    RejectionEvent,
    Thumbnail,
    Verdict,
    VerdictEvent,
    event_id,
)

_MODEL = Model(name="default", version="4", digest=hashlib.sha256(b"model").hexdigest())
THRESHOLDS = Thresholds(review_from=0.3, generated_from=0.8)


def verdict_event(
    check_id: str | None = None,
    *,
    score: float = 0.5,
    bucket: str = "uploads",
    key: str | None = None,
    sha256: str | None = None,
    **data: object,
) -> VerdictEvent:
    """Return a verdict: *real* below a score of 0.3, *generated* from 0.8 on, otherwise *review*."""
    check_id = check_id or str(uuid4())
    key = key or f"pictures/{check_id}.jpg"
    return VerdictEvent(
        id=event_id(check_id, _MODEL.digest, "default"),
        source="tests",
        subject=f"s3://{bucket}/{key}",
        time=datetime.now(UTC),
        data=Verdict(
            **{
                "check_id": check_id,
                "policy": "default",
                "durations_ms": {"total": 120.0},
                "attempt": 1,
                "worker": "tests",
                "metadata": {},
                "verdict": decide(score, THRESHOLDS),
                "score": score,
                "thresholds": THRESHOLDS,
                "model": _MODEL,
                "picture": PictureFacts(
                    sha256=sha256 or hashlib.sha256(check_id.encode()).hexdigest(),
                    width=96,
                    height=80,
                    format="JPEG",
                    bytes=4000,
                ),
                "thumbnail": Thumbnail(
                    redis_key=f"{{verdicts}}:thumbnail:{check_id}", width=128, height=128, sha256="0" * 64
                ),
                "batch_size": 1,
                **data,
            }
        ),
    )


def rejection_event(check_id: str | None = None, **data: object) -> RejectionEvent:
    """Return the rejection of an upload that is missing."""
    check_id = check_id or str(uuid4())
    return RejectionEvent(
        id=event_id(check_id, _MODEL.digest, "default"),
        source="tests",
        subject=f"s3://uploads/pictures/{check_id}.jpg",
        data=Rejection(
            **{
                "check_id": check_id,
                "policy": "default",
                "durations_ms": {"total": 3.0},
                "attempt": 1,
                "worker": "tests",
                "metadata": {},
                "reason": "missing",
                "detail": "there is no such object",
                **data,
            }
        ),
    )
