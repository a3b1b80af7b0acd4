"""A burst ends when nothing is queued or unacknowledged."""

import threading
from collections.abc import Callable

import redis

from worker.contract.messages import DEFAULT_QUEUE
from worker.process.run import message_counts


def test_a_message_that_is_taken_and_requeued_all_the_time_is_always_counted_once(
    new_database: Callable[[], str],
) -> None:
    """Counted apart it would be missed on its way, and a burst would end before its last check."""
    url, ended = new_database(), threading.Event()

    def take_and_requeue() -> None:
        with redis.Redis.from_url(url) as broker:
            while not ended.is_set():
                with broker.pipeline() as step:
                    step.rpop(DEFAULT_QUEUE).hset("unacked", "tag", "check").execute()
                with broker.pipeline() as step:
                    step.hdel("unacked", "tag").lpush(DEFAULT_QUEUE, "check").execute()

    with redis.Redis.from_url(url) as broker:
        broker.lpush(DEFAULT_QUEUE, "check")
        thread = threading.Thread(target=take_and_requeue)
        thread.start()
        counted = {sum(message_counts(broker)) for _ in range(100)}
        ended.set()
        thread.join()
    assert counted == {1}
