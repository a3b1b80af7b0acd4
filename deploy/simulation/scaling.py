"""The autoscaler's rule, as KEDA and the Horizontal Pod Autoscaler apply it; no clock of its own.

KEDA wakes a deployment from zero and puts it back to zero; between one replica and the most it feeds the
Horizontal Pod Autoscaler (HPA) of Kubernetes. The chart's two figures are both of the kind `AverageValue`,
for which the HPA's replica calculator wants ceil(figure / target) replicas, unless figure / (target x
replicas) is within the tolerance of one. They are the checks waiting or unacknowledged, and the seconds of
backlog times the workers alive. The higher count wins; a scale-down waits until every recommendation of the
stabilisation window is lower, and takes at most half in a minute; a scale-up at most doubles the replicas, or
adds four, in one sync period.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil

#: Seconds between two decisions of the HPA (--horizontal-pod-autoscaler-sync-period).
HPA_SYNC_SECONDS = 15.0
#: The HPA ignores deviations from the target up to this share (--horizontal-pod-autoscaler-tolerance).
HPA_TOLERANCE = 0.1
#: The HPA's default policies for scaling up: so many pods, or so many times as many, in one period.
HPA_MOST_PODS_ADDED = 4
HPA_MOST_TIMES = 2.0
#: The chart's policy for scaling down: at most so large a share goes in so many seconds.
MOST_REMOVED_SHARE = 0.5
MOST_REMOVED_SECONDS = 60.0
#: The chart's query lets no backlog count for more.
LONGEST_BACKLOG_SECONDS = 86_400.0
#: Failed readings of a metric after which KEDA falls back (`failureThreshold`).
KEDA_FAILURE_THRESHOLD = 3


@dataclass(frozen=True)
class ScalingRule:
    """What an operator sets, under `autoscaling` in the chart; times in seconds.

    The defaults are the ones that the simulation chose for the chart (docs/capacity.md).
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
            raise ValueError("replicas: 0 <= min <= max, and max at least 1")
        if (
            min(self.polling_interval_seconds, self.backlog_seconds_target, self.checks_per_replica_target)
            <= 0
        ):
            raise ValueError("the polling interval and both targets must be above 0")
        if min(self.cooldown_period_seconds, self.scale_down_stabilization_seconds) < 0:
            raise ValueError("the cool-down and the stabilisation window must not be negative")


@dataclass(frozen=True)
class Load:
    """What the exporter says: `checks` waiting or in work, `backlog_seconds`, workers `alive`."""

    checks: float
    backlog_seconds: float
    alive: int


class HorizontalPodAutoscaler:
    """Decides between one replica and the most, every `HPA_SYNC_SECONDS`."""

    def __init__(self, rule: ScalingRule) -> None:
        self._rule = rule
        self._recommended: deque[tuple[float, int]] = deque()
        self._removed: deque[tuple[float, int]] = deque()
        self._failures = 0

    def decide(self, now: float, *, replicas: int, load: Load | None) -> int:
        """Return the replicas to have, given those asked for so far.

        Without a `load` nothing changes, until KEDA falls back. A deployment at zero is KEDA's to wake.
        """
        if replicas == 0:
            self._recommended.clear()
            self._removed.clear()
            return 0
        if load:
            self._failures = 0
            backlog = min(load.backlog_seconds, LONGEST_BACKLOG_SECONDS) * max(1, load.alive)
            wanted = max(
                _average(backlog, self._rule.backlog_seconds_target, replicas),
                _average(load.checks, self._rule.checks_per_replica_target, replicas),
            )
        else:
            self._failures += 1
            fallen = self._failures >= KEDA_FAILURE_THRESHOLD
            wanted = max(replicas, self._rule.fallback_replicas) if fallen else replicas
        wanted = min(max(wanted, self._rule.min_replicas, 1), self._rule.max_replicas)
        return self._restrained(now, replicas, wanted)

    def _restrained(self, now: float, replicas: int, wanted: int) -> int:
        self._recommended.append((now, wanted))
        while self._recommended[0][0] < now - self._rule.scale_down_stabilization_seconds:
            self._recommended.popleft()
        while self._removed and self._removed[0][0] <= now - MOST_REMOVED_SECONDS:
            self._removed.popleft()
        if wanted >= replicas:
            return min(wanted, max(replicas + HPA_MOST_PODS_ADDED, ceil(replicas * HPA_MOST_TIMES)))
        stable = min(replicas, max(recommended for _, recommended in self._recommended))
        before = replicas + sum(count for _, count in self._removed)
        allowed = min(replicas, int(before * (1 - MOST_REMOVED_SHARE)))
        decided = max(stable, allowed)
        if decided < replicas:
            self._removed.append((now, replicas - decided))
        return decided


def _average(total: float, target: float, replicas: int) -> int:
    if abs(total / (target * replicas) - 1) <= HPA_TOLERANCE:
        return replicas
    return ceil(total / target)


class Activation:
    """Wakes from zero and puts back to zero, at every polling interval of KEDA."""

    def __init__(self, rule: ScalingRule) -> None:
        self._rule = rule
        self._active_at = 0.0

    def decide(self, now: float, *, replicas: int, load: Load | None) -> int:
        """Return the replicas to have: one or more when there is work, none after the cool-down."""
        if load is None:
            return replicas or self._rule.fallback_replicas
        if load.checks > 0:
            self._active_at = now
            return replicas or max(1, self._rule.min_replicas)
        cooled = now - self._active_at >= self._rule.cooldown_period_seconds
        return 0 if self._rule.min_replicas == 0 and cooled else replicas
