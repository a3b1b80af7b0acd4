"""Fitting the classifier on co-occurrences."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import structlog
import torch
from PIL import Image

from detector.corpus.corpus import Sample, grouped_split
from detector.detector import Detector
from detector.images.decode import decode
from detector.networks.dnf import diffusion_noise_feature
from detector.networks.features import network_input
from detector.training.assembly import assemble
from detector.training.balance import balanced_weights
from detector.training.classifier import train_classifier
from detector.training.cooccurrences import ridge_regression
from detector.training.recipe import ClassifierRecipe
from detector.training.unet import build_unet

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPE = ClassifierRecipe(kind="cooccurrences", feature="rgb", size=32, views=4, bank=2)


def sample(path: Path | str, family: str, *, generated: bool, content: str = "") -> Sample:
    """Return a picture of a family that is a generator or a source of its own."""
    return Sample(
        path=Path(path),
        generated=generated,
        family=family,
        group=str(path),
        source=family,
        content=content,
        generator=family if generated else "",
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Write noise, and noise of the same spectrum on every second pixel: only the trace tells them apart."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    made: list[Sample] = []
    for number in range(48):
        generated, family = number % 2 == 1, f"{'made' if number % 2 else 'taken'}-{number // 2 % 4}"
        small = rng.normal(128, 25, (96, 96, 3))
        pixels = small if not generated else np.kron(small[:48, :48], np.ones((2, 2, 1)))
        path = folder / f"{number}.png"
        Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(path)
        made.append(sample(path, family, generated=generated))
    return made


def test_it_learns_the_trace_of_up_sampling_from_forty_pictures(
    samples: list[Sample], tmp_path: Path
) -> None:
    """The bundle is calibrated on scores of pictures whose generator and source were left out."""
    training, validation = grouped_split(samples, every=6)
    trained = train_classifier(None, training, validation, tmp_path / "work", RECIPE)
    assert trained.validation_auroc > 0.95
    assert trained.left_out is not None
    assert len(trained.left_out.logits) == len(training)
    bundle = assemble(
        None,
        trained.network,
        validation,
        tmp_path / "bundle",
        RECIPE,
        name="traces",
        version="1",
        provenance={},
        left_out=trained.left_out,
    )
    for dtype in ("float32", "bfloat16"):
        detector = Detector.load(bundle, device="cpu", dtype=dtype)  # type: ignore[arg-type]
        pictures = [detector.prepare(decode(s.path.read_bytes()).pixels) for s in validation]
        findings = detector.examine(pictures)
        real, generated = (
            [
                finding.probability
                for finding, s in zip(findings, validation, strict=True)
                if s.generated == kind
            ]
            for kind in (False, True)
        )
        assert max(real) < 0.5 < min(generated), dtype


def test_a_bundle_shows_the_noise_feature_of_the_strongest_view_that_it_does_not_score(
    samples: list[Sample], tmp_path: Path
) -> None:
    """Its U-Net sees one view of a picture instead of all."""
    training, validation = grouped_split(samples, every=6)
    trained = train_classifier(None, training, validation, tmp_path / "work", RECIPE)
    unet = build_unet((16, 16), 32).eval()
    findings = {}
    for shown in (unet, None):
        bundle = assemble(
            shown,
            trained.network,
            validation,
            tmp_path / ("with" if shown else "without"),
            RECIPE,
            name="traces",
            version="1",
            provenance={},
            left_out=trained.left_out,
        )
        detector = Detector.load(bundle, device="cpu", dtype="float32", plain=True)
        pictures = [detector.prepare(decode(s.path.read_bytes()).pixels) for s in validation]
        findings[shown] = detector.examine(pictures)
    for picture, own, plain in zip(pictures, findings[unet], findings[None], strict=True):
        assert own.views == plain.views
        view = network_input(torch.from_numpy(picture.views[own.strongest][None]))
        with torch.inference_mode():
            expected = diffusion_noise_feature(unet, view, RECIPE.dnf)[0].numpy()
        assert own.dnf == pytest.approx(expected, abs=0.02)
        assert plain.dnf == pytest.approx(view[0].numpy(), abs=1e-6)


def test_the_noise_feature_is_counted_beside_the_picture(samples: list[Sample], tmp_path: Path) -> None:
    """With a U-Net; a folder of another U-Net's features is refused."""
    recipe = replace(RECIPE, feature="dnf+rgb", bank=1)
    training, validation = grouped_split(samples, every=6)
    unet = build_unet((16, 16), 32)
    trained = train_classifier(unet, training, validation, tmp_path, recipe)
    assert trained.network.linear.in_features == 5 * 219
    with pytest.raises(ValueError, match="another recipe or U-Net"):
        train_classifier(build_unet((32, 16), 32), training, validation, tmp_path, recipe)


def test_an_interrupted_count_continues(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was counted before is not counted again, and the result is that of one run."""
    training, validation = grouped_split(samples, every=6)
    recipe = replace(RECIPE, report_seconds=0.0)
    whole = train_classifier(None, training, validation, tmp_path / "whole", recipe)
    interrupted_after(monkeypatch, 10)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(None, training, validation, tmp_path / "parts", recipe)
    monkeypatch.undo()
    with structlog.testing.capture_logs() as events:
        parts = train_classifier(None, training, validation, tmp_path / "parts", recipe)
    counted = [event["done"] for event in events if event["event"] == "cooccurrences_counted"]
    assert min(counted, default=11) > 9
    assert np.array_equal(
        parts.network.state_dict()["linear.weight"], whole.network.state_dict()["linear.weight"]
    )


def interrupted_after(monkeypatch: pytest.MonkeyPatch, pictures: int) -> None:
    """Raise KeyboardInterrupt once so many pictures were counted."""
    from detector.progress import Progress

    advance: Callable[..., None] = Progress.advance
    seen: list[int] = []

    def advanced(self: Progress, count: int = 1) -> None:
        advance(self, count)
        seen.append(count)
        if len(seen) > pictures:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", advanced)


def test_too_few_generators_to_leave_one_out_are_calibrated_on_known_ones(
    samples: list[Sample], tmp_path: Path
) -> None:
    """A log line says so."""
    one = [s for s in samples if s.family in {"made-0", "taken-0"}]
    training, validation = grouped_split(one, every=3)
    with structlog.testing.capture_logs() as events:
        trained = train_classifier(None, training, validation, tmp_path, RECIPE)
    assert trained.left_out is None
    assert "calibrated_on_known_generators" in {event["event"] for event in events}


def test_weights_balance_the_classes_within_each_content_and_families_within_a_class() -> None:
    """Art is mostly generated in this corpus, and one family of two has most pictures."""
    samples = [
        *(
            sample(f"r{n}", "photos", generated=False, content="art" if n < 2 else "animals")
            for n in range(12)
        ),
        *(sample(f"a{n}", "large", generated=True, content="art") for n in range(18)),
        *(sample(f"b{n}", "small", generated=True, content="animals") for n in range(2)),
    ]
    weights = balanced_weights(samples)
    assert weights.mean() == pytest.approx(1)
    for content in ("art", "animals"):
        of = {
            label: sum(
                weight
                for s, weight in zip(samples, weights, strict=True)
                if s.content == content and s.generated == label
            )
            for label in (False, True)
        }
        assert of[True] == pytest.approx(of[False])
    totals = [
        sum(weight for s, weight in zip(samples, weights, strict=True) if s.generated == label)
        for label in (False, True)
    ]
    assert totals[0] == pytest.approx(totals[1])


def test_the_regression_does_not_depend_on_the_scale_of_a_feature() -> None:
    """Features count by their deviation."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    labels = (features[:, 0] + 0.1 * features[:, 1] > 0).astype(np.int64)
    plain, offset = ridge_regression(features, labels, np.ones(200))
    scaled, other = ridge_regression(features * np.array([1, 100, 0.01], np.float32), labels, np.ones(200))
    assert scaled * np.array([1, 100, 0.01]) == pytest.approx(plain, rel=1e-3, abs=1e-3)
    assert other == pytest.approx(offset, abs=1e-3)
    assert abs(plain[0]) > 5 * abs(plain[2])
