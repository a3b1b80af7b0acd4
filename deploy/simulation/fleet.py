"""A simulated deployment: pods that start, work and drain, and their autoscaler (SimPy)."""

from collections.abc import Callable, Generator

import simpy

from deploy.simulation.scaling import (
    Activation,
    HorizontalPodAutoscaler,
    Load,
    ScalingRule,
)
from worker.operations.capacity import HPA_SYNC_SECONDS, WorkerModel


class Pod:
    """The pod of one worker; `number` counts starts, and a `stopping` pod ends after its current batch."""

    def __init__(self, env: simpy.Environment, number: int) -> None:
        self.number = number
        self.ready = False
        self.stopping = False
        #: Fires when there is work, or when the pod must stop.
        self.woken: simpy.Event = env.event()


class Fleet:
    """The pods of one deployment; `work`, if given, is the process of each ready pod."""

    def __init__(
        self,
        env: simpy.Environment,
        worker: WorkerModel,
        work: Callable[[Pod], Generator[simpy.Event, None, None]] | None = None,
    ) -> None:
        self._env = env
        self._worker = worker
        self._work = work
        self._pods: list[Pod] = []
        self._started = 0
        self.ready = 0
        self.draining = 0

    @property
    def replicas(self) -> int:
        """The desired number of pods."""
        return len(self._pods)

    @property
    def paid(self) -> int:
        """Pods that occupy a machine: starting, ready or draining."""
        return len(self._pods) + self.draining

    def scale_to(self, replicas: int, *, immediately: bool = False) -> None:
        """Start or stop pods; pods that are not ready stop first, then the youngest, as in Kubernetes."""
        while len(self._pods) < replicas:
            pod = Pod(self._env, self._started)
            self._started += 1
            self._pods.append(pod)
            self._env.process(self._life(pod, 0.0 if immediately else self._worker.start_seconds))
        for pod in sorted(self._pods, key=lambda pod: (pod.ready, -pod.number))[: len(self._pods) - replicas]:
            self._pods.remove(pod)
            pod.stopping = True
            if pod.ready:
                self.ready -= 1
                self.draining += self._work is not None
            if not pod.woken.triggered:
                pod.woken.succeed()

    def _life(self, pod: Pod, start_seconds: float) -> Generator[simpy.Event, None, None]:
        yield self._env.timeout(start_seconds)
        if pod.stopping:
            return
        pod.ready = True
        self.ready += 1
        if self._work is not None:
            yield from self._work(pod)
            self.draining -= 1


def autoscale(
    env: simpy.Environment, fleet: Fleet, rule: ScalingRule, load: Callable[[], Load | None]
) -> None:
    """Let KEDA and the HPA scale the fleet; `load` returns the current metrics, None if unreadable."""
    activation, autoscaler = Activation(rule), HorizontalPodAutoscaler(rule)

    def poll() -> Generator[simpy.Event, None, None]:
        while True:
            yield env.timeout(rule.polling_interval_seconds)
            fleet.scale_to(activation.decide(env.now, replicas=fleet.replicas, load=load()))

    def sync() -> Generator[simpy.Event, None, None]:
        while True:
            yield env.timeout(HPA_SYNC_SECONDS)
            fleet.scale_to(autoscaler.decide(env.now, replicas=fleet.replicas, load=load()))

    env.process(poll())
    env.process(sync())
