"""Dead letters on a real Valkey, and `dnf-worker dead-letters`."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result

from tests.broken_broker import commands_denied
from worker.broker import keys
from worker.broker.dead_letters import (
    MAX_MESSAGE_CHARACTERS,
    DeadLetters,
    RedriveRefusedError,
    StoredDeadLetter,
    dead_letter_of_check,
    dead_letter_of_entry,
)
from worker.cli import main
from worker.contract.envelope import decode
from worker.contract.messages import DeadLetter, DeadLetterReason, InvalidMessageError
from worker.embedded.valkey import Valkey
from worker.settings import Settings

QUEUE = "image-checks.bulk"
Cli = Callable[..., Result]


@pytest.fixture
def dead_letters(valkey: Valkey, broker: redis.Redis) -> Iterator[DeadLetters]:  # noqa: ARG001 - empties it
    """Provide the stream of dead letters, empty."""
    dead_letters = DeadLetters.connect(Settings(redis_url=valkey.url))
    yield dead_letters
    dead_letters.close()


def _dead_letter(name: str, reason: DeadLetterReason = "model_failed") -> DeadLetter:
    message = {"check_id": name, "bucket": "uploads", "key": f"{name}.jpg"}
    return dead_letter_of_check(
        json.dumps(message), QUEUE, InvalidMessageError(reason, "It failed.", name), 2
    )


def _check_ids(dead_letters: DeadLetters, **filters: Any) -> list[str | None]:
    return [stored.dead_letter and stored.dead_letter.check_id for stored in dead_letters.read(**filters)]


def _only(dead_letters: DeadLetters) -> StoredDeadLetter:
    (stored,) = dead_letters.read()
    return stored


def test_dead_letters_are_read_unchanged_and_in_order(dead_letters: DeadLetters) -> None:
    """From the oldest, or after any entry."""
    written = [_dead_letter(f"c-{number}") for number in range(450)]
    ids = [dead_letters.write(dead_letter) for dead_letter in written]
    assert [stored.dead_letter for stored in dead_letters.read()] == written
    assert _check_ids(dead_letters, since=ids[447]) == ["c-448", "c-449"]
    stored = dead_letters.get(ids[3])
    assert stored is not None
    assert stored.dead_letter == written[3]
    assert dead_letters.get("1-1") is None


def test_a_second_dead_letter_of_a_message_replaces_the_first(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """It is at the end of the stream, where clients wait for it; the keys that find the first one expire."""
    dead_letters.write(_dead_letter("twice", "model_failed"))
    dead_letters.write(_dead_letter("other"))
    dead_letters.write(_dead_letter("twice", "too_many_attempts"))
    assert _check_ids(dead_letters) == ["other", "twice"]
    assert [stored.dead_letter and stored.dead_letter.reason for stored in dead_letters.read()][
        1
    ] == "too_many_attempts"
    marks = set(broker.keys()) - {b"dead-letters"}  # type: ignore[arg-type]
    assert len(marks) == 4  # of two messages and of their checks
    assert all(0 < broker.ttl(mark) <= 7 * 86400 for mark in marks)  # type: ignore[operator]


def test_a_long_message_is_truncated_and_cannot_be_redriven(dead_letters: DeadLetters) -> None:
    """Text and bytes alike; the dead letter says that it is truncated."""
    refused = InvalidMessageError("unreadable_entry", "Too long.")
    long = MAX_MESSAGE_CHARACTERS + 1
    for dead_letter in (
        dead_letter_of_entry(b"a" * long, QUEUE, refused),
        dead_letter_of_entry("ü".encode() * long, QUEUE, refused),
        dead_letter_of_entry(b"\xff" * long, QUEUE, refused),
        dead_letter_of_check("a" * long, QUEUE, refused, 1),
    ):
        assert dead_letter.truncated
        assert len(dead_letter.message) <= MAX_MESSAGE_CHARACTERS * 4 / 3 + 4
        entry_id = dead_letters.write(dead_letter)
        with pytest.raises(RedriveRefusedError) as failed:
            dead_letters.redrive(StoredDeadLetter(entry_id, dead_letter))
        assert failed.value.reason == "truncated"


@pytest.mark.parametrize("entry", [b"not json", "ü".encode(), b"\xff\x00\xfe", b""])
def test_a_redriven_entry_is_unchanged(dead_letters: DeadLetters, broker: redis.Redis, entry: bytes) -> None:
    """Byte for byte, on the queue that it was taken from."""
    dead_letters.write(
        dead_letter_of_entry(entry, QUEUE, InvalidMessageError("unreadable_entry", "No JSON."))
    )
    dead_letters.redrive(_only(dead_letters))
    assert broker.lrange(QUEUE, 0, -1) == [entry]
    assert list(dead_letters.read()) == []


def test_a_check_that_is_redriven_is_the_same_check_without_attempts(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """It is a new message, tried for the first time, and the count of its attempts is deleted."""
    broker.hset(keys.attempts("c"), "count", "3")
    check = {"check_id": "c", "n": 2**70}
    invalid = InvalidMessageError("model_failed", "No.", "c")
    dead_letters.write(dead_letter_of_check(json.dumps(check), QUEUE, invalid, 3))
    dead_letters.redrive(_only(dead_letters))
    (entry,) = broker.lrange(QUEUE, 0, -1)  # type: ignore[misc]
    payload = decode(entry, QUEUE, tag="t", server_time=time.time(), longest_wait_seconds=1)
    (text,), _, _ = json.loads(base64.b64decode(payload["body"]))
    assert (json.loads(text), payload["headers"]["retries"]) == (check, 0)
    assert not broker.exists(keys.attempts("c"))


def test_a_check_that_has_its_event_gets_no_dead_letter(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """A worker may die between publishing and acknowledging, as often as that is counted."""
    broker.set(keys.published("verdicts", "answered"), "record")
    assert dead_letters.write(_dead_letter("answered"), unless_published=True) is None
    assert list(dead_letters.read()) == []
    assert dead_letters.write(_dead_letter("answered")) is not None


def test_a_dead_letter_and_the_end_of_its_message_are_one_step(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """No kill between the two leaves a message that is delivered and dead-lettered again."""
    broker.hset("unacked", "tag", "note")
    broker.zadd("unacked_index", {"tag": 1})
    with commands_denied(broker, "xadd"), pytest.raises(redis.ResponseError):
        dead_letters.write(_dead_letter("one"), unacknowledged=("unacked", "unacked_index", "tag"))
    assert broker.hexists("unacked", "tag")
    dead_letters.write(_dead_letter("one"), unacknowledged=("unacked", "unacked_index", "tag"))
    assert (broker.hlen("unacked"), broker.zcard("unacked_index"), len(list(dead_letters.read()))) == (
        0,
        0,
        1,
    )


def test_no_dead_letter_is_trimmed(dead_letters: DeadLetters, broker: redis.Redis) -> None:
    """A dead letter is a check without a verdict, until a person redrives or drops it."""
    for number in range(300):
        dead_letters.write(_dead_letter(f"c-{number}"))
    assert broker.xlen("dead-letters") == 300


def test_of_eight_concurrent_redrives_one_succeeds(dead_letters: DeadLetters, broker: redis.Redis) -> None:
    """The other seven raise an error with the reason `gone`."""
    dead_letters.write(_dead_letter("raced"))
    stored = _only(dead_letters)

    def redrive(_number: int) -> str:
        try:
            dead_letters.redrive(stored)
        except RedriveRefusedError as refused:
            return refused.reason
        return "redriven"

    with ThreadPoolExecutor(8) as threads:
        outcomes = sorted(threads.map(redrive, range(8)))
    assert outcomes == ["gone"] * 7 + ["redriven"]
    assert broker.llen(QUEUE) == 1


def test_a_dead_letter_is_kept_when_the_server_refuses_its_redrive(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """The count of attempts is kept too, and it can be redriven later."""
    dead_letters.write(_dead_letter("kept"))
    broker.hset(keys.attempts("kept"), "count", "3")
    stored = _only(dead_letters)
    with commands_denied(broker, "lpush"), pytest.raises(redis.ResponseError, match="ACL"):
        dead_letters.redrive(stored)
    assert _only(dead_letters) == stored
    assert broker.exists(keys.attempts("kept"))


def test_a_dead_letter_is_kept_when_the_server_refuses_its_replacement(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """A dead-lettered message always has a dead letter."""
    dead_letters.write(_dead_letter("twice"))
    stored = _only(dead_letters)
    with commands_denied(broker, "xadd"), pytest.raises(redis.ResponseError, match="ACL"):
        dead_letters.write(_dead_letter("twice", "too_many_attempts"))
    assert _only(dead_letters) == stored


def test_a_redriven_or_dropped_dead_letter_leaves_no_keys(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """The same message can be dead-lettered again."""
    dead_letters.write(_dead_letter("again"))
    dead_letters.redrive(_only(dead_letters))
    assert set(broker.keys()) == {b"dead-letters", QUEUE.encode()}  # type: ignore[arg-type]
    dead_letters.write(_dead_letter("again"))
    assert dead_letters.drop(_only(dead_letters))
    assert set(broker.keys()) == {b"dead-letters", QUEUE.encode()}  # type: ignore[arg-type]
    dead_letters.write(_dead_letter("again"))
    stored = _only(dead_letters)
    assert dead_letters.drop(stored)
    assert not dead_letters.drop(stored)


def test_dead_letters_are_selected_by_reason_and_age(dead_letters: DeadLetters, broker: redis.Redis) -> None:
    """Ages are measured by the server's clock; the filters can be combined."""
    seconds = int(broker.time()[0])  # type: ignore[index]
    for age, reason in [(7200, "model_failed"), (600, "malformed_message"), (5, "model_failed")]:
        text = _dead_letter(f"{age}", reason).model_dump_json()  # type: ignore[arg-type]
        broker.xadd("dead-letters", {"dead_letter": text}, id=f"{(seconds - age) * 1000}-0")
    assert _check_ids(dead_letters) == ["7200", "600", "5"]
    assert _check_ids(dead_letters, reasons=frozenset({"model_failed"})) == ["7200", "5"]
    assert _check_ids(dead_letters, older_than_seconds=60) == ["7200", "600"]
    assert _check_ids(dead_letters, newer_than_seconds=3600) == ["600", "5"]
    assert _check_ids(dead_letters, older_than_seconds=60, newer_than_seconds=3600) == ["600"]
    assert _check_ids(dead_letters, reasons=frozenset({"model_failed"}), newer_than_seconds=3600) == ["5"]


def test_a_malformed_dead_letter_can_be_dropped_and_not_redriven(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """The dead letters behind it are read."""
    broker.xadd("dead-letters", {"other": "field"})
    broker.xadd("dead-letters", {"dead_letter": "{]"})
    dead_letters.write(_dead_letter("good"))
    first, second, third = dead_letters.read()
    assert (first.dead_letter, second.dead_letter) == (None, None)
    assert third.dead_letter is not None
    with pytest.raises(RedriveRefusedError, match="not a dead letter"):
        dead_letters.redrive(first)
    assert dead_letters.drop(first)


@pytest.fixture
def cli(valkey: Valkey) -> Cli:
    """Provide a function that runs `dnf-worker dead-letters`."""

    def run(*arguments: str, **variables: str) -> Result:
        environment = {"DNF_REDIS_URL": valkey.url, "COLUMNS": "200", **variables}
        finished = CliRunner().invoke(main, ["dead-letters", *arguments], env=environment)
        assert finished.exception is None or isinstance(finished.exception, SystemExit)
        return finished

    return run


def test_an_operator_lists_shows_redrives_and_drops_dead_letters(
    cli: Cli, dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """Each command prints the outcome of each dead letter, as text or JSON, and fails if one failed."""
    assert "No dead letters." in cli("list").stderr
    one, two, three = (dead_letters.write(_dead_letter(name)) for name in ("one", "two", "three"))
    broken = dead_letters.write(_dead_letter("broken", "malformed_message"))
    listed = cli("list", "--reason", "model_failed", "--newer-than", "1h")
    assert all(entry_id in listed.stdout for entry_id in (one, two, three))
    assert broken not in listed.stdout
    lines = [json.loads(line) for line in cli("list", "--json").stdout.splitlines()]
    assert [line["id"] for line in lines] == [one, two, three, broken]
    assert lines[0]["dead_letter"]["check_id"] == "one"
    shown = cli("show", one)
    assert '"key": "one.jpg"' in shown.stdout
    assert json.loads(cli("show", one, "--json").stdout)["dead_letter"]["queue"] == QUEUE
    assert cli("show", "1-1").exit_code == 1

    redriven = cli("redrive", one, "1-1", "--json")
    assert redriven.exit_code == 1
    assert [json.loads(line)["outcome"] for line in redriven.stdout.splitlines()] == [
        "redriven",
        "not_redriven",
    ]
    assert cli("redrive", "--reason", "model_failed").stdout.count("redriven") == 2
    assert broker.llen(QUEUE) == 3
    dropped = cli("drop", "--all")
    assert (dropped.exit_code, dropped.stdout.strip()) == (0, f"{broken}  dropped")
    assert cli("drop", broken).exit_code == 1
    assert list(dead_letters.read()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["redrive"], "Select dead letters by their ids"),
        (["drop"], "Select dead letters by their ids"),
        (["drop", "1-1", "--all"], "not both"),
        (["drop", "--all", "--reason", "bored"], "Invalid value for '--reason'"),
        (["list", "--older-than", "soon"], "is not an age"),
        (["show", "first"], "is not the id of a dead letter"),
    ],
)
def test_wrong_usage_changes_nothing(
    cli: Cli, dead_letters: DeadLetters, arguments: list[str], message: str
) -> None:
    """The command prints what to change and exits with status 2."""
    dead_letters.write(_dead_letter("kept"))
    finished = cli(*arguments)
    assert finished.exit_code == 2
    assert message in finished.stderr
    assert len(list(dead_letters.read())) == 1


@pytest.mark.usefixtures("no_back_off")
def test_an_unreachable_server_is_named(cli: Cli) -> None:
    """In one line, with status 1."""
    finished = cli("list", DNF_REDIS_URL="redis://127.0.0.1:1/0")
    assert finished.exit_code == 1
    assert finished.stderr.startswith("Error: Redis cannot be reached")
