"""Dead letters on a real Valkey, and the commands that deal with them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from worker.broker import keys
from worker.broker.dead_letters import (
    MAX_MESSAGE_CHARACTERS,
    DeadLetters,
    RedriveRefusedError,
    StoredDeadLetter,
    dead_letter_of_call,
    dead_letter_of_entry,
)
from worker.contract.envelope import decode
from worker.contract.messages import DeadLetter, DeadLetterReason, InvalidMessageError
from worker.embedded.valkey import Valkey
from worker.settings import Settings

QUEUE = "image-checks.bulk"
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a server of this module's own."""
    server = Valkey(tmp_path_factory.mktemp("letters") / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def broker(valkey: Valkey) -> Iterator[redis.Redis]:
    """Provide a client of the server, emptied."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def dead_letters(valkey: Valkey, broker: redis.Redis) -> Iterator[DeadLetters]:
    """Provide the stream of dead letters, empty."""
    assert broker.dbsize() == 0
    dead_letters = DeadLetters.connect(Settings(redis_url=valkey.url))
    yield dead_letters
    dead_letters.close()


def _dead_letter(name: str, reason: DeadLetterReason = "model_failed") -> DeadLetter:
    message = {"check_id": name, "bucket": "uploads", "key": f"{name}.jpg"}
    return dead_letter_of_call([message], {}, QUEUE, InvalidMessageError(reason, "It failed."), 2)


def _messages(dead_letters: DeadLetters, **filters: Any) -> list[str | None]:
    return [stored.dead_letter and stored.dead_letter.check_id for stored in dead_letters.read(**filters)]


def _only(dead_letters: DeadLetters) -> StoredDeadLetter:
    (stored,) = dead_letters.read()
    return stored


def test_dead_letters_are_kept_whole_and_in_order(dead_letters: DeadLetters) -> None:
    """A letter comes back as it was, and reading goes on after any entry."""
    written = [_dead_letter(f"c-{number}") for number in range(450)]
    ids = [dead_letters.write(dead_letter) for dead_letter in written]
    assert [stored.dead_letter for stored in dead_letters.read()] == written
    assert _messages(dead_letters, since=ids[447]) == ["c-448", "c-449"]
    stored = dead_letters.get(ids[3])
    assert stored is not None
    assert stored.dead_letter == written[3]
    assert dead_letters.get("1-1") is None


def test_a_message_has_one_letter_the_newest(dead_letters: DeadLetters, broker: redis.Redis) -> None:
    """Delivered again and buried again, it moves to the end, where whoever waits for it looks.

    What is remembered of it for that is forgotten in time.
    """
    dead_letters.write(_dead_letter("twice", "model_failed"))
    dead_letters.write(_dead_letter("other"))
    dead_letters.write(_dead_letter("twice", "too_many_attempts"))
    assert _messages(dead_letters) == ["other", "twice"]
    assert [stored.dead_letter and stored.dead_letter.reason for stored in dead_letters.read()][
        1
    ] == "too_many_attempts"
    marks = set(broker.keys()) - {b"dead-letters"}  # type: ignore[arg-type]
    assert len(marks) == 2
    assert all(0 < broker.ttl(mark) <= 7 * 86400 for mark in marks)  # type: ignore[operator]


def test_the_stream_keeps_about_as_many_letters_as_are_set(broker: redis.Redis) -> None:
    """The oldest go first, in whole nodes of a hundred."""
    dead_letters = DeadLetters(broker, stream="dead-letters", max_length=100)
    for number in range(450):
        dead_letters.write(_dead_letter(f"c-{number}"))
    assert 100 <= broker.xlen("dead-letters") <= 200  # type: ignore[operator]
    assert _messages(dead_letters)[-1] == "c-449"


def test_a_message_of_any_size_has_a_letter_of_a_bounded_one(dead_letters: DeadLetters) -> None:
    """Text and bytes are cut at the limit, which the letter says; such a message cannot be put back."""
    refused = InvalidMessageError("unreadable_entry", "Too long.")
    long = MAX_MESSAGE_CHARACTERS + 1
    for dead_letter in (
        dead_letter_of_entry(b"a" * long, QUEUE, refused),
        dead_letter_of_entry("ü".encode() * long, QUEUE, refused),
        dead_letter_of_entry(b"\xff" * long, QUEUE, refused),
        dead_letter_of_call(["a" * long], {}, QUEUE, refused, 1),
    ):
        assert dead_letter.truncated
        assert len(dead_letter.message) <= MAX_MESSAGE_CHARACTERS * 4 / 3 + 4
        entry_id = dead_letters.write(dead_letter)
        with pytest.raises(RedriveRefusedError) as failed:
            dead_letters.redrive(StoredDeadLetter(entry_id, dead_letter))
        assert failed.value.reason == "truncated"


@pytest.mark.parametrize("entry", [b"not json", "ü".encode(), b"\xff\x00\xfe", b""])
def test_an_entry_that_is_redriven_is_the_same_entry(
    dead_letters: DeadLetters, broker: redis.Redis, entry: bytes
) -> None:
    """Byte for byte, on the queue that it came from."""
    dead_letters.write(
        dead_letter_of_entry(entry, QUEUE, InvalidMessageError("unreadable_entry", "No JSON."))
    )
    dead_letters.redrive(_only(dead_letters))
    assert broker.lrange(QUEUE, 0, -1) == [entry]
    assert list(dead_letters.read()) == []


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [([{"check_id": "c", "n": 2**70}], {}), ([], {"a": 1}), ([[1]], {}), ([1, 2], {"b": 1})],
)
def test_a_call_that_is_redriven_has_the_same_arguments_and_no_deliveries(
    dead_letters: DeadLetters, broker: redis.Redis, args: list[Any], kwargs: dict[str, Any]
) -> None:
    """It is a new message of the same call, tried for the first time; what was counted is forgotten."""
    broker.hset(keys.attempts("c"), "count", "3")
    broker.hset(keys.attempts(""), "count", "3")
    dead_letters.write(
        dead_letter_of_call(args, kwargs, QUEUE, InvalidMessageError("model_failed", "No."), 3)
    )
    dead_letters.redrive(_only(dead_letters))
    (entry,) = broker.lrange(QUEUE, 0, -1)  # type: ignore[misc]
    payload = decode(entry, QUEUE, longest_wait_seconds=1)
    assert payload["headers"]["retries"] == 0
    called = dead_letter_of_call(args, kwargs, QUEUE, InvalidMessageError("model_failed", "No."), 3)
    # Buried once more, it is the same message: nothing was lost or changed on the way.
    dead_letters.write(called)
    assert _only(dead_letters).dead_letter == called.model_copy(update={"time": called.time})
    if called.check_id:
        assert not broker.exists(keys.attempts("c"))


def test_eight_that_put_a_letter_back_at_once_put_it_back_once(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """One of them is told that it did; the others that the letter is gone."""
    dead_letters.write(_dead_letter("raced"))
    stored = _only(dead_letters)

    def redrive(_number: int) -> str:
        try:
            dead_letters.redrive(stored)
        except RedriveRefusedError as refused:
            return refused.reason
        return "put back"

    with ThreadPoolExecutor(8) as threads:
        outcomes = sorted(threads.map(redrive, range(8)))
    assert outcomes == ["gone"] * 7 + ["put back"]
    assert broker.llen(QUEUE) == 1


@contextmanager
def _refused(broker: redis.Redis, command: str) -> Iterator[None]:
    broker.execute_command("ACL", "SETUSER", "default", f"-{command}")
    try:
        with pytest.raises(redis.ResponseError, match="ACL"):
            yield
    finally:
        broker.execute_command("ACL", "SETUSER", "default", "+@all")


def test_a_letter_whose_message_the_server_does_not_take_back_is_kept(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """What was counted of it too: an operator puts it back once the server allows it."""
    dead_letters.write(_dead_letter("kept"))
    broker.hset(keys.attempts("kept"), "count", "3")
    stored = _only(dead_letters)
    with _refused(broker, "lpush"):
        dead_letters.redrive(stored)
    assert _only(dead_letters) == stored
    assert broker.exists(keys.attempts("kept"))


def test_a_letter_stays_when_the_server_takes_no_newer_one(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """A message that was buried is never without a letter."""
    dead_letters.write(_dead_letter("twice"))
    stored = _only(dead_letters)
    with _refused(broker, "xadd"):
        dead_letters.write(_dead_letter("twice", "too_many_attempts"))
    assert _only(dead_letters) == stored


def test_a_letter_that_was_redriven_or_dropped_leaves_nothing_and_may_come_again(
    dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """The message fails once more: it has a letter again."""
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


def test_letters_are_chosen_by_reason_and_by_age(dead_letters: DeadLetters, broker: redis.Redis) -> None:
    """Ages follow the server's clock; the bounds of both kinds can be combined."""
    seconds = int(broker.time()[0])  # type: ignore[index]
    for age, reason in [(7200, "model_failed"), (600, "malformed_message"), (5, "model_failed")]:
        text = _dead_letter(f"{age}", reason).model_dump_json()  # type: ignore[arg-type]
        broker.xadd("dead-letters", {"dead_letter": text}, id=f"{(seconds - age) * 1000}-0")
    assert _messages(dead_letters) == ["7200", "600", "5"]
    assert _messages(dead_letters, reasons=frozenset({"model_failed"})) == ["7200", "5"]
    assert _messages(dead_letters, older_than_seconds=60) == ["7200", "600"]
    assert _messages(dead_letters, newer_than_seconds=3600) == ["600", "5"]
    assert _messages(dead_letters, older_than_seconds=60, newer_than_seconds=3600) == ["600"]
    assert _messages(dead_letters, reasons=frozenset({"model_failed"}), newer_than_seconds=3600) == ["5"]


def test_an_entry_that_is_no_letter_stops_nobody(dead_letters: DeadLetters, broker: redis.Redis) -> None:
    """It is shown as what it is, cannot be put back, and can be dropped."""
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
def cli(valkey: Valkey, tmp_path: Path) -> Cli:
    """Provide a function that runs dnf-worker dead-letters."""

    def run(*arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        finished = subprocess.run(
            [sys.executable, "-m", "worker.cli", "dead-letters", *map(str, arguments)],
            env={**os.environ, "DNF_REDIS_URL": valkey.url, "COLUMNS": "200", **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in finished.stderr, finished.stderr
        return finished

    assert tmp_path.exists()
    return run


def test_an_operator_lists_shows_puts_back_and_drops_letters(
    cli: Cli, dead_letters: DeadLetters, broker: redis.Redis
) -> None:
    """Each command says what it did to each letter, in words and as JSON, and fails when it did not."""
    assert "No dead letters." in cli("list").stdout
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
    assert cli("show", "1-1").returncode == 1

    redriven = cli("redrive", one, "1-1", "--json")
    assert redriven.returncode == 1
    assert [json.loads(line)["outcome"] for line in redriven.stdout.splitlines()] == [
        "redriven",
        "not_redriven",
    ]
    assert cli("redrive", "--reason", "model_failed").stdout.count("redriven") == 2
    assert broker.llen(QUEUE) == 3
    dropped = cli("drop", "--all")
    assert (dropped.returncode, dropped.stdout.strip()) == (0, f"{broken}  dropped")
    assert cli("drop", broken).returncode == 1
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
def test_wrong_usage_is_refused_and_touches_nothing(
    cli: Cli, dead_letters: DeadLetters, arguments: list[str], message: str
) -> None:
    """The line says what to change, with status 2."""
    dead_letters.write(_dead_letter("kept"))
    finished = cli(*arguments)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert len(list(dead_letters.read())) == 1


def test_a_server_that_cannot_be_reached_is_named_in_one_line(cli: Cli) -> None:
    """No traceback; status 1."""
    finished = cli("list", DNF_REDIS_URL="redis://127.0.0.1:1/0")
    assert finished.returncode == 1
    assert finished.stderr.startswith("Error: Redis cannot be reached")
