"""The evaluation of one split."""

from pathlib import Path

import pytest

from detector.corpus.corpus import Sample
from detector.detector import Detector
from detector.evaluation.evaluation import Plan, evaluate_split
from detector.scoring import ScoringError


def test_a_plan_predicts_the_number_of_scores(tiny_bundle: Path, samples: list[Sample]) -> None:
    """Progress reaches the predicted total, with a baseline, the stability check and an unreadable file."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    unreadable = samples[0].path.with_name("text.png")
    unreadable.write_text("not a picture")
    listed = [*samples, Sample(unreadable, generated=False, family="a", group="text")]
    plan = Plan(stability=True)
    done: list[int] = []
    result = evaluate_split("all", detector, listed, plan, baselines={"rgb": detector}, progress=done.append)
    assert sum(done) == plan.scores(listed, baselines=1)
    assert [skipped.sample.path for skipped in result.unreadable] == [unreadable]
    assert len(result.scored) == len(samples)
    margin = result.comparison[1].margin
    assert margin is not None
    assert (margin.value, margin.low, margin.high) == (0.0, 0.0, 0.0)
    assert {row.largest_shift for row in result.comparison} == {abs(result.largest_shift.shift.value)}


def test_controls_can_be_measured_on_fewer_pictures(tiny_bundle: Path, samples: list[Sample]) -> None:
    """The figures still include all pictures, and each shift compares the same pictures."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    plan = Plan(condition_limit=6)
    done: list[int] = []
    result = evaluate_split("all", detector, samples, plan, progress=done.append)
    assert len(result.scored) == len(samples)
    assert result.condition_pictures == 6
    assert sum(done) == plan.scores(samples, baselines=0) == len(samples) + 4 * 6
    alone = evaluate_split("all", detector, plan.condition_samples(samples), Plan())
    assert result.as_is_auroc.value == pytest.approx(alone.overall.auroc.value)
    assert [control.shift.value for control in result.controls] == pytest.approx(
        [control.shift.value for control in alone.controls]
    )


def test_pictures_of_one_class_are_an_error(tiny_bundle: Path, samples: list[Sample]) -> None:
    """The error names the split."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    photographs = [sample for sample in samples if not sample.generated]
    with pytest.raises(ScoringError, match="test-x"):
        evaluate_split("test-x", detector, photographs, Plan())
