"""The verdict policy."""

from detector.bundle.thresholds import Thresholds
from detector.policy import decide


def test_the_verdict_follows_the_two_thresholds() -> None:
    """A probability equal to a threshold has the stricter verdict."""
    thresholds = Thresholds(review_from=0.4, generated_from=0.8)
    verdicts = [decide(p, thresholds) for p in (0.0, 0.39, 0.4, 0.79, 0.8, 1.0)]
    assert verdicts == ["real", "real", "review", "review", "generated", "generated"]
