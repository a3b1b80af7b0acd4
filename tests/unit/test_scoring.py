"""The choice of pictures, and their scores."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from detector.bundle.files import open_bundle, write_manifest
from detector.corpus.corpus import Sample
from detector.detector import Detector
from detector.images.decode import decode
from detector.images.degradations import Pixels
from detector.scoring import ScoreJournal, ScoringError, limited, score_samples


def of(count: int, family: str, *, generated: bool) -> list[Sample]:
    """Make samples without files."""
    return [Sample(Path(f"{family}/{i}"), generated, family, str(i)) for i in range(count)]


def test_a_limit_keeps_families_in_proportion_and_is_the_same_in_every_run() -> None:
    """60 + 30 real and 90 + 20 generated: 9 of 20 are real, that is 18 of 40, two thirds of them from `a`."""
    everything = [
        *of(60, "a", generated=False),
        *of(30, "b", generated=False),
        *of(90, "gan", generated=True),
        *of(20, "ldm", generated=True),
    ]
    chosen = limited(everything, 40)
    assert Counter(sample.family for sample in chosen) == {"a": 12, "b": 6, "gan": 18, "ldm": 4}
    assert chosen == limited(everything, 40)
    assert chosen != limited(everything, 40, seed=1)
    assert limited(everything, 1000) == everything


def test_a_limit_keeps_both_classes() -> None:
    """One generated picture among a hundred photographs is one of the ten."""
    chosen = limited([*of(100, "a", generated=False), *of(1, "gan", generated=True)], 10)
    assert sum(sample.generated for sample in chosen) == 1


def test_scores_come_in_the_order_of_the_samples(tiny_bundle: Path, samples: list[Sample]) -> None:
    """In batches that are decoded on threads, each picture has the score that it has alone."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    many = samples * 2
    results = score_samples(detector, many)
    assert [result.path for result in results] == [sample.path for sample in many]
    for index in (0, 5, 17):
        pixels = decode(many[index].path.read_bytes()).pixels
        alone = detector.examine([detector.prepare(pixels)])[0]
        assert results[index].logit == pytest.approx(alone.logit, abs=1e-4)


def test_a_score_that_is_not_a_number_is_an_error(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path
) -> None:
    """A figure that includes it would be wrong."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    weights = load_file(broken / "classifier.safetensors")
    weights["fc.bias"] = weights["fc.bias"] * float("nan")
    save_file(weights, broken / "classifier.safetensors")
    manifest = open_bundle(tiny_bundle).manifest
    detector = Detector.load(write_manifest(broken, manifest), device="cpu", dtype="float32")
    with pytest.raises(ScoringError, match="not a number"):
        score_samples(detector, samples)


def test_an_interrupted_run_scores_no_picture_twice(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path
) -> None:
    """A changed file, another condition and another detector have scores of their own."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    computed: list[Path] = []

    def counted(pixels: Pixels, sample: Sample) -> Pixels:
        computed.append(sample.path)
        return pixels

    path = tmp_path / "scores.jsonl"
    first = score_samples(detector, samples[:6], counted, journal=ScoreJournal(path))
    foreign = '{"key": "another version"}\n{"key": "k", "score": {"level": 1}}\n'
    path.write_text(foreign + path.read_text() + '{"key": "cut of')
    resumed = score_samples(detector, samples, counted, journal=ScoreJournal(path))
    assert sorted(computed) == sorted(sample.path for sample in samples)
    assert resumed[:6] == first
    computed.clear()
    score_samples(detector, samples[:2], counted, journal=ScoreJournal(path), condition="jpeg 60")
    score_samples(detector, samples[:2], counted, journal=ScoreJournal(path), identity="another")
    copy = tmp_path / samples[0].path.name
    copy.write_bytes(samples[1].path.read_bytes())
    changed = Sample(copy, samples[0].generated, samples[0].family, samples[0].group)
    score_samples(detector, [changed], counted, journal=ScoreJournal(path))
    assert len(computed) == 5
