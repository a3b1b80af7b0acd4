"""The detector: from pictures to findings."""

from pathlib import Path

import numpy as np
import pytest

from detector.bundle.manifest import Preprocessing
from detector.detector import Detector
from detector.images.views import Rectangle, crop_places
from tests.tiny_bundle import make_tiny_bundle


def test_a_batch_gives_each_picture_its_own_finding(tiny_bundle: Path) -> None:
    """Findings keep the order, and a picture's score does not depend on the rest of the batch."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (70 + 9 * i, 90, 3), dtype=np.uint8) for i in range(5)]
    prepared = [detector.prepare(picture) for picture in pictures]
    together = detector.examine(prepared)
    single = [detector.examine([one])[0] for one in prepared]
    assert [f.logit for f in together] == pytest.approx([f.logit for f in single], abs=1e-4)
    assert detector.examine([]) == []


def test_a_picture_smaller_than_a_view_is_examined(tiny_bundle: Path) -> None:
    """The picture is mirrored at its edges and keeps its scale."""
    detector = Detector.load(tiny_bundle, device="cpu")
    assert detector.prepare(np.zeros((33, 40, 3), dtype=np.uint8)).views.shape == (1, 64, 64, 3)


def test_bfloat16_stays_near_float32(tiny_bundle: Path) -> None:
    """The probabilities in both types differ by less than 0.02."""
    picture = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    scores = []
    for dtype in ("float32", "bfloat16"):
        detector = Detector.load(tiny_bundle, device="cpu", dtype=dtype)
        scores.append(detector.examine([detector.prepare(picture)])[0].probability)
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


@pytest.fixture(scope="module")
def four_views(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """Load a tiny bundle that cuts four squares of 64 pixels."""
    folder = tmp_path_factory.mktemp("bundle") / "four"
    preprocessing = Preprocessing(mode="crop", size=64, views=4)
    return Detector.load(make_tiny_bundle(folder, preprocessing=preprocessing), device="cpu", dtype="float32")


def test_a_finding_scores_each_view_and_shows_the_feature_of_the_strongest(four_views: Detector) -> None:
    """Each corner of the picture alone has the logit of its view; the picture's is their mean."""
    pixels = np.random.default_rng(3).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    finding = four_views.examine([four_views.prepare(pixels)])[0]
    assert tuple(view.place for view in finding.views) == crop_places(100, 150, 64, 4)
    alone = [
        four_views.examine(
            [four_views.prepare(pixels[place.y : place.y + place.height, place.x : place.x + place.width])]
        )[0]
        for place in (view.place for view in finding.views)
    ]
    logits = [view.logit for view in finding.views]
    assert logits == pytest.approx([each.logit for each in alone], abs=1e-4)
    assert [view.probability for view in finding.views] == pytest.approx(
        [each.probability for each in alone], abs=1e-4
    )
    assert finding.logit == pytest.approx(np.mean(logits), abs=1e-6)
    assert len(set(logits)) == len(logits)
    assert finding.strongest == int(np.argmax(logits))
    assert np.allclose(finding.dnf, alone[finding.strongest].dnf, atol=1e-5)


def test_the_feature_of_a_small_picture_ends_at_its_edges(four_views: Detector) -> None:
    """What was mirrored beyond them is no part of the picture, nor of the view's place."""
    pixels = np.random.default_rng(4).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    finding = four_views.examine([four_views.prepare(pixels)])[0]
    assert {(view.place.width, view.place.height) for view in finding.views} == {(64, 40)}
    assert finding.dnf.shape == (3, 40, 64)


def test_the_one_view_of_a_squashed_picture_is_all_of_it(tmp_path: Path) -> None:
    """Its place has the picture's own size; its feature has the network's."""
    bundle = make_tiny_bundle(tmp_path / "squash", preprocessing=Preprocessing(mode="squash", size=64))
    detector = Detector.load(bundle, device="cpu", dtype="float32")
    for height, width in ((100, 150), (40, 50)):
        pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
        finding = detector.examine([detector.prepare(pixels)])[0]
        (view,) = finding.views
        assert view.place == Rectangle(0, 0, width, height)
        assert (view.logit, view.probability) == (finding.logit, finding.probability)
        assert finding.dnf.shape == (3, 64, 64)


def test_a_cpu_is_warmed_up_with_one_picture_however_large_its_batches_are(four_views: Detector) -> None:
    """A batch of a million pictures would not fit into memory; the rate is that of whole pictures."""
    pictures_per_second = four_views.warm_up(1_000_000)
    assert 0 < pictures_per_second < 1_000_000
