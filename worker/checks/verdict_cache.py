"""The verdict cache: bytes that were judged before are answered without the model.

A cached value is used only when it is complete and fits the settings in force. Any other value, and a Redis
that does not answer, is a miss.
"""

import time
from typing import TYPE_CHECKING, Self

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detector.images.doubt import Doubt
from detector.images.thumbnail import SIGNATURE
from worker.broker import keys
from worker.broker.connection import connect
from worker.contract.messages import MAX_VIEWS, PictureFacts, ViewScore, first_fault
from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    from worker.settings import Settings

log = get_logger(__name__)

# How long a check waits for the cache, and how long a cache that does not answer is not asked again.
_TIMEOUT_SECONDS = 1.0
_PAUSE_SECONDS = 10.0


class Judgement(BaseModel):
    """What the model says of a picture."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_bytes="base64", val_json_bytes="base64"
    )

    #: Calibrated probability of *generated*, 0..1.
    score: float = Field(ge=0, le=1)
    #: Why the score says little about the picture.
    doubt: Doubt | None = None
    views: tuple[ViewScore, ...] = Field(min_length=1, max_length=MAX_VIEWS)
    #: Index of the view whose feature the thumbnail shows.
    strongest_view: int = Field(ge=0)
    picture: PictureFacts
    #: File of the Diffusion Noise Feature, as `dnf_thumbnail` makes it.
    thumbnail: bytes
    #: Its width and height in pixels.
    thumbnail_side: int = Field(ge=1)


class VerdictCache:
    """The verdicts of one model in one Redis database, by content and policy, for `ttl_seconds`.

    Without a client it is inactive: every lookup is a miss, and nothing is stored. A value whose picture has
    more than `max_pixels`, or whose thumbnail is not `thumbnail_side` pixels wide, is a miss too.
    """

    def __init__(
        self,
        client: redis.Redis | None,
        model_digest: str,
        *,
        ttl_seconds: int,
        max_pixels: int,
        thumbnail_side: int,
    ) -> None:
        self._redis = client
        self._model_digest = model_digest
        self._ttl_seconds = ttl_seconds
        self._max_pixels = max_pixels
        self._thumbnail_side = thumbnail_side
        self._paused_until = 0.0

    @classmethod
    def connect(cls, settings: "Settings", model_digest: str) -> Self:
        """Return the cache that the settings ask for."""
        active = settings.verdict_cache_ttl_seconds > 0
        client = connect(settings.broker, timeout_seconds=_TIMEOUT_SECONDS, retries=0) if active else None
        return cls(
            client,
            model_digest,
            ttl_seconds=settings.verdict_cache_ttl_seconds,
            max_pixels=settings.max_pixels,
            thumbnail_side=settings.thumbnail_side_pixels,
        )

    @property
    def active(self) -> bool:
        """Whether the settings ask for a cache."""
        return self._redis is not None

    def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            self._redis.close()

    def find(self, digest: str, policy: str) -> Judgement | None:
        """Return the judgement of the content with this SHA-256 under a policy, or None. Raises nothing."""
        if self._redis is None or time.monotonic() < self._paused_until:
            return None
        try:
            value = self._redis.get(self._key(digest, policy))
        except redis.RedisError as error:
            self._pause(error)
            return None
        if value is None:
            return None
        try:
            judgement = Judgement.model_validate_json(value)
        except ValidationError as error:
            log.warning("cached_verdict_unreadable", sha256=digest, error=first_fault(error))
            return None
        if mismatch := self._mismatch(judgement, digest):
            log.warning("cached_verdict_ignored", sha256=digest, reason=mismatch)
            return None
        return judgement

    def store(self, judgement: Judgement, policy: str) -> None:
        """Store a judgement, unless Redis refuses it. Raises nothing."""
        if self._redis is None or time.monotonic() < self._paused_until:
            return
        key = self._key(judgement.picture.sha256, policy)
        try:
            self._redis.set(key, judgement.model_dump_json(), ex=self._ttl_seconds)
        except redis.RedisError as error:
            self._pause(error)

    def _mismatch(self, judgement: Judgement, digest: str) -> str | None:
        """Return why these settings would have led to another value; None when they would not."""
        picture = judgement.picture
        if picture.sha256 != digest:
            return "it is of another picture"
        if judgement.strongest_view >= len(judgement.views) or not all(
            view.x + view.width <= picture.width and view.y + view.height <= picture.height
            for view in judgement.views
        ):
            return "its views are not in its picture"
        if picture.width * picture.height > self._max_pixels:
            return "its picture has more pixels than are allowed now"
        if judgement.thumbnail_side != self._thumbnail_side:
            return "its thumbnail has another size than is set now"
        if not judgement.thumbnail.startswith(SIGNATURE):
            return "its thumbnail is in another format"
        return None

    def _pause(self, error: redis.RedisError) -> None:
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        log.warning("verdict_cache_unreachable", seconds=_PAUSE_SECONDS, error=str(error))

    def _key(self, digest: str, policy: str) -> str:
        return keys.verdict_cache(digest, self._model_digest, policy)
