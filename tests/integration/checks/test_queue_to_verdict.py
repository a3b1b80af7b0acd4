"""The main flow: from a picture on the queue to its verdict."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest
import redis
from jsonschema import Draft202012Validator
from PIL import Image

from tests.conftest import NULL_WORKER, MakePicture, RunningWorker, StartWorker, StoreObject, settings_of
from worker.broker.transport import IDLE_SECONDS
from worker.client import Client
from worker.contract.messages import ImageCheck, VerdictEvent, event_id
from worker.embedded.services import EmbeddedServices

SCHEMAS = Path(__file__).parents[3] / "deploy" / "schemas"
#: What a worker logs while it starts.
STEPS = [
    "worker_started",
    "bundle_resolve_started",
    "model_load_started",
    "networks_loaded",
    "warm_up_started",
    "warm_up_finished",
    "model_loaded",
    "worker_ready",
]
STAGES = {"queue_wait", "fetch", "decode", "prepare", "batch_wait", "dnf", "classify", "thumbnail", "total"}


@pytest.fixture(scope="module")
def worker(worker_process: StartWorker) -> RunningWorker:
    """Provide this module's worker, with the networks of the tiny bundle."""
    return worker_process()


def test_200_pictures_submitted_at_once_have_200_verdicts(
    worker: RunningWorker,
    client: Client,
    services: EmbeddedServices,
    store_object: StoreObject,
    make_picture: MakePicture,
) -> None:
    """Each has one event and one `image_checked` line with every duration; batches are formed."""
    for number in range(200):
        store_object(f"many/{number}.jpg", make_picture(number))
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
    assert len(worker.log_lines()) == len(worker.log.read_text().splitlines()), "a line is not JSON"
    assert Counter(line["check_id"] for line in lines) == Counter(check_ids)
    for line in lines:
        assert line["durations_ms"].keys() == STAGES
        assert line.keys() >= {"verdict", "score", "model", "bytes", "batch_size"}
        assert line.keys() >= {"worker", "queue", "attempt"}
        assert line["published"] is True
    assert max(line["batch_size"] for line in lines) > 1


def test_a_verdict_event_holds_what_the_contract_promises(
    worker: RunningWorker,
    client: Client,
    store_object: StoreObject,
    make_picture: MakePicture,
    tiny_bundle: Path,
) -> None:
    """It is valid by its schema; facts and thumbnail are those of the object and of the file beside it."""
    picture = make_picture(1, size=(150, 90), format="PNG")
    etag = store_object("one picture.png", picture)
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
    # The attributes that CloudEvents 1.0 requires.
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
    assert [(view.x, view.y, view.width, view.height) for view in data.views] == [(43, 13, 64, 64)]
    assert data.strongest_view == 0
    assert data.views[0].score == pytest.approx(data.score, abs=1e-4)
    assert data.durations_ms.keys() == STAGES
    assert (data.attempt, data.batch_size) == (1, 1)
    feature = client.thumbnail(event)
    assert feature is not None
    assert hashlib.sha256(feature).hexdigest() == data.thumbnail.sha256
    with Image.open(io.BytesIO(feature)) as thumbnail:
        assert thumbnail.get_format_mimetype() == data.thumbnail.content_type == "image/jpeg"
        assert thumbnail.size == (data.thumbnail.width, data.thumbnail.height) == (128, 128)
    worker.wait_for_event("image_checked", check_id=check.check_id)


def test_a_check_submitted_again_is_judged_once_and_has_its_event_again(
    worker: RunningWorker, client: Client, services: EmbeddedServices, store_object: StoreObject
) -> None:
    """The second message costs no model time; its event has the same id."""
    with Image.new("RGB", (64, 64), "teal") as image:
        image.save(file := io.BytesIO(), "PNG")
    store_object("twice.png", file.getvalue())
    check = ImageCheck(bucket=services.bucket, key="twice.png", check_id="twice")
    client.submit_check(check)
    client.wait_for("twice")
    client.submit_check(check)
    worker.wait_for_event("check_already_answered", check_id="twice", attempt=2, published_again=True)
    first, second = (event.raw for event in client.events(follow=False) if event.check_id == "twice")
    assert first == second
    assert len(worker.wait_for_event("image_checked", check_id="twice")) == 1


def test_an_idle_worker_polls_many_times_a_second_and_pauses_between(
    worker: RunningWorker, services: EmbeddedServices, wait_until: Callable[..., None]
) -> None:
    """A new message waits for a fraction of a second, and idle polls keep neither worker nor broker busy."""
    assert worker.process.poll() is None
    with redis.Redis.from_url(services.redis_url) as broker:

        def polls() -> int:
            return int(broker.info("commandstats")["cmdstat_eval"]["calls"])  # type: ignore[index]

        sleep(4 * IDLE_SECONDS)  # until the pauses have grown since the last message
        before, began = polls(), monotonic()
        wait_until(lambda: polls() >= before + 20, "twenty polls", seconds=3)
        assert monotonic() - began > 20 * IDLE_SECONDS / 2


def test_two_simultaneous_deliveries_of_a_check_are_published_once(
    worker_process: StartWorker,
    service_environment: dict[str, str],
    new_database: Callable[[], str],
    store_object: StoreObject,
    make_picture: MakePicture,
) -> None:
    """One is published, and the log line of the other says that it is not."""
    store_object("both.jpg", make_picture(7))
    # The model works for a second, so that both messages are taken before either has its event.
    environment = {
        "DNF_REDIS_URL": new_database(),
        "DNF_THREADS": "2",
        "NULL_BATCH_SECONDS": "1",
    }
    with Client(settings_of({**service_environment, **environment})) as client:
        check = ImageCheck(bucket=client.settings.upload_bucket, key="both.jpg", check_id="both")
        client.submit_check(check)
        client.submit_check(check)
        worker = worker_process(environment, module=NULL_WORKER, burst=True)
        lines = worker.wait_for_event("image_checked", count=2, check_id="both")
        events = list(client.events(follow=False))
    assert sorted(line["published"] for line in lines) == [False, True]
    assert sorted(line["attempt"] for line in lines) == [1, 2]
    assert [event.check_id for event in events] == ["both"]
    assert events[0].envelope.data.attempt == next(line["attempt"] for line in lines if line["published"])


def test_a_worker_that_shuts_down_finishes_its_checks_and_leaves_the_others(
    worker_process: StartWorker,
    new_database: Callable[[], str],
    store_object: StoreObject,
    make_picture: MakePicture,
) -> None:
    """It exits with status 0; after a restart every check has one verdict."""
    store_object("shutdown.jpg", make_picture(5))
    environment = {"DNF_REDIS_URL": new_database(), "DNF_BATCH_SIZE": "4", "NULL_BATCH_SECONDS": "0.1"}
    worker = worker_process(environment, module=NULL_WORKER)
    with Client(settings_of(worker.environment)) as client:
        check_ids = [client.submit(client.settings.upload_bucket, "shutdown.jpg") for _ in range(120)]
        client.wait_for(check_ids[0])
        assert worker.stop() == 0
        worker.wait_for_event("worker_stopped", status=0)
        assert 0 < len(list(client.events(follow=False))) < 120
        worker.start()
        client.wait_for(*check_ids, timeout_seconds=60)
        published = Counter(event.check_id for event in client.events(follow=False))
    assert published == Counter(check_ids)


@pytest.fixture(scope="module")
def started_late(
    worker_process: StartWorker,
    service_environment: dict[str, str],
    new_database: Callable[[], str],
    store_object: StoreObject,
    make_picture: MakePicture,
) -> tuple[RunningWorker, dict[str, str]]:
    """Return a worker that found checks in every queue, took one at a time and ended; each check's queue."""
    store_object("order.jpg", make_picture(6))
    environment = {
        "DNF_REDIS_URL": new_database(),
        "DNF_THREADS": "1",
        "DNF_BATCH_SIZE": "1",
        "NULL_LOAD_SECONDS": "0.5",
    }
    with Client(settings_of({**service_environment, **environment})) as client:
        queues: dict[str, str] = {
            client.submit(client.settings.upload_bucket, "order.jpg", queue=queue): queue
            for _ in range(4)
            for queue in ("image-checks.bulk", "image-checks", "image-checks.urgent")
        }
        worker = worker_process(environment, module=NULL_WORKER, burst=True)
        client.wait_for(*queues)
    return worker, queues


def test_urgent_checks_are_taken_first(started_late: tuple[RunningWorker, dict[str, str]]) -> None:
    """Then ordinary, then bulk checks."""
    worker, queues = started_late
    taken = [queues[line["check_id"]] for line in worker.wait_for_event("image_checked")]
    assert taken == ["image-checks.urgent"] * 4 + ["image-checks"] * 4 + ["image-checks.bulk"] * 4


def test_no_check_is_taken_before_the_model_is_loaded(
    started_late: tuple[RunningWorker, dict[str, str]],
) -> None:
    """With checks waiting from the start, the log has each step of loading first, and its rate."""
    worker, queues = started_late
    lines = worker.log_lines()
    assert [line["event"] for line in lines if line["event"] in {*STEPS, "image_checked"}] == [
        *STEPS,
        *["image_checked"] * len(queues),
    ]
    assert next(line for line in lines if line["event"] == "warm_up_finished")["pictures_per_second"] > 0


def test_a_producer_and_consumer_does_not_import_torch(service_environment: dict[str, str]) -> None:
    """Nor diffusers; the commands of `dnf-worker` do not either."""
    program = (
        "import sys\n"
        "from worker.client import Client\n"
        "with Client() as client:\n"
        "    client.submit('uploads', 'a.jpg', queue='image-checks.bulk', check_id='no-torch')\n"
        "    list(client.events(follow=False))\n"
        "import click\n"
        "from worker.cli import main\n"
        "for name in main.list_commands(context := click.Context(main)):\n"
        "    assert main.get_command(context, name)\n"
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
