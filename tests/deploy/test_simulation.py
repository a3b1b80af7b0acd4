"""The simulation compared with queueing theory, and slices compared with single checks."""

from math import factorial

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.simulation.scaling import ScalingRule
from deploy.simulation.simulation import simulate
from deploy.simulation.traffic import Traffic
from worker.operations.capacity import DAY_SECONDS, WorkerModel

RULE = ScalingRule()


def _poisson(rate: float, seconds: int, seed: int = 3) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.random.default_rng(seed).poisson(rate, seconds)
    return counts


def _erlang_c_wait(rate: float, service_rate: float, workers: int) -> float:
    """Return the mean wait in M/M/c: C(c, a) / (c mu - lambda), with Erlang's C formula."""
    offered = rate / service_rate
    last = offered**workers / factorial(workers) * workers / (workers - offered)
    waits = last / (sum(offered**k / factorial(k) for k in range(workers)) + last)
    return waits / (workers * service_rate - rate)


@pytest.mark.parametrize(("rate", "workers"), [(0.7, 1), (3.4, 4)])
def test_single_checks_wait_as_in_erlangs_formula(rate: float, workers: int) -> None:
    """M/M/1 at 0.7 and M/M/4 at 0.85 utilisation, batches of one, exponential times."""
    worker = WorkerModel(1.0, batch_size=1, overhead_seconds=0, times="exponential")
    outcome = simulate(_poisson(rate, 40_000 // workers), worker, RULE, exact=True, fixed_replicas=workers)
    assert outcome.mean_wait == pytest.approx(_erlang_c_wait(rate, 1.0, workers), rel=0.15)


def test_single_checks_wait_as_in_the_pollaczek_khinchine_formula() -> None:
    """M/D/1 at 0.8 utilisation: rho / (2 mu (1 - rho)) = 2 seconds with constant times of one second."""
    worker = WorkerModel(1.0, batch_size=1, overhead_seconds=0)
    outcome = simulate(_poisson(0.8, 40_000), worker, RULE, exact=True, fixed_replicas=1)
    assert outcome.mean_wait == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("exact", [False, True])
def test_waits_grow_linearly_in_an_overload(exact: bool) -> None:
    """Ten per second for 100 seconds, served at five: the last waits 100 seconds, the median 50."""
    arrivals = np.full(100, 10, dtype=np.int64)
    worker = WorkerModel(5.0, batch_size=1, overhead_seconds=0)
    outcome = simulate(arrivals, worker, RULE, exact=exact, fixed_replicas=1)
    assert outcome.checks == outcome.weights.sum() == 1000
    assert outcome.wait(0.5) == pytest.approx(50, abs=2)
    assert outcome.waits.max() == pytest.approx(100, abs=2)
    assert outcome.in_system.max() == pytest.approx(500, rel=0.03)


@pytest.mark.parametrize("batch", [1, 8])
def test_slices_agree_with_single_checks(batch: int) -> None:
    """An hour with a doubled rate in between, autoscaled: hours within a third, waits within 3 s."""
    rates = 9 * (1 + np.clip(1 - np.abs(np.arange(3_600) - 1_500) / 400, 0, 1))
    arrivals = np.random.default_rng(5).poisson(rates)
    worker = WorkerModel(3.0, start_seconds=60, batch_size=batch)
    coarse, exact = (simulate(arrivals, worker, RULE, exact=way) for way in (False, True))
    assert coarse.checks == exact.checks == exact.weights.sum()
    assert coarse.worker_hours == pytest.approx(exact.worker_hours, rel=0.35)
    for share in (0.5, 0.95):
        assert coarse.wait(share) == pytest.approx(exact.wait(share), abs=3)
    # The fleet followed the rise.
    assert coarse.paid.max() >= 8
    assert exact.paid.max() >= 8


@pytest.mark.parametrize("exact", [False, True])
def test_a_check_without_workers_waits_for_a_scrape_a_poll_and_a_start(exact: bool) -> None:
    """At least the start of 60 s, at most a scrape and a polling interval more."""
    arrivals = np.zeros(1200, dtype=np.int64)
    arrivals[900] = 1
    outcome = simulate(arrivals, WorkerModel(3.0, start_seconds=60), RULE, exact=exact)
    assert 60 <= outcome.waits[outcome.weights > 0].max() <= 60 + 15 + 15 + 2
    assert outcome.paid[:900].max() == 0


def test_stopped_workers_finish_their_checks() -> None:
    """When the load ends, the fleet shrinks and every check is done."""
    arrivals = np.where(np.arange(3600) < 900, 20, 0)
    outcome = simulate(arrivals, WorkerModel(3.0, start_seconds=30), RULE, exact=True)
    assert len(outcome.waits) == outcome.checks == 18_000
    assert outcome.paid.max() >= 8
    assert outcome.paid[-1] == 0


def test_remaining_workers_take_checks_at_once_after_a_scale_down() -> None:
    """Single checks long after a busy hour do not wait."""
    arrivals = np.where(np.arange(7200) < 900, 20, 0)
    arrivals[5000::100] = 1
    worker = WorkerModel(3.0, start_seconds=30)
    outcome = simulate(arrivals, worker, ScalingRule(min_replicas=2), exact=True)
    assert outcome.paid[:1500].max() > outcome.paid[5000] == 2
    assert outcome.waits[outcome.arrived_at >= 5000].max() == 0


def test_the_fallback_applies_while_metrics_are_unreadable() -> None:
    """From zero, without metrics for ten minutes: exactly the fallback's replicas."""
    arrivals = np.full(600, 5, dtype=np.int64)
    worker = WorkerModel(3.0, start_seconds=30)
    rule = ScalingRule(fallback_replicas=3, min_replicas=1, checks_per_replica_target=2)
    outcome = simulate(arrivals, worker, rule, blind=(0, 600))
    assert outcome.paid[120:].max() == 3


def test_traffic_has_the_given_checks_peak_and_bursts() -> None:
    """The peak factor is as given, bursts stand out, and the same seed gives the same day."""
    smooth = Traffic(1e6, peak_factor=3.0, bursts=0)
    assert smooth.rates().sum() == pytest.approx(1e6)
    assert smooth.rates().max() / smooth.rates().mean() == pytest.approx(3.0, rel=0.01)
    assert smooth.rates().argmax() == pytest.approx(20 * 3600, abs=60)
    bursty = Traffic(1e6, peak_factor=3.0, bursts=4, burst_factor=3.0)
    ratio = bursty.rates() / smooth.rates()
    assert ratio.max() / np.median(ratio) == pytest.approx(3.0, rel=0.02)
    assert len(bursty.arrivals()) == DAY_SECONDS
    assert (bursty.arrivals() == bursty.arrivals()).all()


def test_a_short_cool_down_costs_waits_and_worker_hours() -> None:
    """The reason for the chart's 900 seconds: an evening with few checks, check by check."""
    evening = slice(16 * 3600, 20 * 3600)
    arrivals = Traffic(20_000, peak_factor=6.0).arrivals()[evening]
    chosen, short = (
        simulate(arrivals, WorkerModel(3.0), ScalingRule(cooldown_period_seconds=seconds), exact=True)
        for seconds in (RULE.cooldown_period_seconds, 60.0)
    )
    assert chosen.wait(0.95) < 5 < short.wait(0.95)
    assert chosen.worker_hours < short.worker_hours


def test_a_high_target_costs_waits_and_worker_hours() -> None:
    """The reason for the chart's target: with 16 times as much, checks wait and the fleet costs more."""
    arrivals = Traffic(1e6).arrivals()[: DAY_SECONDS // 4]
    worker = WorkerModel(3.0)
    chosen, high = (
        simulate(arrivals, worker, ScalingRule(checks_per_replica_target=target))
        for target in (RULE.checks_per_replica_target, 16 * RULE.checks_per_replica_target)
    )
    assert chosen.wait(0.95) < 5 < high.wait(0.95)
    assert chosen.worker_hours < high.worker_hours
