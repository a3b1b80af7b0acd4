"""Health: the answers of the probes, by a clock that the tests set."""

from dataclasses import dataclass

import pytest

from worker.process.health import LIVE_LOOP_SECONDS, READY_LOOP_SECONDS, Health


@dataclass
class Clock:
    """A clock that the test sets."""

    now: float = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@dataclass
class Batcher:
    """A batcher that is stalled for the set time."""

    stalled_seconds: float = 0.0


@pytest.fixture
def clock() -> Clock:
    """Provide the clock of `health`."""
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    """Provide the health of a worker that takes checks, with a broker that answers."""
    health = Health(stall_limit_seconds=10, clock=clock)
    health.became_ready()
    health.broker_answered()
    return health


def test_a_silent_event_loop_fails_readiness_and_then_liveness(health: Health, clock: Clock) -> None:
    """After 5 and 60 seconds, if the broker answers; one beat restores both."""
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


def test_an_unreachable_broker_does_not_fail_liveness(health: Health, clock: Clock) -> None:
    """Not for an hour, and not in the first minute after it is back."""
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


def test_a_stalled_model_fails_both_probes(health: Health, clock: Clock) -> None:
    """Without a broker and during shutdown too."""
    batcher = Batcher(stalled_seconds=9)
    health.watch(batcher)
    assert health.live().ok
    assert health.ready().ok
    batcher.stalled_seconds = 11
    health.broker_failed("unreachable")
    health.shutting_down()
    clock.now += 1
    assert not health.live().ok
    assert "model thread made no progress for 11 seconds" in health.live().reason


def test_a_worker_that_shuts_down_is_alive_and_not_ready(health: Health, clock: Clock) -> None:
    """It finishes its checks after its event loop has ended."""
    health.shutting_down()
    assert health.ready().reason == "shutting down"
    assert not health.ready().ok
    clock.now += 2 * LIVE_LOOP_SECONDS
    assert health.live().ok


def test_a_worker_that_starts_is_alive_and_neither_started_nor_ready(clock: Clock) -> None:
    """Loading a model may take minutes; the reason names the current step."""
    health = Health(stall_limit_seconds=10, clock=clock)
    clock.now += 600
    assert health.live().ok
    assert (health.started().ok, health.started().reason) == (False, "loading the model")
    assert not health.ready().ok
    health.watch(Batcher())
    assert health.started().reason == "connecting to the broker"
    health.became_ready()
    assert health.started().ok
