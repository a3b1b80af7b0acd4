"""Progress of long runs."""

import structlog

from detector.progress import Pace, Progress


def test_a_report_is_due_when_its_time_has_passed() -> None:
    """At once without a waiting time, and not again within half a minute."""
    assert Pace(0).due()
    assert not Pace().due()


def test_progress_says_how_much_is_done_and_how_long_the_rest_takes() -> None:
    """What an earlier run had done counts for the total, not for the rate."""
    with structlog.testing.capture_logs() as events:
        progress = Progress("bank_filled", 100, done=90, seconds=0, part="pictures")
        progress.advance(5)
    (event,) = events
    assert (event["event"], event["done"], event["total"], event["part"]) == (
        "bank_filled",
        95,
        100,
        "pictures",
    )
    assert event["per_second"] > 0
    assert event["remaining_minutes"] >= 0
