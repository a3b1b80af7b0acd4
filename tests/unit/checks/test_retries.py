"""When a check is tried again."""

from worker.checks.retries import retry_delay
from worker.settings import Settings


def test_the_tries_of_a_check_outlast_an_outage_of_a_minute() -> None:
    """Of a thousand checks, with full jitter, none has had all of its tries before."""
    settings = Settings()
    waited = [
        sum(retry_delay(number, settings.longest_retry_seconds) for number in range(settings.max_retries))
        for _ in range(1000)
    ]
    assert min(waited) >= 60


def test_a_check_waits_no_longer_than_a_quarter_of_the_visibility_timeout() -> None:
    """While it waits it is not acknowledged: beyond that timeout it would be delivered again."""
    settings = Settings(visibility_timeout_seconds=20, check_deadline_seconds=10)
    assert max(retry_delay(number, settings.longest_retry_seconds) for number in range(50)) <= 5
