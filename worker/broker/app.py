"""The Celery application and its configuration, for producers and workers alike."""

from celery import Celery
from kombu import Queue

from worker.broker.connection import tls_options
from worker.broker.transport import UnacknowledgedMessages
from worker.contract.messages import DEFAULT_QUEUE, QUEUES
from worker.settings import Settings


def create_app(settings: Settings, unacknowledged: UnacknowledgedMessages | None = None) -> Celery:
    """Return the application: JSON only, acknowledged late, no result backend, urgent checks first.

    `unacknowledged` keeps account of the messages that a worker takes.
    """
    url = settings.redis_url.get_secret_value()
    app = Celery("dnf-moderation", broker=url, set_as_current=False)
    app.conf.update(
        broker_transport="worker.broker.transport:Transport",
        # Without options kombu would encrypt and not verify the certificate.
        broker_use_ssl=tls_options(settings.broker) or None,
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
        # A worker outlives every outage of its broker; Celery's own hundred attempts end after an hour.
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_seconds,
            # By default the sweep for expired messages runs every hundred seconds.
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # Without timeouts a frozen connection hangs a worker for ever.
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "health_check_interval": 5,
            # Each thread acknowledges its own checks.
            "max_connections": settings.threads + 2,
            # A worker takes from the queues in the order of their declaration: urgent first.
            "queue_order_strategy": "priority",
            "unacknowledged": unacknowledged or UnacknowledgedMessages(),
            "dead_letter_stream": settings.dead_letter_stream,
            "longest_wait_seconds": float(settings.visibility_timeout_seconds),
        },
    )
    return app
