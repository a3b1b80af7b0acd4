"""Dead letters: messages that cannot be carried out, each kept once, until a person redrives or drops it."""

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from worker.broker import keys
from worker.broker.connection import connect
from worker.contract.envelope import encode
from worker.contract.messages import DeadLetter, DeadLetterForm, InvalidMessageError, read_dead_letter
from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    import redis

    from worker.settings import Settings

log = get_logger(__name__)

#: Characters of a message that a dead letter holds; a check that the contract allows is far shorter.
MAX_MESSAGE_CHARACTERS = 64 << 10

# For so long the same message gets no second dead letter.
_REMEMBERED_SECONDS = 7 * 86400

# The newest dead letter of a message replaces the one before, so that whoever waits at the stream's end sees
# it. KEYS: stream, mark of the message, record of the check's event, where the message is noted with its
# index, and mark of the check; ARGV: the dead letter, the seconds that the marks live, 1 to write none for a
# check with an event, the message's tag, 1 for a message that names its check. What a server without memory
# or rights refuses comes first, in both scripts.
_WRITE = """
local id = false
if ARGV[3] == '0' or redis.call('EXISTS', KEYS[3]) == 0 then
  id = redis.call('XADD', KEYS[1], '*', 'dead_letter', ARGV[1])
  local before = redis.call('GET', KEYS[2])
  if before then redis.call('XDEL', KEYS[1], before) end
  redis.call('SET', KEYS[2], id, 'EX', ARGV[2])
  if ARGV[5] == '1' then redis.call('SET', KEYS[6], id, 'EX', ARGV[2]) end
end
if ARGV[4] ~= '' then
  redis.call('ZREM', KEYS[5], ARGV[4])
  redis.call('HDEL', KEYS[4], ARGV[4])
end
return id
"""

# A dead letter is deleted with the move of its message: of two redrives at once, one does it.
_REDRIVE = """
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[4], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
if redis.call('GET', KEYS[5]) == ARGV[1] then redis.call('DEL', KEYS[5]) end
return 1
"""

# KEYS: stream, mark of the message, and of the check, which may name a newer one; ARGV: the entry.
_DROP = """
local dropped = redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return dropped
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
    """The stream of dead letters of one Redis database.

    Nothing trims it: workers stop taking checks before it is too long (`broker.faults`). `verdict_stream`
    names the stream whose events make a dead letter unnecessary.
    """

    def __init__(self, client: "redis.Redis", *, stream: str, verdict_stream: str = "verdicts") -> None:
        self._redis = client
        self._stream = stream
        self._verdict_stream = verdict_stream

    @classmethod
    def connect(cls, settings: "Settings", *, client: "redis.Redis | None" = None) -> Self:
        """Return the dead letters that the settings name, by default with connections of their own."""
        return cls(
            client or connect(settings.broker),
            stream=settings.dead_letter_stream,
            verdict_stream=settings.verdict_stream,
        )

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def write(
        self,
        dead_letter: DeadLetter,
        *,
        unless_published: bool = False,
        unacknowledged: tuple[str, str, str] | None = None,
    ) -> str | None:
        """Write a dead letter in the place of an earlier one of the same message; return its entry id.

        With `unless_published` a check that has its event gets none, and None is returned. `unacknowledged`
        names the hash and its index where the message is noted, and its tag: the note is deleted in the same
        step. Counts and logs what is written. Raises redis.RedisError.
        """
        note, index, tag = unacknowledged or (keys.UNACKED, keys.UNACKED_INDEX, "")
        record = keys.published(self._verdict_stream, dead_letter.check_id or "")
        names = [self._stream, self._mark(dead_letter), record, note, index, self._mark_of_check(dead_letter)]
        entry_id = self._redis.eval(
            _WRITE,
            len(names),
            *names,
            dead_letter.model_dump_json(),
            _REMEMBERED_SECONDS,
            int(unless_published and dead_letter.check_id is not None),
            tag,
            int(dead_letter.check_id is not None),
        )
        if entry_id is None:
            log.info("check_already_answered", reason=dead_letter.reason)
            return None
        from worker.telemetry.metrics import DEAD_LETTERS

        DEAD_LETTERS.labels(dead_letter.reason).inc()
        log.error(
            "check_dead_lettered",
            check_id=dead_letter.check_id,
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
                stored = StoredDeadLetter(since, parsed_dead_letter(fields))
                if not reasons or (stored.dead_letter and stored.dead_letter.reason in reasons):
                    yield stored
            if not entries:
                return

    def get(self, entry_id: str) -> StoredDeadLetter | None:
        """Return one dead letter, or None when there is none (any more)."""
        entries: Any = self._redis.xrange(self._stream, min=entry_id, max=entry_id)
        return StoredDeadLetter(entry_id, parsed_dead_letter(entries[0][1])) if entries else None

    def of_check(self, check_id: str) -> StoredDeadLetter | None:
        """Return a check's newest dead letter, or None when it has none (any more)."""
        entry_id: Any = self._redis.get(keys.dead_letter_of_check(self._stream, check_id))
        return None if entry_id is None else self.get(_text(entry_id))

    def drop(self, stored: StoredDeadLetter) -> bool:
        """Delete a dead letter; return whether it was still there."""
        if stored.dead_letter is None:
            return bool(self._redis.xdel(self._stream, stored.entry_id))
        names = [self._stream, self._mark(stored.dead_letter), self._mark_of_check(stored.dead_letter)]
        return bool(self._redis.eval(_DROP, len(names), *names, stored.entry_id))

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
        names.append(self._mark_of_check(dead_letter))
        if not self._redis.eval(_REDRIVE, len(names), *names, stored.entry_id, entry):
            raise RedriveRefusedError("gone", f"There is no dead letter {stored.entry_id} any more.")

    def _now_ms(self) -> int:
        seconds, microseconds = self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def _mark_of_check(self, dead_letter: DeadLetter) -> str:
        return keys.dead_letter_of_check(self._stream, dead_letter.check_id or "")

    def _mark(self, dead_letter: DeadLetter) -> str:
        digest = hashlib.sha256(f"{dead_letter.form}\n{dead_letter.message}".encode()).hexdigest()
        return keys.dead_letter_of(self._stream, digest)


def dead_letter_of_entry(
    entry: bytes, queue: str, invalid: InvalidMessageError, *, length: int | None = None
) -> DeadLetter:
    """Return the dead letter of a queue entry that Celery never saw.

    `length` is the whole entry's in bytes, where `entry` is a part of it.
    """
    form: DeadLetterForm = "entry"
    truncated = (length or len(entry)) > MAX_MESSAGE_CHARACTERS
    try:
        text = entry[: MAX_MESSAGE_CHARACTERS + 4].decode("utf-8", "ignore" if truncated else "strict")
    except UnicodeDecodeError:
        form, text = "entry_base64", base64.b64encode(entry[:MAX_MESSAGE_CHARACTERS]).decode()
    return DeadLetter(
        check_id=invalid.check_id,
        message=text if form == "entry_base64" else text[:MAX_MESSAGE_CHARACTERS],
        form=form,
        truncated=truncated,
        queue=queue,
        reason=invalid.reason,
        detail=str(invalid),
        attempts=0,
    )


def dead_letter_of_check(
    check: str, queue: str | None, invalid: InvalidMessageError, attempts: int
) -> DeadLetter:
    """Return the dead letter of a check, JSON text, that Celery handed to the task."""
    return DeadLetter(
        check_id=invalid.check_id,
        message=check[:MAX_MESSAGE_CHARACTERS],
        truncated=len(check) > MAX_MESSAGE_CHARACTERS,
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
            return encode(json.loads(dead_letter.message), queue)


def parsed_dead_letter(fields: dict[bytes, bytes]) -> DeadLetter | None:
    """Return the dead letter of a stream's entry, None for an entry that is none."""
    try:
        return read_dead_letter(fields[b"dead_letter"])
    except (KeyError, ValueError):
        return None


def _position(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
