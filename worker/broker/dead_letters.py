"""Dead letters: messages that cannot be carried out, each kept once, until a person redrives or drops it."""

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ValidationError

from worker.broker import keys
from worker.broker.connection import connect
from worker.contract.envelope import encode
from worker.contract.messages import DeadLetter, DeadLetterForm, InvalidMessageError, check_id_in
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import DEAD_LETTERS

if TYPE_CHECKING:
    import redis

    from worker.settings import Settings

log = get_logger(__name__)

#: Characters of a message that a dead letter holds; a check that the contract allows is far shorter.
MAX_MESSAGE_CHARACTERS = 64 << 10

# For so long the same message gets no second dead letter.
_REMEMBERED_SECONDS = 7 * 86400

# The newest dead letter of a message replaces the one before, so that whoever waits at the stream's end sees
# it. In both scripts the command that a server without memory or rights refuses comes first.
_WRITE = """
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'dead_letter', ARGV[2])
local before = redis.call('GET', KEYS[2])
if before then redis.call('XDEL', KEYS[1], before) end
redis.call('SET', KEYS[2], id, 'EX', ARGV[3])
return id
"""

# A dead letter is deleted with the move of its message: of two redrives at once, one does it.
_REDRIVE = """
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[4], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return 1
"""

RedriveReason = Literal["gone", "truncated", "queue_unknown", "malformed"]


class RedriveRefusedError(Exception):
    """The message cannot be redriven; `reason` is one of `RedriveReason`, `str()` is the detail."""

    def __init__(self, reason: RedriveReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: RedriveReason = reason


@dataclass(frozen=True)
class StoredDeadLetter:
    """An entry of the stream of dead letters."""

    #: Its id on the stream.
    entry_id: str
    #: None when the entry cannot be read.
    dead_letter: DeadLetter | None

    @property
    def age_seconds(self) -> float:
        """Seconds since it was written, by this machine's clock."""
        return time.time() - int(self.entry_id.partition("-")[0]) / 1000


class DeadLetters:
    """The stream of dead letters of one Redis database: about `max_length` of them, the newest."""

    def __init__(self, client: "redis.Redis", *, stream: str, max_length: int) -> None:
        self._redis = client
        self._stream = stream
        self._max_length = max_length

    @classmethod
    def connect(cls, settings: "Settings") -> Self:
        """Return the dead letters that the settings name, with connections of their own."""
        return cls(
            connect(settings.broker),
            stream=settings.dead_letter_stream,
            max_length=settings.dead_letter_stream_max_length,
        )

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def write(self, dead_letter: DeadLetter) -> str:
        """Write a dead letter in the place of an earlier one of the same message; return its entry id.

        Counts and logs it. Raises redis.RedisError.
        """
        names = [self._stream, self._mark(dead_letter)]
        text = dead_letter.model_dump_json()
        entry_id = self._redis.eval(_WRITE, len(names), *names, self._max_length, text, _REMEMBERED_SECONDS)
        DEAD_LETTERS.labels(dead_letter.reason).inc()
        log.error(
            "check_dead_lettered",
            reason=dead_letter.reason,
            detail=dead_letter.detail,
            attempts=dead_letter.attempts,
            queue=dead_letter.queue,
        )
        return _text(entry_id)

    def read(
        self,
        since: str = "0-0",
        *,
        reasons: frozenset[str] = frozenset(),
        older_than_seconds: float | None = None,
        newer_than_seconds: float | None = None,
    ) -> Iterator[StoredDeadLetter]:
        """Yield the dead letters after the entry `since`, oldest first; no reasons means any.

        Ages are measured by the server's clock at the time of the call.
        """
        now = self._now_ms() if older_than_seconds is not None or newer_than_seconds is not None else 0
        last = "+" if older_than_seconds is None else str(max(0, now - int(older_than_seconds * 1000)))
        if newer_than_seconds is not None:
            since = max(since, f"{max(0, now - int(newer_than_seconds * 1000))}-0", key=_position)
        while True:
            entries: Any = self._redis.xrange(self._stream, min=f"({since}", max=last, count=200)
            for entry_id, fields in entries:
                since = _text(entry_id)
                stored = StoredDeadLetter(since, _parsed(fields))
                if not reasons or (stored.dead_letter and stored.dead_letter.reason in reasons):
                    yield stored
            if not entries:
                return

    def get(self, entry_id: str) -> StoredDeadLetter | None:
        """Return one dead letter, or None when there is none (any more)."""
        entries: Any = self._redis.xrange(self._stream, min=entry_id, max=entry_id)
        return StoredDeadLetter(entry_id, _parsed(entries[0][1])) if entries else None

    def drop(self, stored: StoredDeadLetter) -> bool:
        """Delete a dead letter; return whether it was still there."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xdel(self._stream, stored.entry_id)
            if stored.dead_letter:
                pipeline.delete(self._mark(stored.dead_letter))
            return bool(pipeline.execute()[0])

    def redrive(self, stored: StoredDeadLetter) -> None:
        """Put a message back on its queue, its attempts forgotten, and delete its dead letter.

        However often and from wherever it is called, the message is put back once. Raises
        `RedriveRefusedError`.
        """
        dead_letter = stored.dead_letter
        if dead_letter is None:
            raise RedriveRefusedError("malformed", f"The entry {stored.entry_id} is not a dead letter.")
        if dead_letter.truncated:
            raise RedriveRefusedError("truncated", f"The message of {stored.entry_id} was truncated.")
        if not dead_letter.queue:
            raise RedriveRefusedError("queue_unknown", f"The queue of {stored.entry_id} is not known.")
        entry = _entry_of(dead_letter, dead_letter.queue)
        # A message without a check id has no count of attempts: that key does not exist.
        counted = keys.attempts(dead_letter.check_id or "")
        names = [self._stream, self._mark(dead_letter), counted, dead_letter.queue]
        if not self._redis.eval(_REDRIVE, len(names), *names, stored.entry_id, entry):
            raise RedriveRefusedError("gone", f"There is no dead letter {stored.entry_id} any more.")

    def _now_ms(self) -> int:
        seconds, microseconds = self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def _mark(self, dead_letter: DeadLetter) -> str:
        digest = hashlib.sha256(f"{dead_letter.form}\n{dead_letter.message}".encode()).hexdigest()
        return keys.dead_letter_of(self._stream, digest)


def dead_letter_of_entry(entry: bytes, queue: str, invalid: InvalidMessageError) -> DeadLetter:
    """Return the dead letter of a queue entry that Celery never saw."""
    form: DeadLetterForm = "entry"
    try:
        text = entry[: MAX_MESSAGE_CHARACTERS + 4].decode(
            "utf-8", "strict" if len(entry) <= MAX_MESSAGE_CHARACTERS else "ignore"
        )
    except UnicodeDecodeError:
        form, text = "entry_base64", base64.b64encode(entry[:MAX_MESSAGE_CHARACTERS]).decode()
    return DeadLetter(
        message=text if form == "entry_base64" else text[:MAX_MESSAGE_CHARACTERS],
        form=form,
        truncated=len(entry) > MAX_MESSAGE_CHARACTERS,
        queue=queue,
        reason=invalid.reason,
        detail=str(invalid),
        attempts=0,
    )


def dead_letter_of_call(
    args: list[Any], kwargs: dict[str, Any], queue: str | None, invalid: InvalidMessageError, attempts: int
) -> DeadLetter:
    """Return the dead letter of a call of the task."""
    single = len(args) == 1 and not kwargs
    message = args[0] if single else {"args": args, "kwargs": kwargs}
    text = json.dumps(message, default=str)
    return DeadLetter(
        check_id=check_id_in(message),
        message=text[:MAX_MESSAGE_CHARACTERS],
        form="check" if single else "arguments",
        truncated=len(text) > MAX_MESSAGE_CHARACTERS,
        queue=queue,
        reason=invalid.reason,
        detail=str(invalid) or invalid.reason,
        attempts=attempts,
    )


def _entry_of(dead_letter: DeadLetter, queue: str) -> bytes:
    match dead_letter.form:
        case "entry":
            return dead_letter.message.encode()
        case "entry_base64":
            return base64.b64decode(dead_letter.message)
        case "check":
            return encode([json.loads(dead_letter.message)], {}, queue)
        case "arguments":
            called = json.loads(dead_letter.message)
            return encode(called["args"], called["kwargs"], queue)


def _parsed(fields: dict[bytes, bytes]) -> DeadLetter | None:
    try:
        return DeadLetter.model_validate_json(fields[b"dead_letter"])
    except (KeyError, ValidationError):
        return None


def _position(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
