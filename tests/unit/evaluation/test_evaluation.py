"""What is measured on a split: the choice of pictures, controls, degradations, figures by family."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from detector.bundle.calibration import Thresholds
from detector.bundle.files import open_bundle, write_manifest
from detector.corpus.corpus import Sample
from detector.detector import Detector
from detector.evaluation.controls import AS_IS, CONTROLS
from detector.evaluation.evaluation import Plan, evaluate_split
from detector.evaluation.figures import family_figures, figures
from detector.evaluation.robustness import DEGRADATIONS, Degradation
from detector.evaluation.scoring import Scored, ScoringError, limited, score_samples
from detector.images.decode import decode

CUTS = Thresholds(review_from=0.4, generated_from=0.8)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Make twelve pictures: two sources of photographs, one generator of twice as many."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    made = []
    for index in range(12):
        family = ("a", "gan", "b", "gan")[index % 4]
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(path)
        made.append(Sample(path, family == "gan", family, str(index)))
    return made


def scored(*pictures: tuple[str, float]) -> list[Scored]:
    """Make scored pictures of families with these probabilities; `gan` is the generator."""
    return [
        Scored(Path(str(index)), family.startswith("gan"), family, float(np.log(p / (1 - p))), p)
        for index, (family, p) in enumerate(pictures)
    ]


def of(count: int, family: str, *, generated: bool) -> list[Sample]:
    """Make samples without files."""
    return [Sample(Path(f"{family}/{i}"), generated, family, str(i)) for i in range(count)]


def test_a_limit_keeps_families_in_proportion_and_is_the_same_in_every_run() -> None:
    """Of 60 + 30 real and 90 + 20 generated pictures, 40 are 9 of 20 real: 18, two thirds of them of `a`."""
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


def test_a_limit_never_loses_a_class() -> None:
    """One generated picture among a hundred reals is among the ten."""
    chosen = limited([*of(100, "a", generated=False), *of(1, "gan", generated=True)], 10)
    assert sum(sample.generated for sample in chosen) == 1


def test_the_figures_are_those_computed_by_hand() -> None:
    """Reals at 0.1, 0.3, 0.5, 0.9 and generated at 0.2, 0.6, 0.85.

    AUROC: 0.2 beats 1 of 4, 0.6 and 0.85 beat 3 each: 7/12. At one half two reals of four and two generated
    of three are right: 7/12 balanced. At the cuts 0.4 and 0.8 one real of four is accused and one is to be
    reviewed, one generated of three is found and one to be reviewed. At most 5 % of four reals is none, and
    nothing beats 0.9.
    """
    f = figures(
        scored(("a", 0.1), ("a", 0.3), ("a", 0.5), ("a", 0.9), ("gan", 0.2), ("gan", 0.6), ("gan", 0.85)),
        CUTS,
    )
    assert (f.real, f.generated) == (4, 3)
    assert f.auroc.value == pytest.approx(7 / 12)
    assert f.balanced_accuracy.value == pytest.approx(7 / 12)
    assert (f.accuracy_on_reals.value, f.accuracy_on_generated.value) == (0.5, pytest.approx(2 / 3))
    assert (f.real_accused.value, f.real_reviewed.value) == (0.25, 0.25)
    assert f.generated_found.value == f.generated_reviewed.value == pytest.approx(1 / 3)
    assert f.reviewed == pytest.approx(2 / 7)
    assert f.tpr_at_fpr_5.value == 0.0
    assert f.rounded()["auroc"] == 0.583
    assert f.rounded()["auroc_low"] <= 0.583 <= f.rounded()["auroc_high"]


def test_a_family_is_measured_against_the_whole_other_class() -> None:
    """The generator at 0.6 beats both sources; source `b`, at 0.5, loses against one generator of two."""
    rows = family_figures(scored(("a", 0.1), ("b", 0.5), ("gan-1", 0.6), ("gan-2", 0.3)), CUTS)
    assert [(row.family, row.is_generated, row.pictures) for row in rows] == [
        ("gan-1", True, 1),
        ("gan-2", True, 1),
        ("a", False, 1),
        ("b", False, 1),
    ]
    assert [row.figures.auroc.value for row in rows] == [1.0, 0.5, 1.0, 0.5]
    assert [(row.figures.real, row.figures.generated) for row in rows] == [(2, 1), (2, 1), (1, 2), (1, 2)]


def test_each_format_control_re_encodes_the_classes_that_it_names(samples: list[Sample]) -> None:
    """`alike` both, `swapped` the generated, `swapped_back` the reals; `lossless` scales both."""
    real, generated = samples[0], samples[1]
    before = {sample.path: decode(sample.path.read_bytes()).pixels for sample in (real, generated)}
    touched = {}
    for control in (AS_IS, *CONTROLS):
        after = [control.rewrite(before[sample.path], sample) for sample in (real, generated)]
        touched[control.name] = [
            not np.array_equal(new, before[sample.path])
            for new, sample in zip(after, (real, generated), strict=True)
        ]
        assert after[0].shape[:2] == ((60, 72) if control.rescaled else (80, 96))
    assert touched == {
        "as_is": [False, False],
        "alike": [True, True],
        "swapped": [False, True],
        "swapped_back": [True, False],
        "lossless": [True, True],
    }


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda each: each.name)
def test_a_degradation_ignores_the_label_and_is_the_same_in_every_run(
    degradation: Degradation, samples: list[Sample]
) -> None:
    """One picture under both labels gives the same pixels, and every strength changes them."""
    original = samples[0]
    pixels = decode(original.path.read_bytes()).pixels
    relabelled = Sample(original.path, not original.generated, "other", "other")
    for strength in degradation.strengths("full"):
        rewrite = degradation.at(strength)
        np.testing.assert_array_equal(rewrite(pixels, original), rewrite(pixels, relabelled))
        assert not np.array_equal(rewrite(pixels, original), pixels)
    if degradation.untouched is not None:
        np.testing.assert_array_equal(degradation.at(degradation.untouched)(pixels, original), pixels)


def test_degradations_go_from_mild_to_strong() -> None:
    """Strengths are ordered, the untouched one is milder than all, and the quick ones are among the full."""
    for degradation in DEGRADATIONS:
        for extent in ("quick", "full"):
            first = [] if degradation.untouched is None else [degradation.untouched]
            strengths = [*first, *degradation.strengths(extent)]
            assert strengths in (sorted(strengths), sorted(strengths, reverse=True))
        assert len(degradation.quick) == 2


def test_scores_come_in_the_order_of_the_samples(tiny_bundle: Path, samples: list[Sample]) -> None:
    """In batches, prepared on threads, each picture's score is that of the picture alone."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    many = samples * 2
    results = score_samples(detector, many)
    assert [result.path for result in results] == [sample.path for sample in many]
    for index in (0, 5, 17):
        pixels = decode(many[index].path.read_bytes()).pixels
        alone = detector.examine([detector.prepare(pixels)])[0]
        assert results[index].logit == pytest.approx(alone.logit, abs=1e-4)


def test_a_score_that_is_not_a_number_ends_the_evaluation(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path
) -> None:
    """A figure over it would be a wrong figure."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    weights = load_file(broken / "classifier.safetensors")
    weights["fc.bias"] = weights["fc.bias"] * float("nan")
    save_file(weights, broken / "classifier.safetensors")
    manifest = open_bundle(tiny_bundle).manifest
    detector = Detector.load(write_manifest(broken, manifest), device="cpu", dtype="float32")
    with pytest.raises(ScoringError, match="not a number"):
        score_samples(detector, samples)


def test_a_plan_says_how_many_scores_it_takes(tiny_bundle: Path, samples: list[Sample]) -> None:
    """Progress reaches the total that was announced, with a rival, the check and an unreadable file."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    unreadable = samples[0].path.with_name("text.png")
    unreadable.write_text("not a picture")
    listed = [*samples, Sample(unreadable, generated=False, family="a", group="text")]
    plan = Plan(stability=True)
    done: list[int] = []
    result = evaluate_split("all", detector, listed, plan, rivals={"rgb": detector}, progress=done.append)
    assert sum(done) == plan.scores(listed, rivals=1)
    assert [skipped.sample.path for skipped in result.unreadable] == [unreadable]
    assert len(result.scored) == len(samples)
    margin = result.comparison[1].margin
    assert margin is not None
    assert (margin.value, margin.low, margin.high) == (0.0, 0.0, 0.0)
    assert {row.largest_shift for row in result.comparison} == {abs(result.largest_shift.shift.value)}


def test_controls_can_be_measured_on_fewer_pictures(tiny_bundle: Path, samples: list[Sample]) -> None:
    """The figures are still of all pictures, and each shift compares the same pictures with themselves."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    plan = Plan(condition_limit=6)
    done: list[int] = []
    result = evaluate_split("all", detector, samples, plan, progress=done.append)
    assert len(result.scored) == len(samples)
    assert result.altered_pictures == 6
    assert sum(done) == plan.scores(samples, rivals=0) == len(samples) + 4 * 6
    alone = evaluate_split("all", detector, plan.altered(samples), Plan())
    assert result.as_is_auroc.value == pytest.approx(alone.overall.auroc.value)
    assert [control.shift.value for control in result.controls] == pytest.approx(
        [control.shift.value for control in alone.controls]
    )


def test_pictures_of_one_class_give_no_figures(tiny_bundle: Path, samples: list[Sample]) -> None:
    """The error names the split."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    reals = [sample for sample in samples if not sample.generated]
    with pytest.raises(ScoringError, match="test-x"):
        evaluate_split("test-x", detector, reals, Plan())
