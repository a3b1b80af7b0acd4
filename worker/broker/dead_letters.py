"""Messages that could not be carried out: one letter each, put back when an operator says so."""

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ValidationError

from worker.checks.attempts import attempts_key
from worker.contract.envelope import entry_of
from worker.contract.messages import CHECK_ID, DeadLetter, DeadLetterForm, InvalidMessageError
from worker.telemetry.metrics import DEAD_LETTERS

if TYPE_CHECKING:
    import redis

    from worker.settings import Settings

#: Characters of a message that a letter keeps; a check that the contract allows is far shorter.
MAX_KEPT = 64 << 10

# A letter is remembered for this long after it was written, so that the same message has one letter.
_REMEMBERED_SECONDS = 7 * 86400

# The newest letter of a message takes the place of the one before: whoever waits at the stream's end sees it.
# In both scripts what a server without memory or rights refuses comes first: the rest is then left undone.
_WRITE = """
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'dead_letter', ARGV[2])
local before = redis.call('GET', KEYS[2])
if before then redis.call('XDEL', KEYS[1], before) end
redis.call('SET', KEYS[2], id, 'EX', ARGV[3])
return id
"""

# A letter goes with its message: two who put it back at once do it once.
_REDRIVE = """
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[4], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return 1
"""

RedriveReason = Literal["gone", "truncated", "queue_unknown", "malformed"]


class RedriveRefusedError(Exception):
    """The letter's message cannot be put back; `reason` says why, `str()` is the detail."""

    def __init__(self, reason: RedriveReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: RedriveReason = reason


@dataclass(frozen=True)
class StoredDeadLetter:
    """A dead letter on the stream, with its `entry_id`; an unreadable entry of the stream has no `letter`."""

    entry_id: str
    dead_letter: DeadLetter | None

    @property
    def age_seconds(self) -> float:
        """Seconds since it was written, by this machine's clock."""
        return time.time() - int(self.entry_id.partition("-")[0]) / 1000


class DeadLetters:
    """The stream of dead letters of one Redis database: about `max_length` letters, the oldest go first."""

    def __init__(self, client: "redis.Redis", *, stream: str, max_length: int) -> None:
        self._redis = client
        self._stream = stream
        self._max_length = max_length

    @classmethod
    def connect(cls, settings: "Settings") -> Self:
        """Return the dead letters that the settings name, with connections of their own."""
        from worker.broker.verdict_stream import connect

        return cls(
            connect(settings),
            stream=settings.dead_letter_stream,
            max_length=settings.dead_letter_stream_max_length,
        )

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def write(self, dead_letter: DeadLetter) -> str:
        """Write a letter, in the place of an earlier one of the same message; return its entry id."""
        keys = [self._stream, self._mark(dead_letter)]
        text = dead_letter.model_dump_json()
        entry_id = self._redis.eval(_WRITE, len(keys), *keys, self._max_length, text, _REMEMBERED_SECONDS)
        DEAD_LETTERS.labels(dead_letter.reason).inc()
        return _text(entry_id)

    def read(
        self,
        since: str = "0-0",
        *,
        reasons: frozenset[str] = frozenset(),
        older_than_seconds: float | None = None,
        newer_than_seconds: float | None = None,
    ) -> Iterator[StoredDeadLetter]:
        """Yield the letters after the entry `since`, oldest first; no reasons means any.

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
        """Return one letter, or None when it is not there (any more)."""
        entries: Any = self._redis.xrange(self._stream, min=entry_id, max=entry_id)
        return StoredDeadLetter(entry_id, _parsed(entries[0][1])) if entries else None

    def drop(self, stored: StoredDeadLetter) -> bool:
        """Delete a letter; return whether it was still there."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xdel(self._stream, stored.entry_id)
            if stored.dead_letter:
                pipeline.delete(self._mark(stored.dead_letter))
            return bool(pipeline.execute()[0])

    def redrive(self, stored: StoredDeadLetter) -> None:
        """Put a letter's message back on its queue, its deliveries forgotten, and delete the letter.

        However often and from wherever it is called, it is put back once. Raises `RedriveRefusedError`.
        """
        dead_letter = stored.dead_letter
        if dead_letter is None:
            raise RedriveRefusedError("malformed", f"The entry {stored.entry_id} is no dead letter.")
        if dead_letter.truncated:
            raise RedriveRefusedError(
                "truncated", f"The message of {stored.entry_id} was too long to be kept whole."
            )
        if not dead_letter.queue:
            raise RedriveRefusedError("queue_unknown", f"The queue of {stored.entry_id} is not known.")
        message = _entry(dead_letter, dead_letter.queue)
        # Without a check id there is no count to forget; the name is then that of no key.
        counted = attempts_key(dead_letter.check_id or "")
        keys = [self._stream, self._mark(dead_letter), counted, dead_letter.queue]
        if not self._redis.eval(_REDRIVE, len(keys), *keys, stored.entry_id, message):
            raise RedriveRefusedError("gone", f"There is no dead letter {stored.entry_id} any more.")

    def _now_ms(self) -> int:
        seconds, microseconds = self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def _mark(self, dead_letter: DeadLetter) -> str:
        digest = hashlib.sha256(f"{dead_letter.form}\n{dead_letter.message}".encode()).hexdigest()
        # The braces keep the mark in the stream's hash slot of a Redis Cluster.
        return f"{{{self._stream}}}:of:{digest}"


def dead_letter_of_entry(entry: bytes, queue: str, refused: InvalidMessageError) -> DeadLetter:
    """Return the letter of a queue entry that Celery never saw."""
    form: DeadLetterForm = "entry"
    try:
        text = entry[: MAX_KEPT + 4].decode("utf-8", "strict" if len(entry) <= MAX_KEPT else "ignore")
    except UnicodeDecodeError:
        form, text = "entry_base64", base64.b64encode(entry[:MAX_KEPT]).decode()
    return DeadLetter(
        message=text if form == "entry_base64" else text[:MAX_KEPT],
        form=form,
        truncated=len(entry) > MAX_KEPT,
        queue=queue,
        reason=refused.reason,
        detail=str(refused),
        attempts=0,
    )


def dead_letter_of_call(
    args: list[Any], kwargs: dict[str, Any], queue: str | None, refused: InvalidMessageError, attempts: int
) -> DeadLetter:
    """Return the letter of a call of the task that could not be carried out."""
    single = len(args) == 1 and not kwargs
    message = args[0] if single else {"args": args, "kwargs": kwargs}
    text = json.dumps(message, default=str)
    return DeadLetter(
        check_id=check_id_in(message),
        message=text[:MAX_KEPT],
        form="check" if single else "arguments",
        truncated=len(text) > MAX_KEPT,
        queue=queue,
        reason=refused.reason,
        detail=str(refused) or refused.reason,
        attempts=attempts,
    )


def check_id_in(message: object) -> str | None:
    """Return the check id that a message names, if it is one."""
    check_id = message.get("check_id") if isinstance(message, dict) else None
    # What is no check id may hold anything, such as half a surrogate pair, which is no text to pass on.
    return check_id if isinstance(check_id, str) and CHECK_ID.fullmatch(check_id) else None


def _entry(dead_letter: DeadLetter, queue: str) -> bytes:
    match dead_letter.form:
        case "entry":
            return dead_letter.message.encode()
        case "entry_base64":
            return base64.b64decode(dead_letter.message)
        case "check":
            return entry_of([json.loads(dead_letter.message)], {}, queue)
        case "arguments":
            called = json.loads(dead_letter.message)
            return entry_of(called["args"], called["kwargs"], queue)


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
