"""Shadow: a shadow detector that fails, hangs or is missing affects no check."""

import math
import threading
from collections.abc import Callable, Sequence
from time import monotonic

import numpy as np
import pytest

from detector.detector import Finding
from detector.images.views import PreparedPicture
from tests.conftest import PATIENCE
from tests.null_detector import NullDetector, null_finding
from worker.checks.shadow import Shadow
from worker.settings import Settings
from worker.telemetry.metrics import REGISTRY

GREY = np.full((64, 64, 3), 128, dtype=np.uint8)


class _Detector(NullDetector):
    """A null detector that calls a function for each probability."""

    def __init__(self, probability: Callable[[], float]) -> None:
        super().__init__()
        self._probability = probability

    def examine(self, prepared: Sequence[PreparedPicture]) -> list[Finding]:
        """Return findings with the function's probabilities."""
        return [null_finding(picture, self._probability()) for picture in prepared]


def _figure(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_the_difference_of_scores_and_the_disagreement_of_verdicts_are_counted() -> None:
    """Here of 0.9 and a serving score of 0.5."""
    sum_before = _figure("dnf_shadow_score_difference_count")
    shadow = Shadow(_Detector(lambda: 0.9))
    own = shadow.compare(shadow.submit(GREY), 0.5, "review")
    shadow.close()
    assert own is not None
    assert (own.score, own.verdict, own.model.name) == (0.9, "generated", "null")
    assert _figure("dnf_shadow_score_difference_count") == sum_before + 1
    assert _figure("dnf_shadow_score_difference_bucket", le="0.5") == 1
    assert _figure("dnf_shadow_score_difference_bucket", le="0.2") == 0
    assert _figure("dnf_shadow_disagreements_total", serving="review", shadow="generated") == 1


def _raise() -> float:
    raise RuntimeError("no memory")


@pytest.mark.parametrize(
    "probability", [_raise, lambda: math.nan, lambda: 7.0], ids=["raises", "nan", "above 1"]
)
def test_a_shadow_that_fails_has_no_verdict_and_is_counted(probability: Callable[[], float]) -> None:
    """After an exception, or with a score outside of 0..1."""
    failures = _figure("dnf_shadow_failures_total")
    shadow = Shadow(_Detector(probability))
    assert shadow.compare(shadow.submit(GREY), 0.5, "review") is None
    shadow.close()
    assert _figure("dnf_shadow_failures_total") == failures + 1


def test_a_shadow_that_hangs_delays_one_check_by_its_timeout(wait_until: Callable[..., None]) -> None:
    """It is not asked for those that follow, and `close` returns."""
    # Its queue has places for 400: a full queue is not the reason why it is not asked.
    hanging = _Detector(lambda: float(threading.Event().wait()))
    shadow = Shadow(hanging, batch_size=100, timeout_seconds=0.2)
    first = shadow.submit(GREY)
    assert first is not None
    began = monotonic()
    assert shadow.compare(first, 0.5, "review") is None
    assert monotonic() - began >= 0.2
    wait_until(lambda: shadow.submit(GREY) is None, "the shadow is not asked", seconds=5)
    assert shadow.compare(None, 0.5, "review") is None
    began = monotonic()
    shadow.close()
    assert monotonic() - began < 5 * PATIENCE


def test_a_shadow_that_cannot_be_loaded_is_logged_and_counted_for_every_check(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without a shadow bundle nothing is counted."""
    failures = _figure("dnf_shadow_failures_total")
    shadow = Shadow.load(Settings(shadow_bundle="/there/is/no/bundle"))
    assert shadow.submit(GREY) is None
    assert shadow.compare(None, 0.5, "review") is None
    assert _figure("dnf_shadow_failures_total") == failures + 1
    logged = capfd.readouterr()
    assert "shadow_unavailable" in logged.out + logged.err
    none = Shadow.load(Settings())
    assert none.submit(GREY) is None
    assert none.compare(None, 0.5, "review") is None
    assert _figure("dnf_shadow_failures_total") == failures + 1
