"""The contract: checks in; verdicts, rejections and dead letters out, as CloudEvents 1.0."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from detector.bundle.thresholds import Thresholds
from detector.images.container import ImageReason
from detector.images.doubt import Confidence, Doubt
from detector.policy import VerdictName

MAX_METADATA_BYTES = 4096
MAX_METADATA_DEPTH = 16
MAX_VIEWS = 16

QUEUES = ("image-checks.urgent", "image-checks", "image-checks.bulk")
QueueName = Literal["image-checks.urgent", "image-checks", "image-checks.bulk"]
DEFAULT_QUEUE: QueueName = "image-checks"
CHECK_IMAGE = "check_image"
DECISION_TYPE: Literal["image.decision.v1"] = "image.decision.v1"
CHECK_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

StorageReason = Literal[
    "bucket_not_allowed", "missing", "forbidden", "unreadable", "too_large", "changed", "digest_mismatch"
]
RejectionReason = Literal[StorageReason, ImageReason]
DeadLetterReason = Literal[
    "unreadable_entry",
    "unknown_task",
    "malformed_message",
    "unknown_policy",
    "storage_unavailable",
    "model_failed",
    "out_of_memory",
    "internal_error",
    "too_many_attempts",
]
ThumbnailType = Literal["image/jpeg", "image/png"]
DeadLetterForm = Literal["check", "entry", "entry_base64"]
Stage = Literal[
    "queue_wait", "fetch", "cache", "decode", "prepare", "batch_wait", "dnf", "classify", "thumbnail", "total"
]
DecisionOutcome = Literal["generated", "real", "edited", "cannot_tell"]
DecisionBasis = Literal["opinion", "source_found", "uploader_said", "credentials"]
ReviewOrigin = Literal["uncertain", "audit", "appeal"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RefusedError(Exception):
    """The upload or the message is at fault: the check is rejected or dead-lettered, and never retried."""


class UnavailableError(Exception):
    """Something that the check needs is at fault: the check is retried."""


class InvalidMessageError(RefusedError):
    """The message cannot be carried out; `reason` is one of `DeadLetterReason`, `str()` is the detail."""

    def __init__(self, reason: DeadLetterReason, detail: str, check_id: str | None = None) -> None:
        super().__init__(detail)
        self.reason: DeadLetterReason = reason
        #: The check that the message asks for, if it can be read.
        self.check_id = check_id


class _Contract(BaseModel):
    # CloudEvents requires attributes that have a default here, so the schemas require them too.
    # A platform that imports the client builds the few models that it uses, when it uses them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_serialization_defaults_required=True, defer_build=True
    )


# The validation context of a reader.
_READING = {"reading": True}


def _known_or_read(value: Any, known: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Return a value of a closed list; to a reader also a later version's, as text."""
    if info.context is _READING and isinstance(value, str):
        return value
    return known(value)


_ReadableUnknown = WrapValidator(_known_or_read)


class ImageCheck(_Contract):
    """A platform's request: judge one object in S3, once for its `check_id`."""

    check_id: str = Field(
        default_factory=lambda: str(uuid4()),
        pattern=r"^[A-Za-z0-9._:-]{1,128}$",
        description="The platform's own id; a check submitted twice under one id has one event.",
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
        if _depth(metadata) > MAX_METADATA_DEPTH:
            raise ValueError(f"at most {MAX_METADATA_DEPTH} levels deep")
        # NaN and infinity are not JSON: they could not be returned unchanged.
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
    """The detector that scored the picture."""

    name: str
    version: str
    digest: Sha256 = Field(description="SHA-256 of its manifest.")


class PictureFacts(_Contract):
    """The picture that was judged."""

    sha256: Sha256 = Field(description="Of the object's bytes.")
    width: int = Field(description="Pixels, after EXIF orientation.")
    height: int = Field(description="Pixels, after EXIF orientation.")
    format: str = Field(description="JPEG, PNG, WEBP, GIF or AVIF.")
    bytes: int = Field(description="Size of the object.")


class Thumbnail(_Contract):
    """The picture of the Diffusion Noise Feature: at `uri`, or in Redis under `redis_key`."""

    content_type: Annotated[ThumbnailType, _ReadableUnknown] = Field(
        default="image/jpeg", description="Media type: `image/png` of workers before 0.2."
    )
    uri: str | None = Field(default=None, description="s3://bucket/key, if the object store has it.")
    redis_key: str | None = Field(default=None, description="Its key in the events' database, which expires.")
    url: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="In webhooks: where the HTTP API has it, for whoever has a token.",
    )
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    sha256: Sha256


class _Outcome(_Contract):
    check_id: str
    policy: str
    durations_ms: dict[Annotated[Stage, _ReadableUnknown], float] = Field(
        description="Milliseconds by stage; `dnf` and `classify` are those of the whole batch, `total` runs"
        " from the start of the check and leaves out `queue_wait`."
    )
    attempt: int = Field(ge=1, description="The attempt that answered: 1 at the first.")
    worker: str = Field(description="The worker process: host and process id.")
    metadata: dict[str, JsonValue] = Field(description="As submitted.")


class ViewScore(_Contract):
    """A part of the picture that was scored by itself, in pixels after EXIF orientation."""

    x: int = Field(ge=0, description="Pixels from the left edge.")
    y: int = Field(ge=0, description="Pixels from the upper edge.")
    width: int = Field(ge=1, description="Pixels.")
    height: int = Field(ge=1, description="Pixels.")
    score: float = Field(
        ge=0, le=1, description="The score that the picture would have if this were all of it."
    )


class ShadowVerdict(_Contract):
    """The verdict of a second detector on the same picture, for comparison; `score` as in `Verdict`."""

    model: Model
    score: float = Field(ge=0, le=1)
    verdict: VerdictName


class Verdict(_Outcome):
    """The outcome of a picture that was judged."""

    verdict: VerdictName
    score: float = Field(ge=0, le=1, description="Calibrated probability of *generated*.")
    thresholds: Thresholds
    model: Model
    picture: PictureFacts
    thumbnail: Thumbnail
    batch_size: int = Field(ge=0, description="Pictures in the forward pass; 0 if `cached`.")
    cached: bool = Field(
        default=False, description="Whether the same bytes were judged before, by this model."
    )
    confidence: Confidence | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Whether the picture is of the kind that models are trained on. Any other one is never "
        "called *generated*.",
    )
    doubt: Doubt | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Why the picture is out of the domain.",
    )
    views: tuple[ViewScore, ...] = Field(
        default=(),
        max_length=MAX_VIEWS,
        exclude_if=lambda value: not value,
        description="What the model looked at; the parts may overlap, and need not cover the picture.",
    )
    strongest_view: int | None = Field(
        default=None,
        ge=0,
        exclude_if=lambda value: value is None,
        description="Index in `views` of the one most like *generated*; the thumbnail shows its feature, "
        "stretched to a square.",
    )
    shadow: ShadowVerdict | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Of a detector on trial; it has no part in the verdict.",
    )


class Rejection(_Outcome):
    """The outcome of an upload that cannot be judged, whatever the model."""

    reason: Annotated[RejectionReason, _ReadableUnknown]
    detail: str = Field(description="The reason in words, for people.")


class DeadLetter(_Contract):
    """A message that could not be carried out, with the reason."""

    check_id: str | None = Field(default=None, description="If the message names one.")
    message: str = Field(description="The original message, in the form that `form` names.")
    form: DeadLetterForm = Field(
        default="check",
        description="`check`: the check as JSON text; `entry`: the queue entry itself; `entry_base64`: an"
        " entry that is not UTF-8.",
    )
    truncated: bool = Field(default=False, description="Whether the message was too long and is incomplete.")
    queue: str | None = Field(default=None, description="Where the message was taken from, if known.")
    reason: Annotated[DeadLetterReason, _ReadableUnknown]
    detail: str = Field(description="The reason in words, for people.")
    attempts: int = Field(ge=0, description="Attempts at the check; 0 if it never started.")
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Decision(_Contract):
    """What a person decided about a picture that was judged."""

    check_id: str
    policy: str
    outcome: Annotated[DecisionOutcome, _ReadableUnknown]
    basis: Annotated[DecisionBasis, _ReadableUnknown] = Field(description="What the decision rests on.")
    revision: int = Field(ge=1, description="1 for a check's first decision; the highest one is in force.")
    supersedes: str | None = Field(default=None, description="Id of the decision's event that it replaces.")
    appeal: str | None = Field(default=None, description="Id of the appeal that it answers.")
    moderator: str = Field(description="A pseudonym, the same for all decisions of one person.")
    blind: bool = Field(description="Whether score and feature were hidden until the decision.")
    seconds: float = Field(ge=0, description="From the claim of the picture to the decision.")
    origin: Annotated[ReviewOrigin, _ReadableUnknown] = Field(
        description="Why people saw it: `uncertain` for the verdict *review*, `audit` for a random sample,"
        " `appeal`."
    )
    sampling_probability: float | None = Field(
        gt=0,
        le=1,
        description="With which the verdict came to review; estimates weigh by its reciprocal. None for one"
        " that did not come by chance, but by an appeal.",
    )
    verdict: Annotated[VerdictName, _ReadableUnknown] = Field(description="The automatic one.")
    score: float = Field(ge=0, le=1, description="Of the automatic verdict.")
    model: Model
    verdict_event: str = Field(description="Id of the automatic verdict's event.")
    sha256: Sha256 = Field(description="Of the object's bytes.")
    metadata: dict[str, JsonValue] = Field(description="As submitted.")


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


class DecisionEvent(_CloudEvent):
    """`image.decision.v1`."""

    id: str = Field(description="Unique; the same whenever this decision is published.")
    type: Literal["image.decision.v1"] = DECISION_TYPE
    data: Decision


ImageEvent = Annotated[VerdictEvent | RejectionEvent, Field(discriminator="type")]
_EVENT: TypeAdapter[ImageEvent] = TypeAdapter(ImageEvent, config=ConfigDict(defer_build=True))


class UnknownEventTypeError(ValueError):
    """The event is of a type that this version does not know."""


def read_event(text: str | bytes) -> VerdictEvent | RejectionEvent:
    """Return an event as consumers read it: fields, reasons and stages of a later version are no fault.

    Unknown fields are ignored, unknown reasons and stages kept as text. Raises `UnknownEventTypeError`, and
    ValueError for what is no event.
    """
    try:
        return _EVENT.validate_json(text, extra="ignore", context=_READING)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "union_tag_invalid":
            raise UnknownEventTypeError(first_fault(error)) from error
        raise


class EndpointDisabled(_Contract):
    """An endpoint of webhooks to which nothing is sent any more."""

    endpoint: str
    url: str
    reason: Annotated[Literal["gone", "failing"], _ReadableUnknown] = Field(
        description="`gone`: it answered 410; `failing`: it accepted nothing for five days."
    )
    failing_since: datetime | None


class EndpointDisabledEvent(_CloudEvent):
    """`webhook.endpoint_disabled.v1`, to the other endpoints."""

    id: str = Field(default_factory=lambda: str(uuid4()))
    subject: str = Field(description="The endpoint's id.")
    type: Literal["webhook.endpoint_disabled.v1"] = "webhook.endpoint_disabled.v1"
    data: EndpointDisabled


def read_decision(text: str | bytes) -> DecisionEvent:
    """Return a decision as consumers read it, like `read_event`. Raises ValueError."""
    return DecisionEvent.model_validate_json(text, extra="ignore", context=_READING)


def read_dead_letter(text: str | bytes) -> DeadLetter:
    """Return a dead letter as consumers read it, like `read_event`. Raises ValueError."""
    return DeadLetter.model_validate_json(text, extra="ignore", context=_READING)


def event_id(check_id: str, model_digest: str, policy: str) -> str:
    """Return the event's id, 64 hex digits: the SHA-256 of the check's id, the model's digest and policy."""
    return hashlib.sha256(f"{check_id}\n{model_digest}\n{policy}".encode()).hexdigest()


def _depth(value: object, *, limit: int = MAX_METADATA_DEPTH) -> int:
    """Return how many levels of arrays and objects a value has, at most one more than `limit`."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if children is None:
        return 0
    return 1 if limit <= 0 else 1 + max((_depth(child, limit=limit - 1) for child in children), default=0)


def check_id_in(message: object) -> str | None:
    """Return the check id that a message names, as text, if it could be one."""
    check_id = message.get("check_id") if isinstance(message, dict) else None
    # Another string may hold anything, such as half a surrogate pair, which cannot be encoded.
    text = str(check_id) if isinstance(check_id, str | int) else ""
    return text if CHECK_ID.fullmatch(text) else None


def first_fault(error: ValidationError) -> str:
    """Return the first fault that pydantic found, as `field: what is wrong`."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "message"
    return f"{field}: {first['msg']}"
