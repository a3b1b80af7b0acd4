"""How long a check waits before it is retried."""

import random

import pytest

from worker.checks.retries import retry_delay
from worker.settings import Settings


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draw the same jitter in every run."""
    random.seed(0)


def test_the_retries_of_a_check_outlast_an_outage_of_a_minute() -> None:
    """The delays of each of a thousand checks, with full jitter, add up to more."""
    settings = Settings()
    totals = [
        sum(retry_delay(retry, settings.longest_retry_seconds) for retry in range(settings.max_retries))
        for _ in range(1000)
    ]
    assert min(totals) >= 60


def test_a_retry_waits_for_at_most_a_quarter_of_the_visibility_timeout() -> None:
    """The check is unacknowledged meanwhile: after the timeout it would be delivered again."""
    settings = Settings(visibility_timeout_seconds=20, check_deadline_seconds=10)
    assert max(retry_delay(retry, settings.longest_retry_seconds) for retry in range(50)) <= 5
