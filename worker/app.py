"""The Celery application and its configuration, for producers and workers alike."""

from celery import Celery
from kombu import Queue

from worker.messages import QUEUES, QueueName
from worker.settings import Settings

DEFAULT_QUEUE: QueueName = "image-checks"


def create_app(settings: Settings) -> Celery:
    """Return the application: JSON only, acknowledged late, no result backend, urgent checks first."""
    app = Celery("dnf-moderation", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_queues=[Queue(name) for name in QUEUES],
        task_default_queue=DEFAULT_QUEUE,
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=5,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_seconds,
            # Left to itself the sweep for lost checks runs only every hundred seconds.
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # Without time limits a frozen connection hangs a worker for ever.
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "health_check_interval": 5,
            # BRPOP looks at the queues in the order in which they are declared: urgent first.
            "queue_order_strategy": "priority",
        },
    )
    return app
