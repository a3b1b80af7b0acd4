"""The users of deploy/redis/users.acl on a real server: each can do its own job, and nothing else."""

import hashlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import redis
from pydantic import SecretStr

from tests.conftest import NULL_WORKER, MakePicture, StartWorker, StoreObject, settings_of
from tests.deciding import take_decision
from tests.relay_process import RelayProcess
from tests.served_page import Caller, bearer, served, token
from tests.verdicts import verdict_event
from worker.broker.dead_letters import DeadLetters, dead_letter_of_check
from worker.broker.decision_stream import DecisionStream
from worker.broker.verdict_stream import VerdictStream
from worker.client import Client
from worker.contract.envelope import encode
from worker.contract.messages import QUEUES, ImageCheck, InvalidMessageError
from worker.database.database import Database
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST, free_ports
from worker.embedded.valkey import Valkey, valkey_program
from worker.operations.doctor.broker import diagnose_broker
from worker.operations.exporter import QueueCollector
from worker.settings import Settings

USERS = Path(__file__).parents[3] / "deploy" / "redis" / "users.acl"
ADMIN = ("admin", "of-this-test")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a server with the users of the file, with test passwords, and an administrator."""
    folder = tmp_path_factory.mktemp("acl")
    text = re.sub(
        r"#(\w+)_PASSWORD_SHA256",
        lambda found: "#" + hashlib.sha256(f"{found[1].lower()}-password".encode()).hexdigest(),
        USERS.read_text(),
    )
    (folder / "users.acl").write_text(f"{text}user admin on >{ADMIN[1]} ~* &* +@all\n")
    server = Valkey(folder / "data", options=["--aclfile", str(folder / "users.acl")], user=ADMIN)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def admin(server: Valkey) -> Iterator[redis.Redis]:
    """Provide a client with every right."""
    with redis.Redis(port=server.port, username=ADMIN[0], password=ADMIN[1]) as admin:
        yield admin


@pytest.fixture(scope="module")
def settings_of_user(server: Valkey, service_environment: Mapping[str, str]) -> Callable[[str], Settings]:
    """Provide a function that returns the settings of a user."""
    return lambda user: settings_of(service_environment, redis_url=_url(server, user))


def _url(server: Valkey, user: str) -> str:
    return server.url.replace("//", f"//{user}:{user}-password@")


def test_each_user_can_do_its_whole_job(  # noqa: PLR0917 - fixtures
    server: Valkey,
    admin: redis.Redis,
    settings_of_user: Callable[[str], Settings],
    worker_process: StartWorker,
    services: EmbeddedServices,
    store_object: StoreObject,
    make_picture: MakePicture,
) -> None:
    """Producer, worker, consumer, exporter and operator work together; the server denies nothing."""
    store_object("acl.jpg", make_picture(1))
    admin.acl_log_reset()
    with Client(settings_of_user("producer")) as producer:
        checks = [
            ImageCheck(bucket=services.bucket, key="acl.jpg", check_id=f"check-{number}")
            for number in range(3)
        ]
        producer.submit_check(checks[0], queue="image-checks.urgent")
        producer.submit_many(checks[1:2], queue="image-checks.bulk")
        # A check that a worker took and never acknowledged.
        producer.submit_check(checks[2])
        entry: Any = admin.rpop("image-checks")
        admin.hset("unacked", "lost", b"[" + entry + b',"","image-checks"]')
        admin.zadd("unacked_index", {"lost": 1})
        admin.lpush("image-checks", b"no JSON")
        foreign = encode({"check_id": "foreign"}, "image-checks")
        admin.lpush("image-checks", foreign.replace(b'"check_image"', b'"another"'))
        worker = worker_process(
            {"DNF_REDIS_URL": _url(server, "worker"), "DNF_VERDICT_CACHE_TTL_SECONDS": "60"},
            module=NULL_WORKER,
        )
        events = producer.wait_for(*checks, timeout_seconds=60)
        worker.wait_for_event("check_dead_lettered", count=2)
    with Client(settings_of_user("consumer")) as consumer:
        delivered = list(consumer.verdicts("readers", follow=False))
        for each in delivered:
            each.ack()
        tailed = {event.check_id for event in consumer.events(follow=False)}
    assert {each.event.check_id for each in delivered} == tailed == events.keys()
    with closing(QueueCollector(settings_of_user("exporter"))) as collector:
        figures = {metric.name: metric for metric in collector.collect()}
    assert figures
    operator = settings_of_user("operator")
    with closing(DeadLetters.connect(operator)) as dead_letters:
        first, second = dead_letters.read(newer_than_seconds=3600)
        dead_letters.redrive(first)
        dead_letters.drop(second)
    worker.wait_for_event("check_dead_lettered", count=3)
    assert {check.name for check in diagnose_broker(operator) if check.outcome == "fault"} == set()
    assert all("not permitted" not in check.observed for check in diagnose_broker(operator))
    assert worker.stop() == 0
    assert [(e["username"], e["object"]) for e in admin.acl_log()] == []  # type: ignore[index,union-attr]


def test_a_relay_can_do_its_whole_job(
    server: Valkey,
    admin: redis.Redis,
    settings_of_user: Callable[[str], Settings],
    *,
    service_environment: Mapping[str, str],
    database_environment: dict[str, str],
    database: Database,
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """It reads verdicts in its group, publishes, trims and measures; a consumer reads the decisions."""
    (port,) = free_ports(1)
    environment = {
        **service_environment,
        **database_environment,
        "DNF_REDIS_URL": _url(server, "relay"),
        "DNF_REVIEW_UNDO_SECONDS": "0",
        "DNF_HTTP_HOST": HOST,
        "DNF_HTTP_PORT": str(port),
    }
    admin.acl_log_reset()
    admin.xadd("verdicts", {"event": verdict_event("seen").model_dump_json()})
    relay = RelayProcess(environment, tmp_path / "relay.log")
    relay.start()
    try:
        relay.wait_for_event("relay_ready")
        take_decision(database, settings_of(environment).review)
        wait_until(lambda: admin.xlen("decisions") == 1, "a decision on the stream")
        with closing(DecisionStream.connect(settings_of_user("consumer"))) as decisions:
            read = next(decisions.consume("platform", "one"))
            assert read is not None
            decisions.acknowledge("platform", read)
        with urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        assert 'dnf_decision_stream_pending{group="platform"} 0.0' in page
        wait_until(lambda: _known(database, "seen"), "the verdict in the database")
    finally:
        relay.kill()
    assert not relay.events("relay_interrupted")
    assert [(e["username"], e["object"]) for e in admin.acl_log()] == []  # type: ignore[index,union-attr]


def _known(database: Database, check_id: str) -> bool:
    with database.transaction() as tx:
        return bool(tx.execute("SELECT 1 FROM checks WHERE check_id = %s", [check_id]).fetchone())


def test_the_http_api_can_do_its_whole_job(
    server: Valkey, admin: redis.Redis, settings_of_user: Callable[[str], Settings], database: Database
) -> None:
    """It enqueues checks, looks up their events, dead letters and thumbnails, and waits for them."""
    admin.acl_log_reset()
    with served(settings_of_user("web"), database) as port:
        caller = Caller(port, bearer(token(database)))
        body = {"check_id": "by-http", "bucket": "test-uploads", "key": "acl.jpg"}
        for _ in range(2):
            assert caller.post("/v1/checks", body).status == 202
        assert caller.get("/v1/checks/by-http?wait=0.2").json["state"] == "queued"
        event = verdict_event("by-http")
        settings = settings_of_user("admin").model_copy(
            update={"redis_url": SecretStr(server.url.replace("//", f"//{ADMIN[0]}:{ADMIN[1]}@"))}
        )
        VerdictStream.connect(settings, client=admin).publish(event, message_id="m", thumbnail=b"picture")
        assert caller.get("/v1/checks/by-http").json["state"] == "answered"
        assert caller.get("/v1/checks/by-http/thumbnail").body == b"picture"
        dead = InvalidMessageError("unknown_policy", "There is no policy x.", "dead-by-http")
        DeadLetters.connect(settings, client=admin).write(dead_letter_of_check("{}", None, dead, 1))
        assert caller.get("/v1/checks/dead-by-http").json["state"] == "dead_lettered"
    admin.delete("image-checks")
    assert [(e["username"], e["object"]) for e in admin.acl_log()] == []  # type: ignore[index,union-attr]


DENIED: dict[str, list[str]] = {
    "producer": [
        "XADD verdicts * event forged",
        "DEL verdicts",
        "XADD dead-letters * letter forged",
        "RPOP image-checks",
        "LRANGE image-checks 0 -1",
        "DEL image-checks",
        "HGETALL unacked",
        "SET {verdicts}:published:check-0 1",
        "GET verdict-cache:of-another",
        "SET verdict-cache:of-another forged",
        "HSET attempts:check-0 by:nobody 1",
    ],
    "worker": ["XREAD STREAMS verdicts 0", "DEL verdicts", "XDEL verdicts 1-1", "LRANGE image-checks 0 -1"],
    "consumer": [
        "XADD verdicts * event forged",
        "XDEL verdicts 1-1",
        "XTRIM verdicts MAXLEN 0",
        "DEL verdicts",
        "XGROUP DESTROY verdicts readers",
        "XADD decisions * event forged",
        "DEL decisions",
        "LLEN image-checks",
        "LPUSH image-checks forged",
        "XRANGE dead-letters - +",
        "GET {verdicts}:published:check-0",
        "GET verdict-cache:of-another",
    ],
    "relay": [
        "XADD verdicts * event forged",
        "XRANGE verdicts - +",
        "DEL verdicts",
        "XDEL decisions 1-1",
        "DEL decisions",
        "GET {verdicts}:thumbnail:of-another",
        "SET {verdicts}:published:check-0 1",
        "LPUSH image-checks forged",
    ],
    "web": [
        "XADD verdicts * event forged",
        "DEL verdicts",
        "RPOP image-checks",
        "LRANGE image-checks 0 -1",
        "SET {verdicts}:published:check-0 1",
        "XADD dead-letters * letter forged",
        "GET verdict-cache:of-another",
        "XADD decisions * event forged",
        "HSET attempts:check-0 by:nobody 1",
    ],
    "exporter": [
        "LPUSH image-checks forged",
        "RPOP image-checks",
        "DEL unacked",
        "HGETALL unacked",
        "XRANGE verdicts - +",
        "XRANGE dead-letters - +",
        "XADD verdicts * event forged",
        "SCAN 0",
    ],
    "operator": [
        "XADD verdicts * event forged",
        "DEL verdicts",
        "RPOP image-checks",
        "LRANGE image-checks 0 -1",
        "DEL unacked",
        "XADD dead-letters * letter forged",
        "SET {verdicts}:published:check-0 1",
    ],
}
# Denied to every user.
ADMINISTRATION = [
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "CONFIG SET appendonly no",
    "CONFIG GET *",
    "ACL LIST",
    "SHUTDOWN",
    "MONITOR",
    "REPLICAOF NO ONE",
    "MODULE LIST",
    "SCRIPT FLUSH",
    "CLIENT KILL TYPE normal",
    "SAVE",
    "SUBSCRIBE anything",
]


@pytest.mark.parametrize("user", DENIED)
def test_each_user_is_denied_what_is_not_its_job(server: Valkey, user: str) -> None:
    """As a command and from a script; the error names the missing permission."""
    with redis.Redis.from_url(_url(server, user)) as client:
        for command in [*DENIED[user], *ADMINISTRATION]:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
        for command in DENIED[user]:
            called = ", ".join(f"'{part}'" for part in command.split())
            with pytest.raises(redis.ResponseError, match=r"(?i)permission|NOPERM"):
                client.execute_command("EVAL", f"return redis.call({called})", 0)


@pytest.mark.usefixtures("no_back_off")
def test_a_client_without_a_user_is_refused(server: Valkey) -> None:
    """The default user is off."""
    with redis.Redis(port=server.port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_a_server_does_not_start_with_the_placeholders_of_the_file(tmp_path: Path) -> None:
    """Nobody can run a server with published passwords by mistake."""
    finished = subprocess.run(
        [str(valkey_program()), "--port", "0", "--aclfile", str(USERS), "--dir", str(tmp_path)],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert finished.returncode != 0


def test_producer_and_operator_may_write_to_every_queue() -> None:
    """The file names each queue of the contract."""
    for line in USERS.read_text().splitlines():
        if line.startswith(("user producer", "user operator")):
            assert {f"~{queue}" for queue in QUEUES} <= set(line.split())
