"""Figures of scored pictures, overall and by family, against values computed by hand."""

from pathlib import Path

import numpy as np
import pytest

from detector.bundle.thresholds import Thresholds
from detector.evaluation.figures import family_figures, figures
from detector.scoring import Scored

CUTS = Thresholds(review_from=0.4, generated_from=0.8)


def scored(*pictures: tuple[str, float]) -> list[Scored]:
    """Make scored pictures of families with these probabilities; `gan` is the generator."""
    return [
        Scored(Path(str(index)), family.startswith("gan"), family, float(np.log(p / (1 - p))), p)
        for index, (family, p) in enumerate(pictures)
    ]


def test_the_figures_equal_those_computed_by_hand() -> None:
    """Photographs at 0.1, 0.3, 0.5, 0.9 and generated pictures at 0.2, 0.6, 0.85.

    AUROC: 0.2 beats 1 of 4, 0.6 and 0.85 beat 3 each: 7/12. At one half two of four photographs and two of
    three generated pictures are correct: balanced 7/12. At the thresholds 0.4 and 0.8 one of four photographs
    is flagged and one goes to review, one of three generated pictures is detected and one goes to review. At
    most 5 % of four photographs is none, and nothing scores above 0.9.
    """
    f = figures(
        scored(("a", 0.1), ("a", 0.3), ("a", 0.5), ("a", 0.9), ("gan", 0.2), ("gan", 0.6), ("gan", 0.85)),
        CUTS,
    )
    assert (f.real, f.generated) == (4, 3)
    assert f.auroc.value == pytest.approx(7 / 12)
    assert f.balanced_accuracy.value == pytest.approx(7 / 12)
    assert (f.accuracy_on_real.value, f.accuracy_on_generated.value) == (0.5, pytest.approx(2 / 3))
    assert (f.false_positive_rate.value, f.real_reviewed.value) == (0.25, 0.25)
    assert f.detection_rate.value == f.generated_reviewed.value == pytest.approx(1 / 3)
    assert f.reviewed == pytest.approx(2 / 7)
    assert f.tpr_at_fpr_5.value == 0.0
    assert f.rounded()["auroc"] == 0.583
    assert f.rounded()["auroc_low"] <= 0.583 <= f.rounded()["auroc_high"]


def test_a_family_is_measured_against_the_whole_other_class() -> None:
    """The generator at 0.6 beats both sources; source `b`, at 0.5, loses to one of the two generators."""
    rows = family_figures(scored(("a", 0.1), ("b", 0.5), ("gan-1", 0.6), ("gan-2", 0.3)), CUTS)
    assert [(row.family, row.is_generated, row.pictures) for row in rows] == [
        ("gan-1", True, 1),
        ("gan-2", True, 1),
        ("a", False, 1),
        ("b", False, 1),
    ]
    assert [row.figures.auroc.value for row in rows] == [1.0, 0.5, 1.0, 0.5]
    assert [(row.figures.real, row.figures.generated) for row in rows] == [(2, 1), (2, 1), (1, 2), (1, 2)]
