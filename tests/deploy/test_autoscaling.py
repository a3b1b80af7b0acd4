"""The autoscaling rule as KEDA and the Horizontal Pod Autoscaler document it."""

from pathlib import Path

import pytest
import yaml

from deploy.simulation.scaling import Activation, HorizontalPodAutoscaler, Load, ScalingRule
from worker.operations.capacity import WorkerModel, recommended_target

VALUES = Path(__file__).parents[2] / "deploy" / "chart" / "values.yaml"
RULE = ScalingRule(
    min_replicas=1,
    max_replicas=50,
    backlog_seconds_target=30,
    checks_per_replica_target=10,
    scale_down_stabilization_seconds=300,
    fallback_replicas=6,
)


def _checks(count: float) -> Load:
    return Load(checks=count, backlog_seconds=0, alive=1)


def test_the_chart_has_the_values_of_the_simulation() -> None:
    """The target is the plan's recommendation for the default CPU worker; the minimum is the chart's own."""
    chosen = yaml.safe_load(VALUES.read_text())["autoscaling"]
    rule = ScalingRule()
    assert {
        "maxReplicas": rule.max_replicas,
        "pollingIntervalSeconds": rule.polling_interval_seconds,
        "cooldownPeriodSeconds": rule.cooldown_period_seconds,
        "backlogSecondsTarget": rule.backlog_seconds_target,
        "checksPerReplicaTarget": rule.checks_per_replica_target,
        "scaleDownStabilizationSeconds": rule.scale_down_stabilization_seconds,
        "fallbackReplicas": rule.fallback_replicas,
    }.items() <= chosen.items()
    assert (chosen["minReplicas"], rule.min_replicas) == (1, 0)
    assert rule.checks_per_replica_target == recommended_target(WorkerModel(pictures_per_second=3))


@pytest.mark.parametrize(
    ("replicas", "checks", "wanted"),
    [(10, 100, 10), (10, 109, 10), (10, 91, 10), (10, 112, 12), (4, 71, 8), (40, 1000, 50)],
)
def test_replicas_follow_the_checks_outside_of_the_tolerance(
    replicas: int, checks: float, wanted: int
) -> None:
    """Ceil(checks / target), unless the ratio is within 0.1 of one; never above the maximum."""
    assert HorizontalPodAutoscaler(RULE).decide(0, replicas=replicas, load=_checks(checks)) == wanted


def test_replicas_grow_in_proportion_to_the_backlog() -> None:
    """Ten workers with a backlog of 45 seconds and a target of 30 become fifteen."""
    load = Load(checks=1, backlog_seconds=45, alive=10)
    assert HorizontalPodAutoscaler(RULE).decide(0, replicas=10, load=load) == 15


def test_a_scale_up_at_most_doubles_or_adds_four() -> None:
    """The larger of the two in one period of 15 seconds."""
    autoscaler = HorizontalPodAutoscaler(RULE)
    sizes = [1]
    for step in range(5):
        sizes.append(autoscaler.decide(15 * step, replicas=sizes[-1], load=_checks(1000)))
    assert sizes == [1, 5, 10, 20, 40, 50]


def test_a_scale_down_waits_for_the_window_and_removes_half_per_minute() -> None:
    """After five minutes of low demand 40 replicas become 20, a minute later 10."""
    autoscaler = HorizontalPodAutoscaler(RULE)
    replicas, changes = 40, []
    autoscaler.decide(0, replicas=replicas, load=_checks(400))
    for now in range(15, 480, 15):
        decided = autoscaler.decide(now, replicas=replicas, load=_checks(10))
        if decided != replicas:
            changes.append((now, decided))
        replicas = decided
    assert changes[:3] == [(315, 20), (375, 10), (435, 5)]


def test_without_metrics_nothing_changes_until_the_fallback() -> None:
    """After three failed readings, at least the fallback's replicas, and never fewer than before."""
    autoscaler = HorizontalPodAutoscaler(RULE)
    assert [autoscaler.decide(15 * step, replicas=2, load=None) for step in range(4)] == [2, 2, 6, 6]
    assert [HorizontalPodAutoscaler(RULE).decide(15 * n, replicas=9, load=None) for n in range(4)] == [9] * 4


def test_a_deployment_scales_from_zero_and_back_after_the_cool_down() -> None:
    """The first check starts one worker; it is removed after a cool-down without checks."""
    activation = Activation(ScalingRule(min_replicas=0, cooldown_period_seconds=300))
    assert activation.decide(0, replicas=0, load=_checks(0)) == 0
    assert activation.decide(15, replicas=0, load=_checks(1)) == 1
    assert activation.decide(300, replicas=1, load=_checks(0)) == 1
    assert activation.decide(315, replicas=1, load=_checks(0)) == 0
    assert HorizontalPodAutoscaler(RULE).decide(0, replicas=0, load=_checks(100)) == 0


def test_a_deployment_never_falls_below_its_minimum() -> None:
    """With a minimum of one, the cool-down has no effect."""
    activation = Activation(ScalingRule(min_replicas=1))
    assert activation.decide(10_000, replicas=1, load=_checks(0)) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"min_replicas": 3, "max_replicas": 2},
        {"min_replicas": -1},
        {"max_replicas": 0},
        {"polling_interval_seconds": 0},
        {"checks_per_replica_target": 0},
        {"cooldown_period_seconds": -1},
    ],
)
def test_an_inconsistent_rule_is_refused(values: dict[str, int]) -> None:
    """By its constructor."""
    with pytest.raises(ValueError, match=r"must|<="):
        ScalingRule(**values)  # type: ignore[arg-type]
