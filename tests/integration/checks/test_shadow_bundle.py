"""A worker with a serving bundle and a shadow bundle."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from detector.detector import Detector
from detector.images.decode import ImageLimits, decode
from tests.conftest import MakePicture, StartWorker, StoreObject
from tests.scraping import Served
from tests.tiny_bundle import make_tiny_bundle
from worker.client import Client
from worker.contract.messages import VerdictEvent
from worker.embedded.startup import free_ports

SCHEMA = Path(__file__).parents[3] / "deploy" / "schemas" / "image-verdict-v1.json"


def test_a_shadow_bundle_is_scored_and_does_not_affect_the_verdict(  # noqa: PLR0917 - its fixtures
    worker_process: StartWorker,
    client: Client,
    store_object: StoreObject,
    tiny_bundle: Path,
    make_picture: MakePicture,
    tmp_path: Path,
) -> None:
    """Score and verdict are the serving bundle's; the event and metrics have the shadow's score as well."""
    other = make_tiny_bundle(tmp_path / "other", name="other", seed=8)
    served = Served(free_ports(1)[0])
    worker = worker_process({"DNF_SHADOW_BUNDLE": str(other), "DNF_HTTP_PORT": str(served.port)})
    pictures = {f"shadow/{number}.jpg": make_picture(number) for number in range(4)}
    for key, data in pictures.items():
        store_object(key, data)
    submitted = {client.submit(client.settings.upload_bucket, key): key for key in pictures}
    events = client.wait_for(*submitted, timeout_seconds=60)
    serving, shadow = Detector.load(tiny_bundle, device="cpu"), Detector.load(other, device="cpu")
    differences = []
    for check_id, key in submitted.items():
        event = events[check_id]
        Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(event.raw))
        assert isinstance(event.envelope, VerdictEvent)
        data = event.envelope.data
        pixels = decode(pictures[key], ImageLimits()).pixels
        expected, of_shadow = (
            each.examine([each.prepare(pixels)])[0].probability for each in (serving, shadow)
        )
        # Batches of other sizes round differently.
        assert data.score == pytest.approx(expected, abs=1e-5)
        assert data.model.name == "tiny"
        assert data.shadow is not None
        assert data.shadow.score == pytest.approx(of_shadow, abs=1e-5)
        assert (data.shadow.model.name, data.shadow.model.digest) == ("other", shadow.bundle.digest)
        assert abs(expected - of_shadow) > 1e-4, "bundles with equal scores would prove nothing"
        differences.append(data.shadow.score - data.score)
    assert served.figure("dnf_shadow_score_difference_count") == len(pictures)
    below = served.figure("dnf_shadow_score_difference_bucket", le="0.02")
    assert below == sum(difference <= 0.02 for difference in differences)
    assert served.figure("dnf_shadow_failures_total") == 0
    assert worker.wait_for_event("shadow_loaded")[0]["digest"] == shadow.bundle.digest
    assert worker.stop() == 0
