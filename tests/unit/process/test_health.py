"""What the probes say, by a clock that the tests turn."""

from dataclasses import dataclass

import pytest

from worker.process.health import LIVE_LOOP_SECONDS, READY_LOOP_SECONDS, Health


@dataclass
class Clock:
    """Seconds that pass when the test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@dataclass
class Batcher:
    """A batcher that is stalled for as long as the test says."""

    stalled_seconds: float = 0.0


@pytest.fixture
def clock() -> Clock:
    """Provide the clock of `health`."""
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    """Provide the health of a worker that takes checks from a broker that answers."""
    health = Health(stall_limit_seconds=10, clock=clock)
    health.became_ready()
    health.broker_answered()
    return health


def test_a_loop_that_is_silent_beside_a_broker_that_answers_is_not_ready_and_then_not_alive(
    health: Health, clock: Clock
) -> None:
    """Not ready after five seconds, dead after sixty; one beat brings both back."""
    assert health.ready().ok
    clock.now += READY_LOOP_SECONDS + 1
    assert not health.ready().ok
    assert health.live().ok
    clock.now += LIVE_LOOP_SECONDS
    assert not health.live().ok
    assert "event loop was silent for 66 seconds" in health.live().reason
    health.beat()
    assert health.live().ok
    assert health.ready().ok


def test_a_loop_that_waits_for_its_broker_is_alive_for_as_long_as_that_takes(
    health: Health, clock: Clock
) -> None:
    """An hour without a broker is no hang, and neither is the first minute with it."""
    health.broker_failed("ConnectionError: refused")
    clock.now += 3600
    assert health.live().ok
    assert "refused" in health.live().reason
    assert not health.ready().ok
    health.broker_answered()
    clock.now += LIVE_LOOP_SECONDS - 1
    assert health.live().ok
    clock.now += 2
    assert not health.live().ok


def test_a_model_that_makes_no_progress_is_dead_whatever_the_broker_does(
    health: Health, clock: Clock
) -> None:
    """Over its limit the batcher fails both probes, also while the worker stops."""
    app_batcher = Batcher(stalled_seconds=9)
    health.watch(app_batcher)
    assert health.live().ok
    assert health.ready().ok
    app_batcher.stalled_seconds = 11
    health.broker_failed("away")
    health.shutting_down()
    clock.now += 1
    assert not health.live().ok
    assert "model thread made no progress for 11 seconds" in health.live().reason


def test_a_worker_that_stops_is_alive_and_not_ready(health: Health, clock: Clock) -> None:
    """It finishes what it began, though its loop has ended."""
    health.shutting_down()
    assert health.ready().reason == "shutting down"
    assert not health.ready().ok
    clock.now += 2 * LIVE_LOOP_SECONDS
    assert health.live().ok


def test_a_worker_that_starts_is_alive_and_neither_started_nor_ready(clock: Clock) -> None:
    """Loading a model may take minutes; the reason says what is waited for."""
    health = Health(stall_limit_seconds=10, clock=clock)
    clock.now += 600
    assert health.live().ok
    assert (health.started().ok, health.started().reason) == (False, "loading the model")
    assert not health.ready().ok
    health.watch(Batcher())
    assert health.started().reason == "connecting to the broker"
    health.became_ready()
    assert health.started().ok
