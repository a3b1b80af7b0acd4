"""The checks that somebody waits for, and what was read of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from worker.broker.dead_letters import parsed_dead_letter
from worker.broker.verdict_stream import Event, parsed_event
from worker.client.errors import NoVerdictError, Retry
from worker.contract.messages import DeadLetter, ImageCheck

#: Entries of one reply. Fewer events than that were all.
ENTRIES = 500

_Entries = list[tuple[str, dict[bytes, bytes]]]


class StreamReader:
    """Positions on the verdict stream and the dead letters, moved on by each reply."""

    def __init__(self, verdict_stream: str, dead_letter_stream: str, since: str) -> None:
        self._names = {verdict_stream.encode(): "verdicts", dead_letter_stream.encode(): "dead_letters"}
        #: What the next XREAD asks for.
        self.streams = {verdict_stream: since, dead_letter_stream: since}

    def parsed(self, reply: Any) -> tuple[list[Event], list[DeadLetter], bool]:
        """Return events, dead letters, and whether the reply ended at the newest event."""
        found: dict[str, _Entries] = {"verdicts": [], "dead_letters": []}
        for name, entries in reply or []:
            found[self._names[name]] = [(entry_id.decode(), fields) for entry_id, fields in entries]
            self.streams[name.decode()] = found[self._names[name]][-1][0]
        events = [parsed_event(entry_id, fields) for entry_id, fields in found["verdicts"]]
        letters = [parsed_dead_letter(fields) for _, fields in found["dead_letters"]]
        return (
            [event for event in events if event],
            [letter for letter in letters if letter],
            len(events) < ENTRIES,
        )


class Awaited:
    """Checks, by id or whole, with the events and dead letters that came for them."""

    def __init__(self, checks: Iterable[str | ImageCheck]) -> None:
        self._whole: dict[str, ImageCheck] = {}
        #: Check ids without an event.
        self.open: set[str] = set()
        for check in checks:
            if isinstance(check, ImageCheck):
                self._whole[check.check_id] = check
            self.open.add(check if isinstance(check, str) else check.check_id)
        self.found: dict[str, Event] = {}
        self._dead_letters: dict[str, DeadLetter] = {}

    def event(self, event: Event) -> None:
        """Take an event, if it is one of an awaited check."""
        if event.check_id in self.open:
            self.open.remove(event.check_id)
            self._dead_letters.pop(event.check_id, None)
            self.found[event.check_id] = event

    def dead_letter(self, dead_letter: DeadLetter) -> None:
        """Take a dead letter, if it is one of an awaited check without an event."""
        if dead_letter.check_id in self.open:
            self._dead_letters[str(dead_letter.check_id)] = dead_letter

    @property
    def settled(self) -> bool:
        """Whether every check has an event or a dead letter."""
        return len(self.open) == len(self._dead_letters)

    @property
    def missing(self) -> list[str]:
        """The checks with neither."""
        return [check_id for check_id in self.open if check_id not in self._dead_letters]

    @property
    def to_submit_again(self) -> list[ImageCheck]:
        """The missing checks that are known whole."""
        return [self._whole[check_id] for check_id in self.missing if check_id in self._whole]

    def failure(self, retries: Mapping[str, Retry]) -> NoVerdictError:
        """Return the error that says what is missing."""
        return NoVerdictError(self.found, self._dead_letters, self.missing, retries)


def retries_in(check_ids: Iterable[str], replies: Iterable[Any]) -> dict[str, Retry]:
    """Return the retries in the replies of HMGET on each check's attempts."""
    return {
        check_id: Retry(reason.decode(), (detail or b"").decode("utf-8", "replace"))
        for check_id, (reason, detail) in zip(check_ids, replies, strict=True)
        if reason
    }
