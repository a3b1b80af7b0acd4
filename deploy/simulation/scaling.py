"""The autoscaling rule as KEDA and the Horizontal Pod Autoscaler (HPA) apply it; the caller keeps the time.

KEDA scales a deployment from zero to one and back to zero; between one replica and the maximum it feeds the
HPA of Kubernetes. Both metrics of the chart have the type `AverageValue`, for which the HPA wants
ceil(metric / target) replicas, unless metric / (target x replicas) is within the tolerance of one. The
metrics are the checks waiting or unacknowledged, and the seconds of backlog times the workers alive. The
higher count wins. A scale-down waits until every recommendation in the stabilisation window is lower, and
removes at most half of the replicas per minute; a scale-up at most doubles them, or adds four, per sync
period.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil

#: The HPA ignores smaller deviations from the target (--horizontal-pod-autoscaler-tolerance).
HPA_TOLERANCE = 0.1
#: The HPA's default policies for scaling up: at most this many pods, or this factor, per period.
HPA_MAX_PODS_ADDED = 4
HPA_MAX_FACTOR = 2.0
#: The chart's policy for scaling down: at most this share of the replicas per this period.
MAX_REMOVED_SHARE = 0.5
REMOVAL_PERIOD_SECONDS = 60.0
#: The chart's query clamps the backlog to this.
MAX_BACKLOG_SECONDS = 86_400.0
#: Failed readings of a metric after which KEDA uses its fallback (`failureThreshold`).
KEDA_FAILURE_THRESHOLD = 3


@dataclass(frozen=True)
class ScalingRule:
    """The values under `autoscaling` in the chart; times in seconds.

    The defaults are the chart's, chosen by simulation (docs/explanation/capacity.md), but from zero.
    """

    min_replicas: int = 0
    max_replicas: int = 20
    polling_interval_seconds: float = 15.0
    cooldown_period_seconds: float = 900.0
    backlog_seconds_target: float = 30.0
    checks_per_replica_target: float = 2.0
    scale_down_stabilization_seconds: float = 300.0
    fallback_replicas: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError("replicas: 0 <= min <= max, and max must be at least 1")
        if (
            min(self.polling_interval_seconds, self.backlog_seconds_target, self.checks_per_replica_target)
            <= 0
        ):
            raise ValueError("the polling interval and both targets must be above 0")
        if min(self.cooldown_period_seconds, self.scale_down_stabilization_seconds) < 0:
            raise ValueError("the cool-down and the stabilisation window must not be negative")


@dataclass(frozen=True)
class Load:
    """The exporter's figures: `checks` waiting or unacknowledged, `backlog_seconds`, workers `alive`."""

    checks: float
    backlog_seconds: float
    alive: int


class HorizontalPodAutoscaler:
    """Decides between one replica and the maximum, every `HPA_SYNC_SECONDS`."""

    def __init__(self, rule: ScalingRule) -> None:
        self._rule = rule
        self._recommended: deque[tuple[float, int]] = deque()
        self._removed: deque[tuple[float, int]] = deque()
        self._failures = 0

    def decide(self, now: float, *, replicas: int, load: Load | None) -> int:
        """Return the desired replicas, given the current ones.

        Without a `load` nothing changes until KEDA uses its fallback. Only KEDA scales up from zero.
        """
        if replicas == 0:
            self._recommended.clear()
            self._removed.clear()
            return 0
        if load:
            self._failures = 0
            backlog = min(load.backlog_seconds, MAX_BACKLOG_SECONDS) * max(1, load.alive)
            wanted = max(
                _average(backlog, self._rule.backlog_seconds_target, replicas),
                _average(load.checks, self._rule.checks_per_replica_target, replicas),
            )
        else:
            self._failures += 1
            fall_back = self._failures >= KEDA_FAILURE_THRESHOLD
            wanted = max(replicas, self._rule.fallback_replicas) if fall_back else replicas
        wanted = min(max(wanted, self._rule.min_replicas, 1), self._rule.max_replicas)
        return self._limited(now, replicas, wanted)

    def _limited(self, now: float, replicas: int, wanted: int) -> int:
        self._recommended.append((now, wanted))
        while self._recommended[0][0] < now - self._rule.scale_down_stabilization_seconds:
            self._recommended.popleft()
        while self._removed and self._removed[0][0] <= now - REMOVAL_PERIOD_SECONDS:
            self._removed.popleft()
        if wanted >= replicas:
            return min(wanted, max(replicas + HPA_MAX_PODS_ADDED, ceil(replicas * HPA_MAX_FACTOR)))
        stable = min(replicas, max(recommended for _, recommended in self._recommended))
        before = replicas + sum(count for _, count in self._removed)
        allowed = min(replicas, int(before * (1 - MAX_REMOVED_SHARE)))
        decided = max(stable, allowed)
        if decided < replicas:
            self._removed.append((now, replicas - decided))
        return decided


def _average(total: float, target: float, replicas: int) -> int:
    if abs(total / (target * replicas) - 1) <= HPA_TOLERANCE:
        return replicas
    return ceil(total / target)


class Activation:
    """Scales from zero and back to zero, at every polling interval of KEDA."""

    def __init__(self, rule: ScalingRule) -> None:
        self._rule = rule
        self._active_at = 0.0

    def decide(self, now: float, *, replicas: int, load: Load | None) -> int:
        """Return the desired replicas: one or more when there is work, none after the cool-down."""
        if load is None:
            return replicas or self._rule.fallback_replicas
        if load.checks > 0:
            self._active_at = now
            return replicas or max(1, self._rule.min_replicas)
        cooled = now - self._active_at >= self._rule.cooldown_period_seconds
        return 0 if self._rule.min_replicas == 0 and cooled else replicas
