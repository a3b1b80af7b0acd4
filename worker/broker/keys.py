"""The names of our keys in Redis; `deploy/redis/users.acl` grants them to each role.

Queues and streams are named in the settings.
"""

#: kombu's hash of the messages that were taken and not acknowledged, by delivery tag, and the sorted set of
#: the tags, scored by the server's time.
UNACKED, UNACKED_INDEX = "unacked", "unacked_index"

#: Sorted set of the worker processes that take checks, scored by the server's time of their last heartbeat.
WORKERS_ALIVE = "workers:alive"
#: Sorted set of the same processes, scored by the pictures per second that each measured at its start. Those
#: of the last fleet stay when no worker lives.
WORKER_RATES = "workers:rates"


def attempts(check_id: str) -> str:
    """Return the hash that counts a check's attempts and names the processes at it."""
    return f"attempts:{check_id}"


def published(stream: str, check_id: str) -> str:
    """Return the record of a check that has its event; braces keep it in the stream's Redis Cluster slot."""
    return f"{{{stream}}}:published:{check_id}"


def thumbnail(stream: str, event_id: str) -> str:
    """Return the key of an event's thumbnail."""
    return f"{{{stream}}}:thumbnail:{event_id}"


def dead_letter_of(stream: str, digest: str) -> str:
    """Return the key that holds the entry id of a message's dead letter; `digest` names the message."""
    return f"{{{stream}}}:of:{digest}"


def dead_letter_of_check(stream: str, check_id: str) -> str:
    """Return the key that holds the entry id of a check's newest dead letter."""
    return f"{{{stream}}}:of:check:{check_id}"


def submitted(check_id: str) -> str:
    """Return the record of a check that came over HTTP."""
    return f"submitted:{check_id}"


def submitted_under(guard: str) -> str:
    """Return the record of an idempotency key; `guard` names caller and key."""
    return f"submitted-under:{guard}"


def verdict_cache(digest: str, model_digest: str, policy: str) -> str:
    """Return the cached verdict of one model on the content with this SHA-256."""
    return f"verdict-cache:{digest}:{model_digest}:{policy}"
