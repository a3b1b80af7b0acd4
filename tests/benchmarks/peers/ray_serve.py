"""Ray Serve's asynchronous inference, with its Celery adapter."""

import os
import sys
import time

import ray
from ray import serve
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import task_consumer, task_handler

from tests.benchmarks.peers.examination import Examination
from worker.contract.messages import CHECK_IMAGE

_THREADS = 32

_config = TaskProcessorConfig(
    queue_name="peer-checks",
    adapter_config=CeleryAdapterConfig(
        broker_url=os.environ["DNF_REDIS_URL"],
        backend_url=os.environ["DNF_REDIS_URL"],
        broker_transport_options={"visibility_timeout": int(os.environ["PEER_VISIBILITY_SECONDS"])},
    ),
)


@serve.deployment(num_replicas=1, max_ongoing_requests=_THREADS, ray_actor_options={"num_cpus": 1})
@task_consumer(task_processor_config=_config)
class Checks:
    """Consumes checks; its results go to Celery's result backend."""

    def __init__(self) -> None:
        self._examination = Examination()

    @task_handler(name=CHECK_IMAGE)
    def check(self, message: dict[str, str]) -> float:
        """Return the score of an upload."""
        prepared = self._examination.prepared(message["bucket"], message["key"])
        return self._examination.examine([prepared])[0].probability


if __name__ == "__main__":
    names = ("DNF_", "PEER_", "PYTHONPATH", "OMP_")
    inherited = {name: value for name, value in os.environ.items() if name.startswith(names)}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": inherited})
    serve.run(Checks.bind(), route_prefix=None)
    sys.stdout.write("worker_ready\n")
    sys.stdout.flush()
    while True:
        time.sleep(3600)
