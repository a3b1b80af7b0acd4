"""The contract: checks in; verdicts, rejections and dead letters out, as CloudEvents 1.0."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from detector.bundle.calibration import Thresholds
from detector.images.decode import ImageReason
from detector.policy import VerdictName

MAX_METADATA_BYTES = 4096

QUEUES = ("image-checks.urgent", "image-checks", "image-checks.bulk")
QueueName = Literal["image-checks.urgent", "image-checks", "image-checks.bulk"]
CHECK_IMAGE = "check_image"
CHECK_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

StorageReason = Literal[
    "bucket_not_allowed", "missing", "forbidden", "too_large", "changed", "digest_mismatch"
]
RejectionReason = Literal[StorageReason, ImageReason]
DeadLetterReason = Literal[
    "unreadable_entry",
    "unknown_task",
    "malformed_message",
    "unknown_policy",
    "storage_unavailable",
    "model_failed",
    "internal_error",
    "too_many_attempts",
]
DeadLetterForm = Literal["check", "arguments", "entry", "entry_base64"]
Stage = Literal[
    "queue_wait", "fetch", "cache", "decode", "prepare", "batch_wait", "dnf", "classify", "thumbnail", "total"
]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class InvalidMessageError(Exception):
    """The message asks for nothing that can be done; `reason` says which kind, `str()` is the detail."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: DeadLetterReason = reason


class _Contract(BaseModel):
    # CloudEvents requires attributes that have a default here: the schemas must ask for them.
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class ImageCheck(_Contract):
    """What a platform asks: judge one object in S3, once for its `check_id`."""

    check_id: str = Field(
        default_factory=lambda: str(uuid4()),
        pattern=r"^[A-Za-z0-9._:-]{1,128}$",
        description="The platform's own id; a check submitted twice under one id has one verdict.",
    )
    bucket: str = Field(min_length=3, max_length=255)
    key: str = Field(min_length=1, max_length=1024)
    version_id: str | None = Field(default=None, max_length=1024)
    etag: str | None = Field(default=None, max_length=256, description="The object must still have it.")
    sha256: Sha256 | None = Field(default=None, description="The content must have it.")
    metadata: dict[str, JsonValue] = Field(
        default_factory=dict, description="Opaque, at most 4 KiB as JSON, returned untouched."
    )
    submitted_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    policy: str = Field(default="default", pattern=r"^[a-z0-9-]{1,64}$")

    @field_validator("metadata")
    @classmethod
    def _small(cls, metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
        # NaN and infinity are no JSON: they could not be returned untouched.
        compact = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if len(compact.encode()) > MAX_METADATA_BYTES:
            raise ValueError(f"at most {MAX_METADATA_BYTES} bytes as compact JSON in UTF-8")
        return metadata

    @field_validator("submitted_at")
    @classmethod
    def _aware(cls, moment: datetime) -> datetime:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment

    @property
    def uri(self) -> str:
        """The object as s3://bucket/key."""
        return f"s3://{self.bucket}/{self.key}"


class Model(_Contract):
    """Which detector spoke; `digest` is the SHA-256 of its manifest."""

    name: str
    version: str
    digest: Sha256


class PictureFacts(_Contract):
    """What was judged: the content's digest, its size in pixels after rotation, and in bytes."""

    sha256: Sha256
    width: int
    height: int
    format: str
    bytes: int


class Thumbnail(_Contract):
    """Where the PNG of the feature is: in the stream entry (`inline`) or at `uri`; sides in pixels."""

    inline: bool = True
    uri: str | None = None
    width: int
    height: int
    sha256: Sha256


class _Outcome(_Contract):
    check_id: str
    policy: str
    durations_ms: dict[Stage, float] = Field(
        description="Milliseconds by stage; `dnf` and `classify` are those of the whole batch, `total` runs"
        " from the start of the check and leaves out `queue_wait`."
    )
    attempt: int = Field(ge=1, description="1 at the first delivery.")
    worker: str
    metadata: dict[str, JsonValue]


class ShadowVerdict(_Contract):
    """What another detector says of the same picture, for comparison alone; `score` as in `Verdict`."""

    model: Model
    score: float = Field(ge=0, le=1)
    verdict: VerdictName


class Verdict(_Outcome):
    """The outcome of a judged picture; `score` is the calibrated probability of *generated*, 0..1."""

    verdict: VerdictName
    score: float = Field(ge=0, le=1)
    thresholds: Thresholds
    model: Model
    picture: PictureFacts
    thumbnail: Thumbnail
    batch_size: int = Field(ge=0, description="Pictures in the forward pass; 0 if `cached`.")
    cached: bool = Field(default=False, description="The same bytes were judged before, by this model.")
    shadow: ShadowVerdict | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Of a detector that is tried beside the serving one; it had no say in the verdict.",
    )


class Rejection(_Outcome):
    """The outcome of an upload that cannot be judged, whatever the model."""

    reason: RejectionReason
    detail: str


class DeadLetter(_Contract):
    """A message that could not be carried out, kept whole with the reason."""

    check_id: str | None = Field(default=None, description="If the message names one.")
    message: str = Field(description="The original message, as `form` says.")
    form: DeadLetterForm = Field(
        default="check",
        description="`check`: the task's argument as JSON text; `arguments`: an object with `args` and"
        " `kwargs`; `entry`: the queue entry itself; `entry_base64`: the same of one that is no text.",
    )
    truncated: bool = Field(default=False, description="Whether the message was too long to be kept whole.")
    queue: str | None = Field(default=None, description="Where the message was taken from, if known.")
    reason: DeadLetterReason
    detail: str
    attempts: int = Field(ge=0, description="How often the check was begun; 0 if it never was.")
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))


class _CloudEvent(_Contract):
    specversion: Literal["1.0"] = "1.0"
    id: str = Field(description="The same for the same check, model and policy.")
    source: str
    subject: str = Field(description="s3://bucket/key")
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    datacontenttype: Literal["application/json"] = "application/json"
    traceparent: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="CloudEvents' distributed tracing extension: the trace of the check, if it has one.",
    )


class VerdictEvent(_CloudEvent):
    """`image.verdict.v1`."""

    type: Literal["image.verdict.v1"] = "image.verdict.v1"
    data: Verdict


class RejectionEvent(_CloudEvent):
    """`image.rejected.v1`."""

    type: Literal["image.rejected.v1"] = "image.rejected.v1"
    data: Rejection


ImageEvent = Annotated[VerdictEvent | RejectionEvent, Field(discriminator="type")]


def event_id(check_id: str, model_digest: str, policy: str) -> str:
    """Return the event's id, 64 hex digits: the SHA-256 of the check's id, the model's digest and policy."""
    return hashlib.sha256(f"{check_id}\n{model_digest}\n{policy}".encode()).hexdigest()


def first_fault(error: ValidationError) -> str:
    """Return the first fault that pydantic found, as `field: what is wrong`."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "message"
    return f"{field}: {first['msg']}"
