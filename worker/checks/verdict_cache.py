"""What was found of the same bytes before: a repeated upload has its verdict without the model.

A value is believed only when it is whole and fits the settings in force; everything else, and a Redis that
does not answer, is as if nothing had been found.
"""

import hashlib
import time
from typing import TYPE_CHECKING, Self

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.contract.messages import PictureFacts, first_fault
from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    from worker.settings import Settings

log = get_logger(__name__)

# What a check may lose to a cache that does not answer, and how long it is then left alone.
_TIMEOUT_SECONDS = 1.0
_REST_SECONDS = 10.0

_PNG = b"\x89PNG\r\n\x1a\n"


class Judged(BaseModel):
    """What the model found: `score` 0..1, the picture's facts, and the PNG of the feature."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_bytes="base64", val_json_bytes="base64"
    )

    score: float = Field(ge=0, le=1)
    picture: PictureFacts
    thumbnail: bytes
    thumbnail_side: int = Field(ge=1)


class VerdictCache:
    """The verdicts of one model in one Redis database, each by content and policy, for the time that is set.

    With a time of 0 it finds and keeps nothing, and never connects.
    """

    def __init__(self, client: redis.Redis | None, settings: "Settings", model_digest: str) -> None:
        self._redis = client
        self._settings = settings
        self._model_digest = model_digest
        self._resting_until = 0.0

    @classmethod
    def connect(cls, settings: "Settings", model_digest: str) -> Self:
        """Return the cache that the settings ask for."""
        from worker.broker.verdict_stream import connect

        wanted = settings.verdict_cache_ttl_seconds > 0
        client = connect(settings, timeout_seconds=_TIMEOUT_SECONDS, retries=0) if wanted else None
        return cls(client, settings, model_digest)

    @property
    def active(self) -> bool:
        """Whether the settings ask for a cache."""
        return self._redis is not None

    def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            self._redis.close()

    def find(self, data: bytes, policy: str) -> Judged | None:
        """Return what was found of these bytes under a policy, or None. Raises nothing."""
        if self._redis is None or time.monotonic() < self._resting_until:
            return None
        digest = hashlib.sha256(data).hexdigest()
        try:
            value = self._redis.get(self._key(digest, policy))
        except redis.RedisError as error:
            self._rest(error)
            return None
        if value is None:
            return None
        try:
            judged = Judged.model_validate_json(value)
        except ValidationError as error:
            log.warning("cached_verdict_unreadable", sha256=digest, why=first_fault(error))
            return None
        if fault := self._misfit(judged, digest):
            log.warning("cached_verdict_unfit", sha256=digest, why=fault)
            return None
        return judged

    def keep(self, judged: Judged, policy: str) -> None:
        """Remember what was found, unless Redis does not take it. Raises nothing."""
        if self._redis is None or time.monotonic() < self._resting_until:
            return
        key, ttl = self._key(judged.picture.sha256, policy), self._settings.verdict_cache_ttl_seconds
        try:
            self._redis.set(key, judged.model_dump_json(), ex=ttl)
        except redis.RedisError as error:
            self._rest(error)

    def _misfit(self, judged: Judged, digest: str) -> str | None:
        """Return why a value that can be read is not what these settings would have led to."""
        picture = judged.picture
        if picture.sha256 != digest:
            return "it is of another picture"
        if picture.width * picture.height > self._settings.max_pixels:
            return "its picture has more pixels than are allowed now"
        if judged.thumbnail_side != self._settings.thumbnail_side_pixels:
            return "its thumbnail has another size than is set now"
        if not judged.thumbnail.startswith(_PNG):
            return "its thumbnail is no PNG"
        return None

    def _rest(self, error: redis.RedisError) -> None:
        self._resting_until = time.monotonic() + _REST_SECONDS
        log.warning("verdict_cache_unreachable", seconds=_REST_SECONDS, why=str(error))

    def _key(self, digest: str, policy: str) -> str:
        return f"verdict-cache:{digest}:{self._model_digest}:{policy}"
