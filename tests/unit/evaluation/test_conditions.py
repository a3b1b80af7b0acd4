"""Format controls and degradations."""

import numpy as np
import pytest

from detector.corpus.corpus import Sample
from detector.evaluation.conditions import CONTROLS, DEGRADATIONS, Control, Degradation
from detector.images.decode import decode
from detector.scoring import as_is


def test_each_format_control_changes_its_classes(samples: list[Sample]) -> None:
    """`alike` and `lossless` both, `swapped` the generated pictures, `swapped_back` the photographs."""
    real, generated = samples[0], samples[1]
    before = {sample.path: decode(sample.path.read_bytes()).pixels for sample in (real, generated)}
    changed = {}
    for control in (Control("as_is", "", as_is), *CONTROLS):
        after = [control.rewrite(before[sample.path], sample) for sample in (real, generated)]
        changed[control.name] = [
            not np.array_equal(new, before[sample.path])
            for new, sample in zip(after, (real, generated), strict=True)
        ]
        assert after[0].shape[:2] == ((60, 72) if control.rescaled else (80, 96))
    assert changed == {
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
    """The same picture with either label gives the same pixels, and every strength changes them."""
    original = samples[0]
    pixels = decode(original.path.read_bytes()).pixels
    relabelled = Sample(original.path, not original.generated, "other", "other")
    for strength in degradation.strengths("full"):
        rewrite = degradation.at(strength)
        np.testing.assert_array_equal(rewrite(pixels, original), rewrite(pixels, relabelled))
        assert not np.array_equal(rewrite(pixels, original), pixels)
    if degradation.identity is not None:
        np.testing.assert_array_equal(degradation.at(degradation.identity)(pixels, original), pixels)


def test_degradations_go_from_mild_to_strong() -> None:
    """Strengths are sorted, the identity is milder than all, and the quick ones are among the full."""
    for degradation in DEGRADATIONS:
        for extent in ("quick", "full"):
            first = [] if degradation.identity is None else [degradation.identity]
            strengths = [*first, *degradation.strengths(extent)]
            assert strengths in (sorted(strengths), sorted(strengths, reverse=True))
        assert len(degradation.quick) == 2
