"""The main flow: a picture goes through the queue to a verdict."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis
from jsonschema import Draft202012Validator
from PIL import Image

from worker.broker.transport import IDLE_SECONDS
from worker.client import Client
from worker.contract.messages import ImageCheck, VerdictEvent, event_id
from worker.embedded.services import EmbeddedServices
from worker.settings import Settings

SCHEMAS = Path(__file__).parents[3] / "deploy" / "schemas"
STAGES = {"queue_wait", "fetch", "decode", "prepare", "batch_wait", "dnf", "classify", "thumbnail", "total"}


def _settings(environment: Mapping[str, str]) -> Settings:
    values: dict[str, Any] = {name.removeprefix("DNF_").lower(): value for name, value in environment.items()}
    return Settings(**values)


@pytest.fixture(scope="module")
def worker(worker_process: Callable[..., Any]) -> Any:
    """Provide this module's worker."""
    return worker_process()


@pytest.fixture(scope="module")
def client(service_environment: dict[str, str]) -> Iterator[Client]:
    """Provide a client of this module's worker."""
    with Client(_settings(service_environment)) as client:
        yield client


@pytest.fixture(scope="module")
def store(services: EmbeddedServices) -> Callable[[str, bytes], str]:
    """Provide a function that stores an object and returns its ETag."""
    s3 = services.seaweedfs.client()

    def put(key: str, data: bytes) -> str:
        return s3.put_object(Bucket=services.bucket, Key=key, Body=data)["ETag"]

    return put


def test_two_hundred_pictures_submitted_at_once_have_two_hundred_verdicts(
    worker: Any,
    client: Client,
    services: EmbeddedServices,
    store: Callable[[str, bytes], str],
    make_picture: Callable[..., bytes],
) -> None:
    """Each has one verdict and one `image_checked` line with every duration; batches were formed."""
    for number in range(200):
        store(f"many/{number}.jpg", make_picture(number))
    since = client.position()
    check_ids = [client.submit(services.bucket, f"many/{number}.jpg") for number in range(200)]
    client.wait_for(*check_ids, timeout_seconds=120, since=since)
    events = list(client.events(since=since, follow=False))
    assert Counter(event.check_id for event in events) == Counter(check_ids)
    subjects = {event.check_id: event.envelope.subject for event in events}
    assert [subjects[check_id] for check_id in check_ids] == [
        f"s3://{services.bucket}/many/{number}.jpg" for number in range(200)
    ]
    lines = worker.wait_for_event("image_checked", count=200)
    assert len(worker.log_lines()) == len(worker.log.read_text().splitlines()), "a line that is no JSON"
    assert Counter(line["check_id"] for line in lines) == Counter(check_ids)
    for line in lines:
        assert line["durations_ms"].keys() == STAGES
        assert line.keys() >= {"verdict", "score", "model", "bytes", "batch_size"}
        assert line.keys() >= {"worker", "queue", "attempt"}
        assert line["published"] is True
    assert max(line["batch_size"] for line in lines) > 1


def test_a_verdict_says_all_that_the_contract_promises(
    worker: Any,
    client: Client,
    store: Callable[[str, bytes], str],
    make_picture: Callable[..., bytes],
    tiny_bundle: Path,
) -> None:
    """The event fits its schema, its facts are those of the object, and the thumbnail is the PNG it names."""
    picture = make_picture(1, size=(150, 90), format="PNG")
    etag = store("one picture.png", picture)
    metadata = {"post": 7, "nested": [{"ü": None}], "big": 2**60}
    digest = hashlib.sha256(picture).hexdigest()
    check = ImageCheck(
        bucket=client.settings.upload_bucket,
        key="one picture.png",
        etag=etag,
        sha256=digest,
        metadata=metadata,
    )
    client.submit_check(check, queue="image-checks.urgent")
    event = client.wait_for(check.check_id)[check.check_id]
    schema = json.loads((SCHEMAS / "image-verdict-v1.json").read_text())
    Draft202012Validator(schema).validate(json.loads(event.raw))
    # The attributes that CloudEvents 1.0 requires, and their values.
    assert (
        json.loads(event.raw).items()
        >= {
            "specversion": "1.0",
            "type": "image.verdict.v1",
            "id": event.envelope.id,
            "source": "dnf-moderation",
        }.items()
    )
    envelope = event.envelope
    assert isinstance(envelope, VerdictEvent)
    data = envelope.data
    model_digest = hashlib.sha256((tiny_bundle / "bundle.json").read_bytes()).hexdigest()
    assert data.model.digest == model_digest
    assert envelope.id == event_id(check.check_id, model_digest, "default")
    assert envelope.subject == f"s3://{client.settings.upload_bucket}/one picture.png"
    assert data.metadata == metadata
    assert (data.picture.width, data.picture.height, data.picture.format) == (150, 90, "PNG")
    assert (data.picture.sha256, data.picture.bytes) == (digest, len(picture))
    assert data.durations_ms.keys() == STAGES
    assert (data.attempt, data.batch_size) == (1, 1)
    assert event.thumbnail is not None
    assert hashlib.sha256(event.thumbnail).hexdigest() == data.thumbnail.sha256
    with Image.open(io.BytesIO(event.thumbnail)) as thumbnail:
        assert thumbnail.format == "PNG"
        assert thumbnail.size == (data.thumbnail.width, data.thumbnail.height) == (128, 128)
    worker.wait_for_event("image_checked", check_id=check.check_id)


def test_a_check_submitted_twice_is_judged_once_and_answered_once(
    worker: Any, client: Client, services: EmbeddedServices, store: Callable[[str, bytes], str]
) -> None:
    """Under the same id the second one finds the answer and costs no model time."""
    with Image.new("RGB", (64, 64), "teal") as image:
        image.save(file := io.BytesIO(), "PNG")
    store("twice.png", file.getvalue())
    check = ImageCheck(bucket=services.bucket, key="twice.png", check_id="twice")
    client.submit_check(check)
    client.wait_for("twice")
    client.submit_check(check)
    worker.wait_for_event("check_already_answered", check_id="twice", attempt=2)
    assert [event.check_id for event in client.events(follow=False)].count("twice") == 1
    assert len(worker.wait_for_event("image_checked", check_id="twice")) == 1


def test_an_idle_worker_asks_for_checks_many_times_a_second_and_rests_between(
    worker: Any, services: EmbeddedServices, wait_until: Callable[..., None]
) -> None:
    """What comes waits for a fraction of a second, and neither worker nor broker is busy until then."""
    assert worker.process.poll() is None
    with redis.Redis.from_url(services.redis_url) as broker:

        def asked() -> int:
            return int(broker.info("commandstats")["cmdstat_eval"]["calls"])  # type: ignore[index]

        before, began = asked(), monotonic()
        wait_until(lambda: asked() >= before + 20, "twenty questions", seconds=3)
        assert monotonic() - began > 20 * IDLE_SECONDS / 2


def test_a_check_delivered_twice_at_the_same_time_is_published_once(
    worker_process: Callable[..., Any],
    service_environment: dict[str, str],
    services: EmbeddedServices,
    store: Callable[[str, bytes], str],
    make_picture: Callable[..., bytes],
) -> None:
    """Both deliveries are judged in one batch; one publishes, and the other's line says that it did not."""
    store("both.jpg", make_picture(7))
    # The batch waits for its second picture, so that neither delivery can be answered before both are taken.
    environment = {
        "DNF_REDIS_URL": service_environment["DNF_REDIS_URL"].rpartition("/")[0] + "/206",
        "DNF_THREADS": "2",
        "DNF_BATCH_SIZE": "2",
        "DNF_BATCH_WAIT_SECONDS": "5",
    }
    check = ImageCheck(bucket=services.bucket, key="both.jpg", check_id="both")
    with Client(_settings({**service_environment, **environment})) as client:
        client.submit_check(check)
        client.submit_check(check)
        worker = worker_process(environment)
        lines = worker.wait_for_event("image_checked", count=2, check_id="both")
        events = list(client.events(follow=False))
    assert [line["batch_size"] for line in lines] == [2, 2]
    assert sorted(line["published"] for line in lines) == [False, True]
    assert sorted(line["attempt"] for line in lines) == [1, 2]
    assert [event.check_id for event in events] == ["both"]
    assert events[0].envelope.data.attempt == next(line["attempt"] for line in lines if line["published"])
    assert worker.stop() == 0


def test_a_worker_told_to_stop_finishes_what_it_began_and_leaves_the_rest(
    worker: Any,
    client: Client,
    services: EmbeddedServices,
    store: Callable[[str, bytes], str],
    make_picture: Callable[..., bytes],
) -> None:
    """After SIGTERM in the middle and a new start, every check has one verdict; the exit status is 0."""
    store("stop.jpg", make_picture(5))
    since = client.position()
    check_ids = [client.submit(services.bucket, "stop.jpg") for _ in range(120)]
    client.wait_for(check_ids[0], since=since)
    assert worker.stop() == 0
    worker.wait_for_event("worker_stopped", status=0)
    worker.start()
    client.wait_for(*check_ids, timeout_seconds=60, since=since)
    answered = Counter(event.check_id for event in client.events(since=since, follow=False))
    assert answered == Counter(check_ids)


@pytest.fixture(scope="module")
def late(
    worker_process: Callable[..., Any],
    service_environment: dict[str, str],
    services: EmbeddedServices,
    store: Callable[[str, bytes], str],
    make_picture: Callable[..., bytes],
) -> tuple[Any, dict[str, str]]:
    """Return a worker for one check at a time that found full queues, all done, and each check's queue."""
    store("order.jpg", make_picture(6))
    url = service_environment["DNF_REDIS_URL"].rpartition("/")[0] + "/201"
    environment = {"DNF_REDIS_URL": url, "DNF_THREADS": "1", "DNF_BATCH_SIZE": "1"}
    with Client(_settings({**service_environment, **environment})) as client:
        sent: dict[str, str] = {
            client.submit(services.bucket, "order.jpg", queue=queue): queue
            for _ in range(4)
            for queue in ("image-checks.bulk", "image-checks", "image-checks.urgent")
        }
        worker = worker_process(environment)
        client.wait_for(*sent, timeout_seconds=60)
    worker.wait_for_event("image_checked", count=len(sent))
    assert worker.stop() == 0
    return worker, sent


def test_urgent_checks_are_taken_first(late: tuple[Any, dict[str, str]]) -> None:
    """A worker that does one check at a time takes urgent, then ordinary, then bulk ones."""
    worker, sent = late
    taken = [sent[line["check_id"]] for line in worker.wait_for_event("image_checked")]
    assert taken == ["image-checks.urgent"] * 4 + ["image-checks"] * 4 + ["image-checks.bulk"] * 4


def test_no_check_is_taken_before_the_model_is_loaded(late: tuple[Any, dict[str, str]]) -> None:
    """With checks waiting from the start, the log begins with the model, then the worker, then the checks."""
    worker, sent = late
    order = [line["event"] for line in worker.log_lines()]
    told = [event for event in order if event in {"model_loaded", "worker_ready", "image_checked"}]
    assert told == ["model_loaded", "worker_ready"] + ["image_checked"] * len(sent)


def test_a_producer_and_consumer_loads_no_torch(service_environment: dict[str, str]) -> None:
    """A platform that submits and reads verdicts pays for neither torch nor diffusers."""
    program = (
        "import sys\n"
        "from worker.client import Client\n"
        "with Client() as client:\n"
        "    client.submit('uploads', 'a.jpg', queue='image-checks.bulk', check_id='no-torch')\n"
        "    list(client.events(follow=False))\n"
        "import worker.cli\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'diffusers'}))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **service_environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert finished.stdout.strip() == "[]"
